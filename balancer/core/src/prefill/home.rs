//! Which held prompts go to a rank that has their prefix, or will have it.

use super::chunks::Prompt;
use super::item::Hit;
use super::work::Work;
use crate::prefix::Fullness;

/// Prompts yet to come that a rank's work delays, as counted beside those that are there. With none, one in fifty of the prefixes that
/// could be hits runs twice in simulation (Mooncake at 20 % load) and the last percent of first tokens comes a tenth later.
const LATER: f64 = 2.0;

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

#[derive(Debug, Clone)]
struct Rank {
    given: f64,
    kept: u64,
    /// Time of each prompt's rest, shortest first.
    times: Vec<f64>,
    /// `sums[n]`: of the shortest `n`.
    sums: Vec<f64>,
}

impl Rank {
    fn new(given: f64, kept: u64, mut times: Vec<f64>) -> Self {
        times.sort_unstable_by(f64::total_cmp);
        let mut rank = Self { given, kept, times, sums: vec![0.0] };
        rank.sum_from(0);
        rank
    }

    fn push(&mut self, time: f64) {
        let place = self.shorter(time);
        self.times.insert(place, time);
        self.sum_from(place);
    }

    /// Prompts that take no longer.
    fn shorter(&self, time: f64) -> usize {
        self.times.partition_point(|&other| other <= time)
    }

    fn sum_from(&mut self, place: usize) {
        self.sums.truncate(place + 1);
        let mut sum = self.sums[place];
        self.sums.extend(self.times[place..].iter().map(|time| {
            sum += time;
            sum
        }));
    }
}

