//! Which of several prefill units a prompt goes to, for gateways in front of them: where most of its prefix is, unless another unit
//! has so much less to do that it is done there earlier, or so much more room that what it drives out weighs more.
//!
//! Units do not say what they have cached; what was sent to them stands for it, and what was unused for the longest is forgotten
//! first, as in the units. A wrong guess costs a prefix that runs once more.

use crate::ids::Rank;
use crate::prefill::Work;
use crate::prefix::{BlockHash, Fullness, InvalidPrefixPolicy, KvChange, PrefixIndex, PrefixPolicy};
use std::sync::Arc;

/// Where a prompt goes, and what it takes there; to be given back with [`UnitChoice::leave`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chosen {
    /// Index of the unit.
    pub unit: u16,
    /// Time of the prompt on one rank of it, in that of a new token.
    time: f64,
}

/// The prompts of a unit by their time on one rank: from 2^n to 2^(n+1) each, in that of a new token.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Open([Alike; u64::BITS as usize]);

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Alike {
    count: u64,
    time: f64,
}

impl Open {
    const NONE: Self = Self([Alike { count: 0, time: 0.0 }; u64::BITS as usize]);

    fn alike(&mut self, time: f64) -> &mut Alike {
        &mut self.0[(time as u64).max(1).ilog2() as usize]
    }

    fn add(&mut self, time: f64) {
        let alike = self.alike(time);
        alike.count += 1;
        alike.time += time;
    }

    fn remove(&mut self, time: f64) {
        let alike = self.alike(time);
        alike.count = alike.count.saturating_sub(1);
        // Sums of floats come back to nearly nothing.
        alike.time = if alike.count == 0 { 0.0 } else { (alike.time - time).max(0.0) };
    }

    /// What one more prompt waits for the shorter ones, and the longer ones for it. With all that is open, prompts leave their prefix
    /// where one of 100k tokens is that does not hold them up: in simulation 0.9 to 1.6 % of all prompt tokens run again for that
    /// (Mooncake) and up to 4.3 % (agentic, where goodput is 4 points lower), and 0.1 to 0.3 % otherwise.
    fn delay(&self, time: f64) -> f64 {
        self.0.iter().map(|alike| alike.time.min(alike.count as f64 * time)).sum()
    }
}

/// Chooses units for prompts. Pure: the same calls give the same units.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitChoice {
    ranks: f64,
    block_tokens: u64,
    pair_cost: f64,
    /// By unit: the prompts that are there.
    open: Vec<Open>,
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
            open: vec![Open::NONE; usize::from(units)],
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
        let kept = |unit: u16| self.sent.blocks_of(Rank(unit));
        let fullness = Fullness::of((0u16..).take(self.open.len()).map(kept));
        // Prompts of a unit run beside each other on its ranks. Of units that do alike, a new prefix goes where it drives out least.
        let key = |c: &Chosen| {
            let (unit, kept) = (usize::from(c.unit), kept(c.unit));
            let hit = u64::from(self.scratch[unit]) * self.block_tokens;
            let reruns = fullness.reruns(kept, prompt_tokens.saturating_sub(hit));
            (self.open[unit].delay(c.time) / self.ranks + c.time + reruns, kept)
        };
        let order = |x: &Chosen, y: &Chosen| {
            let (x, y) = (key(x), key(y));
            x.0.total_cmp(&y.0).then(x.1.cmp(&y.1))
        };
        let chosen = units.min_by(order).expect("there are units");
        let unit = usize::from(chosen.unit);
        self.open[unit].add(chosen.time);
        self.sequences[unit] += 1;
        let change = KvChange::Stored { parent: None, blocks: Arc::clone(blocks) };
        self.sent.apply(Rank(chosen.unit), self.sequences[unit], &change);
        chosen
    }

    /// A prompt has left its unit: it has run, or is given up.
    pub fn leave(&mut self, chosen: Chosen) {
        self.open[usize::from(chosen.unit)].remove(chosen.time);
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
    fn a_session_stays_where_a_prompt_is_that_it_need_not_wait_for() {
        let mut choice = choice();
        let session = choice.choose(6400, &blocks(1, 100));
        choice.leave(session);
        // Both other units are idle, and 1.2 M tokens' time is open here.
        choice.open[usize::from(session.unit)].add(1.2e6);
        assert_eq!(choice.choose(7040, &blocks(1, 110)).unit, session.unit);
    }

    #[test]
    fn a_little_in_common_does_not_fill_one_unit_while_all_are_idle() {
        let mut choice = choice();
        let mut units = [0; 3];
        for family in 1..=30 {
            let prompt: Arc<[BlockHash]> = blocks(0, 2).iter().chain(&*blocks(family, 98)).copied().collect();
            let chosen = choice.choose(6400, &prompt);
            choice.leave(chosen);
            units[usize::from(chosen.unit)] += 1;
        }
        assert!(units.iter().all(|&count| count >= 8), "{units:?}");
    }

    #[test]
    fn what_has_left_does_not_count() {
        let mut choice = choice();
        let first = choice.choose(640, &blocks(1, 10));
        choice.leave(first);
        assert_eq!(choice.open, [Open::NONE; 3]);
        assert_eq!(choice.choose(640, &blocks(2, 10)).unit, 1, "the emptiest cache of idle units");
    }
}
