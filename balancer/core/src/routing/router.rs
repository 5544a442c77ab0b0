//! One unit's router: validates a batch, keeps the ledger, asks the solvers.

use super::batch::{Context, validate};
use super::ledger::{Ledger, LedgerTotals, RankPhase, ReportDrop};
use super::{
    Decision, LIVE_MAX, PROMPT_TOKENS_MAX, REFUSED_NO_RANK_UP, RequestId, RoutingError, RoutingEvent,
};
use crate::decode::admit;
use crate::ids::Rank;
use crate::policy::RoutingPolicy;
use crate::prefill::{
    Cohort, Imbalance, Item, MICROBATCHES, Prompt, RankBacklog, RoundBudget, Source, assign, plan_round,
};
use crate::topology::{RANKS_MAX, Role};
use crate::units::{Millis, Tokens};

/// Longest wait that a policy may ask for: a minute is beyond any objective for a first token.
const COHORT_WAIT_MAX_MS: u64 = 60_000;

/// What a router counted since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RouterCounters {
    /// Requests dispatched, each once whatever its chunks.
    pub dispatched: u64,
    /// Arrivals refused because no rank took requests.
    pub refused: u64,
    /// Requests lost with their rank.
    pub lost: u64,
    /// Finish events for requests that were not live.
    pub unknown_finishes: u64,
    /// First tokens of requests that no rank has.
    pub unknown_first_tokens: u64,
    /// Reports dropped: repeated, older than one that was used, or of a rank that is down.
    pub stale_reports: u64,
    /// Reports dropped because they name a dispatch that this router never made.
    pub foreign_reports: u64,
    /// Cohorts or rounds planned.
    pub cohorts: u64,
}

/// How even the last cohort (or chunked round) came out.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CohortReport {
    /// Prompts, or chunks, that went out.
    pub dispatches: usize,
    /// Of the tokens per bin (whole prompts: rank and microbatch; chunks: rank).
    pub tokens: Imbalance,
    /// Of the attention per bin.
    pub attention: Imbalance,
}

/// Routes the requests of one unit. Pure: the same batches give the same decisions.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Router {
    role: Role,
    ranks: u16,
    policy: RoutingPolicy,
    ledger: Ledger,
    last: Millis,
    counters: RouterCounters,
    last_cohort: Option<CohortReport>,
}

impl Router {
    /// A router for a unit of `ranks` ranks, all of them up and empty.
    pub fn new(role: Role, ranks: u16, policy: RoutingPolicy) -> Result<Self, RoutingError> {
        if !(1..=RANKS_MAX).contains(&ranks) {
            return Err(RoutingError::RankCount { ranks });
        }
        if role == Role::Mixed {
            return Err(RoutingError::RoleNotRouted);
        }
        for (field, value, min, max) in [
            ("cohort_wait_max_ms", policy.cohort_wait_max_ms, 0, COHORT_WAIT_MAX_MS),
            ("round_tokens", policy.round_tokens.unwrap_or(1), 1, PROMPT_TOKENS_MAX),
            ("held_max", policy.held_max as u64, 1, LIVE_MAX as u64),
            ("live_max", policy.live_max as u64, 1, LIVE_MAX as u64),
        ] {
            if !(min..=max).contains(&value) {
                return Err(RoutingError::Policy { field, value, min, max });
            }
        }
        let ledger = Ledger::new(ranks);
        let counters = RouterCounters::default();
        Ok(Self { role, ranks, policy, ledger, last: Millis(0), counters, last_cohort: None })
    }

    /// Takes a batch of events at time `now` and returns the decisions, in the order in which they were
    /// made. A batch with an error has no effect at all.
    pub fn apply(&mut self, now: Millis, events: &[RoutingEvent]) -> Result<Vec<Decision>, RoutingError> {
        let context = Context {
            role: self.role,
            ranks: self.ranks,
            policy: &self.policy,
            ledger: &self.ledger,
            last: self.last,
        };
        validate(&context, now, events)?;
        self.last = now;
        let before = self.ledger.arrivals();
        let mut decisions = Vec::new();
        for event in events {
            self.take(now, event, &mut decisions);
        }
        match self.role {
            Role::Prefill => self.decide_prefill(now, events, before, &mut decisions),
            Role::Decode | Role::Mixed => self.admit_held(&mut decisions),
        }
        Ok(decisions)
    }

