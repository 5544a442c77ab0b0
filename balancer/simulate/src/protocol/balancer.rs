//! A balancer's process, modelled around core's machines: calls to the store, the watch of the leader's key, the
//! connection to the leader, and what a leader commands.

use super::check::Seen;
use super::clock::Clock;
use super::network::{End, ToBalancer};
use super::reigning::{self, Asked};
use super::store::{Answer, Reach, Request};
use super::world::{Event, World};
use evenkeel_core::ids::Term;
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::election::{self, Action, Election, Settings, State};
use evenkeel_core::protocol::reign::{self, Recovered, Reign, StreamId, Ticket, Trouble, Unit};
use evenkeel_core::records::{Key, LeaderRecord, LeaseId, Outcome, RequestId, Revision, Scope, Transaction};
use evenkeel_core::units::Millis;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A call to the store that has no answer by then has ended in doubt.
const CALL_MS: u64 = 2_000;
/// A peer that does not answer.
const PEER_MS: u64 = 1_000;
/// Between two attempts to reach a leader.
const REDIAL_MS: u64 = 500;
/// How often the leader looks at its clock.
const TICK_MS: u64 = 250;

/// What happens to a balancer's process.
#[derive(Debug, Clone)]
pub(super) enum Input {
    Start,
    Wake,
    Tick,
    Answered {
        call: u64,
        answer: Option<Answer>,
    },
    Overdue {
        call: u64,
    },
    Watch,
    Peer(election::Event),
    Message {
        link: u64,
        message: ToBalancer,
    },
    Closed {
        link: u64,
    },
    Propose {
        unit: usize,
    },
    Order(Asked),
    Drafted {
        plan: Arc<Plan>,
    },
    Recover {
        term: Term,
    },
    HandOver {
        to: Option<String>,
    },
    Redial {
        lease: LeaseId,
    },
    Adopt,
    /// What a step before a pause was about to do.
    Late(Box<Late>),
}

/// Actions that a pause has held back.
#[derive(Debug, Clone)]
pub(super) enum Late {
    Reign(Vec<reign::Action>),
}

/// Why a call was made.
#[derive(Debug, Clone)]
pub(super) enum Purpose {
    Grant { sent_at: Millis },
    KeepAlive { lease: LeaseId, sent_at: Millis },
    Revoke(LeaseId),
    Campaign,
    ReadLeader,
    Adopt,
    Recover,
    Read { ticket: Ticket, keys: Vec<Key> },
    Transact { ticket: Ticket, rest: VecDeque<Transaction> },
}

#[derive(Debug)]
struct Call {
    purpose: Purpose,
    request: Request,
}

/// See the module.
#[derive(Debug)]
pub(super) struct BalancerProcess {
    pub(super) name: String,
    /// Grows with each start of the process.
    pub(super) life: u64,
    pub(super) machine: Option<(Election, Reign)>,
    /// Stopped by a signal until then.
    pub(super) paused_until: u64,
    /// The next decision that has deeds is carried out only after a pause of this long.
    pub(super) hold_ms: Option<u64>,
    /// Nothing gets to the store or from it until then.
    pub(super) cut_until: u64,
    pub(super) clock: Clock,
    pub(super) machine_up: bool,
    /// Carries out what it had decided before a pause.
    pub(super) catches_up: bool,
    calls: BTreeMap<u64, Call>,
    /// A term whose records are being read, or wait for the lead to be confirmed.
    pub(super) beginning: Option<(Term, Option<Recovered>)>,
    /// Operators who wait, and how many there were.
    pub(super) operators: BTreeMap<Ticket, RequestId>,
    pub(super) orders: u64,
    /// What the watch has told.
    watched: Revision,
    watching: bool,
    /// The lease of the leader to whom a connection stands.
    peer: Option<LeaseId>,
    /// The leader to whom one should.
    wanted: Option<LeaderRecord>,
    woken_at: u64,
}

