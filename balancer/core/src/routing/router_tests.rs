//! Properties of [`Router`] under any order of events, and its refusals one by one.

use super::*;
use crate::prefill::{HELD_PER_RANK, MICROBATCHES, Work};
use crate::prefix::PrefixPolicy;
use crate::routing::{
    BlockHash, DispatchNumber, EVENTS_MAX, KvChange, Priority, REFUSED_HELD_FULL, REFUSED_TENANT_HELD_FULL,
    RankPhase, STEPS_MAX, StepReport, TenantId,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

const LONG_TOKENS: u64 = 5000;
/// A long prompt takes 10 rounds by itself.
const ROUND_TOKENS: u64 = 500;

fn arrive(request: u64, prompt: u64, cached: u64) -> RoutingEvent {
    RoutingEvent::arrive(RequestId(request), Tokens(prompt), Tokens(cached))
}

fn finish(request: u64) -> RoutingEvent {
    RoutingEvent::Finish { request: RequestId(request) }
}

fn steps(count: u32) -> RoutingEvent {
    RoutingEvent::Steps { count }
}

fn first_token(request: u64) -> RoutingEvent {
    RoutingEvent::FirstToken { request: RequestId(request) }
}

/// Report number `sequence` of a rank; `as_of` 0 for none.
fn report(rank: u16, sequence: u64, kv: u64, requests: u32, as_of: u64) -> RoutingEvent {
    RoutingEvent::Report {
        rank: Rank(rank),
        sequence,
        as_of: (as_of > 0).then_some(DispatchNumber(as_of)),
        kv_used_tokens: Tokens(kv),
        requests,
        step: None,
    }
}

fn down(rank: u16) -> RoutingEvent {
    RoutingEvent::RankDown { rank: Rank(rank) }
}

fn up(rank: u16) -> RoutingEvent {
    RoutingEvent::RankUp { rank: Rank(rank) }
}

fn drain(rank: u16) -> RoutingEvent {
    RoutingEvent::Drain { rank: Rank(rank) }
}

fn kv(rank: u16, sequence: u64, blocks: &[u64]) -> RoutingEvent {
    let blocks = blocks.iter().copied().map(BlockHash).collect();
    RoutingEvent::Kv { rank: Rank(rank), sequence, change: KvChange::Stored { parent: None, blocks } }
}

/// A report of rank 0 with a step that is valid but for the change.
fn step(change: impl Fn(&mut StepReport)) -> RoutingEvent {
    let mut step = StepReport { micros: 1, ..StepReport::default() };
    change(&mut step);
    RoutingEvent::Report {
        rank: Rank(0),
        sequence: 1,
        as_of: None,
        kv_used_tokens: Tokens(0),
        requests: 0,
        step: Some(step),
    }
}

/// An arrival with so many blocks.
fn with_blocks(request: u64, prompt: u64, count: u64) -> RoutingEvent {
    RoutingEvent::Arrive {
        request: RequestId(request),
        prompt_tokens: Tokens(prompt),
        cached_tokens: Tokens(0),
        tenant: TenantId(0),
        priority: Priority::Interactive,
        blocks: (1..=count).map(BlockHash).collect(),
        expected_output: None,
    }
}

fn dispatched(request: u64, number: u64, rank: u16) -> Decision {
    Decision::Dispatch {
        request: RequestId(request),
        number: DispatchNumber(number),
        rank: Rank(rank),
        microbatch: 0,
        tokens: None,
    }
}

fn held(request: u64) -> Decision {
    Decision::Hold { request: RequestId(request) }
}

fn chunked() -> RoutingPolicy {
    RoutingPolicy { round_tokens: Some(ROUND_TOKENS), ..small() }
}

/// The defaults with an index that is quick to clone and compare.
fn small() -> RoutingPolicy {
    let prefix = PrefixPolicy { blocks_max: 64, expected_max: 16, ..PrefixPolicy::default() };
    RoutingPolicy { prefix, ..RoutingPolicy::default() }
}

fn router(role: Role, ranks: u16) -> Router {
    Router::new(role, ranks, small()).unwrap()
}

// ---- Any order of events ---------------------------------------------------------------------------

/// Blocks of a prompt: prompts of one of three families begin alike.
fn family_blocks(family: u64, prompt: u64) -> Arc<[BlockHash]> {
    (0..prompt / 64).map(|depth| BlockHash(1000 * (family % 3) + depth)).collect()
}

/// An arrival of one of three tenants, with blocks.
fn arrive_of_tenant(request: u64, prompt: u64, cached: u64) -> RoutingEvent {
    RoutingEvent::Arrive {
        request: RequestId(request),
        prompt_tokens: Tokens(prompt),
        cached_tokens: Tokens(cached),
        tenant: TenantId((request % 3) as u32),
        priority: if request.is_multiple_of(4) { Priority::Batch } else { Priority::Interactive },
        blocks: family_blocks(request / 3, prompt),
        expected_output: None,
    }
}

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
        sequence: u64,
        kv: u64,
        requests: u32,
        back: u64,
    },
    FirstToken {
        back: usize,
    },
    Kv {
        rank: u16,
        sequence: u64,
        family: u64,
        removed: bool,
    },
    Down(u16),
    Up(u16),
    Drain(u16),
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
        Just(report(99, 1, 0, 0, 0)),
        Just(report(0, 0, 0, 0, 0)),
        Just(down(99)),
        Just(up(99)),
        Just(drain(99)),
    ];
    prop_oneof![
        24 => arrival.prop_map(|(prompt, cached_percent)| Op::Arrive { prompt, cached_percent }),
        2 => (0..30usize).prop_map(|back| Op::ArriveAgain { back }),
        10 => (0..30usize).prop_map(|back| Op::Finish { back }),
        1 => Just(Op::FinishUnknown),
        4 => (1..4u32).prop_map(Op::Steps),
        4 => (0..4u16, 1..30u64, 0..9000u64, 0..20u32, 0..30u64).prop_map(
            |(rank, sequence, kv, requests, back)| Op::Report { rank, sequence, kv, requests, back }
        ),
        3 => (0..30usize).prop_map(|back| Op::FirstToken { back }),
        3 => (0..4u16, 1..12u64, 0..3u64, any::<bool>()).prop_map(
            |(rank, sequence, family, removed)| Op::Kv { rank, sequence, family, removed }
        ),
        2 => (0..4u16).prop_map(Op::Down),
        3 => (0..4u16).prop_map(Op::Up),
        2 => (0..4u16).prop_map(Op::Drain),
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

/// What a router owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Any decision about an arrival that it can take.
    Any(RequestId),
    Refusal(RequestId),
    Loss(RequestId, Rank),
}

