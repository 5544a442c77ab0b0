//! What the machine says has happened, as logs, metrics, and what is kept of units.

use super::ControlLoop;
use crate::metrics as m;
use crate::unit::{Pending, Plans};
use evenkeel_core::ids::UnitId;
use evenkeel_core::protocol::reign::Notice;
use evenkeel_core::protocol::unit::PlanRef;
use evenkeel_core::records::PlanName;
use evenkeel_proto::v1;
use std::sync::Arc;

impl ControlLoop {
    pub(super) fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Joined { unit, node, applied, .. } => {
                tracing::info!(%unit, %node, applied = ?applied.map(|a| a.0.0), "agent connected");
            }
            Notice::Left { unit, node, stream, code } => {
                tracing::info!(%unit, %node, stream = stream.0, code, "agent disconnected");
                // A unit that never formed is made of those who are there; nothing of it may pile up.
                if self.units.get(&unit).is_some_and(|unit| unit.formed.is_none())
                    && !self.reign.streams().values().any(|stream| *stream.unit() == unit)
                {
                    self.units.remove(&unit);
                }
            }
            Notice::Refused { unit, node, code } => tracing::warn!(%unit, %node, code, "agent refused"),
            Notice::Replaced { unit, old, by } => {
                tracing::info!(%unit, %old, %by, "node replaced");
                self.take_up(&unit);
            }
            Notice::Formed(unit) => {
                tracing::info!(%unit, "unit formed");
                self.unit(&unit).last_decision = "waiting for the first load window".to_owned();
            }
            Notice::Preparing { .. } => {}
            Notice::Storing { unit, .. } => self.phase_done(&unit, "prepare"),
            Notice::Invalid { unit, code, text } => {
                // A bug of who made the plan. The running one is good, and requests are routed by this process too:
                // refusing the plan harms less than stopping.
                tracing::error!(%unit, code, text, "an invalid plan was made");
                metrics::counter!(m::PLANS_ABORTED, "unit" => unit.to_string(), "code" => code).increment(1);
                if let Some(formed) = &mut self.unit(&unit).formed {
                    formed.migration = None;
                }
            }
            Notice::Committed { unit, name } => self.committed(&unit, name),
            Notice::Aborted { unit, plan, code, node } => {
                tracing::warn!(%unit, epoch = plan.0.0, code, node = ?node, "plan aborted");
                metrics::counter!(m::PLANS_ABORTED, "unit" => unit.to_string(), "code" => code.clone())
                    .increment(1);
                let resume_at = self.now().at.after(self.config.control.abort_pause_ms);
                let known = self.unit(&unit);
                known.last_decision = format!("plan {} aborted: {code}", plan.0);
                if let Some(formed) = &mut known.formed {
                    // The same counts may be tried again: the next attempt need not wait for a new window.
                    (formed.pending, formed.decided, formed.resume_at) = (None, None, resume_at);
                }
            }
            Notice::Settled { unit, plan } => self.settled(&unit, plan),
            Notice::Hung { unit, node, plan } => {
                tracing::error!(
                    %unit, %node, epoch = plan.0.0,
                    "the node does not apply a committed plan: its worker may hang"
                );
                metrics::counter!(m::WORKERS_HUNG, "unit" => unit.to_string()).increment(1);
            }
            Notice::MassLoss { unit, on } => {
                let of = unit.as_ref().map_or("all", UnitId::as_str).to_owned();
                if on {
                    tracing::error!(unit = of, "many nodes were lost at once: no plans until most are back");
                } else {
                    tracing::info!(unit = of, "most nodes are back: plans are made again");
                }
                metrics::gauge!(m::MASS_LOSS, "unit" => of).set(if on { 1.0 } else { 0.0 });
            }
            Notice::Held(unit) => {
                tracing::info!(%unit, "an operator's order was carried out");
                if let Some(formed) = self.units.get_mut(&unit).and_then(|unit| unit.formed.as_mut()) {
                    // What was under way was made without it.
                    formed.migration = None;
                }
            }
            Notice::WriteRefused => self.election.write_refused(),
            Notice::TermSeen(term) => {
                let election = self.election.clone();
                tokio::spawn(async move { election.term_claimed(term).await });
            }
        }
    }

    /// Takes over what the machine knows of a unit's plans and nodes.
    pub(super) fn take_up(&mut self, id: &UnitId) {
        let history = self.config.experts.history();
        let Some(formed) = self.reign.units().get(id).and_then(|unit| unit.formed()) else { return };
        let control = formed.control();
        let topology = Arc::clone(formed.topology());
        let plans = Plans {
            head: Arc::clone(control.head()),
            head_id: control.head_id(),
            parent: control.parent().cloned(),
        };
        metrics::gauge!(m::PLAN_EPOCH, "unit" => id.to_string()).set(plans.head.epoch.0 as f64);
        self.routers.form(id, topology.shape());
        self.unit(id).take_up(&topology, plans, history);
    }

    fn committed(&mut self, id: &UnitId, name: PlanName) {
        let unit = id.to_string();
        let pending = self.units.get_mut(id).and_then(|u| u.formed.as_mut()).and_then(|f| f.pending.clone());
        let summary = pending.filter(|pending| pending.plan == (name.epoch, name.digest)).map(|p| p.summary);
        let kind = match summary.as_ref().map(v1::PlanSummary::kind) {
            Some(v1::PlanKind::Moves) => "moves",
            Some(v1::PlanKind::WeightsOnly) => "weights",
            _ => "boot",
        };
        tracing::info!(unit, epoch = name.epoch.0, kind, "plan committed");
        metrics::counter!(m::PLANS_COMMITTED, "unit" => unit.clone(), "kind" => kind).increment(1);
        let Some(summary) = summary else { return };
        metrics::counter!(m::SLOT_MOVES, "unit" => unit.clone()).increment(summary.moves);
        if summary.imbalance_after > 0.0 {
            let gain = summary.imbalance_before / summary.imbalance_after;
            metrics::gauge!(m::PREDICTED_GAIN, "unit" => unit).set(gain);
        }
    }

    fn settled(&mut self, id: &UnitId, plan: PlanRef) {
        self.take_up(id);
        self.phase_done(id, "commit");
        tracing::info!(unit = %id, epoch = plan.0.0, "every node serves the plan");
        let Some(formed) = self.units.get_mut(id).and_then(|unit| unit.formed.as_mut()) else { return };
        formed.pending = None;
        // On the way to a target the next plan needs no new window.
        if formed.migration.is_some() {
            self.maybe_solve(id);
        }
    }

    fn phase_done(&mut self, id: &UnitId, phase: &'static str) {
        let now = self.now().at;
        let pending: Option<&mut Pending> =
            self.units.get_mut(id).and_then(|unit| unit.formed.as_mut()).and_then(|f| f.pending.as_mut());
        if let Some(pending) = pending {
            let seconds = now.since(pending.phase_began) as f64 / 1e3;
            pending.phase_began = now;
            metrics::histogram!(m::PLAN_PHASE_SECONDS, "unit" => id.to_string(), "phase" => phase)
                .record(seconds);
        }
    }
}
