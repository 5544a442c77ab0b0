//! Properties of [`Router`] under any order of events, and its refusals one by one.

use super::*;
use crate::routing::{EVENTS_MAX, STEPS_MAX};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

const LONG_TOKENS: u64 = 5000;
/// A long prompt takes 10 rounds by itself.
const ROUND_TOKENS: u64 = 500;

fn arrive(request: u64, prompt: u64, cached: u64) -> RoutingEvent {
    RoutingEvent::Arrive {
        request: RequestId(request),
        prompt_tokens: Tokens(prompt),
        cached_tokens: Tokens(cached),
    }
}

fn finish(request: u64) -> RoutingEvent {
    RoutingEvent::Finish { request: RequestId(request) }
}

fn steps(count: u32) -> RoutingEvent {
    RoutingEvent::Steps { count }
}

/// A report of a rank that is up; `as_of` 0 for none.
fn report(rank: u16, kv: u64, requests: u32, as_of: u64) -> RoutingEvent {
    let as_of_request = (as_of > 0).then_some(RequestId(as_of));
    RoutingEvent::RankState {
        rank: Rank(rank),
        kv_used_tokens: Tokens(kv),
        requests,
        as_of_request,
        up: true,
    }
}

fn down(rank: u16) -> RoutingEvent {
    RoutingEvent::RankState {
        rank: Rank(rank),
        kv_used_tokens: Tokens(0),
        requests: 0,
        as_of_request: None,
        up: false,
    }
}

fn dispatched(request: u64, rank: u16) -> Decision {
    Decision::Dispatch { request: RequestId(request), rank: Rank(rank), microbatch: 0, tokens: None }
}

fn held(request: u64) -> Decision {
    Decision::Hold { request: RequestId(request) }
}

fn chunked() -> RoutingPolicy {
    RoutingPolicy { round_tokens: Some(ROUND_TOKENS), ..RoutingPolicy::default() }
}

fn router(role: Role, ranks: u16) -> Router {
    Router::new(role, ranks, RoutingPolicy::default()).unwrap()
}

// ---- Any order of events ---------------------------------------------------------------------------

/// An event before the requests have names.
#[derive(Debug, Clone)]
enum Op {
    Arrive {
        prompt: u64,
        cached_percent: u64,
    },
    /// A name that was used before, live or not.
    ArriveAgain {
        back: usize,
    },
    Finish {
        back: usize,
    },
    FinishUnknown,
    Steps(u32),
    Report {
        rank: u16,
        kv: u64,
        requests: u32,
        back: usize,
    },
    Down(u16),
    Tick,
    /// Events that no router takes.
    Broken(RoutingEvent),
}

fn op() -> impl Strategy<Value = Op> {
    let prompt = prop_oneof![3 => 1..300u64, 1 => 1..LONG_TOKENS];
    let arrival = (prompt, 0..100u64);
    let broken = prop_oneof![
        Just(arrive(0, 5, 0)),
        Just(arrive(1 << 40, 0, 0)),
        Just(arrive(1 << 40, 5, 5)),
        Just(steps(0)),
        Just(report(99, 0, 0, 0)),
    ];
    prop_oneof![
        24 => arrival.prop_map(|(prompt, cached_percent)| Op::Arrive { prompt, cached_percent }),
        2 => (0..30usize).prop_map(|back| Op::ArriveAgain { back }),
        10 => (0..30usize).prop_map(|back| Op::Finish { back }),
        1 => Just(Op::FinishUnknown),
        4 => (1..4u32).prop_map(Op::Steps),
        4 => (0..4u16, 0..9000u64, 0..20u32, 0..30usize)
            .prop_map(|(rank, kv, requests, back)| Op::Report { rank, kv, requests, back }),
        2 => (0..4u16).prop_map(Op::Down),
        6 => Just(Op::Tick),
        1 => broken.prop_map(Op::Broken),
    ]
}

/// Batches with the time since the one before, which may be negative.
fn batches() -> impl Strategy<Value = Vec<(i64, Vec<Op>)>> {
    let elapsed = prop_oneof![40 => 0..900i64, 1 => Just(-1i64)];
    prop::collection::vec((elapsed, prop::collection::vec(op(), 0..12)), 1..40)
}

