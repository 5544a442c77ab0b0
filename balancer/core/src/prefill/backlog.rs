//! Assigns whole prompts that are fewer than the bins: there is nothing to pair, so each goes by itself to where it is done soonest.
//!
//! Only tokens count. An engine that cuts its prompts itself runs so many tokens a step, and all ranks' step takes as long as the
//! longest context of any of them: how many steps a rank's queue takes is its tokens, and the attention is everybody's.

use super::cohort::{Assignment, Bins, Cohort, MICROBATCHES, measure};
use crate::prefix::Fullness;

/// What a token that a rank has to run costs, beside one that it runs before: whoever comes later waits for it too. In simulation
/// (Mooncake at 20, 40, 60 % load, seeds 1 to 3) 6 and 8 are alike; with 3, one to two hundredths of the prompts' tokens more run that
/// need not, and with 12 the last twentieth of first tokens comes 5, 15 and 0 % later.
const RUN: f64 = 8.0;

/// Assigns every item, in their order. `kept`: per rank, prefix blocks in its cache. Deterministic; ties go to the lower rank, and
/// there to the first microbatch.
pub fn assign_each(cohort: &Cohort, kept: &[u64]) -> Assignment {
    let count = cohort.carried.len();
    assert_eq!(count, kept.len() * MICROBATCHES, "bins are the ranks' microbatches");
    assert!(count > 0 || cohort.items.is_empty(), "items need bins");
    let fullness = Fullness::of(kept.iter().copied());
    let mut backlogs: Vec<[u64; MICROBATCHES]> =
        cohort.carried.chunks_exact(MICROBATCHES).map(|rank| [rank[0].tokens, rank[1].tokens]).collect();
    let mut bins = Bins { loads: Vec::new(), members: vec![Vec::new(); count] };
    let mut tokens = Vec::with_capacity(kept.len());
    for (number, item) in (0..).zip(&cohort.items) {
        tokens.clear();
        tokens.resize(kept.len(), item.work_anywhere().tokens);
        for hit in item.hits.iter().filter(|hit| hit.rank < kept.len()) {
            tokens[hit.rank] = item.work_with(hit.tokens).tokens;
        }
        let cost = |rank: usize| {
            let backlog: u64 = backlogs[rank].iter().sum();
            backlog as f64 + RUN * (tokens[rank] as f64 + fullness.reruns(kept[rank], tokens[rank]))
        };
        let costs = (0..kept.len()).map(|rank| (cost(rank), rank));
        let (_, rank) = costs.min_by(|x, y| x.0.total_cmp(&y.0)).expect("items need bins");
        let half = usize::from(backlogs[rank][1] < backlogs[rank][0]);
        backlogs[rank][half] += tokens[rank];
        bins.members[rank * MICROBATCHES + half].push(number);
    }
    measure(cohort, &bins)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefill::{Hit, Item, Prompt, Work};

    fn item(tokens: u64, hits: &[(usize, u64)]) -> Item {
        let hits = hits.iter().map(|&(rank, tokens)| Hit { rank, tokens }).collect();
        Item { prompt: Prompt { context: 0, remaining: tokens }, hits }
    }

    /// Bins of these items on ranks whose first microbatch has so many tokens to run and whose caches keep so many blocks.
    #[track_caller]
    fn check(ranks: &[(u64, u64)], items: &[Item], expected: &[usize]) {
        let carried = ranks.iter().flat_map(|&(tokens, _)| [Work::of(0, tokens), Work::default()]).collect();
        let kept: Vec<u64> = ranks.iter().map(|&(_, kept)| kept).collect();
        assert_eq!(assign_each(&Cohort { carried, items: items.to_vec() }, &kept).bin_of, expected);
    }

    #[test]
    fn each_goes_where_least_is_to_run() {
        check(&[(0, 0), (0, 0)], &[item(10, &[])], &[0]);
        check(&[(9, 0), (5, 0), (7, 0)], &[item(10, &[])], &[3]);
        check(&[(9, 0), (5, 0), (7, 0)], &[item(10, &[]), item(1, &[]), item(1, &[])], &[3, 5, 5]);
    }

    #[test]
    fn tokens_decide_and_attention_does_not() {
        let carried =
            vec![Work { tokens: 9, attention: 9 }, Work::default(), Work { tokens: 8, attention: 800 }];
        let cohort =
            Cohort { carried: [carried, vec![Work::default()]].concat(), items: vec![item(10, &[])] };
        assert_eq!(assign_each(&cohort, &[0, 0]).bin_of, [3]);
    }

    #[test]
    fn a_prefix_is_worth_a_queue_but_not_any() {
        let followed = [item(1000, &[(1, 600)])];
        check(&[(0, 0), (4800 - 1, 0)], &followed, &[3]);
        check(&[(0, 0), (4800 + 1, 0)], &followed, &[0]);
        check(&[(0, 0)], &[item(1000, &[(7, 600)])], &[0]);
    }

    #[test]
    fn a_little_in_common_fills_no_cache_while_others_are_empty() {
        check(&[(0, 100), (0, 0)], &[item(10_000, &[(0, 512)])], &[2]);
        check(&[(0, 100), (0, 90)], &[item(10_000, &[(0, 512)])], &[0]);
        check(&[(0, 100), (0, 0)], &[item(10_000, &[(0, 9000)])], &[0]);
    }

    #[test]
    fn the_microbatches_of_a_rank_take_turns() {
        check(&[(5, 0)], &[item(3, &[]), item(3, &[]), item(3, &[])], &[1, 1, 0]);
    }

    #[test]
    fn it_says_how_even_the_bins_are() {
        let cohort = Cohort { carried: vec![Work::default(); 4], items: vec![item(10, &[]), item(10, &[])] };
        let assignment = assign_each(&cohort, &[0, 0]);
        assert_eq!((assignment.tokens.over_mean, assignment.tokens.over_bound), (2.0, 1.0));
    }
}
