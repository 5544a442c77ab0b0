//! Exponential averages over time: every window counts for one and halves in a half-life, so the first few average as
//! plain means do and gaps age what is known.

/// What is left after `elapsed_ms` of something that halves in `half_life_ms`.
pub(super) fn decay(elapsed_ms: u64, half_life_ms: u64) -> f64 {
    (-(elapsed_ms as f64) / half_life_ms as f64).exp2()
}

/// An average of one number per expert.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct VectorAverage {
    /// `[experts]`; empty before the first window.
    pub(super) mean: Vec<f32>,
    /// Windows in it, each halved as often as it is half-lives old.
    pub(super) weight: f64,
}

impl VectorAverage {
    /// Takes a window after everything before it decayed by `decay`.
    pub(super) fn add(&mut self, values: impl ExactSizeIterator<Item = f64>, decay: f64) {
        self.mean.resize(values.len(), 0.0);
        self.weight = self.weight * decay + 1.0;
        for (mean, value) in self.mean.iter_mut().zip(values) {
            *mean += ((value - f64::from(*mean)) / self.weight) as f32;
        }
    }

    /// Forgets everything; the memory stays.
    pub(super) fn reset(&mut self) {
        self.weight = 0.0;
        self.mean.fill(0.0);
    }

    pub(super) fn of(&self, expert: usize) -> f64 {
        self.mean.get(expert).copied().map_or(0.0, f64::from)
    }
}

/// An average of one number.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Average {
    pub(super) mean: f64,
    pub(super) weight: f64,
}

impl Average {
    /// Takes a value after everything before it decayed by `decay`.
    pub(super) fn add(&mut self, value: f64, decay: f64) {
        self.weight = self.weight * decay + 1.0;
        self.mean += (value - self.mean) / self.weight;
    }
}