/// What a request must be, told from the decisions alone.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    uncached: u64,
    rank: Option<Rank>,
    given: u64,
}

/// Checks every decision of a router against what was said to it before.
struct Witness {
    router: Router,
    role: Role,
    up: Vec<bool>,
    now: u64,
    next_request: u64,
    known: BTreeMap<RequestId, Known>,
    counted: RouterCounters,
    /// Accepted batches and what was decided about them.
    log: Vec<(Millis, Vec<RoutingEvent>, Vec<Decision>)>,
}

impl Witness {
    fn new(role: Role, ranks: u16, policy: &RoutingPolicy) -> Self {
        Self {
            router: Router::new(role, ranks, policy.clone()).unwrap(),
            role,
            up: vec![true; ranks.into()],
            now: 0,
            next_request: 1,
            known: BTreeMap::new(),
            counted: RouterCounters::default(),
            log: Vec::new(),
        }
    }

    fn name(&mut self, op: &Op) -> RoutingEvent {
        let ranks = self.up.len() as u16;
        let used = |back: usize| self.next_request.saturating_sub(1 + back as u64).max(1);
        match *op {
            Op::Arrive { prompt, cached_percent } => {
                self.next_request += 1;
                arrive(self.next_request - 1, prompt, (prompt * cached_percent / 100).min(prompt - 1))
            }
            Op::ArriveAgain { back } => arrive(used(back), 7, 3),
            Op::Finish { back } => finish(used(back)),
            Op::FinishUnknown => finish(u64::MAX),
            Op::Steps(count) => steps(count),
            Op::Report { rank, kv, requests, back } => {
                report(rank % ranks, kv, requests, if back == 0 { 0 } else { used(back) })
            }
            Op::Down(rank) => down(rank % ranks),
            Op::Tick => RoutingEvent::Tick,
            Op::Broken(ref event) => event.clone(),
        }
    }

    fn batch(&mut self, elapsed: i64, events: Vec<RoutingEvent>) {
        let now = Millis(self.now.saturating_add_signed(elapsed));
        let before = self.router.clone();
        match self.router.apply(now, &events) {
            Err(_) => assert_eq!(self.router, before, "a refused batch had an effect"),
            Ok(decisions) => {
                self.now = now.0;
                let arrived = self.hear(&events);
                self.follow(&decisions, arrived);
                self.log.push((now, events, decisions));
            }
        }
        self.check_ledger();
    }

    /// Takes the events. Returns the requests that must be answered now, each with whether it is refused.
    fn hear(&mut self, events: &[RoutingEvent]) -> VecDeque<(RequestId, bool)> {
        let mut answers: VecDeque<(RequestId, bool)> = VecDeque::new();
        for event in events {
            match *event {
                RoutingEvent::Arrive { request, .. } if !self.up.contains(&true) => {
                    answers.push_back((request, true));
                }
                RoutingEvent::Arrive { request, prompt_tokens, cached_tokens } => {
                    let uncached = prompt_tokens.0 - cached_tokens.0;
                    let before = self.known.insert(request, Known { uncached, rank: None, given: 0 });
                    assert_eq!(before, None, "{request:?} was taken while it is live");
                    answers.push_back((request, false));
                }
                RoutingEvent::Finish { request } => {
                    let known = self.known.remove(&request).is_some();
                    self.counted.unknown_finishes += u64::from(!known);
                    answers.retain(|&(answered, refused)| refused || answered != request);
                }
                RoutingEvent::RankState { rank, up, .. } => {
                    self.up[rank.index()] = up;
                    if !up {
                        self.forget(rank, &mut answers);
                    }
                }
                RoutingEvent::Steps { .. } | RoutingEvent::Tick => {}
            }
        }
        answers
    }

    fn forget(&mut self, rank: Rank, answers: &mut VecDeque<(RequestId, bool)>) {
        let before = self.known.len();
        self.known.retain(|_, known| known.rank != Some(rank));
        self.counted.forgotten += (before - self.known.len()) as u64;
        if !self.up.contains(&true) {
            answers.retain(|&(_, refused)| refused);
            answers.extend(self.known.keys().map(|&request| (request, true)));
            self.known.clear();
        }
    }

