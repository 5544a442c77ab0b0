//! A quantile of positive numbers that come one by one, from one number of memory.

/// Share by which an estimate moves at most for one value: a wrong one doubles in 14 to 70 values, and a settled one scatters by
/// a few percent.
const STEP: f64 = 0.1;
/// The first values move it further: `FIRST / n` while that is more.
const FIRST: f64 = 2.0;

/// Goes up when a value is above it and down when one is below, in the proportion at which `rank` of the values are below
/// (stochastic approximation, Robbins and Monro 1951, of the logarithm).
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Quantile {
    rank: f64,
    log: f64,
    values: u32,
}

impl Quantile {
    /// Of rank 0 to 1, `start` until values come; it stays within [`Self::LEAST`] and [`Self::MOST`].
    pub(super) fn new(rank: f64, start: f64) -> Self {
        Self { rank, log: start.ln(), values: 0 }
    }

    /// A thousandth of what is measured is not of interest.
    pub(super) const LEAST: f64 = 0.001;
    /// Nor is more than a thousand times it.
    pub(super) const MOST: f64 = 1000.0;

    pub(super) fn get(&self) -> f64 {
        self.log.exp()
    }

    pub(super) fn add(&mut self, value: f64) {
        self.values = self.values.saturating_add(1);
        let step = STEP.max((FIRST / f64::from(self.values)).min(1.0));
        self.log += if value > self.get() { step * self.rank } else { step * (self.rank - 1.0) };
        self.log = self.log.clamp(Self::LEAST.ln(), Self::MOST.ln());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The estimate after 2000 values spread evenly over 0 to `width`, in no order, lies within 15 % of the quantile.
    #[track_caller]
    fn check(rank: f64, start: f64, width: f64) {
        let mut quantile = Quantile::new(rank, start);
        let (mut sum, mut count) = (0.0, 0);
        for n in 0..2000u64 {
            quantile.add((n * 1237 % 2000) as f64 / 2000.0 * width);
            if n >= 1000 {
                (sum, count) = (sum + quantile.get(), count + 1);
            }
        }
        let mean = sum / f64::from(count);
        assert!((mean / (rank * width) - 1.0).abs() < 0.15, "{mean} instead of {}", rank * width);
    }

    #[test]
    fn it_finds_the_quantile_from_either_side() {
        check(0.5, 1.0, 1.0);
        check(0.9, 1.0, 1.0);
        check(0.5, 0.002, 20.0);
        check(0.9, 500.0, 0.1);
    }

    #[test]
    fn it_stays_in_its_bounds() {
        let mut quantile = Quantile::new(0.5, 1.0);
        (0..10_000).for_each(|_| quantile.add(f64::INFINITY));
        assert!((quantile.get() / Quantile::MOST - 1.0).abs() < 1e-9);
        (0..10_000).for_each(|_| quantile.add(0.0));
        assert!((quantile.get() / Quantile::LEAST - 1.0).abs() < 1e-9);
    }
}
