//! From telemetry to a proposed plan: windows are taken, solves started, their results weighed.

use super::{ControlLoop, Event};
use crate::draft::Drafted;
use crate::metrics as m;
use crate::telemetry::Taken;
use crate::unit::{Pending, SolveResult};
use evenkeel_core::ids::{Epoch, NodeId, Rank, UnitId};
use evenkeel_core::protocol::reign;
use evenkeel_core::report::{Decision, KeepReason};
use evenkeel_core::snapshot::{Forecast, Predictor};
use evenkeel_proto::v1;
use std::sync::Arc;

impl ControlLoop {
    pub(super) fn report(&mut self, id: &UnitId, node: &NodeId, report: v1::Report) {
        let now = self.now().at;
        let owned = self.ranks_of(id, node);
        let unit = self.unit(id);
        for gauges in report.gauges {
            let rank = u16::try_from(gauges.rank).map(Rank);
            match rank {
                Ok(rank) if owned.contains(&rank) => unit.take_gauges(rank, gauges),
                _ => metrics::counter!(m::DECODE_ERRORS, "source" => "gauges").increment(1),
            }
        }
        let Some(formed) = &mut unit.formed else { return };
        for segment in &report.segments {
            let plan = formed.plans.of(Epoch(segment.epoch)).cloned();
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

    /// The ranks of a node, as its unit has them, or as the store has them while this balancer stands by.
    fn ranks_of(&self, id: &UnitId, node: &NodeId) -> Vec<Rank> {
        if let Some(unit) = self.reign.units().get(id) {
            return unit.membership().claims().get(node).cloned().unwrap_or_default();
        }
        let Some(formed) = self.units.get(id).and_then(|unit| unit.formed.as_ref()) else {
            return Vec::new();
        };
        let topology = &formed.topology;
        topology.ordinal_of(node).map(|ordinal| topology.ranks_of(ordinal).collect()).unwrap_or_default()
    }

    /// Starts a solve off the loop if a plan may be made now.
    pub(super) fn maybe_solve(&mut self, id: &UnitId) {
        let now = self.now();
        let wanted = self.units.get(id).and_then(|unit| unit.formed.as_ref());
        if wanted.is_none_or(|formed| !formed.wants_solve(now.at)) || self.reign.may_plan(now, id).is_err() {
            return;
        }
        let (policy, kept) = (self.config.experts.policy(), self.kept(id));
        let Some(epoch) = self.reign.next_epoch(id) else { return };
        let Some(formed) = self.units.get_mut(id).and_then(|unit| unit.formed.as_mut()) else { return };
        let Some(job) = formed.next_solve(now.at, &policy, kept, epoch) else { return };
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
        let unit = self.unit(id);
        unit.last_decision =
            "the solver panicked on the last window: please report it with the log".to_owned();
        let Some(formed) = &mut unit.formed else { return };
        (formed.solving, formed.migration) = (false, None);
        formed.decided = formed.last_clean.as_ref().map(|w| w.window);
    }

    pub(super) fn solved(&mut self, id: &UnitId, result: SolveResult) {
        let unit = self.unit(id);
        unit.last_decision = describe(&result);
        let Some(formed) = &mut unit.formed else { return };
        formed.solving = false;
        formed.decided = Some(result.window.window);
        formed.set_target(&result);
        if let Some(drafted) = result.drafted {
            self.propose(drafted);
        }
    }

    /// Proposes a plan that is written down. Whether it still fits is the machine's to say.
    pub(super) fn propose(&mut self, drafted: Drafted) {
        let account = drafted.account();
        let Drafted { plan, summary, chunks } = drafted;
        let chunks = match chunks {
            Ok(chunks) => chunks,
            Err(error) => {
                tracing::error!(unit = %plan.unit, code = error.code(), %error, "plan cannot be stored");
                return;
            }
        };
        let phase_began = self.now().at;
        if let Some(formed) = self.units.get_mut(&plan.unit).and_then(|unit| unit.formed.as_mut()) {
            let plan = (plan.epoch, plan.digest());
            formed.pending = Some(Pending { plan, summary, phase_began });
        }
        self.step(reign::Event::Propose { plan: Arc::clone(&plan), account, chunks });
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

fn count_window(id: &UnitId, completeness: &'static str, windows: u64) {
    if windows > 0 {
        metrics::counter!(m::LOAD_WINDOWS, "unit" => id.to_string(), "completeness" => completeness)
            .increment(windows);
    }
}