impl BalancerProcess {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            life: 0,
            machine: None,
            paused_until: 0,
            hold_ms: None,
            cut_until: 0,
            clock: Clock::new(0, 0),
            machine_up: true,
            catches_up: false,
            calls: BTreeMap::new(),
            beginning: None,
            operators: BTreeMap::new(),
            orders: 0,
            watched: Revision(0),
            watching: false,
            peer: None,
            wanted: None,
            woken_at: u64::MAX,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.machine.is_some()
    }

    pub(super) fn election(&self) -> Option<&Election> {
        self.machine.as_ref().map(|(election, _)| election)
    }

    pub(super) fn reign(&self) -> Option<&Reign> {
        self.machine.as_ref().map(|(_, reign)| reign)
    }

    /// Whether it may command now, as far as it knows.
    pub(super) fn may_command(&self, now: u64) -> bool {
        let state = self.election().map(Election::state);
        matches!(state, Some(State::Leading { until, .. }) if self.clock.read(now) < until)
    }

    /// Calls under way.
    pub(super) fn calls(&self) -> usize {
        self.calls.len()
    }
}

impl World {
    pub(super) fn plan_balancer(&mut self, b: usize, after: u64, input: Input) {
        let life = self.balancers[b].life;
        self.queue.at(self.now + after, Event::Balancer { balancer: b, life, input });
    }

    pub(super) fn start_balancer(&mut self, b: usize) {
        let now = self.now;
        let process = &mut self.balancers[b];
        if process.is_up() {
            return;
        }
        process.life += 1;
        process.machine_up = true;
        process.calls.clear();
        process.beginning = None;
        process.operators.clear();
        (process.paused_until, process.hold_ms) = (0, None);
        (process.peer, process.wanted) = (None, None);
        (process.watched, process.watching, process.woken_at) = (Revision(0), false, u64::MAX);
        process.clock = Clock::new(now, 1_000);
        let settings = Settings::new(process.name.clone(), format!("{}:1", process.name));
        process.machine = Some((Election::new(settings), Reign::new(reigning::settings())));
        self.note(format_args!("b{b} starts"));
        self.plan_balancer(b, 0, Input::Start);
        self.plan_balancer(b, 1, Input::Watch);
        self.plan_balancer(b, TICK_MS, Input::Tick);
    }

    /// The process dies. With its machine it dies silently; alone, whoever is connected to it learns of it at once.
    pub(super) fn stop_balancer(&mut self, b: usize, machine: bool) {
        if !self.balancers[b].is_up() {
            return;
        }
        self.note(format_args!("b{b} {}", if machine { "loses power" } else { "is killed" }));
        let process = &mut self.balancers[b];
        let lease = process.election().and_then(Election::lease);
        process.machine = None;
        process.machine_up = !machine;
        process.life += 1;
        self.drop_links_of(End::Balancer, b, machine);
        if machine {
            self.silence_after_power_loss(lease);
            return;
        }
        let Some(lease) = lease else { return };
        for other in 0..self.balancers.len() {
            if self.balancers[other].peer == Some(lease) {
                self.balancers[other].peer = None;
                let wait = self.random.within(0, 3);
                self.plan_balancer(other, wait, Input::Peer(election::Event::PeerReset(lease)));
            }
        }
    }

    fn silence_after_power_loss(&mut self, lease: Option<LeaseId>) {
        let Some(lease) = lease else { return };
        for other in 0..self.balancers.len() {
            if self.balancers[other].peer == Some(lease) {
                self.balancers[other].peer = None;
                self.plan_balancer(other, PEER_MS, Input::Peer(election::Event::PeerAway(lease)));
                self.plan_balancer(other, PEER_MS + REDIAL_MS, Input::Redial { lease });
            }
        }
    }

