//! From telemetry to a proposed plan: windows are taken, solves started, their results weighed.

use super::{ControlLoop, Event};
use crate::metrics as m;
use crate::store::StoreError;
use crate::telemetry::Taken;
use crate::unit::{Pending, SolveResult};
use evenkeel_core::ids::{Epoch, NodeId, Rank, UnitId};
use evenkeel_core::invariants;
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::unit as protocol;
use evenkeel_core::report::{Decision, KeepReason};
use evenkeel_core::snapshot::{Forecast, Predictor};
use evenkeel_core::topology::UnitTopology;
use evenkeel_core::units::Millis;
use evenkeel_proto::v1;
use std::collections::HashMap;
use std::sync::Arc;

impl ControlLoop {
    pub(super) fn report(&mut self, id: &UnitId, node: &NodeId, report: v1::Report) {
        let now = self.now();
        let unit = self.units.get_mut(id).expect("a stream's unit exists");
        let owned = unit.membership.claims().get(node).cloned().unwrap_or_default();
        for gauges in report.gauges {
            let rank = u16::try_from(gauges.rank).map(Rank);
            match rank {
                Ok(rank) if owned.contains(&rank) => drop(unit.gauges.insert(rank, gauges)),
                _ => metrics::counter!(m::DECODE_ERRORS, "source" => "gauges").increment(1),
            }
        }
        let Some(formed) = &mut unit.formed else { return };
        for segment in &report.segments {
            let plan = formed.control.plan_of(Epoch(segment.epoch)).cloned();
            let given_up = formed.windows.given_up;
            let taken = formed.windows.take(node, segment, plan.as_deref(), &formed.topology);
            count_window(id, "given_up", formed.windows.given_up - given_up);
            match taken {
                Taken::Open => {}
                Taken::Mixed => count_window(id, "mixed", 1),
                Taken::Dropped(reason) => {
                    metrics::counter!(m::DROPPED_REPORTS, "unit" => id.to_string(), "reason" => reason)
                        .increment(1);
                }
                Taken::Clean(window) => {
                    count_window(id, "clean", 1);
                    let imbalance = window.imbalance(formed.topology.shape().ranks.into());
                    formed.take_clean(window, now);
                    metrics::gauge!(m::IMBALANCE, "unit" => id.to_string(), "kind" => "expert")
                        .set(imbalance);
                    if let Some(gain) = formed.realised_gain() {
                        metrics::gauge!(m::REALISED_GAIN, "unit" => id.to_string()).set(gain);
                    }
                }
            }
        }
    }

    /// Starts a solve off the loop if a plan may be made now.
    pub(super) fn maybe_solve(&mut self, id: &UnitId) {
        let now = self.now();
        let policy = self.config.experts.policy();
        let unit = self.units.get_mut(id).expect("exists");
        if unit.paused {
            return;
        }
        let Some(formed) = &mut unit.formed else { return };
        let Some(job) = formed.next_solve(now, &policy) else { return };
        formed.solving = true;
        job.forecast().inspect(|forecast| publish_forecast(id, forecast));
        let (events, id) = (self.events.clone(), id.clone());
        tokio::task::spawn_blocking(move || {
            let began = std::time::Instant::now();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job.run()));
            metrics::histogram!(m::SOLVE_SECONDS, "unit" => id.to_string())
                .record(began.elapsed().as_secs_f64());
            let event = match outcome {
                Ok(result) => Event::Solved(id, Box::new(result)),
                Err(_) => Event::SolvePanicked(id),
            };
            // The loop is gone only at a shutdown.
            let _ = events.blocking_send(event);
        });
    }

    /// A bug in the solver. Requests are routed by this process too, so it goes on; the next window is tried anew,
    /// and until then the unit says what happened.
    pub(super) fn solve_panicked(&mut self, id: &UnitId) {
        tracing::error!(unit = %id, "the solver panicked");
        metrics::counter!(m::PLANS_ABORTED, "unit" => id.to_string(), "code" => "solver_panicked")
            .increment(1);
        let unit = self.units.get_mut(id).expect("exists");
        unit.last_decision =
            "the solver panicked on the last window: please report it with the log".to_owned();
        let formed = unit.formed.as_mut().expect("only formed units are solved");
        (formed.solving, formed.migration) = (false, None);
        formed.decided = formed.last_clean.as_ref().map(|w| w.window);
    }

    pub(super) async fn solved(&mut self, id: &UnitId, result: SolveResult) -> Result<(), StoreError> {
        let now = self.now();
        let unit = self.units.get_mut(id).expect("exists");
        let formed = unit.formed.as_mut().expect("only formed units are solved");
        formed.solving = false;
        unit.last_decision = describe(&result);
        formed.decided = Some(result.window.window);
        let Some(plan) = &result.solved.plan else {
            formed.migration = None;
            return Ok(());
        };
        formed.set_target(&result);
        if unit.paused || !formed.control.can_propose() || formed.control.head_id() != result.base {
            return Ok(());
        }
        let head = Arc::clone(formed.control.head());
        if let Err(violation) = invariants::check(plan, Some(&head), &formed.topology) {
            // A bug in the solver. The running plan is good, and requests are routed by this process too:
            // refusing the plan harms less than stopping.
            tracing::error!(unit = %id, code = violation.code(), %violation, "the solver made an invalid plan");
            metrics::counter!(m::PLANS_ABORTED, "unit" => id.to_string(), "code" => violation.code())
                .increment(1);
            formed.migration = None;
            return Ok(());
        }
        formed.pending = Some(account(&result, plan, &head, &formed.topology, now));
        self.step(id, protocol::Event::Propose(Arc::new(plan.clone()))).await
    }
}

