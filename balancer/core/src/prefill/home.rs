//! Which held prompts go to a rank that has their prefix, or will have it.

use super::chunks::Prompt;
use super::work::Work;
use crate::prefix::Fullness;

/// Prompts yet to come that a rank's work delays, as counted beside those that are there. With none, one in fifty of the prefixes that
/// could be hits runs twice in simulation (Mooncake at 20 % load) and the last percent of first tokens comes a tenth later.
const LATER: f64 = 2.0;

/// A prefix of a held prompt on a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    /// Index of the rank.
    pub rank: usize,
    /// Leading tokens of the prompt that need not run there, once `after` is as far.
    pub tokens: u64,
    /// The rank's pinned prompt that has yet to run some of these tokens, as an index; `None`: they are there.
    pub after: Option<usize>,
}

/// Where a held prompt goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To a rank, where this is left of it.
    Home(usize, Prompt),
    /// To a rank, but not before its prefix has run there: begun now, it would run it once more.
    Wait(usize),
    /// Anywhere.
    Free,
}

/// What a rank has before prompts find their homes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HomeRank<'a> {
    /// Work that it was given and has not run.
    pub given: Work,
    /// Prompts pinned to it.
    pub pinned: &'a [Prompt],
    /// Prefix blocks in its cache.
    pub kept: u64,
}

/// What ranks have to run while prompts find their homes; times in tokens.
#[derive(Debug, Clone)]
pub struct Homes {
    pair_cost: f64,
    fullness: Fullness,
    ranks: Vec<Rank>,
}

#[derive(Debug, Clone, Default)]
struct Rank {
    given: f64,
    kept: u64,
    /// Time of each prompt's rest.
    prompts: Vec<f64>,
}

impl Homes {
    /// Of these ranks.
    pub fn new<'a>(ranks: impl Iterator<Item = HomeRank<'a>>, pair_cost: f64) -> Self {
        let time = |p: &Prompt| time_of(p, pair_cost);
        let rank = |HomeRank { given, pinned, kept }: HomeRank| {
            let given = given.tokens as f64 + pair_cost * given.attention as f64;
            Rank { given, kept, prompts: pinned.iter().map(time).collect() }
        };
        let ranks: Vec<Rank> = ranks.map(rank).collect();
        Self { pair_cost, fullness: Fullness::of(ranks.iter().map(|rank| rank.kept)), ranks }
    }

    /// Decides for the next prompt, which has `whole` to run on a rank without any of it, and counts it.
    pub fn send(&mut self, whole: Prompt, homes: &[Home]) -> Way {
        let at = |home: &Home| {
            let context = home.tokens.min(whole.context + whole.remaining - 1);
            Prompt { context, remaining: whole.context + whole.remaining - context }
        };
        let there = |home: &Home| self.cost(home.rank, home.after, &at(home));
        let best = homes.iter().min_by(|x, y| there(x).total_cmp(&there(y)));
        let Some(best) = best else { return Way::Free };
        let anywhere = (0..self.ranks.len()).map(|rank| self.cost(rank, None, &whole));
        if there(best) > anywhere.fold(f64::INFINITY, f64::min) {
            return Way::Free;
        }
        let (rest, rank) = (at(best), &mut self.ranks[best.rank]);
        rank.prompts.push(time_of(&rest, self.pair_cost));
        if best.after.is_some() { Way::Wait(best.rank) } else { Way::Home(best.rank, rest) }
    }

    /// What a prompt adds to the times of all on a rank.
    fn cost(&self, rank: usize, after: Option<usize>, prompt: &Prompt) -> f64 {
        let reruns = self.fullness.reruns(self.ranks[rank].kept, prompt.remaining);
        self.delay(rank, after, time_of(prompt, self.pair_cost)) + (1.0 + LATER) * reruns
    }

    /// What a prompt that takes `time` adds to the times of all now, on a rank that runs the shortest rest first: it waits for the
    /// shorter ones, and the longer ones for it.
    fn delay(&self, rank: usize, after: Option<usize>, time: f64) -> f64 {
        let rank = &self.ranks[rank];
        rank.prompts.iter().enumerate().fold(rank.given + (1.0 + LATER) * time, |sum, (index, &other)| {
            sum + if other <= time || Some(index) == after { other } else { time }
        })
    }
}

fn time_of(prompt: &Prompt, pair_cost: f64) -> f64 {
    let work = Work::of(prompt.context, prompt.remaining);
    work.tokens as f64 + pair_cost * work.attention as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(context: u64, remaining: u64) -> Prompt {
        Prompt { context, remaining }
    }

    fn home(rank: usize, tokens: u64) -> Home {
        Home { rank, tokens, after: None }
    }

    /// Where 10,000 tokens go with these homes, on ranks with these prompts.
    #[track_caller]
    fn check(ranks: &[&[Prompt]], homes: &[Home], expected: Way) {
        check_ranks(ranks.iter().map(|&pinned| HomeRank { pinned, ..HomeRank::default() }), homes, expected);
    }

    #[track_caller]
    fn check_ranks<'a>(ranks: impl Iterator<Item = HomeRank<'a>>, homes: &[Home], expected: Way) {
        assert_eq!(Homes::new(ranks, 1e-4).send(prompt(0, 10_000), homes), expected);
    }

    /// The same on idle ranks whose caches keep so many blocks.
    #[track_caller]
    fn check_kept(kept: [u64; 2], homes: &[Home], expected: Way) {
        check_ranks(kept.into_iter().map(|kept| HomeRank { kept, ..HomeRank::default() }), homes, expected);
    }

    #[test]
    fn a_prompt_goes_where_most_of_its_prefix_is() {
        check(&[&[], &[]], &[], Way::Free);
        check(&[&[], &[]], &[home(0, 3000), home(1, 9000)], Way::Home(1, prompt(9000, 1000)));
        check(&[&[], &[]], &[home(1, u64::MAX)], Way::Home(1, prompt(9999, 1)));
    }

    #[test]
    fn it_passes_what_takes_longer_and_leaves_what_is_too_much() {
        let (long, short) = (prompt(0, 90_000), prompt(0, 900));
        check(&[&[], &[long]], &[home(1, 9000)], Way::Home(1, prompt(9000, 1000)));
        check(&[&[], &[short; 60]], &[home(1, 9000)], Way::Free);
    }

    #[test]
    fn a_little_in_common_draws_no_crowd() {
        // It would not wait itself, but the longer one would.
        check(&[&[prompt(0, 20_000)], &[]], &[home(0, 512)], Way::Free);
    }

    #[test]
    fn a_little_in_common_fills_no_cache_while_others_are_empty() {
        let system_prompt = [home(0, 512)];
        check_kept([100, 0], &system_prompt, Way::Free);
        check_kept([100, 90], &system_prompt, Way::Home(0, prompt(512, 9488)));
        check_kept([100, 0], &[home(0, 9000)], Way::Home(0, prompt(9000, 1000)));
    }

    #[test]
    fn it_waits_for_a_prefix_that_is_still_to_run() {
        let after = Home { rank: 0, tokens: 9000, after: Some(0) };
        check(&[&[prompt(4000, 6000)], &[]], &[after], Way::Wait(0));
        check(&[&[prompt(0, 90_000)], &[]], &[after], Way::Free);
    }
}
