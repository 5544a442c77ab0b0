//! What a balancer's shell does around core's [`Reign`]: streams, calls of the store, the writing down of plans, operators
//! who wait for answers.

use super::agent::address;
use super::balancer::Purpose;
use super::check::Seen;
use super::network::{End, Hello, ToAgent};
use super::store::{Answer, Request};
use super::world::World;
use evenkeel_core::ids::{Digest, Term};
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::agent::{self, BalancerRole, Command, NodeMove, Prepare, Reply};
use evenkeel_core::protocol::election::{self, State};
use evenkeel_core::protocol::membership::Claim;
use evenkeel_core::protocol::reign::{
    self, Action, Admin, Head, Holds, Introduction, Message, Notice, Now, Order, OrderError, Recovered,
    RecoveredUnit, Role, Settings, StreamId, Ticket, Trouble,
};
use evenkeel_core::protocol::unit::{self, Limits};
use evenkeel_core::records::{Key, Opaque, Outcome, Record, RequestId, Scope, Transaction, Versioned};
use evenkeel_core::topology::UnitTopology;
use evenkeel_core::units::Millis;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Unix time at which every run begins: any will do.
const UNIX_MS: u64 = 1_700_000_000_000;
/// Before the records of a store that did not answer are asked for again.
pub(super) const RECOVER_MS: u64 = 300;

/// The usual settings, but for limits that are short enough for a run to see them end.
pub(super) fn settings() -> Settings {
    let limits = Limits { prepare_ms: 6_000, commit_ms: 5_000, retry_ms: 500, ..Limits::default() };
    Settings { limits, ..Settings::default() }
}

/// An operator's order with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) request: RequestId,
    pub(super) content: Digest,
    pub(super) order: Order,
}

impl World {
    fn reign_now(&self, b: usize) -> Now {
        Now { at: self.balancers[b].clock.read(self.now), unix_ms: UNIX_MS + self.now }
    }

    pub(super) fn reign_event(&mut self, b: usize, event: reign::Event) {
        let now = self.reign_now(b);
        let Some((_, reign)) = &mut self.balancers[b].machine else { return };
        let actions = reign.step(now, event);
        let deed = |action: &Action| match action {
            Action::Send { message, .. } => message.is_command(),
            Action::Transact { .. } => true,
            _ => false,
        };
        if self.holds_back(b, actions.iter().any(deed)) {
            self.balancer_late(b, super::balancer::Late::Reign(actions));
        } else {
            self.reign_acts(b, actions);
        }
    }

    pub(super) fn reign_acts(&mut self, b: usize, actions: Vec<Action>) {
        for action in actions {
            self.reign_act(b, action);
        }
    }

    fn reign_act(&mut self, b: usize, action: Action) {
        match action {
            Action::Send { stream, message } => self.reign_sends(b, stream, message),
            Action::Close { stream, code } => {
                self.note(format_args!("b{b} closes stream {}: {code}", stream.0));
                self.close_link(stream.0, End::Balancer);
            }
            Action::Transact { ticket, transactions } => {
                let mut rest: VecDeque<Transaction> = transactions.iter().cloned().collect();
                let first = rest.pop_front().expect("at least one transaction");
                self.call(b, Purpose::Transact { ticket, rest }, Request::Transact(first));
            }
            Action::Read { ticket, keys } => {
                self.call(b, Purpose::Read { ticket, keys: keys.clone() }, Request::Get(keys));
            }
            Action::Draft { plan, reason } => {
                self.note(format_args!("b{b} drafts plan {} of {}: {reason:?}", plan.epoch, plan.unit));
                let plan = self.know((*plan).clone());
                let wait = self.random.within(1, 20);
                self.plan_balancer(b, wait, super::balancer::Input::Drafted { plan });
            }
            Action::Answer { ticket, answer } => self.answers_operator(b, ticket, answer),
            Action::Notice(notice) => self.noticed(b, notice),
        }
    }

    /// A plan written down as it is stored: chunks that are a number, the plan's digest, and its parent's, which the digest
    /// does not cover.
    pub(super) fn proposed(&mut self, b: usize, plan: Arc<Plan>) {
        let digest = plan.digest();
        let parent = plan.parent.map(|(_, digest)| digest.0.to_vec()).unwrap_or_default();
        let count = if self.random.permille(500) { 2u8 } else { 1 };
        let chunk = |part: u8| Opaque::from([&[part], digest.0.as_slice(), &parent].concat());
        let chunks = (0..count).map(chunk).collect();
        self.reign_event(b, reign::Event::Propose { plan, account: Opaque::from([]), chunks });
    }

    fn noticed(&mut self, b: usize, notice: Notice) {
        if let Notice::Aborted { unit, .. } | Notice::Committed { unit, .. } = &notice {
            self.propose_at_once(b, super::unit_of(unit));
        }
        match &notice {
            Notice::WriteRefused => self.election_event(b, election::Event::WriteRefused),
            Notice::TermSeen(term) => self.election_event(b, election::Event::TermClaimed(*term)),
            Notice::Joined { .. } | Notice::Left { .. } => {}
            Notice::Invalid { code, text, .. } if *code != "plan_breaks_pin" => {
                self.note(format_args!("b{b}: invalid plan: {code}: {text}"));
            }
            other => self.trace.note(self.now, format_args!("b{b}: {other:?}")),
        }
    }

