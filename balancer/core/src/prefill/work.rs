//! What a prompt costs: new tokens and attention pairs.

use std::ops::{Add, AddAssign, SubAssign};

/// Work of a prompt or of a part of it. Two-dimensional, because tokens (the dense layers and experts) and
/// attention are balanced each by itself: which of them binds depends on the context length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Work {
    /// New tokens `N = n`.
    pub tokens: u64,
    /// Attention pairs `A = n * p + n * (n + 1) / 2`: each new token attends to the `p` tokens before the
    /// part, to the new ones before it, and to itself.
    pub attention: u64,
}

impl Work {
    /// Work of `new` tokens after `context` visible ones. Both at most
    /// [`PROMPT_TOKENS_MAX`](crate::routing::PROMPT_TOKENS_MAX), so that nothing overflows.
    pub fn of(context: u64, new: u64) -> Self {
        Self { tokens: new, attention: new * context + new * (new + 1) / 2 }
    }

    /// The larger of each.
    pub(super) fn max_each(self, other: Self) -> Self {
        Self { tokens: self.tokens.max(other.tokens), attention: self.attention.max(other.attention) }
    }
}

impl Add for Work {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { tokens: self.tokens + other.tokens, attention: self.attention + other.attention }
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Work {
    fn sub_assign(&mut self, other: Self) {
        assert!(
            self.tokens >= other.tokens && self.attention >= other.attention,
            "a ledger never gives back more work than it took: {self:?} - {other:?}"
        );
        self.tokens -= other.tokens;
        self.attention -= other.attention;
    }
}

/// How far the fullest bin is above the mean, and above what no assignment can undercut.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Imbalance {
    /// Max over mean. 1 when there is no work.
    pub over_mean: f64,
    /// Max over max(mean, largest indivisible item). 1 when there is no work.
    pub over_bound: f64,
}

impl Imbalance {
    /// Of the loads of all bins, `largest_item` being the largest that cannot be divided.
    pub fn of(loads: impl ExactSizeIterator<Item = f64>, largest_item: f64) -> Self {
        let bins = loads.len().max(1);
        let (sum, max) = loads.fold((0.0, 0.0f64), |(sum, max), load| (sum + load, max.max(load)));
        let mean = sum / bins as f64;
        if mean <= 0.0 {
            return Self { over_mean: 1.0, over_bound: 1.0 };
        }
        Self { over_mean: max / mean, over_bound: max / mean.max(largest_item) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(context: u64, new: u64, attention: u64) {
        assert_eq!(Work::of(context, new), Work { tokens: new, attention });
    }

    #[test]
    fn attention_counts_each_visible_pair_once() {
        check(0, 1, 1);
        check(0, 3, 1 + 2 + 3);
        check(5, 3, 6 + 7 + 8);
        check(7, 0, 0);
    }

    #[test]
    fn a_prompt_in_parts_costs_what_it_costs_whole() {
        assert_eq!(Work::of(10, 4) + Work::of(14, 9), Work::of(10, 13));
    }

    #[test]
    fn imbalance_is_measured_against_mean_and_bound() {
        let imbalance = Imbalance::of([6.0, 2.0, 1.0].into_iter(), 6.0);
        assert_eq!((imbalance.over_mean, imbalance.over_bound), (2.0, 1.0));
        let idle = Imbalance::of([0.0; 3].into_iter(), 0.0);
        assert_eq!((idle.over_mean, idle.over_bound), (1.0, 1.0));
    }
}
