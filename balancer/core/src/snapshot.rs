//! The immutable input of a solve: who is there, what was measured, and how complete it is.

use crate::topology::UnitTopology;
use std::sync::Arc;

/// Steps `[from, to)` of the engine over which loads were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Window {
    /// First step.
    pub from_step: u64,
    /// One past the last step.
    pub to_step: u64,
}

/// Tokens routed to each logical expert, `[layers][experts]` in row-major order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadTable {
    layers: usize,
    experts: usize,
    counts: Vec<u64>,
}

/// Why loads were refused. `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Another number of counts than layers x experts.
    #[error("load table has {have} counts: {layers} layers x {experts} experts need {need}")]
    WrongSize {
        /// Counts given.
        have: usize,
        /// Layers expected.
        layers: usize,
        /// Experts expected.
        experts: usize,
        /// Counts expected.
        need: usize,
    },
    /// A count so large that sums over a layer could overflow.
    #[error("load of layer {layer}, expert {expert} is {value}: must be at most {LOAD_MAX}")]
    TooLarge {
        /// Layer of the count.
        layer: usize,
        /// Expert of the count.
        expert: usize,
        /// The count.
        value: u64,
    },
    /// A window that ends before it begins, or is empty.
    #[error("window [{from_step}, {to_step}) is empty")]
    EmptyWindow {
        /// First step.
        from_step: u64,
        /// One past the last step.
        to_step: u64,
    },
}

impl SnapshotError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            SnapshotError::WrongSize { .. } => "snapshot_wrong_size",
            SnapshotError::TooLarge { .. } => "snapshot_load_too_large",
            SnapshotError::EmptyWindow { .. } => "snapshot_empty_window",
        }
    }
}

/// Largest accepted count: 2^48 tokens, so that 4096 experts sum below 2^60 and convert to `f64` exactly.
pub const LOAD_MAX: u64 = 1 << 48;

impl LoadTable {
    /// Takes `counts` in row-major `[layers][experts]` order.
    pub fn new(layers: usize, experts: usize, counts: Vec<u64>) -> Result<Self, SnapshotError> {
        let need = layers * experts;
        if counts.len() != need {
            return Err(SnapshotError::WrongSize { have: counts.len(), layers, experts, need });
        }
        if let Some(at) = counts.iter().position(|&c| c > LOAD_MAX) {
            return Err(SnapshotError::TooLarge {
                layer: at / experts,
                expert: at % experts,
                value: counts[at],
            });
        }
        Ok(Self { layers, experts, counts })
    }

    /// A table of zeros.
    pub fn zero(layers: usize, experts: usize) -> Self {
        Self { layers, experts, counts: vec![0; layers * experts] }
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Experts per layer.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// The loads of one layer.
    pub fn layer(&self, layer: usize) -> &[u64] {
        &self.counts[layer * self.experts..(layer + 1) * self.experts]
    }

    /// All counts, row-major.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }
}

/// What a layer's forecast is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Predictor {
    /// The last window.
    Last,
    /// The exponential average of the windows.
    Average,
    /// The average by time of the season, with what the windows lately were above it.
    Seasonal,
}

impl Predictor {
    /// All of them.
    pub const ALL: [Predictor; 3] = [Predictor::Last, Predictor::Average, Predictor::Seasonal];

    /// The name, as in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Predictor::Last => "last",
            Predictor::Average => "average",
            Predictor::Seasonal => "seasonal",
        }
    }
}

/// The loads that the next windows are expected to bring. Made by [`crate::load_history`].
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// Each layer scaled to its total in the window of the snapshot.
    pub loads: LoadTable,
    /// `[layers]`: relative standard deviation of an expert's load in one window about the forecast, beyond what sampling
    /// makes. `None` while too few windows have been seen to tell.
    pub drift: Vec<Option<f64>>,
    /// `[layers]`: what it is made of.
    pub predictor: Vec<Predictor>,
}

impl Forecast {
    /// The drift of the layers that have one, mean; `None` when none has.
    pub fn drift_mean(&self) -> Option<f64> {
        let known: Vec<f64> = self.drift.iter().flatten().copied().collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    }
}

