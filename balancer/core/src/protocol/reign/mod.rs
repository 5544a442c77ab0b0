//! What a balancer does for the agents: as a standby it listens, as the leader of a term it commands.
//!
//! ```text
//!              Begin                     Freeze, or `until` is reached
//!   STANDBY ----------> LEADING <--------------------------------> FROZEN
//!      ^                   |                  Extend                  |
//!      +------ End --------+---------------------- End ---------------+
//! ```
//!
//! - A standby admits streams and commands nothing. With Begin every stream gets another Welcome, and each agent says
//!   anew what it serves; only then is it part of its unit. Nothing of what was known before the term is acted on.
//! - A command goes out only while the time is before `until`. What would be sent later waits, in order, until the
//!   lead is confirmed, and is forgotten with its stream or the term. Time limits do not run meanwhile.
//! - Every write names the term. A write whose outcome is unknown is read again before anything else is done about it
//!   ([`write`]): a plan is never given up while the store may hold it as the head.
//! - An order acts once: its request id is written in the transaction that does it ([`orders`]).
//! - The loss of many nodes at once is taken for the loss of a network, not of nodes: no plan is made for what it
//!   concerns until most are back ([`loss`]).
//!
//! The shell carries out the actions of one event in order, and answers each that has a ticket by one event.

mod draft;
mod events;
mod holds;
mod loss;
mod order;
mod orders;
mod plans;
mod streams;
#[cfg(test)]
mod tests;
mod units;
mod write;

pub use events::{
    Action, Admin, DraftReason, Event, Head, Holds, Introduction, Message, Notice, Now, Recovered,
    RecoveredUnit, Role, StreamId, Ticket, Trouble,
};
pub use order::{Answer, Order, OrderError, audit_of_text, audit_text};
pub use streams::Stream;
pub use units::{Held, Unit};

use crate::ids::{Epoch, NodeId, Term, UnitId};
use crate::planted;
use crate::protocol::unit::Limits;
use crate::records::AuditId;
use crate::units::Millis;
use loss::Loss;
use orders::Orders;
use std::collections::{BTreeMap, VecDeque};

/// Time limits and bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Of a plan's way.
    pub limits: Limits,
    /// Streams at most.
    pub streams_max: usize,
    /// Between pings on a stream, in milliseconds.
    pub ping_ms: u64,
    /// A node that was heard within this time counts as alive, in milliseconds: no other takes its name.
    pub suspect_ms: u64,
    /// A stream on which nothing was heard for this long is closed, in milliseconds.
    pub silence_ms: u64,
}

impl Default for Settings {
    /// Three pings make a suspicion; 15 s outlast what a switch needs to fail over.
    fn default() -> Self {
        let limits = Limits::default();
        Self { limits, streams_max: 16_384, ping_ms: 2_000, suspect_ms: 6_000, silence_ms: 15_000 }
    }
}

/// A term in which this balancer leads.
#[derive(Debug, Clone)]
struct Lead {
    term: Term,
    until: Millis,
    /// Since when nothing may be commanded.
    frozen_since: Option<Millis>,
    /// Audit entries of the term so far.
    audited: u64,
}

/// Who an answer of the store is for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    /// A unit's plan.
    Plan(UnitId),
    /// A unit's record.
    Record(UnitId),
    /// The order at the head of the queue.
    Order,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Reign {
    settings: Settings,
    lead: Option<Lead>,
    /// The last term this balancer led in.
    last_term: Term,
    streams: BTreeMap<StreamId, Stream>,
    nodes: BTreeMap<NodeId, StreamId>,
    units: BTreeMap<UnitId, Unit>,
    /// The highest epoch that a node serves of a unit of which the store knows no plan: units that form from now on have
    /// theirs above it.
    lost_epoch: Epoch,
    /// Calls of the store under way: at most two per unit and one for orders.
    calls: BTreeMap<Ticket, Owner>,
    tickets: u64,
    orders: Orders,
    loss: Loss,
    /// Commands that wait for the lead to be confirmed: an ABORT, a COMMIT and a PREPARE per stream at most, since a node
    /// that introduces itself again begins anew.
    held: VecDeque<(StreamId, Message)>,
    out: Vec<Action>,
}

