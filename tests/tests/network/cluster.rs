//! Balancers, agents and a store on the hosts of one simulation, the faults that strike them, and what must hold at every
//! moment of it.

use super::agent;
use super::balancer;
use super::engine::{Traffic, WINDOW_STEPS};
use super::store::StoreHost;
use evenkeel::certificates::{Authority, Issue};
use evenkeel::config::{Config as BalancerConfig, Control, Election, Experts};
use evenkeel::election::Standing;
use evenkeel_agent::config::{Config as AgentConfig, Output, TlsFlags, VerifyFlags};
use evenkeel_agent::ledger::{Ledger, Record};
use evenkeel_agent::verify;
use evenkeel_core::ids::{NodeId, Rank, Term, UnitId};
use evenkeel_core::protocol::agent::PlanId;
use evenkeel_core::records::{Record as Stored, Scope};
use evenkeel_core::topology::{Role, UnitShape};
use evenkeel_proto::v1::{self, PlanPhase, UnitState};
use evenkeel_transport::security::SecuritySettings;
use evenkeel_transport::{PeerRole, Security};
use prost::Message as _;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use turmoil::{Builder, Sim};

/// How far the simulation goes at a time: below what any timer of the protocol is about.
const TICK: Duration = Duration::from_millis(5);
/// What is waited for comes within this simulated time: several silence limits and leases one after the other.
const PATIENCE: Duration = Duration::from_secs(60);
/// A unit that did not change for so long is at rest: longer than a window and the decision on it.
const REST: Duration = Duration::from_secs(2);
/// Silence after which a stream is closed.
pub(crate) const SILENCE: Duration = Duration::from_secs(4);
/// Time of the leader's lease.
pub(crate) const LEASE: Duration = Duration::from_secs(2);
const RANKS_PER_NODE: u16 = 2;
const CLUSTER: &str = "test";
const UNIT: &str = "u";
const STORE: &str = "store";

/// Size of a simulation, and its network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) balancers: usize,
    pub(crate) agents: u16,
    /// How long a message is under way, at least and at most.
    pub(crate) latency_ms: (u64, u64),
}

impl Default for Setup {
    fn default() -> Self {
        Self { balancers: 2, agents: 3, latency_ms: (2, 40) }
    }
}

struct Balancer {
    name: String,
    seen: Arc<balancer::Seen>,
}

struct Agent {
    name: String,
    address: IpAddr,
    directory: PathBuf,
    seen: Arc<agent::Seen>,
    /// As of the last look.
    active: Option<PlanId>,
    written: Option<SystemTime>,
    on_disk: Record,
}

/// See the module.
pub(crate) struct Cluster {
    seed: u64,
    sim: Sim<'static>,
    directory: TempDir,
    balancers: Vec<Balancer>,
    agents: Vec<Agent>,
    store: StoreHost,
    traffic: Arc<Traffic>,
    /// Draws faults.
    random: ChaCha8Rng,
}

impl Cluster {
    /// Starts everything, and waits until the unit has formed and the first plan was made.
    pub(crate) fn start(seed: u64, setup: Setup) -> Self {
        let mut cluster = Self::begin(seed, setup);
        cluster.until("the first plan", |cluster| cluster.head_epoch() > Some(0));
        cluster
    }

    fn begin(seed: u64, setup: Setup) -> Self {
        let (least, most) = setup.latency_ms;
        let sim = Builder::new()
            .rng_seed(seed)
            .enable_random_order()
            .tick_duration(TICK)
            .simulation_duration(Duration::MAX)
            .min_message_latency(Duration::from_millis(least))
            .max_message_latency(Duration::from_millis(most))
            // Segments under way on a connection: never the bound here.
            .tcp_capacity(1024)
            .build();
        let mut cluster = Self {
            seed,
            sim,
            directory: tempfile::tempdir().expect("a temporary directory"),
            balancers: Vec::new(),
            agents: Vec::new(),
            store: StoreHost::default(),
            traffic: Arc::default(),
            random: ChaCha8Rng::seed_from_u64(seed),
        };
        let certificates = Certificates::new(&cluster.directory.path().join("certificates"), setup.agents);
        let store = cluster.store.clone();
        cluster.sim.host(STORE, move || store.clone().run());
        for at in 0..setup.balancers {
            cluster.add_balancer(at, &certificates);
        }
        for node in 0..setup.agents {
            cluster.add_agent(node, setup, &certificates);
        }
        cluster
    }

