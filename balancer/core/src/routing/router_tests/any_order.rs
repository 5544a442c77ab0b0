//! Nothing is lost or dispatched twice, and the ledger holds, under any order of events.

use super::*;
use crate::prefill::MICROBATCHES;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

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