    /// A loop that proposes as fast as it may: while answers about the plan before are still on their way.
    fn propose_at_once(&mut self, b: usize, unit: usize) {
        if self.random.permille(400) {
            let wait = self.random.within(0, 30);
            self.plan_balancer(b, wait, super::balancer::Input::Propose { unit });
        }
    }

    fn reign_sends(&mut self, b: usize, stream: StreamId, message: Message) {
        let link = stream.0;
        let message = match message {
            Message::Welcome { role, term, boot_plan } => {
                let role = match role {
                    Role::Leader => BalancerRole::Leader,
                    Role::Standby => BalancerRole::Standby,
                };
                ToAgent::Welcome { role, term, boot_plan }
            }
            Message::Refuse { code, .. } => ToAgent::Refusal { code: code.to_owned() },
            Message::Ping => ToAgent::Ping,
            Message::Prepare { term, plan, base } => {
                let Some(agent) = self.links.get(&link).map(|link| link.agent) else { return };
                ToAgent::Command(Command::Prepare(self.prepare(agent, term, plan, &base)))
            }
            Message::Commit { term, plan } => ToAgent::Command(Command::Commit { term, id: plan }),
            Message::Abort { term, plan } => ToAgent::Command(Command::Abort { term, id: plan }),
        };
        if let ToAgent::Command(command) = &message {
            self.commands(b, link, command);
        }
        self.send_to_agent(link, message);
    }

    fn commands(&mut self, b: usize, link: u64, command: &Command) {
        let (term, plan) = command.name();
        let what = match command {
            Command::Prepare(_) => "PREPARE",
            Command::Commit { .. } => "COMMIT",
            Command::Abort { .. } => "ABORT",
            Command::Unreadable { .. } => "unreadable",
        };
        let to = self.links.get(&link).map(|link| link.agent);
        let (epoch, digest) = (plan.0, plan.1.short());
        self.note(format_args!(
            "b{b} sends {what} of plan {epoch} ({digest}) in term {term} to agent {to:?}"
        ));
        let commit = matches!(command, Command::Commit { .. });
        let abort = matches!(command, Command::Abort { .. });
        let unit = to.map(|agent| self.agents[agent].unit);
        let state = self.balancers[b].election().map(election::Election::state);
        let now = self.balancers[b].clock.read(self.now);
        self.see(Seen::Commands { balancer: b, term, state, now, plan, commit, abort, unit });
    }

    /// What one node's slots receive, and from whom.
    fn prepare(&self, agent: usize, term: Term, plan: Arc<Plan>, base: &Arc<Plan>) -> Prepare {
        let topology = self.topology(self.agents[agent].unit);
        let shape = topology.shape();
        let home = topology.nodes().iter().position(|n| *n == self.agents[agent].node);
        let node_of = |slot: u32| topology.node_of(shape.rank_of_slot(slot as usize));
        let moves = plan.diff(base, &topology).moves.into_iter();
        let here = moves.filter(|m| Some(node_of(m.destination)) == home).map(|slot| {
            let source = node_of(slot.source);
            NodeMove { slot, peer: (Some(source) != home).then_some(source) }
        });
        let moves = here.collect();
        let peers = topology.nodes().iter().map(|node| address(super::agent_of(node))).collect();
        let base = (base.epoch, base.digest());
        Prepare { term, plan, base, moves, peers, deadline_ms: settings().limits.prepare_ms }
    }

    fn topology(&self, unit: usize) -> UnitTopology {
        let spec = &self.units[unit];
        let claim = |a: &usize| (self.agents[*a].node.clone(), self.agents[*a].ranks.clone());
        let claims: BTreeMap<_, _> = spec.agents.iter().map(claim).collect();
        UnitTopology::new(spec.id.clone(), spec.shape.clone(), &claims).expect("the run's units are whole")
    }

    pub(super) fn reign_hears_hello(&mut self, b: usize, link: u64, hello: Hello) {
        let Hello { node, unit, shape, ranks, incarnation, applied, term } = hello;
        let claim = Claim { shape, ranks, weights_digest: b"weights".to_vec() };
        let hello = Introduction { node, incarnation, unit, claim, applied, term, reintroduces: true };
        self.reign_event(b, reign::Event::Hello { stream: StreamId(link), hello });
    }

    pub(super) fn reign_hears_result(&mut self, b: usize, link: u64, reply: &Reply) {
        let answer = match &reply.outcome {
            agent::Outcome::Prepared(_) => unit::Answer::Prepared,
            agent::Outcome::Applied { .. } => unit::Answer::Applied,
            agent::Outcome::Aborted => unit::Answer::Aborted,
            agent::Outcome::Refused { code, .. } => unit::Answer::Refused(code.code().to_owned()),
        };
        let (stream, plan) = (StreamId(link), reply.id);
        self.reign_event(b, reign::Event::Result { stream, plan, answer });
    }

