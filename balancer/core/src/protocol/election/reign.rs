//! A reign: from the won campaign to its end.

use super::lease::Lease;
use super::{
    Action, AdoptError, Answer, Cause, Election, Found, Generation, HOLD_MS, Holder, RETRY_MS, Read, Reason,
    Stage,
};
use crate::ids::Term;
use crate::planted;
use crate::records::{Change, Key, LeaseId, Record, Revision, Transaction, guarded};
use crate::units::Millis;
use std::cmp::Ordering;

/// The key is held in this term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reign {
    pub(super) term: Term,
    /// The store's revision at which the term began: what was read before it says nothing of it.
    pub(super) as_of: Revision,
    pub(super) phase: Phase,
}

/// The raise of the generation that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Adoption {
    transaction: Transaction,
    /// It may have been made, or may be made yet.
    doubtful: bool,
    /// When it is to be made again.
    pub(super) again_at: Option<Millis>,
}

impl Adoption {
    pub(super) fn proceed(&mut self, now: Millis, out: &mut Vec<Action>) {
        if self.again_at.is_some_and(|at| at <= now) {
            self.again_at = None;
            out.push(Action::Adopt(self.transaction.clone()));
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Leading { until: Millis },
    Frozen,
    Behind,
}

impl Election {
    pub(super) fn won(&mut self, now: Millis, created: Revision, out: &mut Vec<Action>) {
        let bid = self.bid.expect("only a campaign is won");
        if self.lease.held() != Some(bid.lease) {
            // The lease ended while the campaign was under way, and the key with it.
            self.stage = Stage::Standby;
            self.leader = None;
            self.read_soon(now);
        } else if self.stopped {
            self.resign(None, Reason::Stopped, out);
        } else {
            let term = Term { generation: bid.generation, revision: created.0 };
            self.leader = Some(Some(Holder { record: self.record(bid.lease), created }));
            self.take(now, term, created, self.cause, out);
        }
    }

    /// Begins the term, if it is above all that are known.
    fn take(&mut self, now: Millis, term: Term, as_of: Revision, cause: Cause, out: &mut Vec<Action>) {
        self.cause = Cause::Vacant;
        self.seen = self.seen.max(as_of);
        if term <= self.known {
            self.stage = Stage::Holding(Reign { term, as_of, phase: Phase::Behind });
            out.push(Action::Behind { term, highest: self.known });
            return;
        }
        self.known = term;
        let until = self.until();
        self.stage = Stage::Holding(Reign { term, as_of, phase: Phase::Leading { until } });
        out.push(Action::Begin { term, until, cause });
        self.freeze_when_due(now, out);
    }

    /// One that is under way will do.
    pub(super) fn read_soon(&mut self, now: Millis) {
        if !matches!(self.read, Read::Asked(_)) {
            self.read = Read::Wanted(now);
        }
    }

    /// Is the term over?
    pub(super) fn doubt(&mut self, now: Millis) {
        if matches!(self.stage, Stage::Holding(_)) {
            self.read_soon(now);
        }
    }

    /// By the lease that is held.
    fn until(&self) -> Millis {
        let Lease::Held(held) = self.lease else { unreachable!("a reign has its lease") };
        self.settings.until(held.alive)
    }

    pub(super) fn freeze_when_due(&mut self, now: Millis, out: &mut Vec<Action>) {
        if let Stage::Holding(reign) = &mut self.stage
            && matches!(reign.phase, Phase::Leading { until } if until <= now)
        {
            reign.phase = Phase::Frozen;
            out.push(Action::Freeze);
        }
    }

    /// A frozen leader goes on once the key has been seen to be the same, if the lease still gives it time.
    pub(super) fn thaw(&mut self, now: Millis, out: &mut Vec<Action>) {
        let until = match self.stage {
            Stage::Holding(Reign { phase: Phase::Frozen, .. }) => self.until(),
            _ => return,
        };
        if let Stage::Holding(reign) = &mut self.stage
            && until > now
            && !planted!(ThawForgotten)
        {
            reign.phase = Phase::Leading { until };
            out.push(Action::Thaw { until });
        }
    }

    pub(super) fn granted(&mut self, lease: LeaseId, sent_at: Millis, out: &mut Vec<Action>) {
        if self.stopped {
            self.lease = Lease::default();
            out.push(Action::Revoke(lease));
        } else {
            self.lease.granted(lease, sent_at, self.settings.ttl_ms);
        }
    }

    pub(super) fn kept_alive(&mut self, now: Millis, lease: LeaseId, sent_at: Millis, out: &mut Vec<Action>) {
        let sent_at = if planted!(DeadlineFromAnswer) { now } else { sent_at };
        if !self.lease.kept(lease, sent_at, self.settings.ttl_ms) {
            return;
        }
        // A lease may live while its key is gone, or the store a backup; and a frozen leader thaws by what is read.
        self.read_soon(now);
        let Stage::Holding(reign) = self.stage else { return };
        let until = self.until();
        if let Phase::Leading { until: before } = reign.phase
            && until > before
        {
            self.stage = Stage::Holding(Reign { phase: Phase::Leading { until }, ..reign });
            out.push(Action::Extend { until });
        }
    }

    pub(super) fn lease_ended(&mut self, now: Millis, lease: LeaseId, out: &mut Vec<Action>) {
        if self.lease.held() != Some(lease) {
            return;
        }
        match self.stage {
            Stage::Holding(_) => self.end(now, Reason::LeaseEnded, out),
            // A campaign that is under way will say how it went.
            Stage::Standby | Stage::Campaigning | Stage::Resigning(_) => drop(self.lease.shed()),
        }
    }

    /// Whether the key is still this reign's; the reign ends if not.
    pub(super) fn compare(
        &mut self,
        now: Millis,
        reign: Reign,
        holder: Option<Holder>,
        out: &mut Vec<Action>,
    ) -> bool {
        let same = holder.as_ref().is_some_and(|h| self.is_ours(h) && h.created.0 == reign.term.revision);
        if same {
            self.leader = Some(holder);
        } else {
            self.end(now, Reason::Lost, out);
            self.learn(now, holder, out);
        }
        same
    }

    /// The reign is over, and its lease is not used again.
    pub(super) fn end(&mut self, now: Millis, reason: Reason, out: &mut Vec<Action>) {
        let Stage::Holding(reign) = self.stage else { return };
        self.stage = Stage::Standby;
        if reign.phase != Phase::Behind {
            out.push(Action::End { reason });
        }
        if self.adopting.take().is_some() {
            out.push(Action::Adopted(Err(AdoptError::NotTaken)));
        }
        if planted!(LeaseNotRenewed) {
            self.lease = Lease::Asked;
        }
        if let Some(lease) = self.lease.shed()
            && reason != Reason::LeaseEnded
        {
            out.push(Action::Revoke(lease));
        }
        self.leader = None;
        self.read_soon(now);
    }

    pub(super) fn hand_over(&mut self, now: Millis, to: Option<String>, out: &mut Vec<Action>) {
        if let Stage::Holding(_) = self.stage {
            self.campaign_at = now.after(HOLD_MS);
            self.resign(to, Reason::HandedOver, out);
        }
    }

    pub(super) fn stop(&mut self, out: &mut Vec<Action>) {
        if self.stopped {
            return;
        }
        match self.stage {
            Stage::Holding(_) => self.resign(None, Reason::Stopped, out),
            Stage::Standby => {
                if let Some(lease) = self.lease.shed() {
                    out.push(Action::Revoke(lease));
                }
            }
            // The lease is given up when the campaign has said how it went.
            Stage::Campaigning | Stage::Resigning(_) => {}
        }
        self.stopped = true;
    }

    /// The last command is behind it: tells the standbys, and frees the key.
    fn resign(&mut self, to: Option<String>, reason: Reason, out: &mut Vec<Action>) {
        if matches!(self.stage, Stage::Holding(Reign { phase, .. }) if phase != Phase::Behind) {
            out.push(Action::End { reason });
        }
        if self.adopting.take().is_some() {
            out.push(Action::Adopted(Err(AdoptError::NotTaken)));
        }
        let lease = self.lease.shed();
        self.stage = lease.map_or(Stage::Standby, Stage::Resigning);
        self.leader = None;
        if let Some(lease) = lease {
            out.push(Action::Resign { to });
            out.push(Action::Revoke(lease));
        }
    }

    pub(super) fn adopt(&mut self, audit: Vec<Change>, out: &mut Vec<Action>) {
        let refused = |error| Action::Adopted(Err(error));
        let reign = match self.stage {
            Stage::Holding(reign) if reign.phase != Phase::Frozen => reign,
            _ => return out.push(refused(AdoptError::NotLeader)),
        };
        if self.adopting.is_some() {
            return out.push(refused(AdoptError::Busy));
        }
        let highest = self.highest().generation;
        if highest >= Term::GENERATION_MAX {
            return out.push(refused(AdoptError::NoneAbove(highest)));
        }
        let value = highest + 1;
        let mut changes = vec![Change::Put(Key::Generation, Record::Generation(value), None)];
        changes.extend(audit);
        let transaction = guarded(reign.term, changes);
        out.push(Action::Adopt(transaction.clone()));
        self.adopting = Some(Adoption { transaction, doubtful: false, again_at: None });
    }

    pub(super) fn adopt_answered(&mut self, now: Millis, answer: Answer, out: &mut Vec<Action>) {
        let (Stage::Holding(reign), Some(adoption)) = (self.stage, &mut self.adopting) else { return };
        match answer {
            Answer::Done(revision) => {
                let value = match adoption.transaction.changes.first() {
                    Some(Change::Put(_, Record::Generation(value), _)) => *value,
                    _ => unreachable!("an adoption raises the generation"),
                };
                self.raised(now, reign, revision, Generation { value, modified: Some(revision) }, out);
            }
            // Made again it is made once, in the term that it ends: the answer says what became of the first.
            Answer::Unknown => {
                adoption.doubtful = true;
                adoption.again_at = Some(now.after(RETRY_MS));
            }
            // Refused because the first was made, or because the reign is over: the store knows.
            Answer::Refused | Answer::Away if adoption.doubtful => {
                adoption.again_at = Some(now.after(RETRY_MS));
                self.read_soon(now);
            }
            Answer::Refused | Answer::Away => {
                self.adopting = None;
                out.push(Action::Adopted(Err(AdoptError::NotTaken)));
                self.read_soon(now);
            }
        }
    }

    /// The generation is above the term's: the same reign goes on in another term.
    fn raised(
        &mut self,
        now: Millis,
        reign: Reign,
        at: Revision,
        generation: Generation,
        out: &mut Vec<Action>,
    ) {
        self.generation = Some(generation);
        if reign.phase != Phase::Behind {
            out.push(Action::End { reason: Reason::Adopted });
        }
        let term = Term { generation: generation.value, revision: reign.term.revision };
        self.take(now, term, at, Cause::Adopted, out);
        if self.adopting.take().is_some() {
            out.push(Action::Adopted(Ok(term)));
        }
    }

    /// Both keys as they stand while this balancer reigns: the reign goes on, or is over.
    pub(super) fn verify(&mut self, now: Millis, found: Found, out: &mut Vec<Action>) {
        let Stage::Holding(reign) = self.stage else { return };
        if !self.compare(now, reign, found.holder, out) {
            self.generation = Some(found.generation);
            return;
        }
        match found.generation.value.cmp(&reign.term.generation) {
            // The key was taken back: no write of this term is accepted any more, and none of a lower one must be made.
            Ordering::Less => self.end(now, Reason::Lost, out),
            Ordering::Equal => self.thaw(now, out),
            Ordering::Greater => self.raised(now, reign, found.revision, found.generation, out),
        }
    }
}
