use super::*;
use proptest::prelude::*;

/// Ranks of a unit: whether each is up, and the KV of its requests, named in order from 1; those of which `moved` is true
/// moved 10 steps ago.
#[derive(Debug, Clone)]
struct Ranks {
    ranks: Vec<(State, Vec<u64>)>,
    moved: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Up,
    Drains,
    Down,
}
use State::{Down, Drains, Up};

impl RunningRequests for Ranks {
    type Id = usize;

    fn ranks(&self) -> usize {
        self.ranks.len()
    }

    fn load(&self, rank: usize) -> RankLoad {
        let (state, requests) = &self.ranks[rank];
        RankLoad { kv_tokens: requests.iter().sum(), requests: requests.len() as u64, up: *state == Up }
    }

    fn drains(&self, rank: usize) -> bool {
        self.ranks[rank].0 == Drains
    }

    fn running(&self, rank: usize) -> impl Iterator<Item = Running<usize>> {
        let before: usize = self.ranks[..rank].iter().map(|(_, requests)| requests.len()).sum();
        let since_move = self.moved.then_some(10);
        let requests = self.ranks[rank].1.iter().enumerate();
        requests.map(move |(index, &kv_tokens)| Running { id: before + index + 1, kv_tokens, since_move })
    }
}

fn at_most(per_step: u32) -> MigrationPolicy {
    MigrationPolicy { per_step, ranks_per_node: 1, ..MigrationPolicy::default() }
}

/// Compares the moves as (request, from, to).
#[track_caller]
fn check(policy: &MigrationPolicy, ranks: &[(State, &[u64])], expected: &[(usize, usize, usize)]) {
    let ranks = ranks.iter().map(|&(state, requests)| (state, requests.to_vec())).collect();
    let moves = plan_migrations(&Ranks { ranks, moved: false }, policy);
    let moves: Vec<_> = moves.iter().map(|m| (m.id, m.from, m.to)).collect();
    assert_eq!(moves, expected);
}

#[test]
fn the_rank_that_stands_out_gives_what_evens_it_out() {
    // 900 against 300 with equal counts: a swap would be ideal, the nearest single move is 200.
    check(&at_most(1), &[(Up, &[600, 200, 100]), (Up, &[100, 100, 100])], &[(2, 0, 1)]);
    // The emptier of two targets.
    check(&at_most(1), &[(Up, &[100, 100, 100]), (Up, &[100, 100]), (Up, &[100])], &[(1, 0, 2)]);
}

#[test]
fn the_number_of_requests_counts_where_they_are_many() {
    // Equal KV, and 100 requests against 50: the rank with most gives a small one.
    let many: Vec<u64> = [505].into_iter().chain([5; 99]).collect();
    check(&at_most(1), &[(Up, &many), (Up, &[20; 50])], &[(2, 0, 1)]);
    // 5 against 1: KV that is even stays even.
    check(&at_most(1), &[(Up, &[60, 10, 10, 10, 10]), (Up, &[100])], &[]);
}

#[test]
fn no_more_moves_than_the_policy_allows_and_none_without_gain() {
    let ranks: &[(State, &[u64])] = &[(Up, &[100; 8]), (Up, &[]), (Up, &[100; 4])];
    check(&at_most(0), ranks, &[]);
    check(&at_most(2), ranks, &[(1, 0, 1), (2, 0, 1)]);
    check(&at_most(9), ranks, &[(1, 0, 1), (2, 0, 1), (3, 0, 1), (4, 0, 1)]);
    check(&at_most(9), &[(Up, &[100, 100]), (Up, &[100])], &[]);
}

#[test]
fn a_move_that_does_not_pay_for_its_transfer_is_not_made() {
    let ranks: &[(State, &[u64])] = &[(Up, &[10_000, 10_000, 10_000]), (Up, &[10_000])];
    check(&at_most(1), ranks, &[(1, 0, 1)]);
    // The potential falls by (1.5^2 + 0.5^2 - 2) in KV, and by that times (2 / 50)^2 in requests: 0.5008, for 10k tokens and 500 steps.
    check(&MigrationPolicy { token_cost: 0.02503, ..at_most(1) }, ranks, &[(1, 0, 1)]);
    check(&MigrationPolicy { token_cost: 0.02505, ..at_most(1) }, ranks, &[]);
    check(&MigrationPolicy { remaining_steps: 0.4, ..at_most(1) }, ranks, &[]);
}

#[test]
fn what_moved_lately_stays_unless_its_rank_drains() {
    let moves = |state, rest_steps| {
        let ranks = vec![(state, vec![100; 4]), (Up, vec![])];
        plan_migrations(&Ranks { ranks, moved: true }, &MigrationPolicy { rest_steps, ..at_most(1) }).len()
    };
    assert_eq!([moves(Up, 10), moves(Up, 11), moves(Drains, 11)], [1, 0, 1]);
}