/// Everything one solve of a unit's expert placement may look at.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The unit.
    pub topology: Arc<UnitTopology>,
    /// Steps the loads were counted over.
    pub window: Window,
    /// Tokens per layer and logical expert, summed over all ranks that reported.
    pub loads: LoadTable,
    /// Ranks whose counts are in `loads`.
    pub ranks_reported: u16,
    /// Milliseconds between the end of the window and the making of this snapshot.
    pub age_ms: u64,
    /// The same window in parts, in order of time, as it was reported; may be empty. Parts show which experts
    /// rise and fall together, which the sum hides.
    pub parts: Vec<LoadTable>,
    /// Loads of the window before this one, if known. What one window asks for and the other does not is noise.
    pub previous: Option<LoadTable>,
    /// What the next windows are expected to ask for. Weights are placed for it, or for `loads` when there is
    /// none. Reports go by `loads` in either case.
    pub forecast: Option<Arc<Forecast>>,
}

impl Snapshot {
    /// Joins validated parts; the loads must have the unit's shape.
    pub fn new(
        topology: Arc<UnitTopology>,
        window: Window,
        loads: LoadTable,
        ranks_reported: u16,
        age_ms: u64,
    ) -> Result<Self, SnapshotError> {
        let (layers, experts) = (usize::from(topology.shape().layers), usize::from(topology.shape().experts));
        if (loads.layers, loads.experts) != (layers, experts) {
            return Err(SnapshotError::WrongSize {
                have: loads.counts.len(),
                layers,
                experts,
                need: layers * experts,
            });
        }
        if window.from_step >= window.to_step {
            return Err(SnapshotError::EmptyWindow { from_step: window.from_step, to_step: window.to_step });
        }
        Ok(Self {
            topology,
            window,
            loads,
            ranks_reported,
            age_ms,
            parts: Vec::new(),
            previous: None,
            forecast: None,
        })
    }

    /// Adds the parts of the window, each of the unit's shape. They need not add up to the loads: only
    /// their proportions are used.
    pub fn with_parts(mut self, parts: Vec<LoadTable>) -> Result<Self, SnapshotError> {
        parts.iter().try_for_each(|part| self.check_shape(part))?;
        self.parts = parts;
        Ok(self)
    }

    /// Adds the loads of the window before, of the unit's shape.
    pub fn with_previous(mut self, previous: LoadTable) -> Result<Self, SnapshotError> {
        self.check_shape(&previous)?;
        self.previous = Some(previous);
        Ok(self)
    }

    /// Adds a forecast of the unit's shape.
    pub fn with_forecast(mut self, forecast: Arc<Forecast>) -> Result<Self, SnapshotError> {
        self.check_shape(&forecast.loads)?;
        assert_eq!(forecast.drift.len(), self.loads.layers, "a forecast has one drift per layer");
        self.forecast = Some(forecast);
        Ok(self)
    }

    fn check_shape(&self, table: &LoadTable) -> Result<(), SnapshotError> {
        let (layers, experts) = (self.loads.layers, self.loads.experts);
        if (table.layers, table.experts) == (layers, experts) {
            return Ok(());
        }
        Err(SnapshotError::WrongSize { have: table.counts.len(), layers, experts, need: layers * experts })
    }

    /// Whether every rank's counts are in. A replica that did not report makes its expert look cold, so an
    /// incomplete snapshot must never move weights.
    pub fn is_complete(&self) -> bool {
        self.ranks_reported == self.topology.shape().ranks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_count_names_layer_and_expert() {
        let mut counts = vec![1; 6];
        counts[4] = LOAD_MAX + 1;
        let error = LoadTable::new(2, 3, counts).unwrap_err();
        assert_eq!(error, SnapshotError::TooLarge { layer: 1, expert: 1, value: LOAD_MAX + 1 });
        assert_eq!(LoadTable::new(2, 3, vec![1; 5]).unwrap_err().code(), "snapshot_wrong_size");
    }
}