    pub(super) fn balancer_input(&mut self, b: usize, life: u64, input: Input) {
        let process = &self.balancers[b];
        if process.life != life || !process.is_up() {
            return;
        }
        if process.paused_until > self.now {
            let at = process.paused_until;
            self.queue.at(at, Event::Balancer { balancer: b, life, input });
            return;
        }
        match input {
            Input::Start => self.election_event(b, election::Event::Started),
            Input::Wake => {
                self.balancers[b].woken_at = u64::MAX;
                self.election_event(b, election::Event::Tick);
            }
            Input::Tick => {
                self.reign_event(b, reign::Event::Tick);
                self.plan_balancer(b, TICK_MS, Input::Tick);
            }
            Input::Answered { call, answer } => self.answered(b, call, answer),
            Input::Overdue { call } => self.answered(b, call, None),
            Input::Watch => self.balancer_watches(b),
            Input::Peer(event) => self.election_event(b, event),
            Input::Message { link, message } => self.balancer_hears(b, link, message),
            Input::Closed { link } => self.reign_event(b, reign::Event::Closed(StreamId(link))),
            Input::Propose { unit } => self.propose(b, unit),
            Input::Order(asked) => self.operator_asks(b, asked),
            Input::Drafted { plan } => self.proposed(b, plan),
            Input::Recover { term } => {
                if self.balancers[b].beginning == Some((term, None)) {
                    self.call(b, Purpose::Recover, Request::List(Scope::All));
                }
            }
            Input::Redial { lease } => {
                let process = &self.balancers[b];
                let wanted = process.wanted.clone().filter(|record| record.lease == lease);
                if let Some(record) = wanted.filter(|_| process.peer.is_none()) {
                    self.connect_peer(b, &record, false);
                }
            }
            Input::HandOver { to } => self.election_event(b, election::Event::HandOver { to }),
            Input::Adopt => self.election_event(b, election::Event::Adopt { audit: Vec::new() }),
            Input::Late(late) => {
                self.balancers[b].catches_up = true;
                match *late {
                    Late::Reign(actions) => self.reign_acts(b, actions),
                }
                self.balancers[b].catches_up = false;
            }
        }
    }

    fn balancer_hears(&mut self, b: usize, link: u64, message: ToBalancer) {
        match message {
            ToBalancer::Hello(hello) => self.reign_hears_hello(b, link, hello),
            ToBalancer::Result(reply) => self.reign_hears_result(b, link, &reply),
            ToBalancer::Report => self.reign_event(b, reign::Event::Heard(StreamId(link))),
        }
    }

    fn propose(&mut self, b: usize, unit: usize) {
        let now = self.balancers[b].clock.read(self.now);
        let Some(reign) = self.balancers[b].reign() else { return };
        let id = &self.units[unit].id;
        if reign.is_frozen(now) {
            return;
        }
        let Some(head) = reign.units().get(id).and_then(Unit::head).cloned() else { return };
        // What was given up may be tried again, as a solve of the same loads does.
        let Some(epoch) = reign.next_epoch(id) else { return };
        let fits = |plan: &Arc<Plan>| plan.parent == Some((head.epoch, head.digest())) && plan.epoch == epoch;
        let again = self.last_proposed[unit].clone().filter(fits);
        let plan = match again.filter(|_| self.random.permille(500)) {
            Some(plan) => plan,
            None => {
                let plan = super::plans::child(&head, &self.units[unit].shape, &mut self.random);
                self.know(plan.numbered(epoch))
            }
        };
        self.last_proposed[unit] = Some(Arc::clone(&plan));
        self.proposed(b, plan);
    }

    pub(super) fn balancer_late(&mut self, b: usize, late: Late) {
        self.plan_balancer(b, 0, Input::Late(Box::new(late)));
    }

    pub(super) fn election_event(&mut self, b: usize, event: election::Event) {
        let process = &mut self.balancers[b];
        let Some((election, _)) = &mut process.machine else { return };
        let now = process.clock.read(self.now);
        let actions = election.step(now, event);
        if let Some(wake) = election.wake() {
            let at = process.clock.when(wake, self.now).max(self.now + 1);
            if at < process.woken_at {
                process.woken_at = at;
                let life = process.life;
                self.queue.at(at, Event::Balancer { balancer: b, life, input: Input::Wake });
            }
        }
        self.election_acts(b, actions);
    }