impl Reign {
    /// A standby without streams.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            lead: None,
            last_term: Term::default(),
            streams: BTreeMap::new(),
            nodes: BTreeMap::new(),
            units: BTreeMap::new(),
            lost_epoch: Epoch::BOOT,
            calls: BTreeMap::new(),
            tickets: 0,
            orders: Orders::default(),
            loss: Loss::default(),
            held: VecDeque::new(),
            out: Vec::new(),
        }
    }

    /// The term in which this balancer leads.
    pub fn term(&self) -> Option<Term> {
        self.lead.as_ref().map(|lead| lead.term)
    }

    /// The number that the next plan of a formed unit has, while this balancer leads.
    pub fn next_epoch(&self, id: &UnitId) -> Option<Epoch> {
        self.units.get(id)?.next_epoch(self.term()?)
    }

    /// The last term that this balancer led in; zero before the first.
    pub fn last_term(&self) -> Term {
        self.last_term
    }

    /// Whether it leads, but may not command.
    pub fn is_frozen(&self, now: Millis) -> bool {
        self.lead.is_some() && !self.commands_at(now)
    }

    fn commands_at(&self, now: Millis) -> bool {
        let within = |lead: &Lead| lead.frozen_since.is_none() && now < lead.until;
        self.lead.as_ref().is_some_and(|lead| within(lead) || planted!(DeadlineIgnored))
    }

    /// The units of this term; none while standing by.
    pub fn units(&self) -> &BTreeMap<UnitId, Unit> {
        &self.units
    }

    /// The open streams.
    pub fn streams(&self) -> &BTreeMap<StreamId, Stream> {
        &self.streams
    }

    /// The stream of a node.
    pub fn stream_of(&self, node: &NodeId) -> Option<StreamId> {
        self.nodes.get(node).copied()
    }

    /// Everything that can pile up, counted: streams, units, calls of the store, orders, commands held back. For the checks
    /// that all of it is bounded.
    pub fn sizes(&self) -> [usize; 5] {
        [self.streams.len(), self.units.len(), self.calls.len(), self.orders.len(), self.held.len()]
    }

    /// The machine's one step.
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Action> {
        self.note_deadline(now);
        match event {
            Event::Begin { term, until, state } => self.begin(now, term, until, state),
            Event::Extend { until } => self.extend(now, until),
            Event::Freeze => self.freeze(now),
            Event::End => self.end(now),
            Event::Hello { stream, hello } => self.hello(now, stream, hello),
            Event::Heard(stream) => self.heard(now, stream),
            Event::Result { stream, plan, answer } => self.result(now, stream, plan, answer),
            Event::Closed(stream) => self.drop_stream(now, stream, "closed_by_peer", false),
            Event::Propose { plan, account, chunks } => self.propose(now, plan, account, chunks),
            Event::StoreDone { ticket, outcome } => self.store_done(now, ticket, outcome),
            Event::ReadDone { ticket, found } => self.read_done(now, ticket, found),
            Event::Admin(admin) => self.admin(now, admin),
            Event::Tick => self.tick(now),
        }
        std::mem::take(&mut self.out)
    }

    fn begin(&mut self, now: Now, term: Term, until: Millis, state: Recovered) {
        if self.lead.is_some() {
            self.end(now);
        }
        assert!(term > self.last_term, "terms grow");
        self.last_term = term;
        self.lead = Some(Lead { term, until, frozen_since: None, audited: 0 });
        self.units =
            state.units.into_iter().map(|unit| Unit::recovered(unit, self.settings.limits)).collect();
        self.loss = Loss::after_begin(now.at, self.members());
        self.note_deadline(now);
        for stream in self.streams.keys().copied().collect::<Vec<_>>() {
            self.welcome_again(now, stream);
        }
    }

    fn end(&mut self, now: Now) {
        if self.lead.take().is_none() {
            return;
        }
        self.end_rollbacks();
        self.calls.clear();
        self.held.clear();
        self.loss = Loss::default();
        self.orders.end(&mut self.out);
        for stream in self.streams.keys().copied().collect::<Vec<_>>() {
            self.welcome_again(now, stream);
        }
    }

    fn freeze(&mut self, now: Now) {
        if let Some(lead) = &mut self.lead {
            lead.frozen_since.get_or_insert(now.at);
        }
    }

    /// A deadline that has passed freezes, whether or not anybody says so.
    fn note_deadline(&mut self, now: Now) {
        if self.lead.as_ref().is_some_and(|lead| now.at >= lead.until) {
            self.freeze(now);
        }
    }

    fn extend(&mut self, now: Now, until: Millis) {
        let Some(lead) = &mut self.lead else { return };
        lead.until = until;
        if now.at >= until {
            return;
        }
        let Some(since) = lead.frozen_since.take() else { return };
        for unit in self.units.values_mut() {
            unit.postpone(now.at.since(since));
        }
        for (stream, message) in std::mem::take(&mut self.held) {
            self.out.push(Action::Send { stream, message });
        }
    }

    /// Sends, or keeps back what may not be sent now.
    fn send(&mut self, now: Now, stream: StreamId, message: Message) {
        if !message.is_command() || self.commands_at(now.at) || planted!(FrozenLeaderSends) {
            self.out.push(Action::Send { stream, message });
        } else {
            self.held.push_back((stream, message));
        }
    }

    fn notice(&mut self, notice: Notice) {
        self.out.push(Action::Notice(notice));
    }

    fn ticket(&mut self, owner: Owner) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.calls.insert(ticket, owner);
        ticket
    }

    /// The name of the next audit entry.
    fn audit_id(&mut self, now: Now) -> AuditId {
        let lead = self.lead.as_mut().expect("only a leader writes");
        lead.audited += 1;
        AuditId { at_ms: now.unix_ms, term: lead.term, sequence: lead.audited }
    }

    /// Nodes of the units that have formed.
    fn members(&self) -> usize {
        self.units
            .values()
            .filter(|unit| unit.formed().is_some())
            .map(|unit| unit.membership.claims().len())
            .sum()
    }

    fn tick(&mut self, now: Now) {
        self.tick_streams(now);
        if self.lead.is_none() {
            return;
        }
        self.retry_calls(now);
        if !self.commands_at(now.at) {
            return;
        }
        self.tick_loss(now);
        for id in self.units.keys().cloned().collect::<Vec<_>>() {
            self.drive(now, &id, crate::protocol::unit::Event::Tick);
            self.draft(now, &id);
            self.keep_record(&id);
        }
    }
}
