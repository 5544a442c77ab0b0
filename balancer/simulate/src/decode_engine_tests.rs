//! What goes in comes out, and decisions that no engine can follow stop the simulation.

use super::*;
use crate::baselines::requests::{LeastRequests, RoundRobin};
use crate::policy::{RequestPolicy, run};
use evenkeel_core::ids::Rank;
use evenkeel_core::policy::RoutingPolicy;
use evenkeel_core::routing::{DispatchNumber, Router};
use evenkeel_core::topology::Role;
use proptest::prelude::*;

fn unit(ranks: u16) -> DecodeUnit {
    DecodeUnit {
        ranks,
        cost: DecodeCost::default(),
        arrivals_per_step_ms: None,
        warm_up_ms: 0,
        end_ms: u64::MAX,
    }
}

/// Arrivals from (ms since the one before, prompt tokens, output tokens).
fn arrivals(requests: &[(u64, u64, u64)]) -> Vec<Arrival> {
    let mut at_ms = 0;
    let place = |(&(gap, input_tokens, output_tokens), request): (&(u64, u64, u64), u64)| {
        at_ms += gap;
        Arrival { request, at_ms, copy: 0, index: 0, input_tokens, output_tokens }
    };
    requests.iter().zip(1..).map(place).collect()
}

fn evenkeel(ranks: u16) -> Router {
    Router::new(Role::Decode, ranks, RoutingPolicy::default()).unwrap()
}

/// Counts the steps that each request ran.
struct Watch<P> {
    policy: P,
    steps: u64,
    began: HashMap<RequestId, u64>,
    ran: BTreeMap<u64, u64>,
}

impl<P: RequestPolicy> RequestPolicy for Watch<P> {
    type Error = P::Error;

    fn decide(&mut self, now: Millis, events: &[RoutingEvent]) -> Result<Vec<Decision>, P::Error> {
        for event in events {
            match *event {
                RoutingEvent::Steps { count } => self.steps += u64::from(count),
                RoutingEvent::Finish { request } => {
                    let before = self.ran.insert(request.0, self.steps - self.began[&request]);
                    assert_eq!(before, None, "{request:?} ended twice");
                }
                _ => {}
            }
        }
        let decisions = self.policy.decide(now, events)?;
        self.began.extend(decisions.iter().map(|d| (d.request(), self.steps)));
        Ok(decisions)
    }
}

