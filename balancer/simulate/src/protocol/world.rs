//! The world of one run: processes, network, store and time, all drawn from one seed.

use super::agent::{self, AgentProcess};
use super::balancer::{self, BalancerProcess};
use super::check::{Checks, Failure, Seen};
use super::faults::{Fault, Faults};
use super::network::{End, Link, ToAgent, ToBalancer};
use super::random::Random;
use super::reigning::Asked;
use super::schedule::Schedule;
use super::store::{Answer, Reach, Request, Store};
use super::trace::Trace;
use super::worker::Worker;
use super::{node_id, shape, unit_id};
use evenkeel_core::ids::{Digest, Epoch, Rank, UnitId};
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::agent::{PlanId, node_view};
use evenkeel_core::protocol::election::State;
use evenkeel_core::protocol::reign::{Reign, Unit};
use evenkeel_core::records::{Key, Record, Revision, Scope};
use evenkeel_core::topology::{UnitShape, UnitTopology};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// Milliseconds of trouble in a run: some ten terms and as many plans.
const TROUBLE_MS: u64 = 60_000;
/// After trouble, everything is back to normal within this time: a lease, a silent stream and a failed plan, one after the
/// other, with room.
pub(super) const QUIET_MS: u64 = 90_000;
/// How often a plan is proposed, on average.
const PROPOSE_MS: u64 = 700;
/// How often what is slow to check is checked.
const SURVEY_MS: u64 = 500;
/// How often leases are looked at.
const LEASES_MS: u64 = 20;

/// Everything that happens.
#[derive(Debug)]
pub(super) enum Event {
    StartBalancer(usize),
    StartAgent(usize),
    Balancer { balancer: usize, life: u64, input: balancer::Input },
    Agent { agent: usize, life: u64, input: agent::Input },
    ToBalancer { link: u64, message: ToBalancer },
    ToAgent { link: u64, message: ToAgent },
    LinkClosed { link: u64, end: End },
    StoreCall { balancer: usize, life: u64, call: u64, request: Request },
    StoreAway,
    StoreBack,
    Leases,
    WorkerStep(usize),
    Fault { fault: Fault, mean: u64 },
    Heal { agent: usize, balancer: usize },
    Operator,
    Propose,
    Survey,
    Quiet,
}

/// A unit of the run.
#[derive(Debug)]
pub(super) struct UnitSpec {
    pub(super) id: UnitId,
    pub(super) shape: UnitShape,
    /// The agents that run it.
    pub(super) agents: Vec<usize>,
}

/// A plan by its digest.
#[derive(Debug, Clone)]
pub(super) struct KnownPlan {
    pub(super) digest: Digest,
    pub(super) plan: Arc<Plan>,
}

/// An order of the operator.
#[derive(Debug)]
pub(super) struct Ordered {
    pub(super) asked: Asked,
    pub(super) answered: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct World {
    pub(super) now: u64,
    pub(super) random: Random,
    pub(super) queue: Schedule<Event>,
    pub(super) faults: Faults,
    /// Trouble is on.
    pub(super) faulty: bool,
    pub(super) store: Store,
    pub(super) units: Vec<UnitSpec>,
    pub(super) balancers: Vec<BalancerProcess>,
    pub(super) agents: Vec<AgentProcess>,
    pub(super) links: BTreeMap<u64, Link>,
    pub(super) links_made: u64,
    pub(super) calls_made: u64,
    pub(super) refused_calls: BTreeSet<u64>,
    /// Which agent and balancer do not reach each other, and until when.
    pub(super) partitions: BTreeMap<(usize, usize), u64>,
    /// Codes of refusals that agents were given.
    pub(super) refusals: BTreeSet<String>,
    /// Times that the store was put back.
    pub(super) restores: u64,
    /// When it was last put back.
    pub(super) restored_at: u64,
    /// The operator adopts the restored store, asked or not, before any node is started without its state.
    pub(super) to_adopt: bool,
    /// When trouble ended.
    pub(super) quiet_since: u64,
    /// Trouble lasts at least until then.
    quiet_from: u64,
    unheard_restores: BTreeSet<usize>,
    plans: BTreeMap<Digest, Arc<Plan>>,
    pub(super) asked: Vec<Ordered>,
    /// The last plan that was proposed for each unit.
    pub(super) last_proposed: Vec<Option<Arc<Plan>>>,
    pub(super) orders: u64,
    pub(super) trace: Trace,
    checks: Checks,
    failure: Option<Failure>,
}

impl World {
    pub(super) fn new(seed: u64, printed: bool) -> Self {
        let mut random = Random::new(seed);
        let faults = Faults::draw(&mut random);
        let balancers = random.within(1, 3) as usize;
        let mut world = Self {
            now: 0,
            queue: Schedule::new(),
            faulty: true,
            store: Store::new(),
            units: Vec::new(),
            balancers: (0..balancers).map(|b| BalancerProcess::new(format!("b{b}"))).collect(),
            agents: Vec::new(),
            links: BTreeMap::new(),
            links_made: 0,
            calls_made: 0,
            refused_calls: BTreeSet::new(),
            partitions: BTreeMap::new(),
            refusals: BTreeSet::new(),
            restores: 0,
            restored_at: 0,
            to_adopt: false,
            quiet_since: u64::MAX,
            quiet_from: TROUBLE_MS,
            unheard_restores: BTreeSet::new(),
            plans: BTreeMap::new(),
            asked: Vec::new(),
            last_proposed: Vec::new(),
            orders: 0,
            trace: Trace::new(printed),
            checks: Checks::default(),
            failure: None,
            random,
            faults,
        };
        world.furnish();
        world.set_going();
        world
    }

