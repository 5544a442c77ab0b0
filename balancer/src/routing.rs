//! The routers of all units: one dispatch ledger each, shared by every gateway's stream.

use crate::decision_log::{Recorder, UnitRecorder};
use crate::metrics as m;
use evenkeel_core::ids::{Rank, UnitId};
use evenkeel_core::plan::max_over_mean;
use evenkeel_core::policy::RoutingPolicy;
use evenkeel_core::routing::{Decision, Router, RoutingError, RoutingEvent};
use evenkeel_core::topology::{Role, UnitShape};
use evenkeel_core::units::Millis;
use evenkeel_proto::v1;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// See the module.
pub struct Routers {
    policy: RoutingPolicy,
    recorder: Option<Recorder>,
    routers: Mutex<BTreeMap<UnitId, Arc<Mutex<Routed>>>>,
}

/// A unit's router, and its recording if there is one.
struct Routed {
    router: Router,
    recorder: Option<UnitRecorder>,
}

/// Why a batch got no decisions. `code` is stable.
#[derive(Debug, thiserror::Error)]
pub enum RouteFailure {
    /// No such unit, or one whose requests are not routed.
    #[error("unit {0} is not known, has not formed, or routes no requests (role mixed)")]
    UnknownUnit(String),
    /// The batch breaks a rule; nothing of it had an effect.
    #[error(transparent)]
    Refused(#[from] RoutingError),
}

impl RouteFailure {
    /// The stable code that gateways see.
    pub fn code(&self) -> &'static str {
        match self {
            RouteFailure::UnknownUnit(_) => "unknown_unit",
            RouteFailure::Refused(e) => e.code(),
        }
    }
}

/// A panic while a router was locked left it between two states only if the core has a bug; its decisions
/// are then as good as any others, and requests must go somewhere.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Routers {
    /// No unit yet; every router will follow `policy` and be recorded if there is a recorder.
    pub(crate) fn new(policy: RoutingPolicy, recorder: Option<Recorder>) -> Self {
        Self { policy, recorder, routers: Mutex::default() }
    }

    /// The same without a recorder.
    pub fn unrecorded(policy: RoutingPolicy) -> Self {
        Self::new(policy, None)
    }

    /// Makes a router for a unit that has formed, unless it has one. Mixed units route in their engines.
    pub fn form(&self, unit: &UnitId, shape: &UnitShape) {
        if shape.role == Role::Mixed {
            return;
        }
        match Router::new(shape.role, shape.ranks, self.policy.clone()) {
            Ok(router) => {
                lock(&self.routers).entry(unit.clone()).or_insert_with(|| {
                    let recorder = self.recorder.as_ref().map(|r| r.unit(&unit.to_string(), &router));
                    Arc::new(Mutex::new(Routed { router, recorder }))
                });
            }
            Err(error) => tracing::error!(%unit, code = error.code(), %error, "requests are not routed"),
        }
    }

    /// Answers one batch of a unit.
    pub fn route(
        &self,
        unit: &str,
        now: Millis,
        events: &[RoutingEvent],
    ) -> Result<Vec<Decision>, RouteFailure> {
        let id = UnitId::new(unit).map_err(|_| RouteFailure::UnknownUnit(unit.to_owned()))?;
        let router = lock(&self.routers).get(&id).cloned();
        let router = router.ok_or_else(|| RouteFailure::UnknownUnit(unit.to_owned()))?;
        let began = Instant::now();
        let decisions = {
            let mut routed = lock(&router);
            let Routed { router, recorder } = &mut *routed;
            let decided = router.apply(now, events);
            if let Some(recorder) = recorder {
                recorder.record(now, events, &decided, router);
            }
            decided?
        };
        metrics::histogram!(m::ROUTING_SECONDS).record(began.elapsed().as_secs_f64());
        count(unit, &decisions);
        Ok(decisions)
    }

    /// Max over mean in the ledger (decode) or in the last cohort (prefill).
    pub fn imbalance(&self, unit: &UnitId) -> v1::Imbalance {
        let router = lock(&self.routers).get(unit).cloned();
        router.map(|r| imbalance(&lock(&r).router)).unwrap_or_default()
    }

    /// Publishes every unit's ledger as metrics.
    pub fn publish(&self) {
        let routers: Vec<_> = lock(&self.routers).iter().map(|(u, r)| (u.to_string(), r.clone())).collect();
        for (unit, router) in routers {
            let routed = lock(&router);
            let router = &routed.router;
            metrics::gauge!(m::HELD_PROMPTS, "unit" => unit.clone()).set(router.held() as f64);
            publish_signals(&unit, router);
            let of = imbalance(router);
            for (kind, value) in [
                ("prefill_tokens", of.prefill_tokens),
                ("prefill_attention", of.prefill_attention),
                ("decode_kv", of.decode_kv),
                ("decode_requests", of.decode_requests),
            ] {
                if let Some(value) = value {
                    metrics::gauge!(m::IMBALANCE, "unit" => unit.clone(), "kind" => kind).set(value);
                }
            }
        }
    }
}

