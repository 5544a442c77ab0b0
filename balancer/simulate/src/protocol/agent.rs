//! An agent's process, modelled around core's machine: sessions, the ledger, staging and flips. What the real shell does in
//! `agent/src/reconcile.rs`, `session.rs` and `start.rs` happens here in virtual time.

use super::check::Seen;
use super::clock::Clock;
use super::disk::{Disk, Record};
use super::network::{End, Hello, ToAgent, ToBalancer};
use super::worker::Worker;
use super::world::{Event, World};
use evenkeel_core::ids::{NodeId, Rank, Term};
use evenkeel_core::plan::Plan;
use evenkeel_core::planted;
use evenkeel_core::protocol::agent::{self, Action, Agent, NodeMove, PlanId, RefusalCode, StreamId};
use evenkeel_core::topology::UnitShape;
use std::collections::VecDeque;
use std::sync::Arc;

/// A stream that has been silent for this long is closed: the protocol's "down".
const SILENCE_MS: u64 = 15_000;
/// A connection attempt that gets no answer.
const CONNECT_MS: u64 = 3_000;
/// A worker that reaches no step boundary for this long after COMMIT hangs.
const FLIP_MS: u64 = 4_000;
/// How often an armed flip is looked at.
const FLIP_POLL_MS: u64 = 20;
/// How often streams are looked at for silence.
const WATCH_MS: u64 = 1_000;
/// Between two reports on a stream.
const REPORT_MS: u64 = 3_000;

/// What happens to an agent's process.
#[derive(Debug, Clone)]
pub(super) enum Input {
    Dial { balancer: usize },
    Message { link: u64, message: ToAgent },
    Closed { link: u64 },
    Machine(agent::Event),
    DiskStep,
    DiskFull,
    StageNext { attempt: u64 },
    FlipPoll { attempt: u64 },
    BootedAtStart { plan: Arc<Plan>, beside: Option<Arc<Plan>> },
    Booted { plan: Arc<Plan> },
    Watch,
    Report,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Persisting {
    Term,
    Plan,
    Staged,
}

#[derive(Debug)]
struct Staging {
    attempt: u64,
    moves: Vec<NodeMove>,
    peers: Vec<String>,
    next: usize,
}

#[derive(Debug)]
struct Flipping {
    attempt: u64,
    plan: PlanId,
    since: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct AgentProcess {
    pub(super) node: NodeId,
    pub(super) unit: usize,
    pub(super) ranks: Vec<Rank>,
    /// Grows with each start of the process.
    pub(super) life: u64,
    /// Runs; `None`: the process is not there, or still opens its state.
    pub(super) machine: Option<Agent>,
    pub(super) host_up: bool,
    pub(super) disk: Disk,
    pub(super) disk_full_until: u64,
    pub(super) worker: Worker,
    pub(super) clock: Clock,
    /// Milliseconds of a step of the workers.
    pub(super) step_ms: u64,
    /// Since when the host is up.
    pub(super) host_since: u64,
    record: Record,
    /// Stream and link of the session with each balancer.
    sessions: Vec<Option<(StreamId, u64)>>,
    failures: Vec<u32>,
    welcomed: Vec<bool>,
    streams: u64,
    /// Term of the last Welcome or command that the machine was given.
    given: Term,
    persisting: Option<Persisting>,
    inbox: VecDeque<Input>,
    staging: Option<Staging>,
    flipping: Option<Flipping>,
    sources_lost: u32,
    /// Everything is staged and waits for COMMIT.
    prepared: bool,
}

impl AgentProcess {
    pub(super) fn new(
        node: NodeId,
        unit: usize,
        ranks: Vec<Rank>,
        worker: Worker,
        step_ms: u64,
        balancers: usize,
    ) -> Self {
        Self {
            node,
            unit,
            ranks,
            life: 0,
            machine: None,
            host_up: true,
            disk: Disk::new(),
            disk_full_until: 0,
            worker,
            clock: Clock::new(0, 0),
            step_ms,
            host_since: 0,
            record: Record::default(),
            sessions: vec![None; balancers],
            failures: vec![0; balancers],
            welcomed: vec![false; balancers],
            streams: 0,
            given: Term::default(),
            persisting: None,
            inbox: VecDeque::new(),
            staging: None,
            flipping: None,
            sources_lost: 0,
            prepared: false,
        }
    }

