//! What goes in comes out, and decisions that no engine can follow stop the simulation.

use super::*;
use crate::baselines::requests::{LeastRequests, RoundRobin};
use crate::policy::{RequestPolicy, run};
use evenkeel_core::ids::Rank;
use evenkeel_core::policy::RoutingPolicy;
use evenkeel_core::routing::{DispatchNumber, Router};
use evenkeel_core::topology::Role;
use proptest::prelude::*;

const ROUND_TOKENS: u64 = 1000;

fn unit(ranks: u16) -> PrefillUnit {
    PrefillUnit {
        ranks,
        round_tokens: ROUND_TOKENS,
        cost: PrefillCost::default(),
        cache_blocks: 1 << 10,
        warm_up_ms: 0,
        end_ms: u64::MAX,
    }
}

/// One copy of a trace of (ms since the request before, prompt tokens); every third shares its first block.
fn arrivals(requests: &[(u64, u64)]) -> Replicated {
    let mut at_ms = 0;
    let place = |(&(gap, input_tokens), number): (&(u64, u64), u64)| {
        at_ms += gap;
        let first = if number.is_multiple_of(3) { 0 } else { number };
        let blocks = [first, 1000 + number].into_iter().collect();
        TraceRequest { at_ms, input_tokens, output_tokens: 1, blocks, ..TraceRequest::default() }
    };
    Replicated::new(requests.iter().zip(1..).map(place).collect(), 1, 5)
}

fn evenkeel(ranks: u16, round_tokens: Option<u64>) -> Router {
    let policy = RoutingPolicy { round_tokens, ..RoutingPolicy::default() };
    Router::new(Role::Prefill, ranks, policy).unwrap()
}

/// New tokens of all prompts, whatever the policy: the cache is looked up in the order of arrival.
fn uncached(requests: &[(u64, u64)]) -> u64 {
    let arrivals = arrivals(requests);
    let trace = arrivals.trace().clone();
    let mut cache = PrefixCache::new(1 << 10);
    let new = |a: crate::replicate::Arrival| {
        a.input_tokens - cache.admit(blocks_of_copy(&trace[a.index], a.copy), a.input_tokens)
    };
    arrivals.map(new).sum()
}

/// Runs all prompts to their end, step by step; returns the figures.
fn check_conserved(ranks: u16, requests: &[(u64, u64)], mut policy: impl RequestPolicy) -> PrefillFigures {
    let mut engine = PrefillEngine::new(unit(ranks), arrivals(requests));
    let (mut arrived, mut ended) = (Vec::new(), Vec::new());
    while let Some(batch) = engine.advance() {
        for event in &batch.events {
            match event {
                RoutingEvent::Arrive { request, .. } => arrived.push(*request),
                RoutingEvent::Finish { request } => ended.push(*request),
                _ => {}
            }
        }
        assert!(engine.work_by_rank().iter().all(|work| work.tokens <= ROUND_TOKENS));
        let decisions = policy.decide(batch.now, &batch.events).map_err(|e| e.to_string()).unwrap();
        engine.dispatch(&decisions).unwrap();
    }
    ended.sort_unstable();
    assert_eq!(ended, arrived, "every prompt ends once");
    assert!(engine.prompts.is_empty() && engine.queues.iter().all(VecDeque::is_empty));
    let figures = engine.figures();
    let all = requests.len() as u64;
    assert_eq!((figures.prompts, figures.unfinished, figures.tokens), (all, 0, uncached(requests)));
    assert!(figures.time_over_ideal > 0.999_999, "{figures:?}");
    figures
}