    /// Whether a pause comes between what was decided and its deeds.
    pub(super) fn holds_back(&mut self, b: usize, deeds: bool) -> bool {
        let Some(time) = self.balancers[b].hold_ms.take_if(|_| deeds) else { return false };
        self.note(format_args!("b{b} has decided, and stands still for {time} ms"));
        self.balancers[b].paused_until = self.now + time;
        self.peer_falls_silent(b, time);
        true
    }

    /// Whoever is connected to a process that stands still hears nothing, which proves nothing.
    pub(super) fn peer_falls_silent(&mut self, b: usize, time: u64) {
        let lease = self.balancers[b].election().and_then(Election::lease);
        let Some(lease) = lease.filter(|_| time > PEER_MS) else { return };
        for other in 0..self.balancers.len() {
            if self.balancers[other].peer == Some(lease) {
                self.balancers[other].peer = None;
                self.plan_balancer(other, PEER_MS, Input::Peer(election::Event::PeerAway(lease)));
                self.plan_balancer(other, PEER_MS + REDIAL_MS, Input::Redial { lease });
            }
        }
    }

    fn election_acts(&mut self, b: usize, actions: Vec<Action>) {
        for action in actions {
            self.election_act(b, action);
        }
    }

    fn election_act(&mut self, b: usize, action: Action) {
        let now = self.balancers[b].clock.read(self.now);
        match action {
            Action::Grant => {
                let ttl_ms = Settings::TTL_MS;
                self.call(b, Purpose::Grant { sent_at: now }, Request::Grant { ttl_ms });
            }
            Action::KeepAlive(lease) => {
                self.call(b, Purpose::KeepAlive { lease, sent_at: now }, Request::KeepAlive(lease));
            }
            Action::Revoke(lease) => self.call(b, Purpose::Revoke(lease), Request::Revoke(lease)),
            Action::Campaign(transaction) => {
                self.call(b, Purpose::Campaign, Request::Transact(transaction));
            }
            Action::ReadLeader => self.call(b, Purpose::ReadLeader, Request::ReadLeader),
            Action::Adopt(transaction) => self.call(b, Purpose::Adopt, Request::Transact(transaction)),
            Action::ConnectPeer(record) => {
                self.balancers[b].wanted = Some(record.clone());
                self.connect_peer(b, &record, false);
            }
            Action::RetryPeer(record) => self.connect_peer(b, &record, true),
            Action::DisconnectPeer => (self.balancers[b].peer, self.balancers[b].wanted) = (None, None),
            Action::Resign { to } => self.resigns(b, to.as_ref()),
            Action::Begin { term, .. } => {
                self.note(format_args!("b{b} begins term {term}"));
                self.see(Seen::Began { balancer: b, term });
                self.reign_begins(b, term);
            }
            Action::Extend { until } | Action::Thaw { until } => {
                self.reign_extends(b, until);
            }
            Action::Freeze => self.reign_event(b, reign::Event::Freeze),
            Action::End { reason } => {
                self.note(format_args!("b{b} ends its term: {}", reason.as_str()));
                self.reign_ends(b);
            }
            Action::Behind { term, highest } => {
                self.note(format_args!("b{b} would lead in term {term}, below {highest}"));
            }
            Action::Adopted(result) => {
                self.to_adopt &= result.is_err();
                self.note(format_args!("b{b} adopts: {result:?}"));
            }
        }
    }

