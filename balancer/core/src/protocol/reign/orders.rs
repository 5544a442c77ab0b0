//! Operators' orders, one after the other.
//!
//! ```text
//!   given -> waiting -> CHECKING: was it done before? -- yes --> the stored answer, or request_id_conflict
//!                          | no
//!                          v
//!                       feasible? -- no --> its coded error
//!                          | yes
//!                          v
//!                       WRITING: effect, audit entry and request id in one transaction --> answered
//! ```
//!
//! Only a rollback waits beside the queue: it is carried out by the commit of a plan, which takes as long as a plan takes.

use super::holds::{Effect, Feasible};
use super::order::Answer;
use super::write::{Call, Loss, Seen, Step, Write};
use super::{Action, Admin, Now, OrderError, Owner, Reign, Trouble};
use crate::planted;
use crate::records::{
    AuditId, AuditRecord, Change, Expect, Key, Outcome, Record, RequestRecord, Transaction, Versioned,
};
use crate::units::Millis;
use std::collections::VecDeque;

/// Orders that wait at most: people and their scripts give a few; more is a loop gone wild.
pub(super) const ORDERS_MAX: usize = 64;
/// An operator is answered within this time, also when the store does not say whether the order was carried out.
const ANSWER_MS: u64 = 4_000;

#[derive(Debug, Clone)]
enum State {
    Waiting,
    Checking,
    Writing { write: Write, feasible: Feasible, audit: AuditId },
}

#[derive(Debug, Clone)]
struct Pending {
    admin: Admin,
    state: State,
    answer_by: Millis,
    answered: bool,
}

/// The queue; only its head is worked on.
#[derive(Debug, Clone, Default)]
pub(super) struct Orders {
    queue: VecDeque<Pending>,
}

impl Orders {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// The term is over.
    pub(super) fn end(&mut self, out: &mut Vec<Action>) {
        for Pending { admin, state, .. } in self.queue.drain(..).filter(|order| !order.answered) {
            let error = match state {
                State::Writing { .. } => OrderError::OutcomeUnknown,
                State::Waiting | State::Checking => OrderError::NotLeader,
            };
            out.push(Action::Answer { ticket: admin.ticket, answer: Err(error) });
        }
    }
}

impl Reign {
    pub(super) fn admin(&mut self, now: Now, admin: Admin) {
        let refused = match &self.lead {
            None => Some(OrderError::NotLeader),
            Some(_) if !self.commands_at(now.at) => Some(OrderError::Frozen),
            Some(_) if self.orders.len() >= ORDERS_MAX => Some(OrderError::Busy(ORDERS_MAX)),
            Some(_) => None,
        };
        if let Some(error) = refused {
            return self.answer(&admin, Err(error));
        }
        if admin.dry_run {
            let would = self.feasible(now, &admin);
            let answer = would.map(|would| Answer { audit: None, text: would.text, repeated: false });
            return self.answer(&admin, answer);
        }
        let answer_by = now.at.after(ANSWER_MS);
        self.orders.queue.push_back(Pending { admin, state: State::Waiting, answer_by, answered: false });
        self.next_order();
    }

    fn answer(&mut self, admin: &Admin, answer: Result<Answer, OrderError>) {
        self.out.push(Action::Answer { ticket: admin.ticket, answer });
    }

    /// Looks whether the order at the head was carried out before.
    fn next_order(&mut self) {
        let Some(pending) = self.orders.queue.front_mut() else { return };
        if !matches!(pending.state, State::Waiting) {
            return;
        }
        pending.state = State::Checking;
        if planted!(RequestNeverLookedAt) {
            let now = Now { at: pending.answer_by, unix_ms: 0 };
            return self.begin_order(now);
        }
        self.call_order(Call::Read);
    }

    fn call_order(&mut self, call: Call) {
        let pending = self.orders.queue.front().expect("an order is worked on");
        let transactions = match &pending.state {
            State::Writing { write, .. } => Some(write.transactions()),
            State::Waiting | State::Checking => None,
        };
        let key = Key::Request(pending.admin.request.clone());
        let ticket = self.ticket(Owner::Order);
        self.out.push(match (call, transactions) {
            (Call::Write, Some(transactions)) => Action::Transact { ticket, transactions },
            _ => Action::Read { ticket, keys: vec![key] },
        });
    }

    /// Answers the order at the head, and goes on with the next.
    fn end_order(&mut self, answer: Result<Answer, OrderError>) {
        let pending = self.orders.queue.pop_front().expect("an order is worked on");
        if planted!(DoneOrderStaysQueued) && answer.is_ok() {
            self.orders.queue.push_front(Pending {
                state: State::Waiting,
                answered: true,
                ..pending.clone()
            });
        }
        if planted!(OperatorsForgotten) && answer.is_err() {
            return self.next_order();
        }
        if !pending.answered {
            self.answer(&pending.admin, answer);
        }
        self.next_order();
    }

    pub(super) fn order_read(&mut self, now: Now, found: Result<Vec<Option<Versioned>>, Trouble>) {
        let pending = self.orders.queue.front_mut().expect("an order is worked on");
        let content = pending.admin.content;
        let found = found.map(|found| found.into_iter().next().flatten());
        if let State::Writing { write, .. } = &mut pending.state {
            let seen = found.map(|found| request_seen(found.as_ref(), content));
            let step = write.read(now.at, seen);
            return self.order_step(now, step);
        }
        match found {
            Err(trouble) => self.end_order(Err(OrderError::Store(describe(trouble)))),
            Ok(Some(Versioned { record: Record::Request(record), .. })) => {
                let name = pending.admin.request.as_str().to_owned();
                let same = record.content == content;
                let conflict = || OrderError::RequestIdConflict(name);
                self.end_order(same.then(|| Answer::of_kept(&record.answer)).ok_or_else(conflict));
            }
            Ok(_) => self.begin_order(now),
        }
    }

