//! What it costs to put new prefixes into one cache instead of another.

/// Part of the tokens driven out of a cache that would have been hits. Anything from 0.1 to 0.5 does alike in simulation (Mooncake at
/// 20 to 60 % load, seeds 1 to 3). With none, whatever begins with the system prompt goes to the one idle rank that has it: 0.3 to 5.7 %
/// of all prompt tokens run again because that rank is full and others are empty. With 1, prompts leave their prefix too easily: at
/// 60 % load 3 points of goodput less, and the last percent of first tokens comes a fifth later.
const REUSED: f64 = 0.25;

/// How full caches of one size are beside each other. How much room they have need not be known: while all are as full as each
/// other, it does not matter which of them takes a new prefix.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Fullness {
    least: u64,
    most: u64,
}

impl Fullness {
    /// Of caches that keep so many blocks each.
    pub(crate) fn of(kept: impl Iterator<Item = u64>) -> Self {
        let grown = |(least, most): (u64, u64), kept: u64| (least.min(kept), most.max(kept));
        let (least, most) = kept.fold((u64::MAX, 0), grown);
        Self { least: least.min(most), most }
    }

    /// Tokens that will run again because so many new ones go to a cache that keeps `kept` blocks, and not to the emptiest.
    pub(crate) fn reruns(&self, kept: u64, tokens: u64) -> f64 {
        let fuller = kept.saturating_sub(self.least) as f64 / self.most.max(1) as f64;
        REUSED * fuller * tokens as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(all: &[u64], kept: u64, expected: f64) {
        assert_eq!(Fullness::of(all.iter().copied()).reruns(kept, 1000), expected);
    }

    #[test]
    fn the_emptiest_cache_costs_nothing_and_the_fullest_most() {
        check(&[0, 50, 100], 0, 0.0);
        check(&[0, 50, 100], 50, 125.0);
        check(&[0, 50, 100], 100, 250.0);
    }

    #[test]
    fn caches_that_are_all_as_full_cost_nothing() {
        check(&[100, 100], 100, 0.0);
        check(&[0, 0], 0, 0.0);
        check(&[], 0, 0.0);
    }
}