/// What the router has learned from reports and KV events, and how far that can be trusted.
fn publish_signals(unit: &str, router: &Router) {
    let gauge = |name: &'static str, label: &'static str, of: &'static str, value: f64| {
        metrics::gauge!(name, "unit" => unit.to_owned(), label => of).set(value);
    };
    let (cost, quality) = (router.step_cost(), router.step_cost_quality());
    let parts: &[(&str, f64)] = match router.role() {
        Role::Prefill => &[("token", cost.token_us), ("pair", cost.pair_us)],
        Role::Decode | Role::Mixed => &[("kv_token", cost.kv_token_us), ("request", cost.request_us)],
    };
    for &(part, us) in [("fixed", cost.fixed_us)].iter().chain(parts) {
        gauge(m::STEP_COST, "part", part, us);
    }
    for (percentile, error) in [("50", quality.error_p50), ("90", quality.error_p90)] {
        gauge(m::STEP_COST_ERROR, "percentile", percentile, error);
    }
    metrics::gauge!(m::STEP_COST_R_SQUARED, "unit" => unit.to_owned()).set(quality.r_squared);
    let whole = quality.samples - quality.clipped;
    for (outcome, count) in [("used", whole), ("clipped", quality.clipped), ("dropped", quality.dropped)] {
        gauge(m::STEP_REPORTS, "outcome", outcome, count as f64);
    }
    let counters = router.counters();
    for (reason, count) in [("stale", counters.stale_reports), ("foreign", counters.foreign_reports)] {
        gauge(m::RANK_REPORTS_DROPPED, "reason", reason, count as f64);
    }
    let Some(prefixes) = router.prefix_counters() else { return };
    for (outcome, count) in [
        ("applied", prefixes.applied),
        ("unknown_parent", prefixes.unknown_parents),
        ("stale", prefixes.stale),
        ("gap", prefixes.gaps),
        ("evicted_block", prefixes.evicted_blocks),
    ] {
        gauge(m::PREFIX_EVENTS, "outcome", outcome, count as f64);
    }
}

fn imbalance(router: &Router) -> v1::Imbalance {
    let cohort = router.last_cohort();
    let totals: Vec<_> = (0..router.ranks()).filter_map(|r| router.totals(Rank(r))).collect();
    let decode = router.role() == Role::Decode && totals.iter().any(|t| t.requests > 0);
    let over = |value: fn(&evenkeel_core::routing::LedgerTotals) -> f64| {
        decode.then(|| max_over_mean(&totals.iter().map(value).collect::<Vec<_>>()))
    };
    v1::Imbalance {
        expert: None,
        prefill_tokens: cohort.map(|c| c.tokens.over_mean),
        prefill_attention: cohort.map(|c| c.attention.over_mean),
        decode_kv: over(|t| t.kv_tokens.0 as f64),
        decode_requests: over(|t| t.requests as f64),
    }
}

fn count(unit: &str, decisions: &[Decision]) {
    let mut counts = [("dispatch", 0), ("hold", 0), ("refuse", 0), ("migrate", 0), ("lost", 0)];
    for decision in decisions {
        let outcome = match decision {
            Decision::Dispatch { .. } => 0,
            Decision::Hold { .. } => 1,
            Decision::Refuse { .. } => 2,
            Decision::Migrate { .. } => 3,
            Decision::Lost { .. } => 4,
        };
        counts[outcome].1 += 1;
    }
    for (outcome, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        metrics::counter!(m::ROUTING_DECISIONS, "unit" => unit.to_owned(), "outcome" => outcome)
            .increment(count);
    }
}
