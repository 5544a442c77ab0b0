//! Plans that are made without a solve: the first of a unit, the steps of a rollback, and the steps to what operators
//! have ordered. The machine makes the plan; the shell writes it down and proposes it.

use super::order::Answer;
use super::{Action, Admin, DraftReason, Now, OrderError, Reign, StreamId, Unit};
use crate::experts::{arrange_step, step_towards};
use crate::ids::{NodeId, UnitId};
use crate::plan::Plan;
use crate::planted;
use crate::protocol::unit::PlanRef;
use crate::records::{AuditId, AuditRecord, Change, Key, Pause, PlanName, Record, RequestRecord, Revision};
use crate::units::Millis;
use std::collections::BTreeMap;
use std::sync::Arc;

/// After a drafted plan was given up, before the next: whatever refused it gets time to mend.
const PAUSE_MS: u64 = 5_000;
/// The first step of a rollback is proposed within this time, or the order is refused: the unit was steady when it was given.
const BEGIN_MS: u64 = 5_000;

/// A unit on its way back to the content of an older plan.
#[derive(Debug, Clone)]
pub(super) struct Rollback {
    /// The older plan.
    pub(super) to: Arc<Plan>,
    pub(super) who: String,
    pub(super) pause: Pause,
    /// The order, until its first plan is committed.
    pub(super) order: Option<Admin>,
    /// What it is answered then.
    pub(super) text: String,
    pub(super) audit: Option<AuditId>,
    pub(super) begin_by: Millis,
}

impl Rollback {
    pub(super) fn new(now: Now, to: Arc<Plan>, order: Admin, text: String) -> Self {
        let pause = Pause { by: order.who.clone(), until_ms: None };
        let (who, begin_by) = (order.who.clone(), now.at.after(BEGIN_MS));
        Self { to, who, pause, order: Some(order), text, audit: None, begin_by }
    }

    /// What is written with the next of its plans. The first one carries out the order.
    pub(super) fn changes(&mut self, now: Now, name: PlanName, audit: AuditId) -> Vec<Change> {
        let entry = AuditRecord {
            who: self.who.clone(),
            verb: "rollback".to_owned(),
            unit: Some(self.to.unit.clone()),
            plan: Some(name),
            detail: format!("to the content of plan {}", self.to.epoch),
        };
        let mut changes = vec![Change::Put(Key::Audit(audit), Record::Audit(entry), None)];
        if planted!(RollbackWithoutAudit) {
            changes.clear();
        }
        if let Some(order) = &self.order {
            self.audit = Some(audit);
            let answer = Answer::kept(audit, &self.text);
            let request = RequestRecord { at_ms: now.unix_ms, content: order.content, answer };
            if !planted!(RollbackForgetsRequest) {
                let key = Key::Request(order.request.clone());
                changes.push(Change::Put(key, Record::Request(request), None));
            }
            let pause = Record::Pause(self.pause.clone());
            changes.push(Change::Put(Key::Pause(self.to.unit.clone()), pause, None));
        }
        changes
    }
}

impl Reign {
    /// Has the next plan written down that needs no solve, if there is one.
    pub(super) fn draft(&mut self, now: Now, id: &UnitId) {
        let Some(unit) = self.units.get(id).filter(|_| self.commands_at(now.at)) else { return };
        if unit.drafted.is_some() || unit.storing.is_some() || now.at < unit.draft_at {
            return;
        }
        let drafted = match unit.formed() {
            None => self.boot_plan(unit, id).map(|plan| (plan, DraftReason::Boot)),
            Some(_) if unit.rollback.is_some() => self.rollback_step(now, id),
            Some(_) => self.arrangement(now, id).map(|plan| (plan, DraftReason::Holds)),
        };
        let Some((plan, reason)) = drafted else { return };
        let plan = match self.next_epoch(id) {
            Some(epoch) => plan.numbered(epoch),
            None => plan,
        };
        let unit = self.units.get_mut(id).expect("looked up above");
        unit.drafted = Some((plan.epoch, plan.digest()));
        self.out.push(Action::Draft { plan: Arc::new(plan), reason });
    }