    /// Whether every balancer has accepted it.
    pub(super) fn is_welcome_everywhere(&self) -> bool {
        self.machine.is_some() && self.welcomed.iter().all(|welcomed| *welcomed)
    }

    /// Forgets disk and workers: the operator starts it without its state.
    pub(super) fn wipe(&mut self, shape: &UnitShape) {
        // What a process that is still starting was about to do is not done any more.
        self.life += 1;
        self.disk.wipe();
        self.worker.lose(shape);
        self.given = Term::default();
        self.sources_lost = 0;
    }

    /// Attempts in a row to stage what no node holds any more.
    pub(super) fn sources_lost(&self) -> u32 {
        self.sources_lost
    }

    /// What the workers do besides: weights are being staged; they are, and COMMIT has not come.
    pub(super) fn work(&self) -> (bool, bool) {
        (self.staging.is_some(), self.prepared)
    }

    /// What waits in queues of the process.
    pub(super) fn waiting(&self) -> usize {
        self.inbox.len()
    }

    fn session_of(&self, link: u64) -> Option<usize> {
        self.sessions.iter().position(|session| session.is_some_and(|(_, of)| of == link))
    }

    fn link_of(&self, stream: StreamId) -> Option<u64> {
        self.sessions.iter().flatten().find(|(of, _)| *of == stream).map(|(_, link)| *link)
    }
}

impl World {
    fn plan_agent(&mut self, a: usize, after: u64, input: Input) {
        let life = self.agents[a].life;
        self.queue.at(self.now + after, Event::Agent { agent: a, life, input });
    }

    /// The process starts: it finds what `agent/src/start.rs` has in its table, and goes on from there.
    pub(super) fn start_agent(&mut self, a: usize) {
        if self.agents[a].machine.is_some() || !self.agents[a].host_up {
            return;
        }
        let agent = &mut self.agents[a];
        agent.life += 1;
        (agent.persisting, agent.staging, agent.flipping) = (None, None, None);
        agent.prepared = false;
        agent.inbox.clear();
        agent.sessions.fill(None);
        agent.welcomed.fill(false);
        let found = agent.disk.open();
        self.see(Seen::AgentOpened { agent: a, found: found.as_ref().ok() });
        let record = found.unwrap_or_default();
        let agent = &mut self.agents[a];
        agent.record = record.clone();
        let served = agent.worker.attach();
        self.trace.note(
            self.now,
            format_args!(
                "{} starts: ledger term {} plan {}, workers {}",
                self.agents[a].node,
                record.term,
                shown(record.plan.as_ref()),
                shown(served.as_ref())
            ),
        );
        match (served, record.plan) {
            (Some(plan), recorded)
                if recorded.as_ref().is_none_or(|recorded| plan.epoch > recorded.epoch)
                    || recorded.as_ref() == Some(&plan) =>
            {
                let agent = &mut self.agents[a];
                if recorded.as_ref() != Some(&plan) {
                    agent.record.beside = recorded;
                }
                agent.record.plan = Some(Arc::clone(&plan));
                let record = agent.record.clone();
                agent.disk.begin(record);
                while !agent.disk.advance() {}
                self.run_agent(a, Some(plan));
            }
            (_, Some(plan)) if !planted!(BootWaitsForBalancer) => {
                let boot = self.random.within(100, 900);
                self.agents[a].worker.stop();
                self.plan_agent(a, boot, Input::BootedAtStart { plan, beside: record.beside });
            }
            _ => self.run_agent(a, None),
        }
    }

    fn run_agent(&mut self, a: usize, applied: Option<Arc<Plan>>) {
        let view = self.node_view(a);
        let agent = &mut self.agents[a];
        agent.machine = Some(Agent::new(view, agent.ranks.clone(), agent.record.term, applied));
        for balancer in 0..self.balancers.len() {
            let wait = self.random.within(0, 100);
            self.plan_agent(a, wait, Input::Dial { balancer });
        }
        self.plan_agent(a, WATCH_MS, Input::Watch);
        self.plan_agent(a, REPORT_MS, Input::Report);
    }