    /// The order is new: it is carried out, if it can be.
    fn begin_order(&mut self, now: Now) {
        let pending = self.orders.queue.front().expect("an order is worked on");
        if pending.answered {
            return self.end_order(Err(OrderError::Frozen));
        }
        let admin = pending.admin.clone();
        let feasible = match self.feasible(now, &admin) {
            Ok(feasible) => feasible,
            Err(error) => return self.end_order(Err(error)),
        };
        if let Effect::Rollback(to) = &feasible.effect {
            self.orders.queue.pop_front();
            self.begin_rollback(now, to.clone(), admin, feasible.text.clone());
            return self.next_order();
        }
        if planted!(AnsweredBeforeStored) {
            let text = feasible.text.clone();
            self.answer(&admin, Ok(Answer { audit: None, text, repeated: false }));
            self.orders.queue.front_mut().expect("an order is worked on").answered = true;
        }
        let audit = self.audit_id(now);
        let write = self.order_write(now, &admin, &feasible, audit);
        let pending = self.orders.queue.front_mut().expect("an order is worked on");
        pending.state = State::Writing { write, feasible, audit };
        self.call_order(Call::Write);
    }

    fn order_write(&self, now: Now, admin: &Admin, feasible: &Feasible, audit: AuditId) -> Write {
        let term = self.term().expect("only a leader carries out orders");
        let entry = AuditRecord {
            who: admin.who.clone(),
            verb: admin.order.verb().to_owned(),
            unit: Some(feasible.unit.clone()),
            plan: None,
            detail: feasible.text.clone(),
        };
        let answer = Answer::kept(audit, &feasible.text);
        let request = RequestRecord { at_ms: now.unix_ms, content: admin.content, answer };
        let key = Key::Request(admin.request.clone());
        let mut changes = feasible.changes();
        changes.push(Change::Put(Key::Audit(audit), Record::Audit(entry), None));
        if !planted!(RequestNotStored) {
            changes.push(Change::Put(key.clone(), Record::Request(request), None));
        }
        let mut expects = vec![Expect::Reigns(term), Expect::Absent(key)];
        if planted!(RequestNeverLookedAt) {
            expects.truncate(1);
        }
        // Whoever gave it repeats it: nothing is gained by waiting for a store that is away.
        Write::new(vec![Transaction { expects, changes }], now.at)
    }

    pub(super) fn order_written(&mut self, now: Now, outcome: Result<Outcome, Trouble>) {
        let pending = self.orders.queue.front_mut().expect("an order is worked on");
        let State::Writing { write, .. } = &mut pending.state else {
            unreachable!("only an order that is written is answered")
        };
        let mut step = write.written(now.at, outcome);
        if planted!(UnknownOrderTakenForDone) && outcome == Err(Trouble::Unknown) {
            step = Step::Made(crate::records::Revision(1));
        }
        self.order_step(now, step);
    }

    fn order_step(&mut self, now: Now, step: Step) {
        match step {
            Step::Call(call) => self.call_order(call),
            Step::Wait => {}
            Step::Made(revision) => {
                let pending = self.orders.queue.front().expect("an order is worked on");
                let State::Writing { feasible, audit, .. } = pending.state.clone() else {
                    unreachable!("only an order that is written is made")
                };
                let answer = Answer { audit: Some(audit), text: feasible.text.clone(), repeated: false };
                self.end_order(Ok(answer));
                self.take_effect(now, feasible, revision);
            }
            Step::Lost(Loss::Refused) => self.end_order(Err(OrderError::Refused)),
            Step::Lost(Loss::Trouble(trouble)) => self.end_order(Err(OrderError::Store(describe(trouble)))),
        }
    }

    /// Goes on where the store was to be waited for, and answers who has waited long enough.
    pub(super) fn retry_order(&mut self, now: Now) {
        let mut late = Vec::new();
        for pending in self.orders.queue.iter_mut().filter(|order| !order.answered) {
            if now.at >= pending.answer_by {
                late.push((pending.admin.ticket, matches!(pending.state, State::Writing { .. })));
                pending.answered = true;
            }
        }
        for (ticket, writing) in late {
            let error = if writing { OrderError::OutcomeUnknown } else { OrderError::Frozen };
            self.out.push(Action::Answer { ticket, answer: Err(error) });
        }
        // What nobody waits for any more and was not begun is not done.
        while self.orders.queue.len() > 1
            && let Some(at) = self.orders.queue.iter().skip(1).position(|order| order.answered)
        {
            self.orders.queue.remove(at + 1);
        }
        let Some(Pending { state: State::Writing { write, .. }, .. }) = self.orders.queue.front_mut() else {
            return;
        };
        let step = write.tick(now.at);
        self.order_step(now, step);
    }
}

fn describe(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::Full => "has no room",
        Trouble::Away => "is away",
        Trouble::Unknown => "did not answer",
    }
}

/// What the request's record says of an order that was perhaps written.
fn request_seen(found: Option<&Versioned>, content: crate::ids::Digest) -> Seen {
    match found {
        None => Seen::Open,
        Some(Versioned { record: Record::Request(record), modified, .. }) if record.content == content => {
            Seen::Made(*modified)
        }
        Some(_) => Seen::Closed,
    }
}