    fn take(&mut self, now: Millis, event: &RoutingEvent, decisions: &mut Vec<Decision>) {
        match *event {
            RoutingEvent::Arrive { request, .. } if !self.ledger.any_up() => {
                decisions.push(self.refuse(request));
            }
            RoutingEvent::Arrive { request, prompt_tokens, cached_tokens, .. } => {
                let cached = if self.role == Role::Prefill { cached_tokens } else { Tokens(0) };
                self.ledger.hold(request, now, prompt_tokens, cached);
            }
            RoutingEvent::Finish { request } => {
                let known = self.ledger.finish(request);
                self.counters.unknown_finishes += u64::from(!known);
            }
            RoutingEvent::Steps { count } => match self.role {
                Role::Decode | Role::Mixed => self.ledger.generated(count),
                // An engine that cuts whole prompts itself says nothing of how far it is.
                Role::Prefill if self.policy.round_tokens.is_none() => {}
                Role::Prefill => self.ledger.ran_all(),
            },
            RoutingEvent::FirstToken { request } => {
                let known = self.ledger.ran(request);
                self.counters.unknown_first_tokens += u64::from(!known);
            }
            RoutingEvent::Report { rank, sequence, as_of, kv_used_tokens, requests, .. } => {
                let as_of = as_of.unwrap_or_default();
                match self.ledger.correct(rank, sequence, as_of, requests, kv_used_tokens) {
                    Ok(()) => {}
                    Err(ReportDrop::Stale) => self.counters.stale_reports += 1,
                    Err(ReportDrop::UnknownDispatch) => self.counters.foreign_reports += 1,
                }
            }
            RoutingEvent::RankDown { rank } => {
                let lost = self.ledger.take_down(rank);
                self.counters.lost += lost.len() as u64;
                decisions.extend(lost.into_iter().map(|request| Decision::Lost { request, rank }));
                self.refuse_all_without_ranks(decisions);
            }
            RoutingEvent::Drain { rank } => {
                self.ledger.drain(rank);
                self.refuse_all_without_ranks(decisions);
            }
            RoutingEvent::RankUp { rank } => self.ledger.bring_up(rank),
            RoutingEvent::Kv { .. } => {}
            RoutingEvent::Tick => {}
        }
    }

    /// Nothing is held that no rank could take.
    fn refuse_all_without_ranks(&mut self, decisions: &mut Vec<Decision>) {
        if self.ledger.any_up() {
            return;
        }
        let held: Vec<RequestId> = self.ledger.held_prompts().map(|(request, _)| request).collect();
        for request in held {
            self.ledger.finish(request);
            decisions.push(self.refuse(request));
        }
    }

    fn refuse(&mut self, request: RequestId) -> Decision {
        self.counters.refused += 1;
        let message = format!(
            "all {} ranks of the unit are down or draining: send the request to another unit",
            self.ranks
        );
        Decision::Refuse { request, code: REFUSED_NO_RANK_UP, message }
    }

    /// Decode: the batch's arrivals go out, after its other events, for a later one may say that a rank is
    /// down.
    fn admit_held(&mut self, decisions: &mut Vec<Decision>) {
        let held: Vec<(RequestId, Prompt)> = self.ledger.held_prompts().collect();
        for (request, prompt) in held {
            let index =
                admit(self.ledger.loads(), prompt.remaining).expect("requests are held if a rank is up");
            let rank = Rank(index as u16);
            // The KV comes from a prefill unit: the rank has no prompt tokens to run.
            let number = self.ledger.dispatch(request, rank, 0, Some(0));
            self.counters.dispatched += 1;
            decisions.push(Decision::Dispatch { request, number, rank, microbatch: 0, tokens: None });
        }
    }

    /// `before`: requests that had arrived before the batch.
    fn decide_prefill(
        &mut self,
        now: Millis,
        events: &[RoutingEvent],
        before: u64,
        decisions: &mut Vec<Decision>,
    ) {
        let oldest = self.ledger.oldest_held();
        let overdue = oldest.is_some_and(|arrived| now.since(arrived) >= self.policy.cohort_wait_max_ms);
        if overdue || events.contains(&RoutingEvent::Tick) {
            match self.policy.round_tokens {
                // What began on a draining rank ends there; nothing begins there any more.
                Some(round_tokens) => {
                    let draining: Vec<Rank> = self.ledger.ranks_in(RankPhase::Draining).collect();
                    self.dispatch_round(&draining, Vec::new(), round_tokens, decisions);
                    let up: Vec<Rank> = self.ledger.ranks_in(RankPhase::Up).collect();
                    let held = self.ledger.held_prompts().collect();
                    self.dispatch_round(&up, held, round_tokens, decisions);
                }
                None => decisions.extend(self.dispatch_cohort()),
            }
        }
        decisions.extend(self.ledger.held_since(before).map(|request| Decision::Hold { request }));
    }