    /// The process dies; with the host's power, if so.
    pub(super) fn stop_agent(&mut self, a: usize, power: bool) {
        let agent = &mut self.agents[a];
        if !agent.host_up || (agent.machine.is_none() && !power) {
            return;
        }
        agent.machine = None;
        agent.life += 1;
        agent.welcomed.fill(false);
        if power {
            agent.disk.lose_power(&mut self.random);
            agent.host_up = false;
            let shape = self.units[agent.unit].shape.clone();
            agent.worker.lose(&shape);
        } else {
            agent.disk.kill();
        }
        let what = if power { "loses power" } else { "is killed" };
        self.trace.note(self.now, format_args!("{} {what}", self.agents[a].node));
        self.drop_links_of(End::Agent, a, power);
    }

    /// The host is there again.
    pub(super) fn power_on(&mut self, a: usize) {
        if !self.agents[a].host_up {
            self.agents[a].host_up = true;
            self.agents[a].host_since = self.now;
            self.start_agent(a);
        }
    }

    pub(super) fn agent_input(&mut self, a: usize, life: u64, input: Input) {
        let agent = &mut self.agents[a];
        if agent.life != life || !agent.host_up {
            return;
        }
        if let Input::BootedAtStart { plan, beside } = input {
            let shape = self.units[agent.unit].shape.clone();
            let ranks = agent.ranks.clone();
            agent.worker.boot(&plan, beside.as_deref(), &shape, &ranks, self.now);
            self.run_agent(a, Some(plan));
            return;
        }
        if agent.machine.is_none() {
            return;
        }
        match input {
            Input::DiskStep => self.disk_step(a),
            Input::DiskFull => self.disk_full(a),
            input if agent.persisting.is_some() => agent.inbox.push_back(input),
            input => self.agent_takes(a, input),
        }
    }

    fn agent_takes(&mut self, a: usize, input: Input) {
        match input {
            Input::Dial { balancer } => self.dial(a, balancer),
            Input::Message { link, message } => self.agent_hears(a, link, message),
            Input::Closed { link } => self.session_over(a, link, false),
            Input::Machine(event) => self.agent_event(a, event),
            Input::StageNext { attempt } => self.stage_next(a, attempt),
            Input::FlipPoll { attempt } => self.flip_poll(a, attempt),
            Input::Booted { plan } => {
                let agent = &mut self.agents[a];
                let shape = self.units[agent.unit].shape.clone();
                let ranks = agent.ranks.clone();
                agent.worker.boot(&plan, None, &shape, &ranks, self.now);
                agent.worker.rejoins = true;
                self.agent_event(a, agent::Event::Booted);
            }
            Input::Watch => self.watch_streams(a),
            Input::Report => {
                let links: Vec<u64> = self.agents[a].sessions.iter().flatten().map(|(_, l)| *l).collect();
                for link in links {
                    self.send_to_balancer(link, ToBalancer::Report);
                }
                self.plan_agent(a, REPORT_MS, Input::Report);
            }
            Input::BootedAtStart { .. } | Input::DiskStep | Input::DiskFull => {
                unreachable!("taken by the caller")
            }
        }
    }

    fn dial(&mut self, a: usize, balancer: usize) {
        if self.agents[a].sessions[balancer].is_some() {
            return;
        }
        let cut = self.partitions.contains_key(&(a, balancer));
        if cut || !self.balancers[balancer].is_up() {
            let wait = if cut { CONNECT_MS } else { 1 };
            self.redial(a, balancer, wait);
            return;
        }
        let link = self.open_link(a, balancer);
        let agent = &mut self.agents[a];
        agent.streams += 1;
        let stream = StreamId(agent.streams);
        agent.sessions[balancer] = Some((stream, link));
        self.agent_event(a, agent::Event::Connected { stream });
        self.introduce(a, link);
    }

    /// With full jitter, as the protocol has it.
    fn redial(&mut self, a: usize, balancer: usize, after: u64) {
        let failures = &mut self.agents[a].failures[balancer];
        *failures += 1;
        let most = (100u64 << (*failures).min(6)).min(5_000);
        let wait = after + self.random.below(most);
        self.plan_agent(a, wait, Input::Dial { balancer });
    }