#[test]
fn a_node_sends_and_receives_no_more_than_its_nics_carry() {
    let policy = |node_tokens| MigrationPolicy { node_tokens, ranks_per_node: 2, ..at_most(9) };
    // Ranks 0 and 1 are one node, ranks 2 and 3 the other.
    let ranks: &[(State, &[u64])] = &[(Up, &[100; 4]), (Up, &[100; 4]), (Up, &[]), (Up, &[])];
    check(&policy(400), ranks, &[(1, 0, 2), (5, 1, 3), (2, 0, 2), (6, 1, 3)]);
    check(&policy(250), ranks, &[(1, 0, 2), (5, 1, 3)]);
    check(&policy(99), ranks, &[]);
}

#[test]
fn ranks_that_drain_come_first() {
    check(&at_most(1), &[(Up, &[100; 9]), (Drains, &[5]), (Up, &[100; 5])], &[(10, 1, 2)]);
    check(&at_most(2), &[(Up, &[100; 9]), (Drains, &[5]), (Up, &[100; 5])], &[(10, 1, 2), (1, 0, 2)]);
    check(&at_most(2), &[(Down, &[100; 9]), (Up, &[]), (Up, &[])], &[]);
    check(&at_most(2), &[(Drains, &[5])], &[]);
    check(&at_most(2), &[], &[]);
}

fn any_ranks() -> impl Strategy<Value = Ranks> {
    let state = prop_oneof![8 => Just(Up), 1 => Just(Drains), 1 => Just(Down)];
    let requests = prop::collection::vec(prop_oneof![0u64..5000, 0u64..1 << 40], 0..12);
    let ranks = prop::collection::vec((state, requests), 0..12);
    (ranks, any::<bool>()).prop_map(|(ranks, moved)| Ranks { ranks, moved })
}

fn any_policy() -> impl Strategy<Value = MigrationPolicy> {
    (0u32..6, 0u64..100_000, 0usize..4, 0u32..20, 0.0..1e-3f64).prop_map(
        |(per_step, node_tokens, ranks_per_node, rest_steps, token_cost)| MigrationPolicy {
            per_step,
            node_tokens,
            ranks_per_node,
            rest_steps,
            remaining_steps: 500.0,
            token_cost,
        },
    )
}

/// Sum over ranks that are up of both squares of the relative loads, with the means as they are before the moves.
fn potential(ranks: &Ranks, moves: &[Migration<usize>]) -> f64 {
    let up: Vec<usize> = (0..ranks.ranks()).filter(|&rank| ranks.load(rank).up).collect();
    let sum = |of: fn(RankLoad) -> u64| up.iter().map(|&rank| of(ranks.load(rank)) as f64).sum::<f64>();
    let (kv_sum, requests_sum) = (sum(|l| l.kv_tokens), sum(|l| l.requests));
    let square = |&rank: &usize| {
        let load = ranks.load(rank);
        let (mut kv, mut requests) = (load.kv_tokens as f64, load.requests as f64);
        for m in moves {
            let sign = f64::from(i8::from(m.to == rank) - i8::from(m.from == rank));
            kv += sign * m.kv_tokens as f64;
            requests += sign;
        }
        (kv / kv_sum.max(1.0)).powi(2) + (requests / requests_sum.max(1.0)).powi(2)
    };
    up.iter().map(square).sum()
}

proptest! {
    #[test]
    fn a_plan_keeps_its_bounds(ranks in any_ranks(), policy in any_policy()) {
        let moves = plan_migrations(&ranks, &policy);
        prop_assert_eq!(&moves, &plan_migrations(&ranks, &policy));
        prop_assert!(moves.len() <= policy.per_step as usize);
        let mut ids: Vec<usize> = moves.iter().map(|m| m.id).collect();
        ids.sort_unstable();
        ids.dedup();
        prop_assert_eq!(ids.len(), moves.len(), "a request moves once");
        let mut carried = std::collections::BTreeMap::new();
        for m in &moves {
            let is_there = ranks.running(m.from).any(|r| r.id == m.id && r.kv_tokens == m.kv_tokens);
            prop_assert!(is_there && m.from != m.to && ranks.load(m.to).up);
            prop_assert!(ranks.load(m.from).up || ranks.drains(m.from));
            let node = |rank| rank / policy.ranks_per_node.max(1);
            *carried.entry(("from", node(m.from))).or_insert(0) += m.kv_tokens;
            *carried.entry(("to", node(m.to))).or_insert(0) += m.kv_tokens;
        }
        prop_assert!(carried.values().all(|&tokens| tokens <= policy.node_tokens));
    }

    #[test]
    fn the_potential_falls_with_every_move(mut ranks in any_ranks(), policy in any_policy()) {
        for (state, _) in &mut ranks.ranks {
            *state = if *state == Drains { Down } else { *state };
        }
        let moves = plan_migrations(&ranks, &policy);
        let potentials: Vec<f64> = (0..=moves.len()).map(|n| potential(&ranks, &moves[..n])).collect();
        prop_assert!(potentials.is_sorted_by(|before, after| *after <= *before * (1.0 + 1e-9)), "{potentials:?}");
    }
}
