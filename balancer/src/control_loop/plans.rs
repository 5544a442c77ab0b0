//! A plan on its way: the protocol's actions carried out, answers taken, the commit.

use super::ControlLoop;
use crate::metrics as m;
use crate::push::{AgentLink, short_command};
use crate::store::{StoreError, Stored};
use crate::unit::StreamId;
use evenkeel_core::ids::{NodeId, UnitId};
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::unit::{self as protocol, Action, Answer, PlanRef};
use evenkeel_proto::v1;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

impl ControlLoop {
    pub(super) async fn result(
        &mut self,
        stream: StreamId,
        id: &UnitId,
        node: &NodeId,
        result: &v1::PlanResult,
    ) -> Result<(), StoreError> {
        let Some((plan, answer)) = read_result(result) else {
            metrics::counter!(m::DECODE_ERRORS, "source" => "plan_result").increment(1);
            return self.drop_stream(stream, "malformed_result").await;
        };
        let name = id.to_string();
        for (path, bytes) in [("local", result.bytes_local), ("peer", result.bytes_from_peers)] {
            metrics::counter!(m::MOVED_BYTES, "unit" => name.clone(), "path" => path).increment(bytes);
        }
        metrics::counter!(m::SLOTS_VERIFIED, "unit" => name.clone()).increment(result.slots_verified);
        if let Answer::Refused(code) = &answer {
            tracing::warn!(unit = %id, %node, code, message = result.message, "plan refused");
            metrics::counter!(m::PLAN_REFUSALS, "unit" => name, "code" => code.clone()).increment(1);
        }
        if answer == Answer::Refused("delta_mismatch".to_owned()) && self.send_whole(stream, id, node, plan) {
            return Ok(());
        }
        let unit = self.units.get_mut(id).expect("a stream's unit exists");
        if answer == Answer::Applied
            && let Some(presence) = unit.present.get_mut(node)
        {
            presence.applied = Some(plan);
        }
        if unit.formed.is_some() {
            self.step(id, protocol::Event::Answered(node.clone(), plan, answer)).await
        } else {
            self.try_form(id).await
        }
    }

    /// Sends PREPARE again with the whole plan to a node that could not apply a difference. Returns whether
    /// that was done: not a second time on one stream, and not of a plan that is over.
    fn send_whole(&mut self, stream: StreamId, id: &UnitId, node: &NodeId, plan: PlanRef) -> bool {
        let Some(unit) = self.units.get(id) else { return false };
        let Some(formed) = &unit.formed else { return false };
        let (Some(entry), Some(prepared)) = (self.streams.get(&stream), formed.prepared.last(plan)) else {
            return false;
        };
        let addresses = unit.present.iter().map(|(n, p)| (n.clone(), p.transfer_address.clone())).collect();
        let limit = self.config.control.prepare_timeout_ms;
        let order = prepared.order(self.term, node, &formed.topology, &addresses, limit);
        entry.link.want_whole_plans() && entry.link.prepare(&prepared, order)
    }

