//! The one generator of a run: everything that chance decides comes from the seed.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// See the module.
#[derive(Debug)]
pub(super) struct Random(ChaCha8Rng);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// From 0 to `end - 1`; 0 if there is nothing to choose from.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        if end < 2 { 0 } else { self.0.random_range(0..end) }
    }

    /// An index below `end`.
    pub(super) fn index(&mut self, end: usize) -> usize {
        if end < 2 { 0 } else { self.0.random_range(0..end) }
    }

    /// From `low` to `high`, both possible.
    pub(super) fn within(&mut self, low: u64, high: u64) -> u64 {
        self.0.random_range(low..=high)
    }

    /// True in `permille` of 1000 cases.
    pub(super) fn permille(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    pub(super) fn of<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.index(items.len()))
    }

    /// A waiting time around `mean`, as between independent events, at least 1.
    pub(super) fn gap(&mut self, mean: u64) -> u64 {
        let uniform: f64 = self.0.random_range(f64::MIN_POSITIVE..1.0);
        ((-uniform.ln() * mean as f64) as u64).clamp(1, mean * 8)
    }
}