    fn add_balancer(&mut self, at: usize, certificates: &Certificates) {
        let name = format!("b-{at}");
        let seen = Arc::new(balancer::Seen::default());
        let parts = balancer::Parts {
            config: balancer_config(&name),
            address: self.sim.lookup(name.as_str()),
            security: certificates.security("balancer"),
            store: self.store.client(self.sim.lookup(STORE)),
            seen: seen.clone(),
        };
        self.sim.host(name.as_str(), move || balancer::run(parts.clone()));
        self.balancers.push(Balancer { name, seen });
    }

    fn add_agent(&mut self, node: u16, setup: Setup, certificates: &Certificates) {
        let name = format!("n-{node}");
        let directory = self.directory.path().join(&name);
        let address = self.sim.lookup(name.as_str());
        let seen = Arc::new(agent::Seen::default());
        let balancers = self.balancers.iter().map(|balancer| {
            let address = self.sim.lookup(balancer.name.as_str());
            format!("{address}:{}", balancer::PORT)
        });
        let parts = agent::Parts {
            config: agent_config(node, setup, balancers.collect(), directory.clone()),
            address,
            security: certificates.security(&format!("agent-{name}")),
            traffic: self.traffic.clone(),
            seen: seen.clone(),
        };
        self.sim.host(name.as_str(), move || agent::run(parts.clone()));
        let (active, written, on_disk) = (None, None, Record::default());
        self.agents.push(Agent { name, address, directory, seen, active, written, on_disk });
    }

    /// Simulated time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Number of agents.
    pub(crate) fn agents(&self) -> usize {
        self.agents.len()
    }

    /// Who leads, as far as it knows itself.
    pub(crate) fn leader(&self) -> Option<usize> {
        let leads =
            |balancer: &Balancer| matches!(balancer.seen.status(), Some((_, Standing::Leading { .. })));
        self.balancers.iter().position(leads)
    }

    /// The term of the balancer that leads.
    pub(crate) fn term(&self) -> Option<Term> {
        match self.balancers[self.leader()?].seen.status()? {
            (_, Standing::Leading { term, .. }) => Some(term),
            _ => None,
        }
    }

    /// The unit as its leader sees it.
    pub(crate) fn unit(&self) -> Option<v1::UnitStatus> {
        let (status, _) = self.balancers[self.leader()?].seen.status()?;
        status.units.into_iter().find(|unit| unit.unit == UNIT)
    }

    /// Epoch of the committed plan, as its leader knows it.
    pub(crate) fn head_epoch(&self) -> Option<u64> {
        self.unit()?.head.map(|head| head.epoch)
    }

    /// The plan that a node's workers serve.
    pub(crate) fn active(&self, node: usize) -> Option<PlanId> {
        self.agents[node].seen.active()
    }

    /// The last step of a node's engine.
    pub(crate) fn steps(&self, node: usize) -> Option<u64> {
        self.agents[node].seen.steps()
    }

    /// Commands that a node has refused with this code since it was started.
    pub(crate) fn refused(&self, node: usize, code: &'static str) -> u64 {
        self.agents[node].seen.refused(code)
    }

    /// Whether a balancer is connected to every agent.
    pub(crate) fn welcomes_all(&self, balancer: usize) -> bool {
        let status = self.balancers[balancer].seen.status();
        status.is_some_and(|(status, _)| {
            status.agents.len() == self.agents.len() && status.agents.iter().all(|agent| agent.connected)
        })
    }

    /// Whether every agent has a term of this or later on its disk.
    pub(crate) fn all_know(&self, term: Option<Term>) -> bool {
        self.agents.iter().all(|agent| Some(agent.on_disk.term) >= term)
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.sim.elapsed() + time;
        while self.sim.elapsed() < until {
            self.step();
        }
    }