    /// All held prompts go out whole.
    fn dispatch_cohort(&mut self) -> Vec<Decision> {
        let held: Vec<(RequestId, Prompt)> = self.ledger.held_prompts().collect();
        if held.is_empty() {
            return Vec::new();
        }
        let up: Vec<Rank> = self.ledger.ranks_in(RankPhase::Up).collect();
        let carried = up.iter().flat_map(|&rank| self.ledger.outstanding(rank)).collect();
        let items = held.iter().map(|(_, prompt)| Item::from(*prompt)).collect();
        let assignment = assign(&Cohort { carried, items });
        self.note_cohort(held.len(), assignment.tokens, assignment.attention);
        let mut decisions = Vec::with_capacity(held.len());
        for (&(request, _), bin) in held.iter().zip(assignment.bin_of) {
            let (rank, microbatch) = (up[bin / MICROBATCHES], (bin % MICROBATCHES) as u8);
            let number = self.ledger.dispatch(request, rank, microbatch, None);
            self.counters.dispatched += 1;
            decisions.push(Decision::Dispatch { request, number, rank, microbatch, tokens: None });
        }
        decisions
    }

    /// Each of these ranks gets its next chunks.
    fn dispatch_round(
        &mut self,
        up: &[Rank],
        held: Vec<(RequestId, Prompt)>,
        round_tokens: u64,
        decisions: &mut Vec<Decision>,
    ) {
        if up.is_empty() {
            return;
        }
        let pinned: Vec<Vec<(RequestId, Prompt)>> =
            up.iter().map(|&rank| self.ledger.pinned_prompts(rank).collect()).collect();
        let backlogs: Vec<RankBacklog> = up
            .iter()
            .zip(&pinned)
            .map(|(&rank, prompts)| {
                let [first, second] = self.ledger.outstanding(rank);
                let pinned = prompts.iter().map(|(_, prompt)| *prompt).collect();
                RankBacklog { pinned, outstanding: first + second }
            })
            .collect();
        let prompts: Vec<Prompt> = held.iter().map(|(_, prompt)| *prompt).collect();
        let round = plan_round(&backlogs, &prompts, &RoundBudget::of(round_tokens));
        if round.chunks.is_empty() {
            return;
        }
        self.note_cohort(round.chunks.len(), round.tokens, round.attention);
        for chunk in &round.chunks {
            let rank = up[chunk.rank];
            let request = match chunk.prompt {
                Source::Pinned(index) => pinned[chunk.rank][index].0,
                Source::Held(index) => held[index].0,
            };
            self.counters.dispatched += u64::from(self.ledger.rank_of(request).is_none());
            let number = self.ledger.dispatch(request, rank, chunk.microbatch, Some(chunk.tokens));
            decisions.push(Decision::Dispatch {
                request,
                number,
                rank,
                microbatch: chunk.microbatch,
                tokens: Some(Tokens(chunk.tokens)),
            });
        }
    }

    fn note_cohort(&mut self, dispatches: usize, tokens: Imbalance, attention: Imbalance) {
        self.counters.cohorts += 1;
        self.last_cohort = Some(CohortReport { dispatches, tokens, attention });
    }

    /// What the ledger holds of a rank; `None` for a rank the unit does not have.
    pub fn totals(&self, rank: Rank) -> Option<LedgerTotals> {
        self.ledger.totals(rank)
    }

    /// Requests that are held or running.
    pub fn live(&self) -> usize {
        self.ledger.live()
    }

    /// Requests that are held.
    pub fn held(&self) -> usize {
        self.ledger.held()
    }

    /// Whether it routes prompts or admissions to decode.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Ranks of the unit.
    pub fn ranks(&self) -> u16 {
        self.ranks
    }

    /// Counters since the beginning.
    pub fn counters(&self) -> RouterCounters {
        self.counters
    }

    /// The last cohort of a prefill unit, if there was one.
    pub fn last_cohort(&self) -> Option<CohortReport> {
        self.last_cohort
    }
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
