//! One unit's router: validates a batch, keeps the ledger, asks the solvers.

use super::batch::{Context, validate};
use super::holding::Holding;
use super::ledger::{Ledger, LedgerTotals, ReportDrop};
use super::{
    BlockHash, Decision, KvChange, LIVE_MAX, PROMPT_TOKENS_MAX, REFUSED_LIVE_FULL, REFUSED_NO_RANK_UP,
    RequestId, RoutingError, RoutingEvent, StepReport,
};
use crate::cost_fit::{CostFit, CostModel, FitQuality, StepCost};
use crate::ids::Rank;
use crate::policy::RoutingPolicy;
use crate::prefill::Imbalance;
use crate::prefix::{PrefixCounters, PrefixIndex};
use crate::topology::{RANKS_MAX, Role};
use crate::units::{Millis, Tokens};
use std::sync::Arc;

/// Longest wait that a policy may ask for: a minute is beyond any objective for a first token.
const COHORT_WAIT_MAX_MS: u64 = 60_000;
/// Most KV tokens of a rank, a tebibyte at one byte a token.
const KV_CAPACITY_MAX: u64 = 1 << 40;
/// Most moves a step: one of each rank of the largest unit is more than any network hides behind a step.
const MIGRATIONS_MAX: u64 = RANKS_MAX as u64;
/// Largest prefix block: beyond it next to no prompts share any.
const BLOCK_TOKENS_MAX: u64 = 4096;