    fn furnish(&mut self) {
        let units = self.random.within(1, 2) as usize;
        for u in 0..units {
            let nodes = self.random.within(2, 3) as usize;
            let ranks_per_node = self.random.within(1, 2) as u16;
            let shape = shape(&mut self.random, nodes as u16 * ranks_per_node);
            let boot = Plan::boot(unit_id(u), &shape);
            self.know(boot);
            let mut agents = Vec::new();
            for n in 0..nodes as u16 {
                let a = self.agents.len();
                let ranks = (n * ranks_per_node..(n + 1) * ranks_per_node).map(Rank).collect();
                let step_ms = self.random.within(30, 80);
                let worker = Worker::new(&shape);
                self.agents.push(AgentProcess::new(
                    node_id(a),
                    u,
                    ranks,
                    worker,
                    step_ms,
                    self.balancers.len(),
                ));
                agents.push(a);
            }
            self.last_proposed.push(None);
            self.units.push(UnitSpec { id: unit_id(u), shape, agents });
        }
    }

    fn set_going(&mut self) {
        let kinds = self.faults.kinds.clone();
        self.trace.note(0, format_args!("trouble: {:?}", self.faults));
        for b in 0..self.balancers.len() {
            let wait = self.random.below(300);
            self.queue.at(wait, Event::StartBalancer(b));
        }
        for a in 0..self.agents.len() {
            let wait = self.random.below(500);
            self.queue.at(wait, Event::StartAgent(a));
            self.queue.at(self.agents[a].step_ms, Event::WorkerStep(a));
        }
        for (fault, mean) in kinds {
            self.plan_fault(fault, mean);
        }
        self.queue.at(LEASES_MS, Event::Leases);
        self.queue.at(1_000, Event::Operator);
        self.queue.at(1_000, Event::Propose);
        self.queue.at(SURVEY_MS, Event::Survey);
        self.queue.at(TROUBLE_MS, Event::Quiet);
    }

    /// Instead of all other trouble: the store is away, once the first plans are through, for so many milliseconds.
    pub(super) fn only_without_store(&mut self, time_ms: u64) {
        let from = TROUBLE_MS / 3;
        self.faulty = false;
        self.quiet_from = from + time_ms;
        self.queue.at(from, Event::StoreAway);
    }

