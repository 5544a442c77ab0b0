//! A plan's way: proposed, prepared on every node, stored, applied.

use super::units::{Proposal, Storing, name_of};
use super::write::{Call, Loss, Seen, Step, Write};
use super::{Action, Held, Message, Notice, Now, Owner, Reign, Ticket, Trouble};
use crate::ids::{NodeId, UnitId};
use crate::invariants;
use crate::plan::Plan;
use crate::planted;
use crate::protocol::unit::{self, PlanRef};
use crate::records::{
    self, AuditId, AuditRecord, Change, Key, Manifest, Opaque, Outcome, PlanName, Record, Revision,
    Versioned, guarded,
};
use std::sync::Arc;

/// A store that is away is asked again for this long before a plan that waits for it is given up: above what an
/// election in the store takes.
const STORE_PATIENCE_MS: u64 = 10_000;

impl Reign {
    /// Whether a plan may be made for a unit, and if not, why.
    pub fn may_plan(&self, now: Now, id: &UnitId) -> Result<(), Held> {
        let Some(unit) = self.units.get(id).filter(|_| self.commands_at(now.at)) else {
            return Err(Held::NotLeading);
        };
        let steady = unit.formed().is_some_and(|formed| formed.control.can_propose());
        let held = [
            (unit.is_paused(now.unix_ms), Held::Paused),
            (unit.rollback.is_some(), Held::RollingBack),
            (unit.lost || self.loss.holds_all(), Held::MassLoss),
            (self.loss.is_returning(), Held::Returning),
            (!steady || unit.storing.is_some(), Held::Busy),
            (self.wants_rearranging(unit), Held::Rearranging),
        ];
        held.into_iter().find(|(is, _)| *is).map_or(Ok(()), |(_, why)| Err(why))
    }

    pub(super) fn propose(&mut self, now: Now, plan: Arc<Plan>, account: Opaque, chunks: Vec<Opaque>) {
        let id = plan.unit.clone();
        let plan_ref = (plan.epoch, plan.digest());
        let Some(unit) = self.units.get_mut(&id) else { return };
        let drafted = unit.drafted.take_if(|drafted| *drafted == plan_ref).is_some();
        let rolls_back = drafted && unit.rollback.is_some();
        let leads = self.commands_at(now.at);
        let may = if drafted { leads } else { self.may_plan(now, &id).is_ok() };
        if !may {
            return;
        }
        let next = self.next_epoch(&id);
        let unit = self.units.get_mut(&id).expect("looked up above");
        let complete = unit.membership.topology().is_ok();
        let proposal = Proposal { plan: Arc::clone(&plan), id: plan_ref, account, chunks, rolls_back };
        let Some(formed) = unit.formed() else {
            // A node may have left while the plan was written down.
            if drafted && unit.storing.is_none() && complete {
                unit.proposal = Some(proposal);
                self.store_plan(now, &id);
            }
            return;
        };
        let head = Arc::clone(formed.control.head());
        let follows = plan.parent == Some(formed.control.head_id());
        if !formed.control.can_propose() || !follows || next != Some(plan.epoch) {
            return;
        }
        let checked = invariants::check(&plan, Some(&head), &formed.topology)
            .map_err(|violation| (violation.code(), violation.to_string()))
            .and_then(|()| super::holds::check_plan(unit, &plan, &head));
        if let Err((code, text)) = checked {
            return self.notice(Notice::Invalid { unit: id, code, text });
        }
        unit.proposal = Some(proposal);
        self.notice(Notice::Preparing { unit: id.clone(), plan: plan_ref });
        self.drive(now, &id, unit::Event::Propose(plan));
    }