    fn resigns(&mut self, b: usize, to: Option<&String>) {
        let lease = self.store.holder().filter(|h| h.record.balancer == self.balancers[b].name);
        let Some(lease) = lease.map(|holder| holder.record.lease) else { return };
        for other in 0..self.balancers.len() {
            if self.balancers[other].peer == Some(lease) {
                let wait = self.random.within(1, 5);
                let event = election::Event::PeerResigns { lease, to: to.cloned() };
                self.plan_balancer(other, wait, Input::Peer(event));
            }
        }
    }

    /// A standby's connection to the leader: it stands, is refused, or nothing answers.
    fn connect_peer(&mut self, b: usize, record: &LeaderRecord, retry: bool) {
        let lease = record.lease;
        let Some(other) = self.balancers.iter().position(|p| p.name == record.balancer) else { return };
        let process = &self.balancers[other];
        let reigns = process.election().and_then(Election::lease) == Some(lease);
        let dead = !process.machine_up || process.paused_until > self.now;
        let (wait, event) = if dead {
            (PEER_MS, election::Event::PeerAway(lease))
        } else if reigns {
            (self.random.within(1, 4), election::Event::PeerUp(lease))
        } else {
            (self.random.within(1, 4), election::Event::PeerRefused(lease))
        };
        if reigns && !dead {
            self.balancers[b].peer = Some(lease);
        }
        if retry || reigns || dead {
            self.plan_balancer(b, wait, Input::Peer(event));
        }
        if dead || !reigns && !retry {
            self.plan_balancer(b, wait + REDIAL_MS, Input::Redial { lease });
        }
    }

    pub(super) fn call(&mut self, b: usize, purpose: Purpose, request: Request) {
        self.calls_made += 1;
        let id = self.calls_made;
        self.balancers[b].calls.insert(id, Call { purpose, request });
        self.plan_balancer(b, CALL_MS, Input::Overdue { call: id });
        let cut = self.balancers[b].cut_until > self.now;
        let lost = cut || self.faulty && self.random.permille(self.faults.requests_lost);
        let late = self.faulty && self.random.permille(self.faults.requests_late);
        let wait = if late { self.random.within(500, 6_000) } else { self.random.within(1, 15) };
        if !lost {
            let life = self.balancers[b].life;
            let request = self.balancers[b].calls[&id].request.clone();
            self.queue.at(self.now + wait, Event::StoreCall { balancer: b, life, call: id, request });
        }
    }

    /// A call reaches the store.
    pub(super) fn store_call(&mut self, b: usize, life: u64, call: u64, request: &Request) {
        let wait = self.random.within(1, 10);
        let refused = self.faulty && self.random.permille(self.faults.requests_refused);
        let reach = if refused && self.store.reach == Reach::Up { Reach::Refusing } else { self.store.reach };
        match reach {
            Reach::Silent => return,
            Reach::Refusing => {
                if self.balancers[b].life == life {
                    let refused = Input::Answered { call, answer: None };
                    self.refused_calls.insert(call);
                    self.plan_balancer(b, wait, refused);
                }
                return;
            }
            Reach::Up => {}
        }
        let answer = self.ask_store(request);
        let cut = self.balancers[b].cut_until > self.now;
        let lost = cut || self.faulty && self.random.permille(self.faults.answers_lost);
        let late = self.faulty && self.random.permille(self.faults.answers_late);
        let wait = if late { self.random.within(100, 1_900) } else { wait };
        if self.balancers[b].life == life && !lost {
            self.plan_balancer(b, wait, Input::Answered { call, answer: Some(answer) });
        }
    }