    fn introduce(&mut self, a: usize, link: u64) {
        let agent = &self.agents[a];
        let machine = agent.machine.as_ref().expect("a process that runs");
        let spec = &self.units[agent.unit];
        let hello = Hello {
            node: agent.node.clone(),
            unit: spec.id.clone(),
            shape: spec.shape.clone(),
            ranks: agent.ranks.clone(),
            incarnation: agent.life,
            applied: machine.applied(),
            term: machine.seen(),
        };
        self.send_to_balancer(link, ToBalancer::Hello(hello));
    }

    fn agent_hears(&mut self, a: usize, link: u64, message: ToAgent) {
        let agent = &mut self.agents[a];
        let Some(balancer) = agent.session_of(link) else { return };
        let (stream, _) = agent.sessions[balancer].expect("just found");
        match message {
            ToAgent::Ping => self.send_to_balancer(link, ToBalancer::Report),
            ToAgent::Refusal { code } => {
                self.trace.note(
                    self.now,
                    format_args!("{} is refused by b{balancer}: {code}", self.agents[a].node),
                );
                self.refusals.insert(code);
                self.session_over(a, link, true);
            }
            ToAgent::Welcome { role, term, boot_plan } => {
                agent.failures[balancer] = 0;
                agent.welcomed[balancer] = true;
                self.agent_event(a, agent::Event::Welcomed { stream, role, term, boot_plan });
            }
            ToAgent::Command(command) => {
                self.agent_event(a, agent::Event::Command { stream, command });
            }
        }
    }

    fn session_over(&mut self, a: usize, link: u64, close: bool) {
        let Some(balancer) = self.agents[a].session_of(link) else { return };
        let (stream, _) = self.agents[a].sessions[balancer].take().expect("just found");
        self.agents[a].welcomed[balancer] = false;
        if close {
            self.close_link(link, End::Agent);
        }
        self.agent_event(a, agent::Event::Disconnected { stream });
        self.redial(a, balancer, 0);
    }

    fn watch_streams(&mut self, a: usize) {
        let links: Vec<u64> = self.agents[a].sessions.iter().flatten().map(|(_, link)| *link).collect();
        for link in links {
            let heard = self.links.get(&link).map(|l| l.heard[End::Agent as usize]);
            if heard.is_none_or(|heard| self.now >= heard + SILENCE_MS) {
                self.session_over(a, link, true);
            }
        }
        self.plan_agent(a, WATCH_MS, Input::Watch);
    }

    fn agent_event(&mut self, a: usize, event: agent::Event) {
        let agent = &mut self.agents[a];
        let Some(machine) = &mut agent.machine else { return };
        match &event {
            agent::Event::Welcomed { term, .. } => agent.given = *term,
            agent::Event::Command { command, .. } => agent.given = command.name().0,
            _ => {}
        }
        let now = agent.clock.read(self.now);
        let before = machine.term();
        let actions = machine.on(event, now);
        let (term, deadline) = (machine.term(), machine.deadline());
        if let Some(deadline) = deadline {
            let at = agent.clock.when(deadline, self.now);
            let life = agent.life;
            let input = Input::Machine(agent::Event::Tick);
            self.queue.at(at.max(self.now + 1), Event::Agent { agent: a, life, input });
        }
        if term != before {
            self.see(Seen::AgentAdopted { agent: a, term });
        }
        for action in actions {
            self.agent_act(a, action);
        }
    }