    /// Feeds a unit's protocol and carries out what it asks for. A unit that has not formed has none.
    pub(super) fn drive(&mut self, now: Now, id: &UnitId, event: unit::Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let Some(formed) = self.units.get_mut(id).and_then(|unit| unit.formed_mut()) else { return };
            for action in formed.control.step(now.at, event) {
                events.extend(self.act(now, id, action));
            }
        }
    }

    fn act(&mut self, now: Now, id: &UnitId, action: unit::Action) -> Option<unit::Event> {
        let term = self.term().expect("only a leader drives units");
        match action {
            unit::Action::Prepare { node, plan, base } => {
                self.command(now, id, &node, Message::Prepare { term, plan, base });
            }
            unit::Action::Commit { node, plan } => {
                self.command(now, id, &node, Message::Commit { term, plan });
            }
            unit::Action::Abort { node, plan } => self.command(now, id, &node, Message::Abort { term, plan }),
            unit::Action::Store(_) => self.store_plan(now, id),
            unit::Action::Aborted { plan, code, node } => self.aborted(now, id, plan, code, node),
            unit::Action::Settled(plan) => {
                self.notice(Notice::Settled { unit: id.clone(), plan });
                self.draft(now, id);
            }
            unit::Action::Hung { node, plan } => {
                self.notice(Notice::Hung { unit: id.clone(), node, plan });
            }
            unit::Action::Close { node, code } => {
                let stream = self.units[id].present.get(&node).copied()?;
                let (_, node) = self.release(now, stream, code, true)?;
                return Some(unit::Event::Left(node));
            }
        }
        None
    }

    fn command(&mut self, now: Now, id: &UnitId, node: &NodeId, message: Message) {
        if let Some(&stream) = self.units[id].present.get(node) {
            self.send(now, stream, message);
        }
    }

    fn aborted(&mut self, now: Now, id: &UnitId, plan: PlanRef, code: String, node: Option<NodeId>) {
        let unit = self.units.get_mut(id).expect("only a unit that is there gives plans up");
        let proposed = unit.proposal.take().is_some_and(|proposal| proposal.rolls_back);
        let stored = unit.storing.take().is_some_and(|storing| storing.rolls_back);
        self.draft_aborted(now, id, plan, &code, proposed || stored);
        self.notice(Notice::Aborted { unit: id.clone(), plan, code, node });
    }

    /// Asks the store to make the plan that every node has prepared the head.
    fn store_plan(&mut self, now: Now, id: &UnitId) {
        let term = self.term().expect("only a leader stores");
        let audit = self.audit_id(now);
        let unit = self.units.get_mut(id).expect("only a unit that is there has a plan");
        let Proposal { plan, id: plan_ref, account, chunks, rolls_back } =
            unit.proposal.take().expect("a plan that is prepared was proposed");
        let name = name_of(term, plan_ref);
        let count = u32::try_from(chunks.len()).expect("chunks fit 32 bits");
        let manifest = Manifest { name, chunks: count, account };
        let (before, topology) = match unit.formed() {
            Some(formed) => (Some(formed.head_modified), Arc::clone(&formed.topology)),
            None => (None, unit.membership.topology().expect("a draft is made of a complete unit")),
        };
        let mut with = match unit.rollback.as_mut().filter(|_| rolls_back) {
            Some(rollback) => rollback.changes(now, name, audit),
            None if planted!(CommitWithoutAudit) => Vec::new(),
            None if planted!(BootWithoutAudit) && before.is_none() => Vec::new(),
            None => vec![commit_entry(audit, name, id, before.is_none())],
        };
        if before.is_none() {
            with.push(unit.record(id));
        }
        let write = Write::new(
            records::commit(term, id, before, manifest, chunks, with),
            now.at.after(STORE_PATIENCE_MS),
        );
        let storing = Storing { name, plan, before, topology, rolls_back, write };
        unit.storing = Some(storing);
        self.notice(Notice::Storing { unit: id.clone(), plan: plan_ref });
        self.call_plan(id, Call::Write);
    }

    fn call_plan(&mut self, id: &UnitId, call: Call) {
        let ticket = self.ticket(Owner::Plan(id.clone()));
        let storing = self.units[id].storing.as_ref().expect("only a plan that is stored calls");
        self.out.push(match call {
            Call::Write => Action::Transact { ticket, transactions: storing.write.transactions() },
            Call::Read => Action::Read { ticket, keys: vec![Key::Head(id.clone())] },
        });
    }

    pub(super) fn store_done(&mut self, now: Now, ticket: Ticket, outcome: Result<Outcome, Trouble>) {
        if outcome == Ok(Outcome::Refused) && self.calls.contains_key(&ticket) {
            self.notice(Notice::WriteRefused);
        }
        // What was asked in a term that is over concerns nobody any more.
        let owner = match self.calls.get(&ticket) {
            Some(owner) if planted!(CallsKept) => Some(owner.clone()),
            _ => self.calls.remove(&ticket),
        };
        match owner {
            Some(Owner::Plan(id)) => {
                let step = self.storing(&id).write.written(now.at, outcome);
                self.plan_step(now, &id, step);
            }
            Some(Owner::Record(id)) => self.record_done(&id, outcome),
            Some(Owner::Order) => self.order_written(now, outcome),
            None => {}
        }
    }

    pub(super) fn read_done(
        &mut self,
        now: Now,
        ticket: Ticket,
        found: Result<Vec<Option<Versioned>>, Trouble>,
    ) {
        match self.calls.remove(&ticket) {
            Some(Owner::Plan(id)) => {
                let storing = self.storing(&id);
                let seen = found.map(|found| head_seen(storing, found.first().and_then(Option::as_ref)));
                let step = storing.write.read(now.at, seen);
                self.plan_step(now, &id, step);
            }
            Some(Owner::Order) => self.order_read(now, found),
            Some(Owner::Record(_)) => unreachable!("a unit's record is only written"),
            None => {}
        }
    }

    fn storing(&mut self, id: &UnitId) -> &mut Storing {
        let unit = self.units.get_mut(id).expect("a unit that stores is there");
        unit.storing.as_mut().expect("a call of a plan belongs to the plan that is stored")
    }

    fn plan_step(&mut self, now: Now, id: &UnitId, step: Step) {
        match step {
            Step::Call(call) => self.call_plan(id, call),
            Step::Wait => {}
            Step::Made(revision) => self.committed(now, id, revision),
            Step::Lost(loss) => {
                let code = match loss {
                    Loss::Refused => "store_conflict",
                    Loss::Trouble(Trouble::Full) => "store_full",
                    Loss::Trouble(_) => "store_away",
                };
                if self.units[id].formed().is_some() {
                    self.drive(now, id, unit::Event::Stored(Err(code)));
                } else {
                    let plan = (self.storing(id).name.epoch, self.storing(id).name.digest);
                    self.aborted(now, id, plan, code.to_owned(), None);
                }
            }
        }
    }

    fn committed(&mut self, now: Now, id: &UnitId, revision: Revision) {
        let unit = self.units.get_mut(id).expect("a unit that stores is there");
        let Storing { name, plan, topology, rolls_back, .. } =
            unit.storing.take().expect("only what is stored is committed");
        if let Some(formed) = unit.formed_mut() {
            formed.head_modified = revision;
            if rolls_back {
                self.rollback_committed(id, revision);
            }
            self.notice(Notice::Committed { unit: id.clone(), name });
            return self.drive(now, id, unit::Event::Stored(Ok(())));
        }
        // A node may have been replaced while the store was asked.
        let now_there =
            unit.membership.topology().expect("ranks of a unit that is about to form keep their nodes");
        unit.record_stale = now_there != topology;
        unit.form(now_there, plan, None, revision);
        self.notice(Notice::Committed { unit: id.clone(), name });
        self.notice(Notice::Formed(id.clone()));
        for (node, stream) in self.units[id].present.clone() {
            let applied = self.streams[&stream].applied;
            self.drive(now, id, unit::Event::Joined(node, applied));
        }
    }

    /// Brings the record of a unit's nodes up to date. A node that returns as it was changes nothing: no write, however
    /// many return at once. The record is an aid to whoever leads next, who believes what the nodes say, so the last write
    /// may be an older one that came late.
    pub(super) fn keep_record(&mut self, id: &UnitId) {
        let term = self.term().expect("only a leader writes");
        let unit = self.units.get_mut(id).expect("listed by the caller");
        if !unit.record_stale || unit.record_writing || unit.formed().is_none() {
            return;
        }
        (unit.record_stale, unit.record_writing) = (false, true);
        let transactions = Arc::from([guarded(term, vec![unit.record(id)])]);
        let ticket = self.ticket(Owner::Record(id.clone()));
        self.out.push(Action::Transact { ticket, transactions });
    }

    fn record_done(&mut self, id: &UnitId, outcome: Result<Outcome, Trouble>) {
        let unit = self.units.get_mut(id).expect("a unit that writes its record is there");
        unit.record_writing = false;
        unit.record_stale |= outcome.is_err();
    }

    /// Asks the store again, where it was to be waited for.
    pub(super) fn retry_calls(&mut self, now: Now) {
        for id in self.units.keys().cloned().collect::<Vec<_>>() {
            let storing = self.units.get_mut(&id).and_then(|unit| unit.storing.as_mut());
            if let Some(step) = storing.map(|storing| storing.write.tick(now.at)) {
                self.plan_step(now, &id, step);
            }
        }
        self.retry_order(now);
    }
}

/// What the audit calls the balancer.
pub(super) const BALANCER: &str = "balancer";

fn commit_entry(audit: AuditId, name: PlanName, id: &UnitId, boot: bool) -> Change {
    let detail = if boot { "the placement that the engines booted with" } else { "" };
    let record = AuditRecord {
        who: BALANCER.to_owned(),
        verb: "commit".to_owned(),
        unit: Some(id.clone()),
        plan: Some(name).filter(|_| !planted!(AuditNamesNoPlan)),
        detail: detail.to_owned(),
    };
    Change::Put(Key::Audit(audit), Record::Audit(record), None)
}

/// What the head says of the plan that is being stored.
fn head_seen(storing: &Storing, found: Option<&Versioned>) -> Seen {
    let modified = found.map(|found| found.modified);
    match found.map(|found| &found.record) {
        Some(Record::Plan(name)) if *name == storing.name => {
            Seen::Made(modified.expect("a record that is there has a revision"))
        }
        // Unchanged: nothing was made, and what is still under way may be.
        _ if modified == storing.before => Seen::Open,
        _ => Seen::Closed,
    }
}