    fn follow(&mut self, decisions: &[Decision], mut answers: VecDeque<(RequestId, bool)>) {
        let mut seen = Vec::new();
        for decision in decisions {
            let request = decision.request();
            match decision {
                Decision::Refuse { code, .. } => {
                    assert_eq!(*code, REFUSED_NO_RANK_UP);
                    let place = answers.iter().position(|&a| a == (request, true));
                    answers.remove(place.expect("only what has nowhere to go is refused"));
                    self.counted.refused += 1;
                    continue;
                }
                Decision::Hold { .. } => {
                    assert_eq!(self.role, Role::Prefill, "decode admits at once");
                    assert_eq!(self.known[&request].rank, None, "a dispatched request is held");
                    assert!(answers.contains(&(request, false)), "{request:?} was held before");
                }
                Decision::Dispatch { rank, microbatch, tokens, .. } => {
                    self.give(request, *rank, tokens.map(|t| t.0));
                    assert!(usize::from(*microbatch) < MICROBATCHES);
                }
            }
            assert!(!seen.contains(&request), "{request:?} is decided twice in a batch");
            seen.push(request);
            answers.retain(|&answer| answer != (request, false));
        }
        assert_eq!(answers, [], "arrivals without an answer");
    }

    fn give(&mut self, request: RequestId, rank: Rank, tokens: Option<u64>) {
        assert!(self.up[rank.index()], "a rank that is down was given {request:?}");
        let known = self.known.get_mut(&request).expect("only live requests are dispatched");
        if known.rank.is_none() {
            self.counted.dispatched += 1;
        }
        assert!(known.rank.is_none_or(|pinned| pinned == rank), "{request:?} changed its rank");
        assert_eq!(tokens.is_some(), self.router.policy.round_tokens.is_some());
        let rest = known.uncached - known.given;
        let tokens = tokens.unwrap_or(rest);
        assert!((1..=rest).contains(&tokens), "{tokens} of {rest} tokens of {request:?} were dispatched");
        known.rank = Some(rank);
        known.given += tokens;
    }

    fn check_ledger(&self) {
        let router = &self.router;
        let on = |rank: Option<Rank>| self.known.values().filter(|k| k.rank == rank).count();
        assert_eq!((router.live(), router.held()), (self.known.len(), on(None)));
        for rank in (0..self.up.len() as u16).map(Rank) {
            let totals = router.totals(rank).unwrap();
            assert_eq!(totals, router.ledger.recount(rank));
            assert_eq!((totals.requests, totals.up), (on(Some(rank)) as u64, self.up[rank.index()]));
        }
        let counters = router.counters();
        let counted = RouterCounters {
            stale_reports: counters.stale_reports,
            cohorts: counters.cohorts,
            ..self.counted
        };
        assert_eq!(counters, counted);
    }

    /// Ticks until every prompt is wholly dispatched, which must not take more rounds than running them
    /// one after the other.
    fn drain(&mut self) {
        self.batch(0, vec![report(0, 0, 0, 0)]);
        let left: u64 = self.known.values().map(|k| k.uncached - k.given).sum();
        for _ in 0..left.div_ceil(ROUND_TOKENS) + self.known.len() as u64 + 2 {
            self.batch(0, vec![steps(1), RoutingEvent::Tick]);
        }
        for (request, known) in &self.known {
            assert_eq!(known.uncached, known.given, "{request:?} starves");
        }
    }

    /// The same batches in a new router.
    fn replay(&self, policy: &RoutingPolicy) {
        let mut again = Router::new(self.role, self.up.len() as u16, policy.clone()).unwrap();
        for (now, events, decisions) in &self.log {
            assert_eq!(again.apply(*now, events).as_ref(), Ok(decisions));
        }
        assert_eq!(again, self.router);
    }
}