fn publish_forecast(id: &UnitId, forecast: &Forecast) {
    if let Some(drift) = forecast.drift_mean() {
        metrics::gauge!(m::LOAD_DRIFT, "unit" => id.to_string()).set(drift);
    }
    for predictor in Predictor::ALL {
        let layers = forecast.predictor.iter().filter(|&&used| used == predictor).count();
        metrics::gauge!(m::FORECAST_LAYERS, "unit" => id.to_string(), "predictor" => predictor.as_str())
            .set(layers as f64);
    }
}

/// A decision in words.
fn describe(result: &SolveResult) -> String {
    let (report, window) = (&result.solved.report, result.window.window);
    let imbalance = format!("imbalance {:.4} -> {:.4}", report.before_mean(), report.after_mean());
    let decision = match result.solved.decision {
        Decision::Keep(KeepReason::GainTooSmall) => "kept, nothing gains enough".to_owned(),
        Decision::Keep(KeepReason::NoLoad) => "kept, nothing was routed".to_owned(),
        Decision::Keep(KeepReason::IncompleteSnapshot) => "kept, counts are missing".to_owned(),
        Decision::Reweight { .. } => format!("new weights, {imbalance}"),
        Decision::Move { plans_left: 0 } => format!("{} moves, {imbalance}", report.moves()),
        Decision::Move { plans_left } => {
            format!("{} moves, {imbalance}, {plans_left} more plans to the target", report.moves())
        }
    };
    format!("steps {}-{}: {decision}", window.from_step, window.to_step)
}

fn account(result: &SolveResult, plan: &Plan, head: &Plan, topology: &UnitTopology, now: Millis) -> Pending {
    let diff = plan.diff(head, topology);
    let report = &result.solved.report;
    let moves = diff.moves.len() as u64;
    let summary = v1::PlanSummary {
        id: Some((plan.epoch, plan.digest()).into()),
        kind: v1::PlanKind::from(plan.kind(Some(head))).into(),
        committed_ms: 0,
        moves,
        bytes: moves * topology.shape().expert_bytes,
        layers_reweighted: u32::try_from(diff.layers_reweighted).expect("layers fit 32 bits"),
        imbalance_before: report.before_mean(),
        imbalance_after: report.after_mean(),
        imbalance_bound: report.bound_mean(),
        window: Some(result.window.window.into()),
        limits: report.layers.iter().fold(Default::default(), |mut limits: HashMap<_, _>, layer| {
            *limits.entry(layer.binding.as_str().to_owned()).or_default() += 1;
            limits
        }),
        not_placed: u32::try_from(report.not_placed.len()).expect("replicas of a unit fit 32 bits"),
    };
    Pending { summary, loads: (&result.window.loads).into(), phase_began: now }
}

fn count_window(id: &UnitId, completeness: &'static str, windows: u64) {
    if windows > 0 {
        metrics::counter!(m::LOAD_WINDOWS, "unit" => id.to_string(), "completeness" => completeness)
            .increment(windows);
    }
}