    fn agent_act(&mut self, a: usize, action: Action) {
        match action {
            Action::PersistTerm(term) => {
                let record = Record { term, ..self.agents[a].record.clone() };
                self.persist(a, record, Persisting::Term);
            }
            Action::PersistStaged(plan) => {
                let record = Record { beside: Some(plan), ..self.agents[a].record.clone() };
                self.persist(a, record, Persisting::Staged);
            }
            Action::PersistPlan { plan, before } => {
                let mut record = Record { plan: Some(plan), beside: before, ..self.agents[a].record.clone() };
                if planted!(PlanWriteDropsTerm) {
                    record.term = Term::default();
                }
                self.persist(a, record, Persisting::Plan);
            }
            Action::Boot(plan) => {
                self.trace
                    .note(self.now, format_args!("{} boots with plan {}", self.agents[a].node, plan.epoch));
                self.acted(a);
                self.agents[a].worker.stop();
                let wait = self.random.within(100, 600);
                self.plan_agent(a, wait, Input::Booted { plan });
            }
            Action::Stage { attempt, plan, moves, peers } => {
                self.trace.note(
                    self.now,
                    format_args!(
                        "{} stages plan {} ({}), {} moves",
                        self.agents[a].node,
                        plan.epoch,
                        plan.digest().short(),
                        moves.len()
                    ),
                );
                self.acted(a);
                self.see(Seen::Stages { agent: a, plan: (plan.epoch, plan.digest()) });
                self.agents[a].staging = Some(Staging { attempt, moves, peers, next: 0 });
                let wait = self.stage_time();
                self.plan_agent(a, wait, Input::StageNext { attempt });
            }
            Action::Unstage { attempt } => {
                self.agents[a].prepared = false;
                self.agents[a].staging.take_if(|staging| staging.attempt == attempt);
            }
            Action::Flip { attempt, plan } => {
                self.acted(a);
                let id = (plan.epoch, plan.digest());
                self.see(Seen::Flips { agent: a, plan: id });
                let agent = &mut self.agents[a];
                agent.prepared = false;
                agent.worker.arm(plan, self.now);
                agent.flipping = Some(Flipping { attempt, plan: id, since: self.now });
                self.plan_agent(a, FLIP_POLL_MS, Input::FlipPoll { attempt });
            }
            Action::Reply { stream, reply } => {
                self.trace.note(
                    self.now,
                    format_args!(
                        "{} answers about plan {} ({}) in term {}: {}",
                        self.agents[a].node,
                        reply.id.0,
                        reply.id.1.short(),
                        reply.term,
                        outcome(&reply.outcome)
                    ),
                );
                self.see(Seen::Replied { agent: a, reply: &reply });
                if let Some(link) = self.agents[a].link_of(stream) {
                    self.send_to_balancer(link, ToBalancer::Result(reply));
                }
            }
            Action::Introduce { stream } => {
                if let Some(link) = self.agents[a].link_of(stream) {
                    self.introduce(a, link);
                }
            }
            Action::CloseStream { stream, .. } => {
                if let Some(link) = self.agents[a].link_of(stream) {
                    self.session_over(a, link, true);
                }
            }
        }
    }

    fn acted(&mut self, a: usize) {
        let term = self.agents[a].given;
        self.see(Seen::AgentActed { agent: a, term });
    }

    fn persist(&mut self, a: usize, record: Record, what: Persisting) {
        let agent = &mut self.agents[a];
        agent.persisting = Some(what);
        let wait = self.random.within(0, 3);
        if agent.disk_full_until > self.now {
            self.plan_agent(a, wait, Input::DiskFull);
            return;
        }
        agent.disk.begin(record.clone());
        agent.record = record;
        self.plan_agent(a, wait, Input::DiskStep);
    }

    fn disk_step(&mut self, a: usize) {
        if !self.agents[a].disk.advance() {
            let wait = self.random.within(0, 3);
            self.plan_agent(a, wait, Input::DiskStep);
            return;
        }
        let event = match self.agents[a].persisting.take() {
            Some(Persisting::Term) => agent::Event::TermPersisted,
            Some(Persisting::Plan) => agent::Event::PlanPersisted,
            Some(Persisting::Staged) => agent::Event::StagedPersisted,
            None => return,
        };
        self.agent_event(a, event);
        self.drain_inbox(a);
    }

    fn disk_full(&mut self, a: usize) {
        let (code, message) = (RefusalCode::DiskFull, String::new());
        let event = match self.agents[a].persisting.take() {
            Some(Persisting::Term) => agent::Event::TermNotPersisted { code, message },
            Some(Persisting::Plan) => agent::Event::PlanNotPersisted { code, message },
            Some(Persisting::Staged) => agent::Event::StagedNotPersisted { code, message },
            None => return,
        };
        self.agent_event(a, event);
        self.drain_inbox(a);
    }

    fn drain_inbox(&mut self, a: usize) {
        while self.agents[a].persisting.is_none() && self.agents[a].machine.is_some() {
            let Some(input) = self.agents[a].inbox.pop_front() else { return };
            self.agent_takes(a, input);
        }
    }