    /// The election's news for the reign, which begins once the store's records are read.
    pub(super) fn reign_begins(&mut self, b: usize, term: Term) {
        self.balancers[b].beginning = Some((term, None));
        self.call(b, Purpose::Recover, Request::List(Scope::All));
    }

    pub(super) fn reign_extends(&mut self, b: usize, until: Millis) {
        self.begin_if_ready(b);
        self.reign_event(b, reign::Event::Extend { until });
    }

    pub(super) fn reign_ends(&mut self, b: usize) {
        self.balancers[b].beginning = None;
        self.reign_event(b, reign::Event::End);
    }

    pub(super) fn recovered(&mut self, b: usize, answer: Option<Answer>) {
        let Some((term, None)) = self.balancers[b].beginning else { return };
        let Some(Answer::Listed(records)) = answer else {
            self.plan_balancer(b, RECOVER_MS, super::balancer::Input::Recover { term });
            return;
        };
        let records: BTreeMap<Key, Versioned> = records.into_iter().collect();
        let units = (0..self.units.len()).filter_map(|u| self.recovered_unit(u, &records));
        let state = Recovered { units: units.collect() };
        self.balancers[b].beginning = Some((term, Some(state)));
        self.begin_if_ready(b);
    }

    fn begin_if_ready(&mut self, b: usize) {
        let until = match self.balancers[b].election().map(election::Election::state) {
            Some(State::Leading { until, .. }) => until,
            _ => return,
        };
        let Some((term, state)) = self.balancers[b].beginning.take_if(|(_, state)| state.is_some()) else {
            return;
        };
        let state = state.expect("just seen");
        self.reign_event(b, reign::Event::Begin { term, until, state });
    }

    fn recovered_unit(&self, u: usize, records: &BTreeMap<Key, Versioned>) -> Option<RecoveredUnit> {
        let unit = self.units[u].id.clone();
        let record = |key: &Key| records.get(key).map(|found| found.record.clone());
        let Some(Record::Unit(of)) = record(&Key::Unit(unit.clone())) else { return None };
        let Some(Versioned { record: Record::Plan(name), modified, .. }) =
            records.get(&Key::Head(unit.clone()))
        else {
            return None;
        };
        let stored = |epoch| match record(&Key::Chunk(unit.clone(), epoch, 0)) {
            Some(Record::Chunk(bytes)) => self.plan_of_chunk(&bytes).map(|known| known.plan),
            _ => None,
        };
        let plan = stored(name.epoch)?;
        let parent = plan.parent.and_then(|(epoch, _)| stored(epoch));
        let holds = Holds {
            pins: match record(&Key::Pins(unit.clone())) {
                Some(Record::Pins(pins)) => pins,
                _ => Default::default(),
            },
            drains: match record(&Key::Drains(unit.clone())) {
                Some(Record::Drains(drains)) => drains,
                _ => Default::default(),
            },
            pause: match record(&Key::Pause(unit.clone())) {
                Some(Record::Pause(pause)) => Some(pause),
                _ => None,
            },
        };
        Some(RecoveredUnit { unit, record: of, head: Head { plan, modified: *modified }, parent, holds })
    }

    pub(super) fn operator_asks(&mut self, b: usize, asked: Asked) {
        let balancer = &mut self.balancers[b];
        balancer.orders += 1;
        let ticket = Ticket(balancer.orders);
        balancer.operators.insert(ticket, asked.request.clone());
        let who = asked.request.as_str().to_owned();
        let Asked { request, content, order } = asked;
        let admin = Admin { ticket, who, request, content, order, dry_run: false };
        self.reign_event(b, reign::Event::Admin(admin));
    }

    fn answers_operator(&mut self, b: usize, ticket: Ticket, answer: Result<reign::Answer, OrderError>) {
        let request = self.balancers[b].operators.remove(&ticket);
        let Some(request) = request else {
            return self.see(Seen::AnsweredTwice { balancer: b });
        };
        let text = answer.as_ref().map_or_else(|error| error.code(), |_| "done");
        self.note(format_args!("b{b} answers {}: {text}", request.as_str()));
        self.see(Seen::Answered { request: &request, accepted: answer.is_ok() });
        let open = matches!(
            answer,
            Err(OrderError::NotLeader
                | OrderError::Frozen
                | OrderError::Busy(_)
                | OrderError::Refused
                | OrderError::Store(_)
                | OrderError::OutcomeUnknown)
        );
        self.order_answered(&request, !open);
    }

    pub(super) fn reign_done(&mut self, b: usize, ticket: Ticket, outcome: Result<Outcome, Trouble>) {
        self.reign_event(b, reign::Event::StoreDone { ticket, outcome });
    }

    pub(super) fn reign_read(&mut self, b: usize, ticket: Ticket, keys: &[Key], answer: Option<Answer>) {
        let found = match answer {
            Some(Answer::Listed(records)) => {
                let records: BTreeMap<Key, Versioned> = records.into_iter().collect();
                Ok(keys.iter().map(|key| records.get(key).cloned()).collect())
            }
            _ => Err(Trouble::Away),
        };
        self.reign_event(b, reign::Event::ReadDone { ticket, found });
    }
}