    /// Feeds the unit's protocol and carries out what it asks for.
    pub(super) async fn step(&mut self, id: &UnitId, event: protocol::Event) -> Result<(), StoreError> {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let now = self.now();
            let formed = self.units.get_mut(id).and_then(|u| u.formed.as_mut()).expect("a formed unit");
            for action in formed.control.step(now, event) {
                if let Some(next) = self.act(id, action).await? {
                    events.push(next);
                }
            }
        }
        Ok(())
    }

    async fn act(&mut self, id: &UnitId, action: Action) -> Result<Option<protocol::Event>, StoreError> {
        let control = self.config.control.clone();
        match action {
            Action::Prepare { node, plan, base } => {
                let unit = self.units.get_mut(id).expect("exists");
                let addresses =
                    unit.present.iter().map(|(n, p)| (n.clone(), p.transfer_address.clone())).collect();
                let formed = unit.formed.as_mut().expect("formed");
                let prepared = match formed.prepared.get(&plan, &base, &formed.topology) {
                    Ok(prepared) => prepared,
                    Err(error) => {
                        tracing::error!(unit = %id, code = error.code(), %error, "plan cannot be sent");
                        let refused = Answer::Refused(error.code().to_owned());
                        let plan = (plan.epoch, plan.digest());
                        return Ok(Some(protocol::Event::Answered(node, plan, refused)));
                    }
                };
                let (term, limit) = (self.term, control.prepare_timeout_ms);
                let order = prepared.order(term, &node, &formed.topology, &addresses, limit);
                Ok(self.send_by(id, &node, |link| link.prepare(&prepared, order)))
            }
            Action::Commit { node, plan } => {
                let limit = control.commit_timeout_ms;
                let command = short_command(self.term, v1::PlanPhase::Commit, plan, limit);
                Ok(self.send(id, &node, command))
            }
            Action::Abort { node, plan } => {
                let limit = control.commit_timeout_ms;
                let command = short_command(self.term, v1::PlanPhase::Abort, plan, limit);
                Ok(self.send(id, &node, command))
            }
            Action::Store(plan) => self.commit(id, &plan).await.map(Some),
            Action::Aborted { plan, code, node } => {
                tracing::warn!(unit = %id, epoch = plan.0.0, code, node = ?node, "plan aborted");
                metrics::counter!(m::PLANS_ABORTED, "unit" => id.to_string(), "code" => code.clone())
                    .increment(1);
                let resume_at = self.now().after(control.abort_pause_ms);
                let unit = self.units.get_mut(id).expect("exists");
                unit.last_decision = format!("plan {} aborted: {code}", plan.0);
                let formed = unit.formed.as_mut().expect("formed");
                // The same counts may be tried again: the next attempt need not wait for a new window.
                (formed.pending, formed.decided, formed.resume_at) = (None, None, resume_at);
                Ok(None)
            }
            Action::Settled(plan) => {
                self.phase_done(id, "commit");
                tracing::info!(unit = %id, epoch = plan.0.0, "every node serves the plan");
                // On the way to a target the next plan needs no new window.
                if self.units[id].formed.as_ref().is_some_and(|f| f.migration.is_some()) {
                    self.maybe_solve(id);
                }
                Ok(None)
            }
            Action::Close { node, code } => {
                let stream = self.units[id].present.get(&node).map(|p| p.stream);
                if let Some(stream) = stream {
                    self.release(stream, code);
                    return Ok(Some(protocol::Event::Left(node)));
                }
                Ok(None)
            }
        }
    }

    fn send(&mut self, id: &UnitId, node: &NodeId, command: v1::PlanCommand) -> Option<protocol::Event> {
        self.send_by(id, node, |link| link.send(v1::sync_response::Message::Plan(command)))
    }

    /// Sends to a node; one that does not take it has left.
    fn send_by(
        &mut self,
        id: &UnitId,
        node: &NodeId,
        send: impl FnOnce(&AgentLink) -> bool,
    ) -> Option<protocol::Event> {
        let stream = self.units[id].present.get(node)?.stream;
        if self.streams.get(&stream).is_some_and(|s| send(&s.link)) {
            return None;
        }
        self.release(stream, "does_not_read");
        Some(protocol::Event::Left(node.clone()))
    }

    async fn commit(&mut self, id: &UnitId, plan: &Arc<Plan>) -> Result<protocol::Event, StoreError> {
        self.phase_done(id, "prepare");
        let formed = self.units.get_mut(id).and_then(|u| u.formed.as_mut()).expect("formed");
        let pending = formed.pending.as_mut().expect("a proposed plan has an account");
        pending.summary.committed_ms = unix_ms();
        let loads = Some(pending.loads.clone());
        let stored = Stored { plan: (**plan).clone(), summary: pending.summary.clone(), loads };
        let (summary, term) = (pending.summary.clone(), self.term);
        let store = Arc::clone(&self.store);
        match on_disk("commit", move || store.commit(term, &stored)).await {
            Ok(()) => {}
            Err(StoreError::Conflict { .. }) => return Ok(protocol::Event::Stored(false)),
            Err(other) => return Err(other),
        }
        let unit = id.to_string();
        let kind = match summary.kind() {
            v1::PlanKind::Moves => "moves",
            _ => "weights",
        };
        tracing::info!(unit, epoch = plan.epoch.0, kind, moves = summary.moves, "plan committed");
        metrics::counter!(m::PLANS_COMMITTED, "unit" => unit.clone(), "kind" => kind).increment(1);
        metrics::counter!(m::SLOT_MOVES, "unit" => unit.clone()).increment(summary.moves);
        metrics::gauge!(m::PLAN_EPOCH, "unit" => unit.clone()).set(plan.epoch.0 as f64);
        let gain = summary.imbalance_before / summary.imbalance_after;
        metrics::gauge!(m::PREDICTED_GAIN, "unit" => unit).set(gain);
        Ok(protocol::Event::Stored(true))
    }

    fn phase_done(&mut self, id: &UnitId, phase: &'static str) {
        let now = self.now();
        let formed = self.units.get_mut(id).and_then(|u| u.formed.as_mut()).expect("formed");
        if let Some(pending) = &mut formed.pending {
            let seconds = now.since(pending.phase_began) as f64 / 1e3;
            pending.phase_began = now;
            metrics::histogram!(m::PLAN_PHASE_SECONDS, "unit" => id.to_string(), "phase" => phase)
                .record(seconds);
        }
    }
}

fn read_result(result: &v1::PlanResult) -> Option<(PlanRef, Answer)> {
    let plan = result.id.as_ref()?.try_into().ok()?;
    let answer = match result.outcome() {
        v1::PlanOutcome::Prepared => Answer::Prepared,
        v1::PlanOutcome::Applied => Answer::Applied,
        v1::PlanOutcome::Aborted => Answer::Aborted,
        v1::PlanOutcome::Refused => Answer::Refused(result.code.clone()),
        v1::PlanOutcome::Unspecified => return None,
    };
    Some((plan, answer))
}

pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    u64::try_from(since.as_millis()).expect("fits 64 bits for 500 million years")
}

/// Runs a store operation where it may block, and records its time.
pub(super) async fn on_disk<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let began = Instant::now();
    let result = tokio::task::spawn_blocking(work).await.expect("store operations do not panic");
    metrics::histogram!(m::STORE_SECONDS, "operation" => operation).record(began.elapsed().as_secs_f64());
    result
}