    fn stage_time(&mut self) -> u64 {
        if self.faulty && self.faults.slow_staging && self.random.permille(50) {
            self.random.within(2_000, 9_000)
        } else {
            self.random.within(2, 60)
        }
    }

    fn stage_next(&mut self, a: usize, attempt: u64) {
        let failing = self.faulty && self.faults.staging_fails && self.random.permille(40);
        let Some(staging) = self.agents[a].staging.as_mut().filter(|s| s.attempt == attempt) else { return };
        let moves =
            staging.moves.len() - usize::from(planted!(StagingStopsEarly) && !staging.moves.is_empty());
        let Some(next) = staging.moves[..moves].get(staging.next).copied() else {
            (self.agents[a].staging, self.agents[a].sources_lost) = (None, 0);
            self.agents[a].prepared = true;
            self.agent_event(a, agent::Event::Staged { attempt, tally: Default::default() });
            return;
        };
        staging.next += 1;
        let source = next.peer.map_or(a, |peer| agent_at(&staging.peers[peer]));
        // Verified bytes stay: other nodes may have flipped to tables that name them.
        let there = self.agents[a].worker.holds(next.slot.layer.index(), next.slot.destination as usize);
        if there == Some(next.slot.expert) && !planted!(StagedAgain) {
            let wait = self.stage_time();
            self.plan_agent(a, wait, Input::StageNext { attempt });
            return;
        }
        let failed = |code| agent::Event::StageFailed { attempt, code, message: String::new() };
        if failing || self.agents[source].machine.is_none() {
            self.agents[a].staging = None;
            self.agent_event(a, failed(RefusalCode::SourceUnreachable));
            return;
        }
        // Bytes that were damaged on their way are no expert's.
        let damaged = self.faulty && self.faults.staging_fails && self.random.permille(30);
        let content = self.agents[source].worker.holds(next.slot.layer.index(), next.slot.source as usize);
        let content = content.filter(|_| !damaged);
        self.agents[a].worker.write(&next.slot, content);
        if content != Some(next.slot.expert) && !planted!(StagedBytesNotVerified) {
            self.agents[a].staging = None;
            self.agents[a].sources_lost += 1;
            self.agent_event(a, failed(RefusalCode::FingerprintMismatch));
            return;
        }
        let wait = self.stage_time();
        self.plan_agent(a, wait, Input::StageNext { attempt });
    }

    fn flip_poll(&mut self, a: usize, attempt: u64) {
        let agent = &mut self.agents[a];
        let Some(flipping) = agent.flipping.as_ref().filter(|f| f.attempt == attempt) else { return };
        let serves = agent.worker.tables().is_some_and(|plan| (plan.epoch, plan.digest()) == flipping.plan);
        let (hangs, elapsed) = (self.now >= flipping.since + FLIP_MS, self.now - flipping.since);
        if serves || hangs {
            agent.flipping = None;
        }
        if serves {
            self.agent_event(a, agent::Event::Flipped { attempt, elapsed_us: elapsed * 1000 });
        } else if hangs {
            self.agent_event(a, agent::Event::FlipFailed { attempt, message: String::new() });
        } else {
            self.plan_agent(a, FLIP_POLL_MS, Input::FlipPoll { attempt });
        }
    }
}

/// How agents are addressed in the plans' peers.
pub(super) fn address(agent: usize) -> String {
    format!("agent-{agent}")
}

fn agent_at(address: &str) -> usize {
    let number = address.strip_prefix("agent-").and_then(|number| number.parse().ok());
    number.expect("balancers pass on the addresses that agents have")
}

fn shown(plan: Option<&Arc<Plan>>) -> String {
    plan.map_or_else(|| "none".to_owned(), |plan| format!("{} ({})", plan.epoch, plan.digest().short()))
}

fn outcome(outcome: &agent::Outcome) -> &'static str {
    match outcome {
        agent::Outcome::Prepared(_) => "prepared",
        agent::Outcome::Applied { .. } => "applied",
        agent::Outcome::Aborted => "aborted",
        agent::Outcome::Refused { code, .. } => code.code(),
    }
}