/// What a router counted since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RouterCounters {
    /// Requests dispatched, each once whatever its chunks.
    pub dispatched: u64,
    /// Requests refused, whatever the code.
    pub refused: u64,
    /// Requests lost with their rank.
    pub lost: u64,
    /// Running requests moved.
    pub migrated: u64,
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
    pub(super) role: Role,
    ranks: u16,
    pub(super) policy: RoutingPolicy,
    pub(super) ledger: Ledger,
    pub(super) holding: Holding,
    /// What each rank has cached; of prefill units only.
    pub(super) prefixes: Option<PrefixIndex>,
    /// Blocks that ranks are to be expected to have, since the last batch: the index hears of them before the next, for decisions shall
    /// not wait for it.
    expecting: Vec<(Rank, Arc<[BlockHash]>)>,
    pub(super) fit: CostFit,
    last: Millis,
    /// When held prompts were last looked at.
    pub(super) planned: Millis,
    /// The ranks have a round that they have not begun, given while the one before it ran: requests that had ever arrived then.
    pub(super) ahead: Option<u64>,
    pub(super) counters: RouterCounters,
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
            ("cohort_tokens", policy.cohort_tokens.unwrap_or(1), 1, PROMPT_TOKENS_MAX),
            ("kv_capacity_tokens", policy.kv_capacity_tokens.unwrap_or(1), 1, KV_CAPACITY_MAX),
            ("migrations_per_step", policy.migrations_per_step.into(), 0, MIGRATIONS_MAX),
            ("block_tokens", policy.block_tokens, 1, BLOCK_TOKENS_MAX),
            ("held_max", policy.held_max as u64, 1, LIVE_MAX as u64),
            ("live_max", policy.live_max as u64, 1, LIVE_MAX as u64),
        ] {
            if !(min..=max).contains(&value) {
                return Err(RoutingError::Policy { field, value, min, max });
            }
        }
        let prefill = role == Role::Prefill;
        let model = if prefill { CostModel::Prefill } else { CostModel::Decode };
        Ok(Self {
            role,
            ranks,
            ledger: Ledger::new(ranks),
            holding: Holding::new(&policy)?,
            prefixes: prefill.then(|| PrefixIndex::new(ranks, policy.prefix)).transpose()?,
            expecting: Vec::new(),
            fit: CostFit::new(model),
            policy,
            last: Millis(0),
            planned: Millis(0),
            ahead: None,
            counters: RouterCounters::default(),
            last_cohort: None,
        })
    }

    /// Takes a batch of events at time `now` and returns the decisions, in the order in which they were
    /// made. A batch with an error has no effect at all.
    pub fn apply(&mut self, now: Millis, events: &[RoutingEvent]) -> Result<Vec<Decision>, RoutingError> {
        let context =
            Context { ranks: self.ranks, policy: &self.policy, ledger: &self.ledger, last: self.last };
        validate(&context, now, events)?;
        self.last = now;
        let before = self.ledger.arrivals();
        let mut decisions = Vec::new();
        if let Some(prefixes) = &mut self.prefixes {
            self.expecting.drain(..).for_each(|(rank, blocks)| prefixes.expect(rank, &blocks));
            prefixes.advance(now);
        }
        for event in events {
            self.take(now, event, &mut decisions);
        }
        match self.role {
            Role::Prefill => self.decide_prefill(now, events, before, &mut decisions),
            Role::Decode | Role::Mixed => self.decide_decode(events, before, &mut decisions),
        }
        Ok(decisions)
    }

    fn take(&mut self, now: Millis, event: &RoutingEvent, decisions: &mut Vec<Decision>) {
        match *event {
            RoutingEvent::Arrive { .. } => self.arrive(now, event, decisions),
            RoutingEvent::FirstToken { request } => {
                self.holding.end(request);
                let known = self.ledger.ran(request);
                self.counters.unknown_first_tokens += u64::from(!known);
            }
            RoutingEvent::Finish { request } => {
                self.holding.remove(request);
                let known = self.ledger.finish(request);
                self.counters.unknown_finishes += u64::from(!known);
            }
            RoutingEvent::Steps { count } => match self.role {
                Role::Decode | Role::Mixed => self.ledger.generated(count),
                // An engine that cuts whole prompts itself says nothing of how far it is.
                Role::Prefill if self.policy.round_tokens.is_none() => {}
                Role::Prefill => self.ledger.ran_all(),
            },
            RoutingEvent::Report { rank, sequence, as_of, kv_used_tokens, requests, ref step } => {
                let as_of = as_of.unwrap_or_default();
                match self.ledger.correct(rank, sequence, as_of, requests, kv_used_tokens) {
                    Ok(()) => self.learn(step.as_ref()),
                    Err(ReportDrop::Stale) => self.counters.stale_reports += 1,
                    Err(ReportDrop::UnknownDispatch) => self.counters.foreign_reports += 1,
                }
            }
            RoutingEvent::RankDown { rank } => {
                self.forget_prefixes(rank);
                let lost = self.ledger.take_down(rank);
                self.counters.lost += lost.len() as u64;
                lost.iter().for_each(|&request| self.holding.end(request));
                decisions.extend(lost.into_iter().map(|request| Decision::Lost { request, rank }));
                self.refuse_all_without_ranks(decisions);
            }
            RoutingEvent::Drain { rank } => {
                self.ledger.drain(rank);
                self.refuse_all_without_ranks(decisions);
            }
            RoutingEvent::RankUp { rank } => {
                self.forget_prefixes(rank);
                self.ledger.bring_up(rank);
            }
            RoutingEvent::Kv { rank, sequence, ref change } => self.note_prefixes(rank, sequence, change),
            RoutingEvent::Tick => {}
        }
    }

    fn arrive(&mut self, now: Millis, event: &RoutingEvent, decisions: &mut Vec<Decision>) {
        let &RoutingEvent::Arrive { request, prompt_tokens, cached_tokens, .. } = event else {
            return;
        };
        if !self.ledger.any_up() {
            decisions.push(self.refuse_without_ranks(request));
            return;
        }
        if self.ledger.live() >= self.policy.live_max {
            let message = format!(
                "the unit has {} requests, as many as it may: slow the gateway down or send to another unit",
                self.policy.live_max
            );
            decisions.push(self.refuse(request, REFUSED_LIVE_FULL, message));
            return;
        }
        match self.role {
            Role::Prefill => {
                self.ledger.hold(request, now, prompt_tokens, cached_tokens);
                self.hold_prompt(event, decisions);
            }
            Role::Decode | Role::Mixed if self.fits_a_rank(prompt_tokens) => {
                self.ledger.hold(request, now, prompt_tokens, Tokens(0));
            }
            Role::Decode | Role::Mixed => decisions.push(self.refuse_unfit(request, prompt_tokens)),
        }
    }

    /// Whoever has no room any more is forgotten and answered.
    pub(super) fn turn_away(&mut self, refusal: Option<Decision>, decisions: &mut Vec<Decision>) {
        if let Some(refusal) = refusal {
            self.ledger.finish(refusal.request());
            self.counters.refused += 1;
            decisions.push(refusal);
        }
    }

    fn learn(&mut self, step: Option<&StepReport>) {
        if let Some(step) = step {
            self.fit.observe(step);
        }
    }

    fn forget_prefixes(&mut self, rank: Rank) {
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.forget(rank);
        }
    }

    fn note_prefixes(&mut self, rank: Rank, sequence: u64, change: &KvChange) {
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.apply(rank, sequence, change);
        }
    }

    /// A rank was given a prompt with these blocks.
    pub(super) fn expect_prefixes(&mut self, rank: Rank, blocks: Arc<[BlockHash]>) {
        self.expecting.push((rank, blocks));
    }

    /// Nothing is held that no rank could take.
    fn refuse_all_without_ranks(&mut self, decisions: &mut Vec<Decision>) {
        if self.ledger.any_up() {
            return;
        }
        let held: Vec<RequestId> = self.ledger.held_requests().collect();
        for request in held {
            self.ledger.finish(request);
            self.holding.remove(request);
            decisions.push(self.refuse_without_ranks(request));
        }
    }

    fn refuse_without_ranks(&mut self, request: RequestId) -> Decision {
        let ranks = self.ranks;
        let message =
            format!("all {ranks} ranks of the unit are down or draining: send the request to another unit");
        self.refuse(request, REFUSED_NO_RANK_UP, message)
    }

    pub(super) fn refuse(&mut self, request: RequestId, code: &'static str, message: String) -> Decision {
        self.counters.refused += 1;
        Decision::Refuse { request, code, message }
    }

    pub(super) fn note_cohort(&mut self, dispatches: usize, tokens: Imbalance, attention: Imbalance) {
        self.counters.cohorts += 1;
        self.last_cohort = Some(CohortReport { dispatches, tokens, attention });
    }

    /// What a step costs, as far as the reports tell.
    pub fn step_cost(&self) -> StepCost {
        self.fit.cost()
    }

    /// How far that can be trusted.
    pub fn step_cost_quality(&self) -> FitQuality {
        self.fit.quality()
    }

    /// What the prefix index of a prefill unit has seen.
    pub fn prefix_counters(&self) -> Option<PrefixCounters> {
        self.prefixes.as_ref().map(PrefixIndex::counters)
    }

    /// Bytes that the ledger has allocated for live requests.
    pub fn ledger_bytes(&self) -> usize {
        self.ledger.bytes()
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
#[path = "router_tests/mod.rs"]
mod tests;