    /// Runs to the end; the failure, if an invariant broke.
    pub(super) fn run(&mut self) -> Option<Failure> {
        while self.failure.is_none() {
            let Some((at, event)) = self.queue.pop() else { break };
            debug_assert!(at >= self.now, "time goes forward");
            self.now = at;
            if self.quiet_since != u64::MAX && self.is_converged() {
                break;
            }
            self.take(event);
            self.after_step();
        }
        self.failure.take()
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::StartBalancer(b) => self.start_balancer(b),
            Event::StartAgent(a) => {
                self.power_on(a);
                self.start_agent(a);
            }
            Event::Balancer { balancer, life, input } => self.balancer_input(balancer, life, input),
            Event::Agent { agent, life, input } => self.agent_input(agent, life, input),
            Event::ToBalancer { link, message } => self.arrives_at_balancer(link, message),
            Event::ToAgent { link, message } => self.arrives_at_agent(link, message),
            Event::LinkClosed { link, end } => self.on_link_closed(link, end),
            Event::StoreCall { balancer, life, call, request } => {
                self.store_call(balancer, life, call, &request);
            }
            Event::StoreBack => self.store.reach = Reach::Up,
            Event::Leases => {
                self.expire_leases();
                self.queue.at(self.now + LEASES_MS, Event::Leases);
            }
            Event::WorkerStep(a) => {
                let agent = &mut self.agents[a];
                let (staging, prepared) = agent.work();
                agent.worker.step(self.now, staging, prepared);
                let at = self.now + agent.step_ms;
                self.queue.at(at, Event::WorkerStep(a));
            }
            Event::Fault { fault, mean } => {
                if self.faulty {
                    self.fault(fault);
                    self.plan_fault(fault, mean);
                }
            }
            Event::Heal { agent, balancer } => {
                let healed = self.partitions.get(&(agent, balancer)).is_some_and(|until| *until <= self.now);
                if healed {
                    self.partitions.remove(&(agent, balancer));
                }
            }
            Event::Operator => self.operate(),
            Event::Propose => self.propose_somewhere(),
            Event::Survey => {
                self.survey();
                self.queue.at(self.now + SURVEY_MS, Event::Survey);
            }
            Event::StoreAway => self.store.reach = Reach::Silent,
            Event::Quiet if self.now < self.quiet_from => self.queue.at(self.quiet_from, Event::Quiet),
            Event::Quiet => {
                self.quiet_since = self.now;
                self.heal();
            }
        }
    }

    fn arrives_at_balancer(&mut self, link: u64, message: ToBalancer) {
        if !self.arrives(link, End::Balancer) {
            return;
        }
        let (balancer, life) = (self.links[&link].balancer, self.links[&link].lives[1]);
        self.balancer_input(balancer, life, balancer::Input::Message { link, message });
    }

    fn arrives_at_agent(&mut self, link: u64, message: ToAgent) {
        if !self.arrives(link, End::Agent) {
            return;
        }
        let (agent, life) = (self.links[&link].agent, self.links[&link].lives[0]);
        self.agent_input(agent, life, agent::Input::Message { link, message });
    }

    fn on_link_closed(&mut self, link: u64, end: End) {
        let Some(of) = self.links.get(&link) else { return };
        let (agent, balancer, lives) = (of.agent, of.balancer, of.lives);
        if !self.link_closed(link, end) {
            return;
        }
        match end {
            End::Agent => self.agent_input(agent, lives[0], agent::Input::Closed { link }),
            End::Balancer => self.balancer_input(balancer, lives[1], balancer::Input::Closed { link }),
        }
    }

    /// Who leads, as far as it knows.
    pub(super) fn leading(&self) -> Option<usize> {
        let leads = |b: &BalancerProcess| {
            b.election().is_some_and(|election| matches!(election.state(), State::Leading { .. }))
        };
        self.balancers.iter().position(leads)
    }

    /// The store carries out a request; the checks see what it changed.
    pub(super) fn ask_store(&mut self, request: &Request) -> Answer {
        let before = self.store.memory.revision();
        let answer = self.store.carry_out(request, self.now);
        self.store_changed(before);
        answer
    }

    fn expire_leases(&mut self) {
        if self.store.reach == Reach::Up {
            let before = self.store.memory.revision();
            self.store.expire(self.now);
            self.store_changed(before);
        }
    }

    fn store_changed(&mut self, before: Revision) {
        if self.store.memory.revision() == before {
            return;
        }
        let changes = self.store.memory.changes_after(before, &Scope::All).unwrap_or_default();
        for change in &changes {
            if !matches!(change.key, Key::Chunk(..)) {
                let what = change.now.as_ref().map_or("deleted", |_| "put");
                self.note(format_args!("store {}: {:?} {what}", change.revision.0, change.key));
            }
        }
        let term = self.store.term();
        self.see(Seen::Changed { changes: &changes, term });
        self.wake_watches();
    }

    /// An operator puts a backup in place; the balancers notice by their watches. Agents that serve what the backup does not
    /// know are started without their state.
    pub(super) fn restore(&mut self) {
        if !self.store.restore(&mut self.random) {
            return;
        }
        (self.restores, self.restored_at) = (self.restores + 1, self.now);
        self.note(format_args!("the store is put back to revision {}", self.store.memory.revision().0));
        self.to_adopt = self.random.permille(500);
        self.unheard_restores = (0..self.balancers.len()).collect();
        self.see(Seen::Restored);
        self.wake_watches();
    }

