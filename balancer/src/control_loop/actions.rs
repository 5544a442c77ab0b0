//! The machine's actions, carried out.

use super::{ControlLoop, Event};
use crate::draft::Drafted;
use crate::push::short_command;
use evenkeel_core::ids::{NodeId, Term};
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::reign::{self, Action, DraftReason, Message, Role, StreamId};
use evenkeel_core::protocol::unit::{Answer, PlanRef};
use evenkeel_proto::v1;
use evenkeel_proto::v1::sync_response::Message as Out;
use std::collections::VecDeque;
use std::sync::Arc;

impl ControlLoop {
    /// Hands an event to the machine and carries out what it asks for.
    pub(super) fn step(&mut self, event: reign::Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.now();
            for action in self.reign.step(now, event) {
                events.extend(self.act(action));
            }
        }
    }

    fn act(&mut self, action: Action) -> Option<reign::Event> {
        match action {
            Action::Send { stream, message } => return self.send(stream, message),
            Action::Close { stream, .. } => drop(self.links.remove(&stream)),
            Action::Transact { ticket, transactions } => self.transact(ticket, transactions),
            Action::Read { ticket, keys } => self.read(ticket, keys),
            Action::Draft { plan, reason } => self.draft(plan, reason),
            Action::Answer { ticket, answer } => {
                if let Some(asker) = self.askers.remove(&ticket) {
                    // An asker that has gone away needs no answer.
                    let _ = asker.send(answer);
                }
            }
            Action::Notice(notice) => self.notice(notice),
        }
        None
    }

    /// A stream that does not take a message has ended.
    fn send(&mut self, stream: StreamId, message: Message) -> Option<reign::Event> {
        let limit = self.config.control.commit_timeout_ms;
        let short = |phase, term, plan| Out::Plan(short_command(term, phase, plan, limit));
        let out = match message {
            Message::Welcome { role, term, boot_plan } => {
                self.welcome(stream, role, term, boot_plan.as_deref())
            }
            Message::Refuse { code, text } => {
                Out::Refusal(v1::Refusal { code: code.to_owned(), message: text })
            }
            Message::Ping => Out::Ping(v1::Ping { sequence: self.now().at.0 }),
            Message::Prepare { term, plan, base } => return self.prepare(stream, term, &plan, &base),
            Message::Commit { term, plan } => short(v1::PlanPhase::Commit, term, plan),
            Message::Abort { term, plan } => short(v1::PlanPhase::Abort, term, plan),
        };
        let taken = self.links.get(&stream).is_some_and(|link| link.link.send(out));
        self.unless_taken(stream, taken)
    }

    fn unless_taken(&mut self, stream: StreamId, taken: bool) -> Option<reign::Event> {
        if taken {
            return None;
        }
        if self.links.remove(&stream).is_some() {
            tracing::warn!(stream = stream.0, code = "does_not_read", "agent's stream is closed");
        }
        Some(reign::Event::Closed(stream))
    }

    fn welcome(&self, stream: StreamId, role: Role, term: Term, boot_plan: Option<&Plan>) -> Out {
        let control = &self.config.control;
        let protocol = self.links.get(&stream).map_or(evenkeel_proto::PROTOCOL_VERSION, |link| link.protocol);
        Out::Welcome(v1::Welcome {
            term: Some(term.into()),
            protocol,
            window_steps: control.window_steps,
            report_interval_ms: control.report_interval_ms,
            ping_interval_ms: control.ping_interval_ms,
            silence_limit_ms: control.silence_limit_ms,
            boot_plan: boot_plan.map(Into::into),
            role: match role {
                Role::Leader => v1::BalancerRole::Leader,
                Role::Standby => v1::BalancerRole::Standby,
            }
            .into(),
            leader: self.leader_address(),
        })
    }

    fn prepare(
        &mut self,
        stream: StreamId,
        term: Term,
        plan: &Arc<Plan>,
        base: &Arc<Plan>,
    ) -> Option<reign::Event> {
        let node = self.reign.streams().get(&stream)?.node().clone();
        let formed = self.units.get_mut(&plan.unit).and_then(|unit| unit.formed.as_mut())?;
        let prepared = match formed.prepared.get(plan, base, &formed.topology) {
            Ok(prepared) => prepared,
            Err(error) => {
                tracing::error!(unit = %plan.unit, code = error.code(), %error, "plan cannot be sent");
                let answer = Answer::Refused(error.code().to_owned());
                return Some(reign::Event::Result { stream, plan: (plan.epoch, plan.digest()), answer });
            }
        };
        let limit = self.config.control.prepare_timeout_ms;
        let topology = Arc::clone(&formed.topology);
        let address = |node: &NodeId| self.address_of(&plan.unit, node);
        let order = prepared.order(term, &node, &topology, address, limit);
        let taken = self.links.get(&stream).is_some_and(|link| link.link.prepare(&prepared, order));
        self.unless_taken(stream, taken)
    }

    /// Sends PREPARE again with the whole plan to a node that could not apply a difference. Returns whether that was done:
    /// not a second time on one stream, and not of a plan that is over.
    pub(super) fn send_whole(&mut self, stream: StreamId, plan: PlanRef) -> bool {
        let Some(entry) = self.reign.streams().get(&stream) else { return false };
        let (id, node) = (entry.unit().clone(), entry.node().clone());
        let now = self.now().at;
        let Some(term) = self.reign.term().filter(|_| !self.reign.is_frozen(now)) else { return false };
        let Some(formed) = self.units.get(&id).and_then(|unit| unit.formed.as_ref()) else { return false };
        let (Some(link), Some(prepared)) = (self.links.get(&stream), formed.prepared.last(plan)) else {
            return false;
        };
        let limit = self.config.control.prepare_timeout_ms;
        let order = prepared.order(term, &node, &formed.topology, |node| self.address_of(&id, node), limit);
        link.link.want_whole_plans() && link.link.prepare(&prepared, order)
    }

    /// Writes a plan down off the loop: compressing a large one takes longer than a ping may wait.
    fn draft(&mut self, plan: Arc<Plan>, reason: DraftReason) {
        let Some(unit) = self.reign.units().get(&plan.unit) else { return };
        let (base, topology) = match unit.formed() {
            Some(formed) => (Some(Arc::clone(formed.control().head())), Arc::clone(formed.topology())),
            None => (None, unit.membership().topology().expect("the machine drafts for complete units")),
        };
        tracing::info!(unit = %plan.unit, epoch = plan.epoch.0, reason = ?reason, "plan made without a solve");
        let events = self.events.clone();
        tokio::task::spawn_blocking(move || {
            let drafted = Drafted::unsolved(plan, base.as_deref(), &topology);
            // The loop is gone only at a shutdown.
            let _ = events.blocking_send(Event::Drafted(Box::new(drafted)));
        });
    }
}