fn check_any_order(role: Role, ranks: u16, policy: &RoutingPolicy, batches: &[(i64, Vec<Op>)]) {
    let mut witness = Witness::new(role, ranks, policy);
    for (elapsed, ops) in batches {
        let events = ops.iter().map(|op| witness.name(op)).collect();
        witness.batch(*elapsed, events);
    }
    if role == Role::Prefill {
        witness.drain();
    }
    witness.replay(policy);
}

proptest! {
    #[test]
    fn decode_loses_nothing_and_doubles_nothing(ranks in 1..5u16, batches in batches()) {
        check_any_order(Role::Decode, ranks, &RoutingPolicy::default(), &batches);
    }

    #[test]
    fn whole_prompts_lose_nothing_and_double_nothing(ranks in 1..5u16, batches in batches()) {
        check_any_order(Role::Prefill, ranks, &RoutingPolicy::default(), &batches);
    }

    #[test]
    fn chunked_prompts_lose_nothing_and_double_nothing(ranks in 1..5u16, batches in batches()) {
        check_any_order(Role::Prefill, ranks, &chunked(), &batches);
    }

    #[test]
    fn bounds_on_live_and_held_requests_are_kept(batches in batches()) {
        let policy = RoutingPolicy { held_max: 6, live_max: 9, ..RoutingPolicy::default() };
        let mut witness = Witness::new(Role::Prefill, 3, &policy);
        for (elapsed, ops) in &batches {
            let events = ops.iter().map(|op| witness.name(op)).collect();
            witness.batch(*elapsed, events);
            prop_assert!(witness.router.held() <= 6 && witness.router.live() <= 9);
        }
    }
}

// ---- Refusals --------------------------------------------------------------------------------------

#[track_caller]
fn check_not_made(role: Role, ranks: u16, policy: RoutingPolicy, code: &str, text: &[&str]) {
    check_error(&Router::new(role, ranks, policy).unwrap_err(), code, text);
}