    /// A unit whose agents serve what the backup does not know is started without its state.
    pub(super) fn wipe_if_ahead(&mut self, unit: usize) {
        let head = self.head_in_store(&self.units[unit].id);
        let parent = head.and_then(|head| self.plans[&head.1].parent);
        let agents = self.units[unit].agents.clone();
        let ahead = |a: &usize| {
            let served = self.agents[*a].worker.tables().cloned();
            let recorded = self.agents[*a].disk.open().ok().and_then(|record| record.plan);
            let mut plans = [served, recorded].into_iter().flatten();
            plans.any(|plan| {
                let id = (plan.epoch, plan.digest());
                Some(id) != head && Some(id) != parent && (head.is_some() || plan.epoch != Epoch::BOOT)
            })
        };
        if !agents.iter().any(ahead) {
            return;
        }
        agents.into_iter().for_each(|a| self.start_without_state(a));
    }

    pub(super) fn start_without_state(&mut self, a: usize) {
        self.stop_agent(a, false);
        let shape = self.units[self.agents[a].unit].shape.clone();
        self.agents[a].wipe(&shape);
        self.note(format_args!("agent {a} is started without its state"));
        self.see(Seen::Wiped { agent: a });
        self.queue.at(self.now + 200, Event::StartAgent(a));
    }

    pub(super) fn head_in_store(&self, unit: &UnitId) -> Option<PlanId> {
        match self.store.memory.get(&Key::Head(unit.clone())).map(|found| &found.record) {
            Some(Record::Plan(plan)) => Some((plan.epoch, plan.digest)),
            _ => None,
        }
    }

    /// What every balancer is, for messages.
    pub(super) fn elections(&self) -> Vec<Option<State>> {
        self.balancers.iter().map(|b| b.election().map(|election| election.state())).collect()
    }

    /// Whether a plan that a unit serves is not known to a store that was put back.
    pub(super) fn is_ahead_of_store(&self, unit: usize, epoch: Epoch) -> bool {
        let head = self.head_in_store(&self.units[unit].id);
        self.restores > 0 && head.is_none_or(|head| epoch > head.0)
    }

    /// Whether a plan that a unit serves is none that a store that was put back rolls forward.
    pub(super) fn is_foreign_to_store(&self, unit: usize, plan: PlanId) -> bool {
        let head = self.head_in_store(&self.units[unit].id);
        let parent = head.and_then(|head| self.plans[&head.1].parent);
        self.restores > 0 && head != Some(plan) && parent != Some(plan)
    }

    pub(super) fn may_command(&self, b: usize) -> bool {
        self.balancers[b].may_command(self.now)
    }

    /// Grows with all that changes slots or tables of any node.
    pub(super) fn worker_changes(&self) -> u64 {
        self.agents.iter().map(|agent| agent.worker.changes).sum()
    }

    fn unit_of(&self, b: usize, unit: usize) -> Option<&Unit> {
        self.balancers[b].reign()?.units().get(&self.units[unit].id)
    }

    /// Whether a unit is settled at a balancer, and its head there.
    pub(super) fn unit_at(&self, b: usize, unit: usize) -> (bool, Option<PlanId>) {
        let Some(formed) = self.unit_of(b, unit).and_then(Unit::formed) else { return (false, None) };
        (formed.control().can_propose(), Some(formed.control().head_id()))
    }

    pub(super) fn unit_shown(&self, b: usize, unit: usize) -> String {
        let Some(of) = self.unit_of(b, unit) else { return "unknown".to_owned() };
        let present: Vec<usize> = of.present().keys().map(super::agent_of).collect();
        let control = of.formed().map(|formed| formed.control());
        let standings: Vec<_> = control.map(|control| control.standings().collect()).unwrap_or_default();
        format!("{:?}, present {present:?}, {standings:?}", control.map(|control| control.activity()))
    }

    pub(super) fn leader_sizes(&self, b: usize) -> Vec<(&'static str, usize)> {
        let names = ["streams", "units", "calls", "orders", "held commands"];
        let sizes = self.balancers[b].reign().map(Reign::sizes);
        sizes.map_or_else(Vec::new, |sizes| names.into_iter().zip(sizes).collect())
    }