fn requests() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let prompt = prop_oneof![4 => 1..900u64, 1 => 1..9000u64];
    prop::collection::vec((0..400u64, prompt), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_prompt_runs_all_its_tokens_and_leaves_nothing_behind(ranks in 1..6u16, requests in requests()) {
        check_conserved(ranks, &requests, RoundRobin::new(ranks));
        check_conserved(ranks, &requests, LeastRequests::new(ranks));
        check_conserved(ranks, &requests, evenkeel(ranks, None));
        check_conserved(ranks, &requests, evenkeel(ranks, Some(ROUND_TOKENS)));
    }

    #[test]
    fn one_rank_is_the_same_under_every_policy(requests in requests()) {
        let expected = check_conserved(1, &requests, RoundRobin::new(1));
        prop_assert_eq!(&check_conserved(1, &requests, LeastRequests::new(1)), &expected);
        prop_assert_eq!(&check_conserved(1, &requests, evenkeel(1, None)), &expected);
        // Chunks come in an order of their own, so rounds and waits differ; the work does not.
        let chunked = check_conserved(1, &requests, evenkeel(1, Some(ROUND_TOKENS)));
        prop_assert!((chunked.us_per_token / expected.us_per_token - 1.0).abs() < 1e-9);
        for figures in [expected, chunked] {
            prop_assert_eq!((figures.tokens_imbalance, figures.attention_imbalance), (1.0, 1.0));
        }
    }
}

#[test]
fn a_policy_that_holds_forever_ends_with_the_simulated_time() {
    struct Holds;
    impl RequestPolicy for Holds {
        type Error = String;
        fn decide(&mut self, _: Millis, _: &[RoutingEvent]) -> Result<Vec<Decision>, String> {
            Ok(Vec::new())
        }
    }
    let mut engine = PrefillEngine::new(PrefillUnit { end_ms: 60_000, ..unit(2) }, arrivals(&[(0, 9)]));
    run(&mut engine, &mut Holds).unwrap();
    assert_eq!((engine.figures().unfinished, engine.figures().rounds), (1, 0));
}

struct Says(Vec<Decision>);

impl RequestPolicy for Says {
    type Error = String;

    fn decide(&mut self, _: Millis, _: &[RoutingEvent]) -> Result<Vec<Decision>, String> {
        Ok(std::mem::take(&mut self.0))
    }
}

/// Prompt 1 of 3000 tokens arrives at a unit of two ranks.
#[track_caller]
fn check_wrong(decisions: &[Decision], text: &[&str]) {
    let unit = PrefillUnit { end_ms: 60_000, ..unit(2) };
    let mut engine = PrefillEngine::new(unit, arrivals(&[(0, 3000)]));
    let error = run(&mut engine, &mut Says(decisions.to_vec())).unwrap_err();
    assert_eq!(error.code(), "simulation_wrong_decision");
    for part in text {
        assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn a_decision_that_no_engine_can_follow_is_an_error() {
    let dispatch = |request, rank, tokens: Option<u64>| Decision::Dispatch {
        request: RequestId(request),
        number: DispatchNumber(1),
        rank: Rank(rank),
        microbatch: 0,
        tokens: tokens.map(Tokens),
    };
    let hold = |request| Decision::Hold { request: RequestId(request) };
    let refuse =
        |request| Decision::Refuse { request: RequestId(request), code: "x", message: String::new() };
    check_wrong(&[dispatch(1, 2, None)], &["request 1", "no such rank"]);
    check_wrong(&[dispatch(2, 0, None)], &["request 2", "not here"]);
    check_wrong(&[dispatch(1, 0, None), dispatch(1, 0, None)], &["request 1", "no such tokens"]);
    check_wrong(&[dispatch(1, 0, Some(9)), dispatch(1, 1, Some(9))], &["request 1", "on another rank"]);
    check_wrong(&[dispatch(1, 0, Some(9)), dispatch(1, 0, Some(2992))], &["no such tokens"]);
    check_wrong(&[dispatch(1, 0, Some(0))], &["no such tokens"]);
    check_wrong(&[hold(2)], &["request 2", "not here"]);
    check_wrong(&[refuse(2)], &["request 2", "not here"]);
    check_wrong(&[dispatch(1, 0, None), refuse(1)], &["request 1", "on a rank already"]);
    check_wrong(&[dispatch(1, 0, Some(9)), hold(1)], &["request 1", "on a rank already"]);
}