#[track_caller]
fn check_error(error: &RoutingError, code: &str, text: &[&str]) {
    assert_eq!(error.code(), code);
    for part in text {
        assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn a_router_that_cannot_be_made_says_why() {
    let policy = RoutingPolicy::default;
    check_not_made(Role::Decode, 0, policy(), "routing_rank_count", &["ranks is 0", "1 to"]);
    check_not_made(Role::Decode, RANKS_MAX + 1, policy(), "routing_rank_count", &["ranks is"]);
    check_not_made(Role::Mixed, 4, policy(), "routing_role_not_routed", &["role is mixed", "register"]);
    let check = |policy, text: &[&str]| {
        check_not_made(Role::Prefill, 4, policy, "routing_policy_out_of_range", text);
    };
    check(
        RoutingPolicy { cohort_wait_max_ms: 60_001, ..policy() },
        &["cohort_wait_max_ms is 60001", "60000"],
    );
    check(RoutingPolicy { round_tokens: Some(0), ..policy() }, &["round_tokens is 0", "1 to 4194304"]);
    check(RoutingPolicy { round_tokens: Some(4_194_305), ..policy() }, &["round_tokens is 4194305"]);
    check(RoutingPolicy { held_max: 0, ..policy() }, &["held_max is 0", "1 to 262144"]);
    check(RoutingPolicy { live_max: LIVE_MAX + 1, ..policy() }, &["live_max is 262145"]);
}

/// A unit of four ranks that holds request 1 and at most three; time is 1000 ms.
#[track_caller]
fn check_refused(now: u64, events: &[RoutingEvent], code: &str, text: &[&str]) {
    let policy = RoutingPolicy { held_max: 3, ..RoutingPolicy::default() };
    let mut router = Router::new(Role::Prefill, 4, policy).unwrap();
    router.apply(Millis(1000), &[arrive(1, 10, 0)]).unwrap();
    let before = router.clone();
    // Valid events around the bad ones must leave no trace either.
    let batch: Vec<RoutingEvent> =
        [arrive(2, 10, 0), finish(1)].into_iter().chain(events.iter().cloned()).chain([down(0)]).collect();
    check_error(&router.apply(Millis(now), &batch).unwrap_err(), code, text);
    assert_eq!(router, before);
}

#[test]
fn a_batch_with_an_error_names_the_event_the_field_and_the_value() {
    let check = |event: RoutingEvent, code: &str, text: &[&str]| check_refused(1000, &[event], code, text);
    let tokens = "routing_tokens_out_of_range";
    check(arrive(0, 9, 0), "routing_reserved_request", &["event 2", "request 0"]);
    check(arrive(2, 9, 0), "routing_duplicate_request", &["event 2", "request 2"]);
    check(arrive(3, 0, 0), tokens, &["event 2", "prompt_tokens is 0", "1 to 4194304"]);
    check(arrive(3, 4_194_305, 0), tokens, &["prompt_tokens is 4194305"]);
    check(arrive(3, 9, 9), tokens, &["event 2", "cached_tokens is 9", "0 to 8"]);
    check(steps(0), tokens, &["event 2", "count is 0", "1 to 1048576"]);
    check(steps(STEPS_MAX + 1), tokens, &["count is 1048577"]);
    check(report(4, 0, 0, 0), "routing_unknown_rank", &["event 2", "rank 4", "0 to 3"]);
    check(report(0, (1 << 50) + 1, 0, 0), tokens, &["event 2", "kv_used_tokens is 1125899906842625"]);
    check(report(0, 0, (1 << 24) + 1, 0), tokens, &["event 2", "requests is 16777217"]);
    check_refused(999, &[], "routing_time_backwards", &["now is 999", "1000"]);
    check_refused(1 << 53, &[], "routing_time_too_large", &["now is 9007199254740992", "2^53"]);
    let full = [arrive(3, 9, 0), arrive(4, 9, 0)];
    check_refused(1000, &full, "routing_too_many_requests", &["4 held requests", "at most 3"]);
    let endless = vec![RoutingEvent::Tick; EVENTS_MAX];
    check_refused(1000, &endless, "routing_batch_too_large", &["65539 events", "65536"]);
}

#[test]
fn running_requests_count_against_the_bound_on_live_ones() {
    let policy = RoutingPolicy { live_max: 2, ..RoutingPolicy::default() };
    let mut router = Router::new(Role::Decode, 2, policy).unwrap();
    router.apply(Millis(0), &[arrive(1, 9, 0), arrive(2, 9, 0)]).unwrap();
    let error = router.apply(Millis(0), &[arrive(3, 9, 0)]).unwrap_err();
    check_error(&error, "routing_too_many_requests", &["3 live requests", "at most 2"]);
    router.apply(Millis(0), &[finish(1)]).unwrap();
    router.apply(Millis(0), &[arrive(3, 9, 0)]).unwrap();
}

// ---- One behaviour each ----------------------------------------------------------------------------

/// Applies the batches at their times and compares the decisions about the last.
#[track_caller]
fn check(router: &mut Router, batches: &[(u64, &[RoutingEvent])], expected: &[Decision]) {
    let mut decisions = Vec::new();
    for (now, events) in batches {
        decisions = router.apply(Millis(*now), events).unwrap();
    }
    assert_eq!(decisions, expected);
}

#[test]
fn held_prompts_go_out_when_the_oldest_has_waited_long_enough() {
    let check = |wait: u64, batches: &[(u64, &[RoutingEvent])], expected: &[Decision]| {
        let policy = RoutingPolicy { cohort_wait_max_ms: wait, ..RoutingPolicy::default() };
        check(&mut Router::new(Role::Prefill, 1, policy).unwrap(), batches, expected);
    };
    let second = Decision::Dispatch { request: RequestId(2), rank: Rank(0), microbatch: 1, tokens: None };
    check(2000, &[(5, &[arrive(1, 9, 0)])], &[held(1)]);
    check(2000, &[(5, &[arrive(1, 9, 0)]), (2004, &[])], &[]);
    check(2000, &[(5, &[arrive(1, 9, 0)]), (2005, &[])], &[dispatched(1, 0)]);
    check(2000, &[(5, &[arrive(1, 9, 0)]), (2005, &[arrive(2, 9, 0)])], &[dispatched(1, 0), second]);
    check(2000, &[(5, &[arrive(1, 9, 0), RoutingEvent::Tick])], &[dispatched(1, 0)]);
    check(0, &[(5, &[arrive(1, 9, 0)])], &[dispatched(1, 0)]);
}

#[test]
fn a_prompt_that_ends_while_it_is_held_is_not_dispatched() {
    let mut router = router(Role::Prefill, 2);
    check(&mut router, &[(0, &[arrive(1, 9, 0), finish(1)])], &[]);
    check(&mut router, &[(0, &[arrive(1, 9, 0)]), (0, &[finish(1), RoutingEvent::Tick])], &[]);
    check(&mut router, &[(0, &[arrive(1, 9, 0), finish(1), arrive(1, 8, 0)])], &[held(1)]);
    assert_eq!((router.live(), router.counters().dispatched), (1, 0));
}

#[test]
fn unknown_and_repeated_finishes_are_counted_and_change_nothing_else() {
    let mut router = router(Role::Decode, 2);
    check(&mut router, &[(0, &[arrive(1, 9, 0), arrive(2, 9, 0)]), (0, &[finish(1)])], &[]);
    let totals = [router.totals(Rank(0)), router.totals(Rank(1))];
    check(&mut router, &[(0, &[finish(1), finish(7), finish(7)])], &[]);
    assert_eq!([router.totals(Rank(0)), router.totals(Rank(1))], totals);
    assert_eq!(router.counters().unknown_finishes, 3);
}

#[test]
fn a_rank_that_the_batch_takes_down_gets_nothing_of_it() {
    check(&mut router(Role::Decode, 2), &[(0, &[arrive(1, 9, 0), down(0)])], &[dispatched(1, 1)]);
    let tick = RoutingEvent::Tick;
    check(&mut router(Role::Prefill, 2), &[(0, &[arrive(1, 9, 0), tick, down(0)])], &[dispatched(1, 1)]);
}

#[test]
fn without_any_rank_requests_are_refused_until_one_is_back() {
    for role in [Role::Decode, Role::Prefill] {
        let mut router = router(role, 2);
        let decisions =
            router.apply(Millis(0), &[arrive(1, 9, 0), down(0), down(1), arrive(2, 9, 0)]).unwrap();
        let refused: Vec<u64> = decisions
            .iter()
            .map(|decision| match decision {
                Decision::Refuse { request, code: "routing_no_rank_up", message } => {
                    assert!(message.contains("all 2 ranks of the unit are down"), "{message}");
                    request.0
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(refused, [1, 2]);
        let back = [report(1, 0, 0, 0), arrive(2, 9, 0), RoutingEvent::Tick];
        check(&mut router, &[(0, &back)], &[dispatched(2, 1)]);
    }
}

#[test]
fn a_rank_that_went_down_has_forgotten_its_requests() {
    let mut router = router(Role::Decode, 1);
    check(&mut router, &[(0, &[arrive(1, 9, 0)]), (0, &[down(0), report(0, 0, 0, 0)])], &[]);
    assert_eq!((router.live(), router.counters().forgotten), (0, 1));
    check(&mut router, &[(0, &[arrive(1, 9, 0)])], &[dispatched(1, 0)]);
}

/// Rank 0 of a decode unit has requests 1 and 2, of 100 tokens each, and ten steps have run; then it
/// reports. Compares (requests, KV) of the ledger and the corrections to both, KV first.
#[track_caller]
fn check_report(events: &[RoutingEvent], ledger: (u64, u64), corrections: (i64, i64)) {
    let mut router = router(Role::Decode, 1);
    router.apply(Millis(0), &[arrive(1, 100, 0), arrive(2, 100, 0)]).unwrap();
    router.apply(Millis(0), &[steps(10)]).unwrap();
    router.apply(Millis(0), events).unwrap();
    let totals = router.totals(Rank(0)).unwrap();
    assert_eq!((totals.requests, totals.kv_tokens.0), ledger);
    assert_eq!((totals.kv_difference, totals.requests_difference), corrections);
}

#[test]
fn a_report_corrects_the_ledger_and_keeps_what_is_in_flight() {
    // The rank agrees.
    check_report(&[report(0, 220, 2, 2)], (2, 220), (0, 0));
    // It has something the ledger does not know of, or lacks something.
    check_report(&[report(0, 250, 3, 2)], (2, 220), (30, 1));
    check_report(&[report(0, 110, 1, 2)], (2, 220), (-110, -1));
    // It had not heard of request 2, or of any: these count on top of what it says.
    check_report(&[report(0, 110, 1, 1)], (2, 220), (0, 0));
    check_report(&[report(0, 0, 0, 0)], (2, 220), (0, 0));
    check_report(&[report(0, 115, 1, 1)], (2, 220), (5, 0));
    // A request that ended can still be named.
    check_report(&[finish(2), report(0, 110, 1, 2)], (1, 110), (0, 0));
    // The last report counts.
    check_report(&[report(0, 250, 3, 2), report(0, 220, 2, 2)], (2, 220), (0, 0));
}

#[test]
fn a_correction_moves_the_next_admission() {
    let reports = [report(0, 90, 1, 0), report(1, 10, 1, 0)];
    check(&mut router(Role::Decode, 2), &[(0, &reports), (0, &[arrive(1, 9, 0)])], &[dispatched(1, 1)]);
}

#[test]
fn a_report_that_names_a_request_too_long_ago_is_not_used() {
    let mut router = router(Role::Decode, 1);
    let arrivals: Vec<RoutingEvent> = (1..=257).map(|request| arrive(request, 10, 0)).collect();
    router.apply(Millis(0), &arrivals).unwrap();
    for (as_of, stale, kv_difference) in [(2, 0, 70), (1, 1, 70), (999, 2, 70), (257, 2, -2480)] {
        // 90 tokens more than the 257 x 10 of the ledger, less what was in flight.
        router.apply(Millis(0), &[report(0, 90, 9, as_of)]).unwrap();
        assert_eq!(router.counters().stale_reports, stale, "as of {as_of}");
        assert_eq!(router.totals(Rank(0)).unwrap().kv_difference, kv_difference, "as of {as_of}");
    }
}

#[test]
fn a_stale_report_still_brings_a_rank_back() {
    let mut router = router(Role::Decode, 1);
    router.apply(Millis(0), &[down(0), report(0, 0, 0, 44)]).unwrap();
    assert_eq!(router.counters().stale_reports, 1);
    check(&mut router, &[(0, &[arrive(1, 9, 0)])], &[dispatched(1, 0)]);
}

#[test]
fn steps_beyond_any_life_of_a_unit_do_not_overflow() {
    let mut router = router(Role::Decode, 1);
    router.apply(Millis(0), &[arrive(1, 10, 0)]).unwrap();
    for _ in 0..20 {
        router.apply(Millis(0), &vec![steps(STEPS_MAX); EVENTS_MAX]).unwrap();
    }
    assert_eq!(router.totals(Rank(0)).unwrap().kv_tokens, Tokens((1 << 40) + 10));
    router.apply(Millis(0), &[arrive(2, 10, 0), report(0, 1, 1, 1)]).unwrap();
    assert_eq!(router.totals(Rank(0)), Some(router.ledger.recount(Rank(0))));
}

#[test]
fn chunks_of_a_round_follow_when_the_ranks_have_run() {
    let mut router = Router::new(Role::Prefill, 1, chunked()).unwrap();
    let chunk = |tokens| Decision::Dispatch {
        request: RequestId(1),
        rank: Rank(0),
        microbatch: 0,
        tokens: Some(Tokens(tokens)),
    };
    let tick = RoutingEvent::Tick;
    check(&mut router, &[(0, &[arrive(1, 1300, 100), tick.clone()])], &[chunk(500)]);
    // The rank is busy with the first round.
    check(&mut router, &[(0, std::slice::from_ref(&tick))], &[]);
    check(&mut router, &[(0, &[steps(1), tick.clone()])], &[chunk(500)]);
    check(&mut router, &[(0, &[steps(1), tick.clone()])], &[chunk(200)]);
    check(&mut router, &[(0, &[steps(1), finish(1), tick])], &[]);
    assert_eq!((router.live(), router.counters().dispatched, router.counters().cohorts), (0, 1, 3));
}
