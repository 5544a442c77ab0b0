//! Which of several prefill units a prompt goes to, for gateways in front of them: where most of its prefix is, unless another unit
//! has so much less to do that it is done there earlier.
//!
//! Units do not say what they have cached; what was sent to them stands for it, and what was unused for the longest is forgotten
//! first, as in the units. A wrong guess costs a prefix that runs once more.

use crate::ids::Rank;
use crate::prefill::Work;
use crate::prefix::{BlockHash, InvalidPrefixPolicy, KvChange, PrefixIndex, PrefixPolicy};
use std::sync::Arc;

/// Where a prompt goes, and what it takes there; to be given back with [`UnitChoice::leave`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chosen {
    /// Index of the unit.
    pub unit: u16,
    /// Time of the prompt on one rank of it, in that of a new token.
    time: f64,
}

/// Chooses units for prompts. Pure: the same calls give the same units.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitChoice {
    ranks: f64,
    block_tokens: u64,
    pair_cost: f64,
    /// By unit: time of the prompts that are there, on one rank.
    open: Vec<f64>,
    /// The units are the ranks of this index.
    sent: PrefixIndex,
    /// By unit: number of the last change.
    sequences: Vec<u64>,
    scratch: Vec<u32>,
}

impl UnitChoice {
    /// In front of `units` units of `ranks` ranks each, both at least 1, which together have room for `blocks_max` distinct prefix
    /// blocks of `block_tokens` tokens. `pair_cost` is as in [`RoundBudget`](crate::prefill::RoundBudget).
    pub fn new(
        (units, ranks): (u16, u16),
        blocks_max: usize,
        block_tokens: u64,
        pair_cost: f64,
    ) -> Result<Self, InvalidPrefixPolicy> {
        // Nothing is expected: what is sent counts as stored at once.
        let policy = PrefixPolicy { blocks_max, expected_max: 1, ..PrefixPolicy::default() };
        let sent = PrefixIndex::new(units, policy)?;
        Ok(Self {
            ranks: f64::from(ranks.max(1)),
            block_tokens,
            pair_cost,
            open: vec![0.0; usize::from(units)],
            sent,
            sequences: vec![0; usize::from(units)],
            scratch: Vec::new(),
        })
    }

    /// The unit of a prompt with these whole prefix blocks, which counts as sent there.
    pub fn choose(&mut self, prompt_tokens: u64, blocks: &Arc<[BlockHash]>) -> Chosen {
        self.sent.hits(blocks, &mut self.scratch);
        let time = |hit: u32| {
            let hit = (u64::from(hit) * self.block_tokens).min(prompt_tokens.saturating_sub(1));
            let work = Work::of(hit, prompt_tokens - hit);
            work.tokens as f64 + self.pair_cost * work.attention as f64
        };
        let units = (0u16..).zip(&self.scratch).map(|(unit, &hit)| Chosen { unit, time: time(hit) });
        // Prompts of a unit run beside each other on its ranks. Of units that do alike, a new prefix goes where it drives out least.
        let key = |c: &Chosen| {
            (self.open[usize::from(c.unit)] / self.ranks + c.time, self.sent.blocks_of(Rank(c.unit)))
        };
        let order = |x: &Chosen, y: &Chosen| {
            let (x, y) = (key(x), key(y));
            x.0.total_cmp(&y.0).then(x.1.cmp(&y.1))
        };
        let chosen = units.min_by(order).expect("there are units");
        let unit = usize::from(chosen.unit);
        self.open[unit] += chosen.time;
        self.sequences[unit] += 1;
        let change = KvChange::Stored { parent: None, blocks: Arc::clone(blocks) };
        self.sent.apply(Rank(chosen.unit), self.sequences[unit], &change);
        chosen
    }

    /// A prompt has left its unit: it has run, or is given up.
    pub fn leave(&mut self, chosen: Chosen) {
        let open = &mut self.open[usize::from(chosen.unit)];
        // Sums of floats come back to nearly nothing.
        *open = (*open - chosen.time).max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice() -> UnitChoice {
        UnitChoice::new((3, 4), 1000, 64, 1e-4).expect("within the bounds")
    }

    fn blocks(family: u64, count: u64) -> Arc<[BlockHash]> {
        (0..count).map(|depth| BlockHash(family << 32 | depth)).collect()
    }

    /// Units of prompts of (family, blocks), one after the other, all open.
    #[track_caller]
    fn check(prompts: &[(u64, u64)], expected: &[u16]) {
        let mut choice = choice();
        let units =
            prompts.iter().map(|&(family, count)| choice.choose(count * 64, &blocks(family, count)).unit);
        assert_eq!(units.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn new_prefixes_spread_over_the_units() {
        check(&[(1, 10), (2, 10), (3, 10)], &[0, 1, 2]);
    }

    #[test]
    fn turns_of_a_session_meet() {
        check(&[(1, 10), (2, 10), (1, 12), (2, 11), (1, 14)], &[0, 1, 0, 1, 0]);
    }

    #[test]
    fn a_short_common_beginning_does_not_fill_one_unit() {
        let mut choice = choice();
        let of = |family: u64| -> Arc<[BlockHash]> {
            blocks(0, 2).iter().chain(&*blocks(family, 98)).copied().collect()
        };
        let units: Vec<u16> = (1..=30).map(|family| choice.choose(6400, &of(family)).unit).collect();
        for unit in 0..3 {
            assert!(units.iter().filter(|&&u| u == unit).count() >= 8, "{units:?}");
        }
    }

    #[test]
    fn a_session_leaves_a_unit_that_has_too_much_to_do() {
        let mut choice = choice();
        let units: Vec<u16> = (0..30).map(|turn| choice.choose(64_000 + turn, &blocks(1, 10)).unit).collect();
        assert!(units.contains(&1) && units.contains(&2), "{units:?}");
    }

    #[test]
    fn what_has_left_does_not_count() {
        let mut choice = choice();
        let first = choice.choose(640, &blocks(1, 10));
        choice.leave(first);
        assert_eq!(choice.open, [0.0; 3]);
        assert_eq!(choice.choose(640, &blocks(2, 10)).unit, 1, "the emptiest cache of idle units");
    }
}