impl Homes {
    /// Of these ranks.
    pub fn new<'a>(ranks: impl Iterator<Item = HomeRank<'a>>, pair_cost: f64) -> Self {
        let time = |p: &Prompt| time_of(p, pair_cost);
        let rank = |HomeRank { given, pinned, kept }: HomeRank| {
            let given = given.tokens as f64 + pair_cost * given.attention as f64;
            Rank::new(given, kept, pinned.iter().map(time).collect())
        };
        let ranks: Vec<Rank> = ranks.map(rank).collect();
        Self { pair_cost, fullness: Fullness::of(ranks.iter().map(|rank| rank.kept)), ranks }
    }

    /// Decides for the next prompt, which has `whole` to run on a rank without any of it, and counts it. `after` of a hit is the
    /// pinned prompt that has yet to run some of it; `None`: it is there.
    pub fn send(&mut self, whole: Prompt, hits: &[Hit], after: impl Fn(&Hit) -> Option<Prompt>) -> Way {
        let Some((there, hit, after)) = self.best(&whole, hits, after) else { return Way::Free };
        // No rank can be cheaper than an idle one whose cache is the emptiest.
        let idle = (1.0 + LATER) * time_of(&whole, self.pair_cost);
        if there > idle && (0..self.ranks.len()).any(|rank| self.cost(rank, &whole) < there) {
            return Way::Free;
        }
        let rest = whole.with(hit.tokens);
        self.ranks[hit.rank].push(time_of(&rest, self.pair_cost));
        if after.is_some() { Way::Wait(hit.rank) } else { Way::Home(hit.rank, rest) }
    }

    /// The hit that is cheapest to use, what that costs, and what it waits for. Waiting only adds to the cost, and who is asked what a
    /// hit waits for looks through all that its rank has: only those are asked about that may be the cheapest.
    fn best<'h>(
        &self,
        whole: &Prompt,
        hits: &'h [Hit],
        after: impl Fn(&Hit) -> Option<Prompt>,
    ) -> Option<(f64, &'h Hit, Option<Prompt>)> {
        let cost = |hit: &Hit| self.cost(hit.rank, &whole.with(hit.tokens));
        let mut at_least: Vec<(f64, &Hit)> = hits.iter().map(|hit| (cost(hit), hit)).collect();
        let mut best: Option<(f64, &Hit, Option<Prompt>)> = None;
        let cheaper = |x: &(f64, &Hit), y: &(f64, &Hit)| x.0.total_cmp(&y.0).then(x.1.rank.cmp(&y.1.rank));
        while let Some(index) = (0..at_least.len()).min_by(|&x, &y| cheaper(&at_least[x], &at_least[y])) {
            let (cost, hit) = at_least.swap_remove(index);
            if best.is_some_and(|(best, ..)| best <= cost) {
                break;
            }
            let after = after(hit);
            let time = time_of(&whole.with(hit.tokens), self.pair_cost);
            let cost = cost + after.map_or(0.0, |after| (time_of(&after, self.pair_cost) - time).max(0.0));
            if best.is_none_or(|(best, ..)| cost < best) {
                best = Some((cost, hit, after));
            }
        }
        best
    }

    /// What a prompt adds to the times of all on a rank.
    fn cost(&self, rank: usize, prompt: &Prompt) -> f64 {
        let reruns = self.fullness.reruns(self.ranks[rank].kept, prompt.remaining);
        self.delay(rank, time_of(prompt, self.pair_cost)) + (1.0 + LATER) * reruns
    }

    /// What a prompt that takes `time` adds to the times of all now, on a rank that runs the shortest rest first: it waits for the
    /// shorter ones, and the longer ones for it.
    fn delay(&self, rank: usize, time: f64) -> f64 {
        let rank = &self.ranks[rank];
        let shorter = rank.shorter(time);
        let longer = (rank.times.len() - shorter) as f64;
        rank.given + (1.0 + LATER) * time + rank.sums[shorter] + longer * time
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

    fn hit(rank: usize, tokens: u64) -> Hit {
        Hit { rank, tokens }
    }

    /// Where 10,000 tokens go with these hits, on ranks with these prompts.
    #[track_caller]
    fn check(ranks: &[&[Prompt]], hits: &[Hit], expected: Way) {
        check_ranks(ranks.iter().map(|&pinned| HomeRank { pinned, ..HomeRank::default() }), hits, expected);
    }

    #[track_caller]
    fn check_ranks<'a>(ranks: impl Iterator<Item = HomeRank<'a>>, hits: &[Hit], expected: Way) {
        assert_eq!(Homes::new(ranks, 1e-4).send(prompt(0, 10_000), hits, |_| None), expected);
    }

    /// The same on idle ranks whose caches keep so many blocks.
    #[track_caller]
    fn check_kept(kept: [u64; 2], hits: &[Hit], expected: Way) {
        check_ranks(kept.into_iter().map(|kept| HomeRank { kept, ..HomeRank::default() }), hits, expected);
    }

    #[test]
    fn a_prompt_goes_where_most_of_its_prefix_is() {
        check(&[&[], &[]], &[], Way::Free);
        check(&[&[], &[]], &[hit(0, 3000), hit(1, 9000)], Way::Home(1, prompt(9000, 1000)));
        check(&[&[], &[]], &[hit(1, u64::MAX)], Way::Home(1, prompt(9999, 1)));
    }

    #[test]
    fn it_passes_what_takes_longer_and_leaves_what_is_too_much() {
        let (long, short) = (prompt(0, 90_000), prompt(0, 900));
        check(&[&[], &[long]], &[hit(1, 9000)], Way::Home(1, prompt(9000, 1000)));
        check(&[&[], &[short; 60]], &[hit(1, 9000)], Way::Free);
    }

    #[test]
    fn a_little_in_common_draws_no_crowd() {
        // It would not wait itself, but the longer one would.
        check(&[&[prompt(0, 20_000)], &[]], &[hit(0, 512)], Way::Free);
    }

    #[test]
    fn a_little_in_common_fills_no_cache_while_others_are_empty() {
        let system_prompt = [hit(0, 512)];
        check_kept([100, 0], &system_prompt, Way::Free);
        check_kept([100, 90], &system_prompt, Way::Home(0, prompt(512, 9488)));
        check_kept([100, 0], &[hit(0, 9000)], Way::Home(0, prompt(9000, 1000)));
    }

    #[test]
    fn it_waits_for_a_prefix_that_is_still_to_run() {
        let check = |first: Prompt, expected| {
            let (pinned, none) = ([first], []);
            let ranks = [&pinned[..], &none].map(|pinned| HomeRank { pinned, ..HomeRank::default() });
            let mut homes = Homes::new(ranks.into_iter(), 1e-4);
            assert_eq!(homes.send(prompt(0, 10_000), &[hit(0, 9000)], |_| Some(first)), expected);
        };
        check(prompt(4000, 6000), Way::Wait(0));
        check(prompt(0, 90_000), Way::Free);
    }

    /// The hit that is chosen when some of it is still to run of these prompts, on idle ranks, against a look at every hit.
    #[track_caller]
    fn check_best(tokens: &[u64], after: &[Option<u64>]) {
        let hits: Vec<Hit> = tokens.iter().enumerate().map(|(rank, &tokens)| hit(rank, tokens)).collect();
        let after = |hit: &Hit| after[hit.rank].map(|tokens| prompt(0, tokens));
        let homes = Homes::new(hits.iter().map(|_| HomeRank::default()), 1e-4);
        let whole = prompt(0, 10_000);
        let cost = |hit: &Hit| {
            let time = |prompt: &Prompt| time_of(prompt, 1e-4);
            let rest = whole.with(hit.tokens);
            homes.cost(hit.rank, &rest)
                + after(hit).map_or(0.0, |after| (time(&after) - time(&rest)).max(0.0))
        };
        let expected = hits.iter().min_by(|x, y| cost(x).total_cmp(&cost(y))).unwrap();
        let (found, hit, waits) = homes.best(&whole, &hits, after).unwrap();
        assert_eq!((found, hit, waits), (cost(expected), expected, after(expected)));
    }

    #[test]
    fn the_best_hit_is_the_best_with_what_it_waits_for() {
        check_best(&[3000, 9000, 8000], &[None, None, None]);
        check_best(&[3000, 9000, 8000], &[None, Some(20_000), None]);
        check_best(&[3000, 9000, 8000], &[None, Some(20_000), Some(90_000)]);
        check_best(&[3000, 9000, 8000], &[None, Some(900), Some(90_000)]);
        check_best(&[3000, 9000, 8000], &[Some(5000), Some(9000), Some(7000)]);
        check_best(&[5000, 5000], &[None, None]);
    }
}