    /// The boot plan, once every rank has a node and every node serves it.
    fn boot_plan(&self, unit: &Unit, id: &UnitId) -> Option<Plan> {
        let nodes: &BTreeMap<NodeId, StreamId> = &unit.present;
        let complete = unit.membership.topology().ok()?;
        let boot = Plan::boot(id.clone(), complete.shape());
        let boot_id = Some((boot.epoch, boot.digest()));
        let serves = |node| nodes.get(node).is_some_and(|stream| self.streams[stream].applied == boot_id);
        complete.nodes().iter().all(serves).then_some(boot)
    }

    fn rollback_step(&mut self, now: Now, id: &UnitId) -> Option<(Plan, DraftReason)> {
        let unit = self.units.get_mut(id).expect("looked up by the caller");
        let rollback = unit.rollback.as_ref().expect("asked by the caller");
        let formed = unit.formed().expect("asked by the caller");
        if !formed.control().can_propose() {
            let late = rollback.order.is_some() && now.at >= rollback.begin_by && unit.proposal.is_none();
            if late {
                self.end_rollback(id, OrderError::UnitBusy(id.clone(), "a node has left"));
            }
            return None;
        }
        let head = formed.control().head();
        match step_towards(formed.topology(), head, &rollback.to.layers) {
            Some(step) => Some((head.child(step.layers), DraftReason::Rollback)),
            None => {
                unit.rollback = None;
                None
            }
        }
    }

    fn end_rollback(&mut self, id: &UnitId, error: OrderError) {
        let unit = self.units.get_mut(id).expect("looked up by the caller");
        if let Some(order) = unit.rollback.take().and_then(|rollback| rollback.order) {
            self.out.push(Action::Answer { ticket: order.ticket, answer: Err(error) });
        }
    }

    /// The next step to what operators have ordered, unless a solve would have to wait as well.
    fn arrangement(&self, now: Now, id: &UnitId) -> Option<Plan> {
        use super::Held;
        if self.may_plan(now, id) != Err(Held::Rearranging) {
            return None;
        }
        let unit = &self.units[id];
        let formed = unit.formed()?;
        let head = formed.control().head();
        let step = arrange_step(formed.topology(), head, &unit.drained_ranks(), &unit.holds.pins)?;
        Some(head.child(step.layers))
    }

    /// A plan was given up. Without the first step of a rollback the order is not carried out.
    pub(super) fn draft_aborted(
        &mut self,
        now: Now,
        id: &UnitId,
        plan: PlanRef,
        code: &str,
        rolls_back: bool,
    ) {
        let unit = self.units.get_mut(id).expect("looked up by the caller");
        unit.draft_at = now.at.after(PAUSE_MS);
        let first = unit.rollback.as_ref().is_some_and(|rollback| rollback.order.is_some());
        if rolls_back && first {
            self.end_rollback(id, OrderError::PlanAborted { epoch: plan.0, code: code.to_owned() });
        }
    }

    /// A step of a rollback is the head. The first one has carried out the order.
    pub(super) fn rollback_committed(&mut self, id: &UnitId, revision: Revision) {
        let unit = self.units.get_mut(id).expect("looked up by the caller");
        let Some(rollback) = &mut unit.rollback else { return };
        let Some(order) = rollback.order.take() else { return };
        let pause = rollback.pause.clone();
        let answer = Answer { audit: rollback.audit, text: rollback.text.clone(), repeated: false };
        unit.paused_at(revision, Some(pause));
        self.out.push(Action::Answer { ticket: order.ticket, answer: Ok(answer) });
        self.notice(super::Notice::Held(id.clone()));
    }

    /// The term is over: nobody knows whether a first step that is being stored was committed.
    pub(super) fn end_rollbacks(&mut self) {
        for (_, unit) in std::mem::take(&mut self.units) {
            let Some(order) = unit.rollback.and_then(|rollback| rollback.order) else { continue };
            let storing = unit.storing.is_some();
            let error = if storing { OrderError::OutcomeUnknown } else { OrderError::NotLeader };
            self.out.push(Action::Answer { ticket: order.ticket, answer: Err(error) });
        }
    }
}