    /// Lets time pass until something is so.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, is: impl Fn(&Self) -> bool) {
        let deadline = self.sim.elapsed() + PATIENCE;
        while !is(self) {
            assert!(self.sim.elapsed() < deadline, "waited for {what} for {PATIENCE:?}");
            self.step();
        }
    }

    /// A time between these, drawn.
    pub(crate) fn draw(&mut self, least: Duration, most: Duration) -> Duration {
        self.random.random_range(least..=most)
    }

    /// One of so many, drawn.
    pub(crate) fn draw_of(&mut self, count: usize) -> usize {
        self.random.random_range(0..count)
    }

    /// A node, drawn.
    pub(crate) fn draw_agent(&mut self) -> usize {
        self.draw_of(self.agents.len())
    }

    /// Lets time pass until a plan is prepared, or until it is committed, as drawn.
    #[track_caller]
    pub(crate) fn until_within_a_plan(&mut self) {
        let state = [UnitState::Preparing, UnitState::Committing][self.draw_of(2)];
        self.until("a plan under way", |cluster| cluster.unit().is_some_and(|unit| unit.state() == state));
    }

    fn step(&mut self) {
        self.sim.step().expect("no host ends");
        for at in 0..self.agents.len() {
            self.look_at(at);
        }
    }

    /// What holds for an agent at every moment.
    fn look_at(&mut self, at: usize) {
        let Agent { name, directory, seen, active, written, on_disk, address } = &mut self.agents[at];
        let term_before = on_disk.term;
        let changed = fs::metadata(directory.join("ledger.bin")).and_then(|data| data.modified()).ok();
        if changed != *written {
            let now = read_ledger(directory);
            let epoch = |record: &Record| record.plan.as_ref().map(|plan| plan.epoch);
            assert!(now.term >= on_disk.term, "{name}: {} after {}", now.term, on_disk.term);
            assert!(epoch(&now) >= epoch(on_disk), "{name}: {:?} after {:?}", epoch(&now), epoch(on_disk));
            (*written, *on_disk) = (changed, now);
        }
        let now = seen.active();
        if now.is_none() || now == *active {
            return;
        }
        assert!(now > *active, "{name} serves {now:?} after {active:?}");
        *active = now;
        let (id, address) = (now.expect("it serves a plan"), *address);
        // What a worker boots with needs no order. Any other plan was ordered in the highest term that the agent knows,
        // or knew when it obeyed: that it learned of another in the same moment is possible.
        let terms = [term_before, on_disk.term];
        let wire = Some(id.into());
        let ordered = self.balancers.iter().flat_map(|balancer| balancer.seen.ordered()).any(|ordered| {
            ordered.agent == address
                && ordered.phase == PlanPhase::Commit
                && ordered.id == wire
                && terms.contains(&ordered.term)
        });
        assert!(ordered || id.0.0 == 0, "{name} serves {id:?}, which was not ordered in {terms:?}");
    }

    /// Cuts a host off from others, messages under way included.
    pub(crate) fn partition(&self, host: &str, others: &[String]) {
        others.iter().for_each(|other| self.sim.partition(host, other.as_str()));
    }

    /// A host is not heard by others, but hears them.
    pub(crate) fn mute(&self, host: &str, others: &[String]) {
        others.iter().for_each(|other| self.sim.partition_oneway(host, other.as_str()));
    }

    /// A host hears nothing of others, but is heard.
    pub(crate) fn deafen(&self, host: &str, others: &[String]) {
        others.iter().for_each(|other| self.sim.partition_oneway(other.as_str(), host));
    }

    /// Ends what the three above have begun.
    pub(crate) fn repair(&self, host: &str, others: &[String]) {
        others.iter().for_each(|other| self.sim.repair(host, other.as_str()));
    }

    /// Messages between a host and others are under way for so long from now on.
    pub(crate) fn delay(&self, host: &str, others: &[String], time: Duration) {
        others.iter().for_each(|other| self.sim.set_link_latency(host, other.as_str(), time));
    }

    /// Keeps what a host and others say to each other from now on, and what is under way.
    pub(crate) fn hold(&self, host: &str, others: &[String]) {
        others.iter().for_each(|other| self.sim.hold(host, other.as_str()));
    }

    /// Delivers what was kept.
    pub(crate) fn release(&self, host: &str, others: &[String]) {
        others.iter().for_each(|other| self.sim.release(host, other.as_str()));
    }

    /// The hosts' names, for faults.
    pub(crate) fn agent_hosts(&self) -> Vec<String> {
        self.agents.iter().map(|agent| agent.name.clone()).collect()
    }

    /// The hosts' names, for faults.
    pub(crate) fn balancer_hosts(&self) -> Vec<String> {
        self.balancers.iter().map(|balancer| balancer.name.clone()).collect()
    }

    /// Everybody but this host.
    pub(crate) fn all_but(&self, host: &str) -> Vec<String> {
        let store = std::iter::once(STORE.to_owned());
        let all = store.chain(self.balancer_hosts()).chain(self.agent_hosts());
        all.filter(|other| other != host).collect()
    }

    /// Everything of a host is gone but its disk.
    pub(crate) fn crash(&mut self, host: &str) {
        self.sim.crash(host);
        self.balancers.iter().filter(|balancer| balancer.name == host).for_each(|b| b.seen.down());
    }

    /// Starts a host again.
    pub(crate) fn restart(&mut self, host: &str) {
        self.sim.bounce(host);
    }

    /// Makes the load steady, and waits until everybody is welcome everywhere, one balancer leads, and the unit is at rest:
    /// all nodes serve the committed plan, and every slot holds the expert that it names.
    #[track_caller]
    pub(crate) fn settle(&mut self) {
        self.traffic.steady(self.sim.elapsed());
        let deadline = self.sim.elapsed() + PATIENCE;
        let mut since = (None, self.sim.elapsed());
        while since.0.is_none() || self.sim.elapsed() < since.1 + REST {
            assert!(self.sim.elapsed() < deadline, "the unit does not come to rest within {PATIENCE:?}");
            self.step();
            let now = self.at_rest();
            if now != since.0 {
                since = (now, self.sim.elapsed());
            }
        }
        self.verify();
        self.check_store();
    }

    /// The plan that everybody serves, if all is well.
    fn at_rest(&self) -> Option<PlanId> {
        let leading =
            |balancer: &&Balancer| matches!(balancer.seen.status(), Some((_, Standing::Leading { .. })));
        let one_leads = self.balancers.iter().filter(leading).count() == 1;
        let welcome = (0..self.balancers.len()).all(|balancer| self.welcomes_all(balancer));
        let unit = self.unit().filter(|_| one_leads && welcome)?;
        let active = self.active(0)?;
        let all_serve = (0..self.agents.len()).all(|node| self.active(node) == Some(active));
        (unit.state() == UnitState::Steady && unit.head == Some(active.into()) && all_serve).then_some(active)
    }

    fn verify(&self) {
        let control = self.agents[0].directory.join("control.bin");
        let plan = evenkeel_worker::simulated::control::read(&control).expect("readable").expect("serving");
        let file = self.directory.path().join("in-service.plan");
        fs::write(&file, v1::Plan::from(&plan).encode_to_vec()).expect("written");
        let flags = VerifyFlags {
            admin: String::new(),
            plan: Some(file),
            states: self.agents.iter().map(|agent| agent.directory.clone()).collect(),
            output: Output::Json,
            tls: TlsFlags::default(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let report = runtime.expect("a runtime").block_on(verify::run(&flags)).expect("slots can be read");
        assert!(report.is_clean(), "{report:?}");
    }

    /// A plan of a higher epoch was never committed in a lower term.
    fn check_store(&self) {
        let unit = UnitId::new(UNIT).expect("a name");
        let mut last = Term::default();
        for (key, found) in self.store.list(&Scope::Manifests(unit)) {
            let Stored::Manifest(manifest) = found.record else { unreachable!("{key:?} is a manifest") };
            assert!(manifest.name.term >= last, "{:?} after {last}", manifest.name);
            last = manifest.name.term;
        }
        assert_ne!(last, Term::default(), "something was committed");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} after {:?} of simulated time", self.seed, self.sim.elapsed());
            for Balancer { name, seen } in &self.balancers {
                match seen.status() {
                    None => eprintln!("{name} is down"),
                    Some((status, standing)) => eprintln!("{name}: {standing:?}\n{status:?}"),
                }
            }
            for Agent { name, seen, on_disk, .. } in &self.agents {
                eprintln!("{name}: serves {:?}, term {}", seen.active(), on_disk.term);
            }
        }
    }
}

