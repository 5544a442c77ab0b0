use super::*;
use proptest::prelude::*;

/// Loads as (KV, requests); a request count of -1 marks a rank that is down.
fn loads(of: &[(u64, i64)]) -> Vec<RankLoad> {
    let load = |&(kv_tokens, requests): &(u64, i64)| RankLoad {
        kv_tokens,
        requests: requests.max(0) as u64,
        up: requests >= 0,
    };
    of.iter().map(load).collect()
}

#[track_caller]
fn check(of: &[(u64, i64)], kv_tokens: u64, expected: Option<usize>) {
    assert_eq!(admit(loads(of), kv_tokens), expected);
}

#[test]
fn a_request_joins_the_rank_that_it_fills_best() {
    // Means 100k and 100, so up to 101 250 tokens and 101.5 requests fit: the emptiest stays free for something heavier.
    let ranks = [(100_000, 100), (99_000, 100), (100_500, 100), (100_500, 100)];
    check(&ranks, 1, Some(2));
    check(&ranks, 1200, Some(0));
    check(&ranks, 2500, Some(1));
    // A rank without room for another request is passed over, whatever room its KV has.
    check(&[(100_500, 102), (99_000, 99), (100_000, 100), (100_500, 102)], 1, Some(2));
}

#[test]
fn few_requests_are_levelled_out() {
    check(&[(90, 1), (10, 1)], 9, Some(1));
    check(&[(900, 9), (900, 10), (1000, 10)], 100, Some(0));
}

#[test]
fn where_nothing_fits_the_worse_dimension_decides() {
    check(&[(1000, 10), (900, 10), (1050, 10)], 2000, Some(1));
    // The rank with least KV has most requests and the other way round: the middle one is best.
    check(&[(10, 300), (600, 10), (200, 100)], 400, Some(2));
}

#[test]
fn of_a_few_long_contexts_the_kv_decides() {
    check(&[(500_000, 3), (400_000, 5), (500_000, 4)], 100_000, Some(1));
    // Of equal KV their number does.
    check(&[(500_000, 4), (500_000, 3), (500_000, 4)], 100_000, Some(1));
    // With ten times as many requests it counts by itself.
    check(&[(5_000_000, 30), (4_000_000, 60), (5_000_000, 40)], 1_000_000, Some(0));
}

#[test]
fn ties_go_to_the_lower_rank() {
    check(&[(0, 0), (0, 0)], 1, Some(0));
    check(&[(100, 5), (100, 5), (100, 5)], 500, Some(0));
    // The requests decide, and are equal: the one with less KV.
    check(&[(90, 300), (80, 300), (300, 200)], 1, Some(1));
}

#[test]
fn a_rank_that_is_down_gets_nothing() {
    check(&[(0, -1), (500, 7)], 1, Some(1));
    check(&[(0, -1)], 1, None);
    check(&[], 1, None);
}

#[test]
fn the_largest_of_a_batch_chooses_first() {
    // One rank has room for 500 tokens. One by one the small request takes it.
    let ranks = loads(&[(1000, 10), (500, 10), (1000, 10)]);
    assert_eq!(Admission::new(ranks.clone()).admit_all(&[40, 500]), [Some(0), Some(1)]);
    assert_eq!(Admission::new(ranks).admit_all(&[500, 500]), [Some(1), Some(0)]);
}

#[test]
fn less_is_filled_where_migrations_follow() {
    // Means 100k and 100: rank 0 with 1000 tokens more is 0.75 % above the mean, rank 2 below it.
    let ranks = loads(&[(100_000, 100), (99_800, 100), (99_000, 100), (101_200, 100)]);
    assert_eq!(Admission::new(ranks.clone()).admit(1000), Some(0));
    assert_eq!(Admission::before_migrations(ranks).admit(1000), Some(2));
}

proptest! {
    #[test]
    fn any_batch_is_placed_on_ranks_that_are_up(
        of in prop::collection::vec((0u64..1 << 50, -1i64..1 << 24), 0..20),
        kv in prop::collection::vec(0u64..1 << 50, 0..20),
    ) {
        let ranks = loads(&of);
        let placed = Admission::new(ranks.clone()).admit_all(&kv);
        prop_assert_eq!(placed.len(), kv.len());
        for rank in placed {
            match rank {
                Some(rank) => prop_assert!(ranks[rank].up),
                None => prop_assert!(ranks.iter().all(|load| !load.up)),
            }
        }
    }

    /// No request makes a rank stand out more than the rule with one choice would have made it.
    #[test]
    fn above_the_level_only_the_least_bad_rank_is_used(
        of in prop::collection::vec((0u64..100_000, 0i64..100), 1..20),
        kv in 0u64..100_000,
    ) {
        let ranks = loads(&of);
        let chosen = admit(ranks.clone(), kv).expect("all are up");
        let count = ranks.len() as f64;
        let kv_mean = ((ranks.iter().map(|l| l.kv_tokens).sum::<u64>() + kv) as f64 / count).max(1.0);
        let requests_mean = (ranks.iter().map(|l| l.requests).sum::<u64>() + 1) as f64 / count;
        let many = (requests_mean / MANY_REQUESTS).min(1.0);
        let worse = |load: &RankLoad| {
            ((load.kv_tokens + kv) as f64 / kv_mean).max(many * (load.requests + 1) as f64 / requests_mean)
        };
        let least = ranks.iter().map(worse).fold(f64::INFINITY, f64::min);
        let level = 1.0 + (FOR_GOOD.kv.max(FOR_GOOD.requests) / requests_mean).min(LEVEL_MAX);
        prop_assert!(worse(&ranks[chosen]) <= least.max(level) * (1.0 + 1e-9));
    }
}