    /// `None`: no answer came, or surely nothing was done.
    fn answered(&mut self, b: usize, call: u64, answer: Option<Answer>) {
        let away = self.refused_calls.remove(&call);
        let Some(Call { purpose, .. }) = self.balancers[b].calls.remove(&call) else { return };
        match (purpose, answer) {
            (Purpose::Grant { sent_at }, Some(Answer::Granted(lease))) => {
                self.election_event(b, election::Event::Granted { lease, sent_at });
            }
            (Purpose::Grant { .. }, _) => self.election_event(b, election::Event::GrantFailed),
            (Purpose::KeepAlive { lease, sent_at }, Some(Answer::Kept(true))) => {
                self.election_event(b, election::Event::KeptAlive { lease, sent_at });
            }
            (Purpose::KeepAlive { lease, .. }, Some(_)) => {
                self.election_event(b, election::Event::LeaseEnded(lease));
            }
            (Purpose::KeepAlive { lease, .. }, None) => {
                self.election_event(b, election::Event::KeepAliveFailed { lease });
            }
            (Purpose::Revoke(lease), Some(_)) => self.election_event(b, election::Event::Revoked(lease)),
            (Purpose::Revoke(lease), None) => self.election_event(b, election::Event::RevokeFailed(lease)),
            (Purpose::ReadLeader, Some(Answer::Leader(found))) => {
                self.election_event(b, election::Event::Found(found));
            }
            (Purpose::ReadLeader, _) => self.election_event(b, election::Event::ReadFailed),
            (Purpose::Campaign, answer) => {
                let answer = made(answer, away);
                self.election_event(b, election::Event::CampaignAnswered(answer));
            }
            (Purpose::Adopt, answer) => {
                let answer = made(answer, away);
                self.election_event(b, election::Event::AdoptAnswered(answer));
            }
            (Purpose::Recover, answer) => self.recovered(b, answer),
            (Purpose::Read { ticket, keys }, answer) => self.reign_read(b, ticket, &keys, answer),
            (Purpose::Transact { ticket, rest }, answer) => self.transacted(b, ticket, rest, answer, away),
        }
    }

    fn transacted(
        &mut self,
        b: usize,
        ticket: Ticket,
        mut rest: VecDeque<Transaction>,
        answer: Option<Answer>,
        away: bool,
    ) {
        let outcome = made(answer, away);
        if matches!(outcome, election::Answer::Done(_))
            && let Some(next) = rest.pop_front()
        {
            self.call(b, Purpose::Transact { ticket, rest }, Request::Transact(next));
            return;
        }
        let outcome = match outcome {
            election::Answer::Done(revision) => Ok(Outcome::Done(revision)),
            election::Answer::Refused => Ok(Outcome::Refused),
            election::Answer::Unknown => Err(Trouble::Unknown),
            election::Answer::Away => Err(Trouble::Away),
        };
        self.reign_done(b, ticket, outcome);
    }

    /// The watch is told what is new, after a time on the way.
    pub(super) fn wake_watches(&mut self) {
        for b in 0..self.balancers.len() {
            if self.balancers[b].is_up() && !self.balancers[b].watching {
                self.balancers[b].watching = true;
                let slow = self.faulty && self.random.permille(self.faults.watch_slow);
                let wait = if slow { self.random.within(100, 6_000) } else { self.random.within(1, 15) };
                self.plan_balancer(b, wait, Input::Watch);
            }
        }
    }

    fn balancer_watches(&mut self, b: usize) {
        self.balancers[b].watching = false;
        if self.store.reach != Reach::Up || self.balancers[b].cut_until > self.now {
            self.balancers[b].watching = true;
            self.plan_balancer(b, 300, Input::Watch);
            return;
        }
        let revision = self.store.memory.revision();
        let seen = self.balancers[b].watched;
        // A store that was restored is behind what the watch has seen: it lists.
        let told = if seen > revision || self.store_restored_for(b) {
            vec![(revision, self.store.holder())]
        } else {
            self.store.watch_leader(seen)
        };
        self.balancers[b].watched = revision;
        for (revision, holder) in told {
            self.election_event(b, election::Event::LeaderTold { revision, holder });
        }
    }
}

fn made(answer: Option<Answer>, away: bool) -> election::Answer {
    match answer {
        Some(Answer::Transacted(Outcome::Done(revision))) => election::Answer::Done(revision),
        Some(_) => election::Answer::Refused,
        None if away => election::Answer::Away,
        None => election::Answer::Unknown,
    }
}