/// Runs all requests to their end.
fn check_conserved(ranks: u16, requests: &[(u64, u64, u64)], policy: impl RequestPolicy) {
    let mut engine = DecodeEngine::new(unit(ranks), arrivals(requests).into_iter());
    let mut watch = Watch { policy, steps: 0, began: HashMap::new(), ran: BTreeMap::new() };
    run(&mut engine, &mut watch).unwrap();
    let outputs: BTreeMap<u64, u64> = requests.iter().zip(1..).map(|(r, request)| (request, r.2)).collect();
    assert_eq!(watch.ran, outputs);
    let empty = vec![0; ranks.into()];
    assert_eq!((engine.kv_by_rank(), engine.requests_by_rank()), (&*empty, &*empty));
    assert_eq!((engine.running, engine.waiting.len(), engine.ends.len()), (0, 0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_request_ends_after_its_output_and_leaves_nothing_behind(
        ranks in 1..6u16,
        requests in prop::collection::vec((0..200u64, 1..5000u64, 1..60u64), 1..80),
    ) {
        check_conserved(ranks, &requests, RoundRobin::new(ranks));
        check_conserved(ranks, &requests, LeastRequests::new(ranks));
        check_conserved(ranks, &requests, evenkeel(ranks));
    }

    #[test]
    fn one_rank_is_the_same_under_every_policy(
        requests in prop::collection::vec((0..200u64, 1..5000u64, 1..60u64), 1..80),
    ) {
        let figures = |policy: &mut dyn FnMut(&mut DecodeEngine<_>)| {
            let mut engine = DecodeEngine::new(unit(1), arrivals(&requests).into_iter());
            policy(&mut engine);
            (engine.figures(), engine.now())
        };
        let expected = figures(&mut |e| run(e, &mut evenkeel(1)).unwrap());
        prop_assert_eq!(figures(&mut |e| run(e, &mut RoundRobin::new(1)).unwrap()), expected);
        prop_assert_eq!(figures(&mut |e| run(e, &mut LeastRequests::new(1)).unwrap()), expected);
        prop_assert_eq!((expected.0.kv_imbalance, expected.0.requests_imbalance), (1.0, 1.0));
        prop_assert_eq!(expected.0.step_ms, expected.0.ideal_step_ms);
    }
}

#[test]
fn figures_are_means_over_steps() {
    // Two ranks; 10 tokens on one of them for two steps, then nothing.
    let cost = DecodeCost { fixed_ms: 1.0, per_kv_token_ms: 1.0, per_request_ms: 100.0 };
    let unit = DecodeUnit { cost, ..unit(2) };
    let mut engine = DecodeEngine::new(unit, arrivals(&[(0, 10, 2)]).into_iter());
    run(&mut engine, &mut RoundRobin::new(2)).unwrap();
    let expected = DecodeFigures {
        steps: 2,
        requests_per_rank: 0.5,
        kv_per_rank: (5.0 + 5.5) / 2.0,
        kv_imbalance: 2.0,
        requests_imbalance: 2.0,
        step_ms: (111.0 + 112.0) / 2.0,
        ideal_step_ms: (56.0 + 56.5) / 2.0,
    };
    assert_eq!((engine.figures(), engine.now()), (expected, Millis(223)));
}

#[test]
fn steps_before_the_warm_up_are_not_measured_and_the_end_is_an_end() {
    let unit = DecodeUnit { warm_up_ms: 500, end_ms: 1000, ..unit(1) };
    let mut engine = DecodeEngine::new(unit, arrivals(&[(0, 10, 9999)]).into_iter());
    run(&mut engine, &mut RoundRobin::new(1)).unwrap();
    // A step takes a little more than 12 ms.
    assert!((40..42).contains(&engine.figures().steps), "{:?}", engine.figures());
    assert!((1000..1013).contains(&engine.now().0));
}

struct Says(Vec<Decision>);

impl RequestPolicy for Says {
    type Error = String;

    fn decide(&mut self, _: Millis, _: &[RoutingEvent]) -> Result<Vec<Decision>, String> {
        if self.0.is_empty() { Err("out of words".to_owned()) } else { Ok(self.0.clone()) }
    }
}

/// Requests 1 and 2 arrive at 70 ms at a unit of two ranks.
#[track_caller]
fn check_wrong(decisions: &[Decision], code: &str, text: &[&str]) {
    let mut engine = DecodeEngine::new(unit(2), arrivals(&[(70, 9, 5), (0, 9, 5)]).into_iter());
    let error = run(&mut engine, &mut Says(decisions.to_vec())).unwrap_err();
    assert_eq!(error.code(), code);
    for part in text.iter().chain([&"at 70 ms"]) {
        assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn a_decision_that_no_engine_can_follow_is_an_error() {
    let dispatch = |request, rank| Decision::Dispatch {
        request: RequestId(request),
        number: DispatchNumber(1),
        rank: Rank(rank),
        microbatch: 0,
        tokens: None,
    };
    let refuse =
        |request| Decision::Refuse { request: RequestId(request), code: "x", message: String::new() };
    let wrong = "simulation_wrong_decision";
    check_wrong(&[dispatch(1, 2)], wrong, &["request 1", "no such rank"]);
    check_wrong(&[dispatch(1, 0), dispatch(1, 0)], wrong, &["request 1", "not waiting"]);
    check_wrong(&[dispatch(3, 0)], wrong, &["request 3", "not waiting"]);
    check_wrong(&[refuse(3)], wrong, &["request 3", "not waiting"]);
    check_wrong(&[dispatch(1, 0), refuse(1)], wrong, &["request 1", "not waiting"]);
    check_wrong(&[refuse(2), dispatch(2, 0)], wrong, &["request 2", "not waiting"]);
    check_wrong(&[Decision::Hold { request: RequestId(9) }], wrong, &["request 9", "not waiting"]);
    check_wrong(&[], "simulation_no_decision", &["out of words"]);
}