    /// Plans that were committed.
    pub(super) fn committed(&self) -> u64 {
        let heads = self.units.iter().filter_map(|unit| self.head_in_store(&unit.id));
        // Those of the last generation: earlier ones end where nobody looks any more.
        heads.map(|head| head.0.0 % Epoch::PER_GENERATION).sum()
    }

    pub(super) fn store_restored_for(&mut self, b: usize) -> bool {
        self.unheard_restores.remove(&b)
    }

    pub(super) fn know(&mut self, plan: Plan) -> Arc<Plan> {
        let plan = Arc::new(plan);
        self.plans.insert(plan.digest(), Arc::clone(&plan));
        plan
    }

    /// The plan that was committed under an epoch.
    pub(super) fn committed_plan(&self, unit: &UnitId, epoch: Epoch) -> Option<Arc<Plan>> {
        match &self.store.memory.get(&Key::Manifest(unit.clone(), epoch))?.record {
            Record::Manifest(manifest) => self.plans.get(&manifest.name.digest).cloned(),
            _ => None,
        }
    }

    pub(super) fn plan_of(&self, digest: Digest) -> Option<&Arc<Plan>> {
        self.plans.get(&digest)
    }

    /// The plan that a chunk is a part of: chunks of this world are a number and the plan's digest.
    pub(super) fn plan_of_chunk(&self, bytes: &[u8]) -> Option<KnownPlan> {
        let (digest, parent) = bytes.get(1..)?.split_at_checked(32)?;
        let digest = Digest(digest.try_into().ok()?);
        let plan = self.plans.get(&digest)?;
        let parent = (!parent.is_empty()).then(|| parent.try_into().map(Digest)).transpose().ok()?;
        let same = plan.parent.map(|(_, digest)| digest) == parent;
        let parent = || parent.zip(plan.epoch.0.checked_sub(1)).map(|(digest, epoch)| (Epoch(epoch), digest));
        let plan =
            if same { Arc::clone(plan) } else { Arc::new(Plan { parent: parent(), ..(**plan).clone() }) };
        Some(KnownPlan { digest, plan })
    }

    pub(super) fn node_view(&self, a: usize) -> UnitTopology {
        let agent = &self.agents[a];
        let spec = &self.units[agent.unit];
        node_view(spec.id.clone(), spec.shape.clone(), &agent.node, &agent.ranks)
            .expect("the run's units are whole")
    }

    fn propose_somewhere(&mut self) {
        let wait = self.random.gap(PROPOSE_MS);
        self.queue.at(self.now + wait, Event::Propose);
        let unit = self.random.index(self.units.len());
        let Some(b) = self.leading() else { return };
        let life = self.balancers[b].life;
        self.queue
            .at(self.now, Event::Balancer { balancer: b, life, input: balancer::Input::Propose { unit } });
        // A pause between the last answer and the commit, or between the commit and its COMMITs.
        if self.faulty
            && self.faults.kinds.iter().any(|(fault, _)| *fault == Fault::PauseBalancer)
            && self.random.permille(100)
        {
            self.pause_before_deeds(b);
        }
    }

    pub(super) fn hand_over(&mut self, to: usize) {
        let Some(b) = self.leading() else { return };
        let to = self.random.permille(500).then(|| self.balancers[to].name.clone());
        self.note(format_args!("b{b} is asked to hand over to {to:?}"));
        let life = self.balancers[b].life;
        let input = balancer::Input::HandOver { to };
        self.queue.at(self.now + 1, Event::Balancer { balancer: b, life, input });
    }

    pub(super) fn note(&mut self, what: fmt::Arguments<'_>) {
        self.trace.note(self.now, what);
    }

    pub(super) fn see(&mut self, seen: Seen<'_>) {
        let mut checks = std::mem::take(&mut self.checks);
        if let Err(failure) = checks.see(self, &seen) {
            self.failure.get_or_insert(failure);
        }
        self.checks = checks;
    }

    fn after_step(&mut self) {
        let mut checks = std::mem::take(&mut self.checks);
        if let Err(failure) = checks.after_step(self) {
            self.failure.get_or_insert(failure);
        }
        self.checks = checks;
    }

    fn survey(&mut self) {
        let mut checks = std::mem::take(&mut self.checks);
        if let Err(failure) = checks.survey(self) {
            self.failure.get_or_insert(failure);
        }
        self.checks = checks;
    }

    fn is_converged(&self) -> bool {
        self.checks.converged
    }
}