/// Reads copies: whoever opens a ledger mends it, and this one may just be being written.
fn read_ledger(directory: &Path) -> Record {
    let copy = tempfile::tempdir().expect("a temporary directory");
    for file in ["ledger.copy", "ledger.bin"] {
        // The first write makes one after the other.
        let _ = fs::copy(directory.join(file), copy.path().join(file));
    }
    Ledger::open(copy.path()).expect("whole").record().clone()
}

fn balancer_config(name: &str) -> BalancerConfig {
    let ms = |time: Duration| u32::try_from(time.as_millis()).expect("short");
    BalancerConfig {
        cluster: CLUSTER.to_owned(),
        balancer_name: name.to_owned(),
        election: Election { ttl_ms: ms(LEASE).into() },
        control: Control {
            window_steps: WINDOW_STEPS,
            report_interval_ms: 100,
            ping_interval_ms: 500,
            silence_limit_ms: ms(SILENCE),
            prepare_timeout_ms: 5_000,
            commit_timeout_ms: 3_000,
            abort_pause_ms: 500,
            ..Control::default()
        },
        // Placements follow each window.
        experts: Experts { history_half_life_ms: 0, ..Experts::default() },
        ..BalancerConfig::default()
    }
}

fn agent_config(node: u16, setup: Setup, balancers: Vec<String>, state_dir: PathBuf) -> AgentConfig {
    let any = ([127, 0, 0, 1], 0).into();
    let first = node * RANKS_PER_NODE;
    AgentConfig {
        balancers,
        cluster: CLUSTER.to_owned(),
        node: NodeId::new(format!("n-{node}")).expect("a name"),
        unit: UnitId::new(UNIT).expect("a name"),
        shape: UnitShape {
            role: Role::Decode,
            layers: 2,
            experts: 6,
            top_k: 2,
            ranks: setup.agents * RANKS_PER_NODE,
            slots_per_rank: 2,
            spare_per_rank: 1,
            expert_bytes: 256,
        },
        ranks: (first..first + RANKS_PER_NODE).map(Rank).collect(),
        weights_seed: 7,
        state_dir,
        metrics: any,
        transfer: any,
        advertise: None,
        engine: any,
        transfer_bytes_per_second: 0,
        security: SecuritySettings::default(),
        log: String::new(),
    }
}

/// An authority and what it has issued.
struct Certificates(PathBuf);

impl Certificates {
    fn new(directory: &Path, agents: u16) -> Self {
        Authority::init(directory, CLUSTER, false).expect("made");
        let authority = Authority::open(directory).expect("just made");
        let issue = |role, name: &str| {
            let issue = Issue { role, name, also: &[], days: 1, force: false };
            authority.issue(directory, &issue).expect("issued");
        };
        issue(PeerRole::Balancer, "");
        (0..agents).for_each(|node| issue(PeerRole::Agent, &format!("n-{node}")));
        Self(directory.to_owned())
    }

    fn security(&self, name: &str) -> Security {
        let at = |file: String| Some(self.0.join(file));
        let settings = SecuritySettings {
            ca: at("ca.crt".to_owned()),
            certificate: at(format!("{name}.crt")),
            key: at(format!("{name}.key")),
            insecure_plaintext: false,
        };
        settings.resolve(Some(CLUSTER)).expect("certificates of ours")
    }
}