/// Checks every decision of a router against what was said to it before.
struct Witness {
    router: Router,
    role: Role,
    phases: Vec<RankPhase>,
    dispatches: u64,
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
            phases: vec![RankPhase::Up; ranks.into()],
            dispatches: 0,
            now: 0,
            next_request: 1,
            known: BTreeMap::new(),
            counted: RouterCounters::default(),
            log: Vec::new(),
        }
    }

    fn name(&mut self, op: &Op) -> RoutingEvent {
        let ranks = self.phases.len() as u16;
        let used = |back: usize| self.next_request.saturating_sub(1 + back as u64).max(1);
        match *op {
            Op::Arrive { prompt, cached_percent } => {
                self.next_request += 1;
                let cached = (prompt * cached_percent / 100).min(prompt - 1);
                arrive_of_tenant(self.next_request - 1, prompt, cached)
            }
            Op::ArriveAgain { back } => arrive(used(back), 7, 3),
            Op::Finish { back } => finish(used(back)),
            Op::FinishUnknown => finish(u64::MAX),
            Op::Steps(count) => steps(count),
            // Some name dispatches that are to come.
            Op::Report { rank, sequence, kv, requests, back } => {
                let as_of = (self.dispatches + 2).saturating_sub(back);
                report(rank % ranks, sequence, kv, requests, as_of)
            }
            Op::FirstToken { back } => first_token(used(back)),
            Op::Kv { rank, sequence, family, removed } => {
                let blocks = family_blocks(family, 2000);
                let change = if removed {
                    KvChange::Removed { blocks }
                } else {
                    KvChange::Stored { parent: None, blocks }
                };
                RoutingEvent::Kv { rank: Rank(rank % ranks), sequence, change }
            }
            Op::Down(rank) => down(rank % ranks),
            Op::Up(rank) => up(rank % ranks),
            Op::Drain(rank) => drain(rank % ranks),
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

    /// Takes the events. Returns what must be answered now, in any order.
    fn hear(&mut self, events: &[RoutingEvent]) -> VecDeque<Answer> {
        let mut answers: VecDeque<Answer> = VecDeque::new();
        for event in events {
            match *event {
                RoutingEvent::Arrive { request, .. } if !self.phases.contains(&RankPhase::Up) => {
                    answers.push_back(Answer::Refusal(request));
                }
                RoutingEvent::Arrive { request, prompt_tokens, cached_tokens, .. } => {
                    let uncached = prompt_tokens.0 - cached_tokens.0;
                    let before = self.known.insert(request, Known { uncached, rank: None, given: 0 });
                    assert_eq!(before, None, "{request:?} was taken while it is live");
                    answers.push_back(Answer::Any(request));
                }
                RoutingEvent::Finish { request } => {
                    let known = self.known.remove(&request).is_some();
                    self.counted.unknown_finishes += u64::from(!known);
                    answers.retain(|&answer| answer != Answer::Any(request));
                }
                RoutingEvent::FirstToken { request } => {
                    let known = self.known.get(&request).is_some_and(|known| known.rank.is_some());
                    self.counted.unknown_first_tokens += u64::from(!known);
                }
                RoutingEvent::RankDown { rank } => {
                    self.phases[rank.index()] = RankPhase::Down;
                    let lost: Vec<RequestId> = self.on(Some(rank)).collect();
                    self.counted.lost += lost.len() as u64;
                    self.known.retain(|_, known| known.rank != Some(rank));
                    answers.extend(lost.into_iter().map(|request| Answer::Loss(request, rank)));
                    self.refuse_without_ranks(&mut answers);
                }
                RoutingEvent::Drain { rank } => {
                    if self.phases[rank.index()] == RankPhase::Up {
                        self.phases[rank.index()] = RankPhase::Draining;
                    }
                    self.refuse_without_ranks(&mut answers);
                }
                RoutingEvent::RankUp { rank } => self.phases[rank.index()] = RankPhase::Up,
                RoutingEvent::Report { .. }
                | RoutingEvent::Kv { .. }
                | RoutingEvent::Steps { .. }
                | RoutingEvent::Tick => {}
            }
        }
        answers
    }

    fn refuse_without_ranks(&mut self, answers: &mut VecDeque<Answer>) {
        if !self.phases.contains(&RankPhase::Up) {
            answers.retain(|answer| !matches!(answer, Answer::Any(_)));
            answers.extend(self.on(None).map(Answer::Refusal));
            self.known.retain(|_, known| known.rank.is_some());
        }
    }

    /// Requests on a rank, or on none.
    fn on(&self, rank: Option<Rank>) -> impl Iterator<Item = RequestId> + '_ {
        self.known.iter().filter(move |(_, known)| known.rank == rank).map(|(&request, _)| request)
    }

    fn follow(&mut self, decisions: &[Decision], mut answers: VecDeque<Answer>) {
        let mut seen = Vec::new();
        for decision in decisions {
            let request = decision.request();
            let mut owed = |answer: Answer| {
                let place = answers.iter().position(|&a| a == answer);
                answers.remove(place.unwrap_or_else(|| panic!("{decision:?} is not called for")));
            };
            match decision {
                Decision::Refuse { code: REFUSED_NO_RANK_UP, .. } => {
                    owed(Answer::Refusal(request));
                    self.counted.refused += 1;
                    continue;
                }
                // There are too many: the request itself, or one that was held, is turned away.
                Decision::Refuse { .. } => {
                    self.counted.refused += 1;
                    let known = self.known.remove(&request).expect("only live requests are refused");
                    assert_eq!(known.rank, None, "a dispatched request is refused");
                }
                Decision::Lost { rank, .. } => {
                    owed(Answer::Loss(request, *rank));
                    continue;
                }
                Decision::Migrate { number, from, to, .. } => {
                    self.dispatches += 1;
                    self.counted.migrated += 1;
                    assert_eq!(number.0, self.dispatches);
                    assert_eq!(
                        self.phases[to.index()],
                        RankPhase::Up,
                        "{request:?} moves to a rank that takes none"
                    );
                    let known = self.known.get_mut(&request).expect("only live requests move");
                    assert_eq!(known.rank, Some(*from), "a request moves from where it is");
                    known.rank = Some(*to);
                }
                Decision::Hold { .. } => {
                    let bounded = self.router.policy.kv_capacity_tokens.is_some();
                    assert!(self.role == Role::Prefill || bounded, "decode admits at once");
                    assert_eq!(self.known[&request].rank, None, "a dispatched request is held");
                    assert!(answers.contains(&Answer::Any(request)), "{request:?} was held before");
                }
                Decision::Dispatch { number, rank, microbatch, tokens, .. } => {
                    self.dispatches += 1;
                    assert_eq!(number.0, self.dispatches);
                    self.give(request, *rank, tokens.map(|t| t.0));
                    assert!(usize::from(*microbatch) < MICROBATCHES);
                }
            }
            // A round may give both halves of a rank's dual batch a part of one prompt.
            let chunk = matches!(decision, Decision::Dispatch { tokens: Some(_), .. });
            assert!(chunk || !seen.contains(&request), "{request:?} is decided twice in a batch");
            seen.push(request);
            answers.retain(|&answer| answer != Answer::Any(request));
        }
        assert_eq!(answers, [], "not answered");
    }

    fn give(&mut self, request: RequestId, rank: Rank, tokens: Option<u64>) {
        let phase = self.phases[rank.index()];
        let known = self.known.get_mut(&request).expect("only live requests are dispatched");
        match known.rank {
            None => {
                assert_eq!(phase, RankPhase::Up, "{request:?} begins on a rank that takes none");
                self.counted.dispatched += 1;
            }
            Some(_) => assert_ne!(phase, RankPhase::Down, "a rank that is down was given {request:?}"),
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
        let on = |rank: Option<Rank>| self.on(rank).count();
        assert_eq!((router.live(), router.held()), (self.known.len(), on(None)));
        for rank in (0..self.phases.len() as u16).map(Rank) {
            let totals = router.totals(rank).unwrap();
            assert_eq!(totals, router.ledger.recount(rank));
            assert_eq!((totals.requests, totals.phase), (on(Some(rank)) as u64, self.phases[rank.index()]));
        }
        let counters = router.counters();
        let counted = RouterCounters {
            stale_reports: counters.stale_reports,
            foreign_reports: counters.foreign_reports,
            cohorts: counters.cohorts,
            ..self.counted
        };
        assert_eq!(counters, counted);
    }

    /// Ticks until every prompt is wholly dispatched, which must not take more rounds than running them
    /// one after the other.
    fn run_dry(&mut self) {
        self.batch(0, vec![up(0)]);
        let left: u64 = self.known.values().map(|k| k.uncached - k.given).sum();
        for _ in 0..left.div_ceil(ROUND_TOKENS) + self.known.len() as u64 + 2 {
            let whole = |request: RequestId| self.router.ledger.rest(request).remaining == 0;
            let ran = self.known.iter().filter(|(request, _)| whole(**request));
            let mut events: Vec<RoutingEvent> = ran.map(|(request, _)| first_token(request.0)).collect();
            events.extend([steps(1), RoutingEvent::Tick]);
            self.batch(0, events);
        }
        for (&request, known) in &self.known {
            // A rank may have been given less, for it has a prefix; the ledger knows of which.
            let rest = self.router.ledger.rest(request).remaining;
            assert!(rest == 0 && known.given > 0, "{request:?} starves: {rest} tokens are left");
        }
    }

    /// The same batches in a new router.
    fn replay(&self, policy: &RoutingPolicy) {
        let mut again = Router::new(self.role, self.phases.len() as u16, policy.clone()).unwrap();
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
        witness.run_dry();
    }
    witness.replay(policy);
}

fn check_decode(policy: &RoutingPolicy, ranks: u16, batches: &[(i64, Vec<Op>)]) {
    check_any_order(Role::Decode, ranks, policy, batches);
}

proptest! {
    #[test]
    fn migrations_lose_nothing_and_double_nothing(ranks in 1..5u16, batches in batches()) {
        check_decode(&RoutingPolicy { migrations_per_step: 2, ..small() }, ranks, &batches);
    }

    #[test]
    fn full_decode_ranks_lose_nothing_and_double_nothing(ranks in 1..5u16, batches in batches()) {
        let kv_capacity_tokens = Some(LONG_TOKENS);
        let policy = RoutingPolicy { kv_capacity_tokens, migrations_per_step: 1, ..small() };
        check_decode(&policy, ranks, &batches);
    }

    #[test]
    fn small_cohorts_lose_nothing_and_double_nothing(ranks in 1..5u16, batches in batches()) {
        let policy = RoutingPolicy { cohort_tokens: Some(600), ..small() };
        check_any_order(Role::Prefill, ranks, &policy, &batches);
    }

    #[test]
    fn decode_loses_nothing_and_doubles_nothing(ranks in 1..5u16, batches in batches()) {
        check_any_order(Role::Decode, ranks, &small(), &batches);
    }

    #[test]
    fn whole_prompts_lose_nothing_and_double_nothing(ranks in 1..5u16, batches in batches()) {
        check_any_order(Role::Prefill, ranks, &small(), &batches);
    }

    #[test]
    fn chunked_prompts_lose_nothing_and_double_nothing(ranks in 1..5u16, batches in batches()) {
        check_any_order(Role::Prefill, ranks, &chunked(), &batches);
    }

    #[test]
    fn bounds_on_live_and_held_requests_are_kept(batches in batches()) {
        let policy =
            RoutingPolicy { held_max: 6, tenant_held_max: 4, live_max: 9, ..small() };
        let mut witness = Witness::new(Role::Prefill, 3, &policy);
        // Event by event: who of a batch is turned away depends on the order of its events.
        for (elapsed, op) in batches.iter().flat_map(|(elapsed, ops)| ops.iter().map(move |op| (elapsed, op))) {
            let event = witness.name(op);
            witness.batch(*elapsed, vec![event]);
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
    let policy = small;
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
    check(RoutingPolicy { cohort_tokens: Some(0), ..policy() }, &["cohort_tokens is 0"]);
    check(RoutingPolicy { kv_capacity_tokens: Some(0), ..policy() }, &["kv_capacity_tokens is 0"]);
    check(RoutingPolicy { migrations_per_step: 70_000, ..policy() }, &["migrations_per_step is 70000"]);
    check(RoutingPolicy { block_tokens: 0, ..policy() }, &["block_tokens is 0", "1 to 4096"]);
    check(RoutingPolicy { batch_share: f64::NAN, ..policy() }, &["batch_share is NaN", "0 to 1"]);
    check(RoutingPolicy { tenant_held_max: 0, ..policy() }, &["tenant_held_max is 0"]);
    let prefix = PrefixPolicy { blocks_max: 0, ..PrefixPolicy::default() };
    check(RoutingPolicy { prefix, ..policy() }, &["blocks_max is 0"]);
    let tenant_weights = [(TenantId(7), 0)].into();
    check(RoutingPolicy { tenant_weights, ..policy() }, &["weight is 0", "1 to 65536"]);
}

/// A unit of four ranks that holds request 1; time is 1000 ms.
#[track_caller]
fn check_refused(now: u64, events: &[RoutingEvent], code: &str, text: &[&str]) {
    let mut router = router(Role::Prefill, 4);
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
    for event in [report(4, 1, 0, 0, 0), down(4), up(4), drain(4), kv(4, 1, &[7])] {
        check(event, "routing_unknown_rank", &["event 2", "rank 4", "0 to 3"]);
    }
    check(report(0, 1, (1 << 50) + 1, 0, 0), tokens, &["event 2", "kv_used_tokens is 1125899906842625"]);
    check(report(0, 1, 0, (1 << 24) + 1, 0), tokens, &["event 2", "requests is 16777217"]);
    check(report(0, 0, 0, 0, 0), tokens, &["event 2", "sequence is 0"]);
    check(kv(0, 1, &[]), tokens, &["event 2", "blocks is 0", "1 to 65536"]);
    check(kv(0, 1, &[7; 65_537]), tokens, &["event 2", "blocks is 65537"]);
    check(step(|step| step.tokens.0 = 1 << 25), tokens, &["event 2", "step tokens is 33554432"]);
    check(step(|step| step.pairs = u64::MAX), tokens, &["step pairs is 18446744073709551615"]);
    check(step(|step| step.requests = 1 << 25), tokens, &["step requests is 33554432"]);
    check(step(|step| step.kv_tokens.0 = 1 << 51), tokens, &["step kv_tokens is 2251799813685248"]);
    check(step(|step| step.micros = 0), tokens, &["step micros is 0", "1 to 3600000000"]);
    check(with_blocks(3, 191, 3), tokens, &["event 2", "blocks is 3", "0 to 2"]);
    check(with_blocks(3, 4_194_304, 65_537), tokens, &["blocks is 65537", "0 to 65536"]);
    check_refused(999, &[], "routing_time_backwards", &["now is 999", "1000"]);
    check_refused(1 << 53, &[], "routing_time_too_large", &["now is 9007199254740992", "2^53"]);
    let endless = vec![RoutingEvent::Tick; EVENTS_MAX];
    check_refused(1000, &endless, "routing_batch_too_large", &["65539 events", "65536"]);
}

/// The requests that are refused for this code; all other decisions are of other kinds.
#[track_caller]
fn refused_for(decisions: &[Decision], code: &str, text: &str) -> Vec<u64> {
    let refused = decisions.iter().filter_map(|decision| match decision {
        Decision::Refuse { request, code: found, message } => {
            assert_eq!(*found, code);
            assert!(message.contains(text), "{text:?} is not in: {message}");
            Some(request.0)
        }
        _ => None,
    });
    refused.collect()
}

#[test]
fn running_requests_count_against_the_bound_on_live_ones() {
    let policy = RoutingPolicy { live_max: 2, ..small() };
    let mut router = Router::new(Role::Decode, 2, policy).unwrap();
    router.apply(Millis(0), &[arrive(1, 9, 0), arrive(2, 9, 0)]).unwrap();
    let decisions = router.apply(Millis(0), &[arrive(3, 9, 0)]).unwrap();
    assert_eq!(refused_for(&decisions, REFUSED_LIVE_FULL, "2 requests"), [3]);
    // What a batch ends makes room in it.
    let decisions = router.apply(Millis(0), &[finish(1), arrive(3, 9, 0)]).unwrap();
    assert!(refused_for(&decisions, REFUSED_LIVE_FULL, "").is_empty());
    assert_eq!((router.live(), router.counters().refused), (2, 1));
}

#[test]
fn a_flood_is_turned_away_from_its_own_tenant() {
    let policy = RoutingPolicy { held_max: 4, tenant_held_max: 3, ..small() };
    let mut router = Router::new(Role::Prefill, 1, policy).unwrap();
    let flood: Vec<RoutingEvent> = [1, 7, 10, 13].map(|request| arrive_of_tenant(request, 9, 0)).into();
    let decisions = router.apply(Millis(0), &flood).unwrap();
    assert_eq!(refused_for(&decisions, REFUSED_TENANT_HELD_FULL, "tenant 1 holds 3"), [13]);
    // Tenant 2 finds room as long as it holds less, at the cost of tenant 1.
    let decisions = router.apply(Millis(0), &[arrive_of_tenant(2, 9, 0), arrive_of_tenant(5, 9, 0)]).unwrap();
    assert_eq!(refused_for(&decisions, REFUSED_HELD_FULL, "4 requests are held"), [10]);
    assert_eq!((router.held(), router.live()), (4, 4));
}

#[test]
fn a_request_that_no_rank_can_ever_hold_is_refused() {
    let policy = RoutingPolicy { kv_capacity_tokens: Some(100), ..small() };
    let mut router = Router::new(Role::Decode, 2, policy).unwrap();
    let decisions = router.apply(Millis(0), &[arrive(1, 101, 0), arrive(2, 100, 0)]).unwrap();
    assert_eq!(refused_for(&decisions, "routing_never_fits", "prompt_tokens is 101"), [1]);
    assert_eq!(decisions[1..], [dispatched(2, 1, 0)]);
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
        let policy = RoutingPolicy { cohort_wait_max_ms: wait, ..small() };
        check(&mut Router::new(Role::Prefill, 1, policy).unwrap(), batches, expected);
    };
    let second = Decision::Dispatch {
        request: RequestId(2),
        number: DispatchNumber(2),
        rank: Rank(0),
        microbatch: 1,
        tokens: None,
    };
    check(2000, &[(5, &[arrive(1, 9, 0)])], &[held(1)]);
    check(2000, &[(5, &[arrive(1, 9, 0)]), (2004, &[])], &[]);
    check(2000, &[(5, &[arrive(1, 9, 0)]), (2005, &[])], &[dispatched(1, 1, 0)]);
    check(2000, &[(5, &[arrive(1, 9, 0)]), (2005, &[arrive(2, 9, 0)])], &[dispatched(1, 1, 0), second]);
    check(2000, &[(5, &[arrive(1, 9, 0), RoutingEvent::Tick])], &[dispatched(1, 1, 0)]);
    check(0, &[(5, &[arrive(1, 9, 0)])], &[dispatched(1, 1, 0)]);
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
    check(&mut router(Role::Decode, 2), &[(0, &[arrive(1, 9, 0), down(0)])], &[dispatched(1, 1, 1)]);
    let tick = RoutingEvent::Tick;
    check(&mut router(Role::Prefill, 2), &[(0, &[arrive(1, 9, 0), tick, down(0)])], &[dispatched(1, 1, 1)]);
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
                    assert!(message.contains("all 2 ranks of the unit are down or draining"), "{message}");
                    request.0
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(refused, [1, 2]);
        let back = [up(1), arrive(2, 9, 0), RoutingEvent::Tick];
        check(&mut router, &[(0, &back)], &[dispatched(2, 1, 1)]);
    }
}

#[test]
fn the_requests_of_a_rank_that_goes_down_come_back() {
    let mut router = router(Role::Decode, 1);
    let lost = |request| Decision::Lost { request: RequestId(request), rank: Rank(0) };
    let batches: [(u64, &[RoutingEvent]); 2] =
        [(0, &[arrive(7, 9, 0), arrive(1, 9, 0)]), (0, &[down(0), up(0)])];
    check(&mut router, &batches, &[lost(7), lost(1)]);
    assert_eq!((router.live(), router.counters().lost), (0, 2));
    check(&mut router, &[(0, &[arrive(1, 9, 0)])], &[dispatched(1, 3, 0)]);
}

#[test]
fn a_request_that_fits_no_rank_waits_and_nobody_overtakes_it() {
    let policy = RoutingPolicy { kv_capacity_tokens: Some(100), ..small() };
    let mut router = Router::new(Role::Decode, 1, policy).unwrap();
    check(
        &mut router,
        &[(0, &[arrive(1, 70, 0), arrive(2, 40, 0), arrive(3, 20, 0)])],
        &[dispatched(1, 1, 0), held(2), held(3)],
    );
    check(&mut router, &[(0, &[steps(5)])], &[]);
    check(&mut router, &[(0, &[finish(1)])], &[dispatched(2, 2, 0), dispatched(3, 3, 0)]);
    // One that waits may end.
    check(&mut router, &[(0, &[arrive(4, 90, 0)])], &[held(4)]);
    check(&mut router, &[(0, &[finish(4), finish(2), finish(3)])], &[]);
    assert_eq!((router.live(), router.held()), (0, 0));
}

#[test]
fn running_requests_move_where_the_engine_can_move_them() {
    let policy = RoutingPolicy { migrations_per_step: 1, ..small() };
    let mut router = Router::new(Role::Decode, 2, policy).unwrap();
    let eight: Vec<RoutingEvent> = (1..=8).map(|request| arrive(request, 1000, 0)).collect();
    let decisions = router.apply(Millis(0), &eight).unwrap();
    let on = |rank| move |d: &&Decision| matches!(d, Decision::Dispatch { rank: r, .. } if *r == Rank(rank));
    let gone: Vec<RoutingEvent> = decisions.iter().filter(on(0)).map(|d| finish(d.request().0)).collect();
    router.apply(Millis(0), &gone).unwrap();
    // Rank 0 is empty: half of what rank 1 has moves, one request a step, and then nothing.
    let before = router.totals(Rank(1)).unwrap().requests;
    let mut numbers = Vec::new();
    for _ in 0..before {
        let decisions = router.apply(Millis(0), &[steps(1)]).unwrap();
        assert!(decisions.len() <= 1);
        numbers.extend(decisions.iter().map(|decision| match decision {
            Decision::Migrate { number, from: Rank(1), to: Rank(0), .. } => number.0,
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(numbers, (9..9 + before / 2).collect::<Vec<_>>());
    assert_eq!(
        [0, 1].map(|rank| router.totals(Rank(rank)).unwrap().requests),
        [before / 2, before.div_ceil(2)]
    );
    assert_eq!(router.counters().migrated, before / 2);
}

#[test]
fn a_draining_rank_keeps_its_requests_and_gets_no_more_until_it_is_up() {
    let mut router = router(Role::Decode, 2);
    check(&mut router, &[(0, &[arrive(1, 9, 0)]), (0, &[drain(0)])], &[]);
    check(
        &mut router,
        &[(0, &[arrive(2, 9, 0), arrive(3, 9, 0)])],
        &[dispatched(2, 2, 1), dispatched(3, 3, 1)],
    );
    assert_eq!(router.totals(Rank(0)).map(|t| (t.requests, t.phase)), Some((1, RankPhase::Draining)));
    check(&mut router, &[(0, &[up(0), arrive(4, 90, 0)])], &[dispatched(4, 4, 0)]);
    // To drain a rank that is down does not bring it back.
    check(
        &mut router,
        &[(0, &[down(1), drain(1), down(0)])],
        &[
            Decision::Lost { request: RequestId(2), rank: Rank(1) },
            Decision::Lost { request: RequestId(3), rank: Rank(1) },
            Decision::Lost { request: RequestId(1), rank: Rank(0) },
            Decision::Lost { request: RequestId(4), rank: Rank(0) },
        ],
    );
    assert_eq!(router.totals(Rank(1)).unwrap().phase, RankPhase::Down);
}

#[test]
fn a_prompt_that_began_on_a_draining_rank_ends_there() {
    let mut router = Router::new(Role::Prefill, 2, chunked()).unwrap();
    let tick = || RoutingEvent::Tick;
    router.apply(Millis(0), &[arrive(1, 5000, 0), tick()]).unwrap();
    let pinned = router.ledger.rank_of(RequestId(1)).unwrap();
    let begun = router.totals(pinned).unwrap().outstanding.tokens;
    router.apply(Millis(0), &[drain(pinned.0), arrive(2, 300, 0)]).unwrap();
    let mut given = begun;
    while given < 5000 {
        for decision in router.apply(Millis(0), &[steps(1), tick()]).unwrap() {
            match decision {
                Decision::Dispatch { request: RequestId(1), rank, tokens, .. } => {
                    assert_eq!(rank, pinned);
                    given += tokens.unwrap().0;
                }
                Decision::Dispatch { request: RequestId(2), rank, .. } => assert_ne!(rank, pinned),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(router.held(), 0);
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
    // The rank agrees, as of now or of any time since it had request 2.
    check_report(&[report(0, 1, 220, 2, 2)], (2, 220), (0, 0));
    check_report(&[report(0, 1, 204, 2, 2)], (2, 220), (0, 0));
    // It has something the ledger does not know of, or lacks something.
    check_report(&[report(0, 1, 250, 3, 2)], (2, 220), (30, 1));
    check_report(&[report(0, 1, 110, 1, 2)], (2, 220), (-90, -1));
    // It had not heard of request 2, or of any: these count on top of what it says.
    check_report(&[report(0, 1, 100, 1, 1)], (2, 220), (0, 0));
    check_report(&[report(0, 1, 0, 0, 0)], (2, 220), (0, 0));
    check_report(&[report(0, 1, 115, 2, 1)], (2, 220), (15, 1));
    // Request 2 had ended already, or not yet.
    check_report(&[finish(2), report(0, 1, 110, 1, 2)], (1, 110), (0, 0));
    check_report(&[finish(2), report(0, 1, 220, 2, 2)], (1, 110), (0, 0));
    check_report(&[finish(2), report(0, 1, 230, 3, 2)], (1, 110), (10, 1));
    // The last report counts, wherever it contradicts the one before.
    check_report(&[report(0, 1, 250, 3, 2), report(0, 2, 220, 2, 2)], (2, 220), (20, 0));
    check_report(&[report(0, 1, 250, 3, 2), report(0, 2, 200, 2, 2)], (2, 220), (0, 0));
}

#[test]
fn without_reports_what_they_said_stays() {
    let finishes = [report(0, 1, 250, 3, 2), finish(1), steps(1000)];
    check_report(&finishes, (1, 1110), (30, 1));
}

#[test]
fn repeated_and_older_reports_are_dropped_and_counted() {
    let mut router = router(Role::Decode, 1);
    for (sequence, kv, stale, kv_difference) in
        [(5, 90, 0, 90), (5, 80, 1, 90), (4, 70, 2, 90), (6, 60, 2, 60)]
    {
        router.apply(Millis(0), &[report(0, sequence, kv, 0, 0)]).unwrap();
        assert_eq!(router.counters().stale_reports, stale, "report {sequence}");
        assert_eq!(router.totals(Rank(0)).unwrap().kv_difference, kv_difference, "report {sequence}");
    }
    // A rank that came up counts anew, and one that is down says nothing.
    router.apply(Millis(0), &[up(0), report(0, 1, 50, 0, 0)]).unwrap();
    assert_eq!(router.totals(Rank(0)).unwrap().kv_difference, 50);
    router.apply(Millis(0), &[down(0), report(0, 2, 40, 0, 0)]).unwrap();
    assert_eq!(router.totals(Rank(0)).unwrap().kv_difference, 0);
    assert_eq!(router.totals(Rank(0)).unwrap().phase, RankPhase::Down, "a late report brings no rank back");
    assert_eq!(router.counters().stale_reports, 3);
}

#[test]
fn a_report_that_names_a_dispatch_to_come_is_dropped_and_counted() {
    let mut router = router(Role::Decode, 1);
    router.apply(Millis(0), &[arrive(1, 10, 0), report(0, 1, 90, 9, 1)]).unwrap();
    assert_eq!(router.counters().foreign_reports, 1, "the batch's arrivals go out after its reports");
    router.apply(Millis(0), &[report(0, 1, 90, 9, 1)]).unwrap();
    assert_eq!(
        (router.counters().foreign_reports, router.totals(Rank(0)).unwrap().requests_difference),
        (1, 8)
    );
}

#[test]
fn a_correction_moves_the_next_admission() {
    let reports = [report(0, 1, 900, 1, 0), report(1, 1, 10, 1, 0)];
    check(&mut router(Role::Decode, 2), &[(0, &reports), (0, &[arrive(1, 9, 0)])], &[dispatched(1, 1, 1)]);
}

#[test]
fn a_prompt_joins_the_rank_that_has_its_prefix() {
    let mut router = router(Role::Prefill, 4);
    let tick = RoutingEvent::Tick;
    let family: Vec<u64> = family_blocks(1, 2048).iter().map(|block| block.0).collect();
    // The stored blocks are known; request 3 is of family 1, and all but its last 48 tokens are there.
    let decisions =
        router.apply(Millis(0), &[kv(2, 1, &family), arrive_of_tenant(3, 2096, 0), tick.clone()]).unwrap();
    assert!(matches!(decisions[..], [Decision::Dispatch { rank: Rank(2), .. }]), "{decisions:?}");
    assert_eq!(router.totals(Rank(2)).unwrap().outstanding, Work::of(2048, 48));
    // So are those of a prompt that is on its way, until the rank goes down.
    let batch = [first_token(3), finish(3), arrive_of_tenant(4, 2096, 0), tick.clone()];
    let decisions = router.apply(Millis(0), &batch).unwrap();
    assert!(matches!(decisions[..], [Decision::Dispatch { rank: Rank(2), .. }]), "{decisions:?}");
    let batch = [down(2), up(2), arrive_of_tenant(5, 2096, 0), tick];
    let decisions = router.apply(Millis(0), &batch).unwrap();
    assert!(matches!(decisions[..], [Decision::Lost { .. }, Decision::Dispatch { rank: Rank(0), .. }]));
}

#[test]
fn chunks_run_where_the_prefix_is_unless_that_rank_has_too_much_to_do() {
    let family: Vec<u64> = family_blocks(1, 2048).iter().map(|block| block.0).collect();
    // What else there is for the rank with the prefix; compares rank and tokens of the prompt of the family.
    let check = |before: &[RoutingEvent], stored: usize, rank_of: fn(Rank) -> bool, tokens: u64| {
        let mut router = Router::new(Role::Prefill, 2, chunked()).unwrap();
        router.apply(Millis(0), before).unwrap();
        let batch = [up(0), kv(1, 1, &family[..stored]), arrive_of_tenant(3, 2096, 0), RoutingEvent::Tick];
        let decisions = router.apply(Millis(0), &batch).unwrap();
        let first = decisions.iter().find(|decision| decision.request() == RequestId(3));
        let Some(Decision::Dispatch { rank, tokens: Some(given), .. }) = first else {
            panic!("{decisions:?}");
        };
        assert!(rank_of(*rank) && given.0 == tokens, "{decisions:?}");
    };
    check(&[], family.len(), |rank| rank == Rank(1), 48);
    // Two blocks are not worth what was given to their rank.
    let busy = [down(0), arrive(9, 40_000, 0), RoutingEvent::Tick];
    check(&busy, 2, |rank| rank == Rank(0), ROUND_TOKENS);
}

#[test]
fn a_new_prompt_goes_to_the_emptiest_cache() {
    let family: Vec<u64> = family_blocks(1, 2048).iter().map(|block| block.0).collect();
    for policy in [small(), chunked()] {
        let mut router = Router::new(Role::Prefill, 3, policy).unwrap();
        let batch = [kv(0, 1, &family), kv(1, 1, &family[..4]), kv(2, 1, &family[..9]), arrive(1, 400, 0)];
        let decisions = router.apply(Millis(0), &[&batch[..], &[RoutingEvent::Tick]].concat()).unwrap();
        let there = |d: &Decision| matches!(d, Decision::Dispatch { rank: Rank(1), .. });
        assert!(decisions.iter().any(there), "{decisions:?}");
    }
}

#[test]
fn a_turn_waits_for_its_prefix_to_run() {
    let mut router = Router::new(Role::Prefill, 2, chunked()).unwrap();
    let turn = |request: u64, tokens: u64| {
        let mut event = arrive(request, tokens, 0);
        if let RoutingEvent::Arrive { blocks, .. } = &mut event {
            *blocks = family_blocks(1, tokens);
        }
        event
    };
    let steps = RoutingEvent::Steps { count: 1 };
    router.apply(Millis(0), &[turn(1, 1024), RoutingEvent::Tick]).unwrap();
    let mut rounds = 0;
    let mut events = vec![turn(2, 1060)];
    // Whatever is given of the second turn in a round, all of the first was given before.
    loop {
        events.extend([steps.clone(), RoutingEvent::Tick]);
        let decisions = router.apply(Millis(0), &events).unwrap();
        let of = |id: u64| {
            decisions.iter().any(|d| matches!(d, Decision::Dispatch { request, .. } if request.0 == id))
        };
        if of(2) {
            let [Decision::Dispatch { tokens: Some(given), .. }, ..] = decisions[..] else {
                panic!("{decisions:?}")
            };
            assert!(!of(1) && rounds > 0 && given.0 <= 36, "{decisions:?} after {rounds} rounds");
            return;
        }
        rounds += 1;
        assert!(rounds < 100, "it still waits");
        events.clear();
    }
}

#[test]
fn of_two_new_prompts_with_one_beginning_the_second_waits() {
    let mut router = Router::new(Role::Prefill, 2, chunked()).unwrap();
    let turn = |request: u64| {
        let mut event = arrive(request, 4096, 0);
        if let RoutingEvent::Arrive { blocks, .. } = &mut event {
            *blocks = family_blocks(1, 4096);
        }
        event
    };
    let decisions = router.apply(Millis(0), &[turn(1), turn(2), RoutingEvent::Tick]).unwrap();
    assert!(decisions.contains(&Decision::Hold { request: RequestId(2) }), "{decisions:?}");
}

#[test]
fn a_long_queue_is_looked_up_as_far_as_it_is_planned_with() {
    let family: Vec<u64> = family_blocks(1, 2048).iter().map(|block| block.0).collect();
    let goes_home = |before: u64| {
        let mut router = Router::new(Role::Prefill, 2, chunked()).unwrap();
        let mut batch = vec![kv(1, 1, &family)];
        batch.extend((1..=before).map(|request| arrive(request, 40_000, 0)));
        let mut last = arrive(before + 1, 2096, 0);
        if let RoutingEvent::Arrive { blocks, .. } = &mut last {
            *blocks = family_blocks(1, 2096);
        }
        batch.extend([last, RoutingEvent::Tick]);
        let decisions = router.apply(Millis(0), &batch).unwrap();
        let last = |d: &Decision| matches!(d, Decision::Dispatch { request, .. } if request.0 == before + 1);
        decisions.iter().any(last)
    };
    let seen = 2 * HELD_PER_RANK as u64;
    assert!(goes_home(seen - 1) && !goes_home(seen));
}

#[test]
fn prompts_stay_held_until_ranks_have_room_and_tenants_take_turns() {
    let tenant_weights = [(TenantId(1), 2)].into();
    let policy = RoutingPolicy { cohort_tokens: Some(100), tenant_weights, ..small() };
    let mut router = Router::new(Role::Prefill, 1, policy).unwrap();
    let tick = RoutingEvent::Tick;
    // Tenant 0 floods first, then come 20 prompts of tenant 1; all interactive, of 50 tokens.
    let flood = (1..200).filter(|r| r % 3 == 0 && r % 4 != 0).take(20);
    let later = (1..200).filter(|r| r % 3 == 1 && r % 4 != 0).take(20);
    let arrivals: Vec<RoutingEvent> = flood.chain(later).map(|r| arrive_of_tenant(r, 50, 0)).collect();
    router.apply(Millis(0), &arrivals).unwrap();
    let mut served = Vec::new();
    let mut running: Vec<u64> = Vec::new();
    while served.len() < 12 {
        let events: Vec<RoutingEvent> = running.drain(..).map(finish).chain([tick.clone()]).collect();
        let decisions = router.apply(Millis(0), &events).unwrap();
        assert_eq!(decisions.len(), 2, "100 tokens are two prompts");
        running.extend(decisions.iter().map(|d| d.request().0));
        served.extend(running.iter().map(|request| request % 3));
    }
    // Nothing goes out while the ranks have what they need.
    assert_eq!(router.apply(Millis(0), &[tick]).unwrap(), []);
    let of_tenant_1 = served.iter().filter(|&&tenant| tenant == 1).count();
    assert!((7..=9).contains(&of_tenant_1), "two thirds of 12, to within a prompt: {served:?}");
}

#[test]
fn step_reports_teach_what_a_step_costs() {
    let mut router = router(Role::Prefill, 1);
    let learnt = |router: &Router| router.step_cost_quality().samples;
    let known = |sequence, micros| {
        let tokens = Tokens(1000 + sequence % 7 * 300);
        let step = StepReport { tokens, pairs: 1000, requests: 1, kv_tokens: Tokens(0), micros };
        let (as_of, kv_used_tokens) = (None, Tokens(0));
        RoutingEvent::Report { rank: Rank(0), sequence, as_of, kv_used_tokens, requests: 0, step: Some(step) }
    };
    for sequence in 1..=400 {
        let micros = 90 * (1000 + sequence % 7 * 300);
        router.apply(Millis(0), &[known(sequence, micros)]).unwrap();
    }
    assert_eq!(learnt(&router), 400);
    assert!((80.0..100.0).contains(&router.step_cost().token_us), "{:?}", router.step_cost());
    router.apply(Millis(0), &[known(400, 1)]).unwrap();
    assert_eq!(learnt(&router), 400, "a repeated report teaches nothing");
}

#[test]
fn a_first_token_ends_the_prefill_work_of_its_prompt() {
    let mut router = router(Role::Prefill, 1);
    let tick = RoutingEvent::Tick;
    router.apply(Millis(0), &[arrive(1, 10, 4), arrive(2, 7, 0), tick]).unwrap();
    let left = |router: &Router| router.totals(Rank(0)).unwrap().outstanding;
    assert_eq!(left(&router), Work::of(4, 6) + Work::of(0, 7));
    router.apply(Millis(0), &[first_token(1), first_token(1)]).unwrap();
    assert_eq!(left(&router), Work::of(0, 7));
    router.apply(Millis(0), &[finish(1), first_token(1), first_token(9)]).unwrap();
    assert_eq!((left(&router), router.counters().unknown_first_tokens), (Work::of(0, 7), 2));
}

#[test]
fn steps_beyond_any_life_of_a_unit_do_not_overflow() {
    let mut router = router(Role::Decode, 1);
    router.apply(Millis(0), &[arrive(1, 10, 0)]).unwrap();
    for _ in 0..20 {
        router.apply(Millis(0), &vec![steps(STEPS_MAX); EVENTS_MAX]).unwrap();
    }
    assert_eq!(router.totals(Rank(0)).unwrap().kv_tokens, Tokens((1 << 40) + 10));
    router.apply(Millis(0), &[arrive(2, 10, 0), report(0, 1, 1, 1, 1)]).unwrap();
    assert_eq!(router.totals(Rank(0)), Some(router.ledger.recount(Rank(0))));
}

#[test]
fn chunks_of_a_round_follow_when_the_ranks_have_run() {
    let mut router = Router::new(Role::Prefill, 1, chunked()).unwrap();
    let tick = RoutingEvent::Tick;
    router.apply(Millis(0), &[arrive(1, 1300, 100)]).unwrap();
    let mut rounds = 0;
    loop {
        let before = router.totals(Rank(0)).unwrap().outstanding.tokens;
        router.apply(Millis(0), &[steps(1), tick.clone()]).unwrap();
        let given = router.totals(Rank(0)).unwrap().outstanding.tokens;
        assert!(given <= ROUND_TOKENS && (given > 0 || before > 0), "round {rounds}: {given} tokens");
        if given == 0 {
            break;
        }
        rounds += 1;
    }
    assert_eq!((rounds, router.counters().dispatched), (3, 1));
    check(&mut router, &[(0, &[finish(1), tick])], &[]);
    assert_eq!(router.live(), 0);
}
