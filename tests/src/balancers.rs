//! Several balancers that share an etcd of three members, with the agents of one small unit: real processes on loopback,
//! and the means to break them and to measure how long nobody leads.

use crate::certificates::Certificates;
use crate::etcd::{Etcd, EtcdSettings};
use crate::process::{DEADLINE, POLL, Process, program, wait_for};
use crate::rig::Ports;
use evenkeel_proto::v1::admin_service_client::AdminServiceClient;
use evenkeel_proto::v1::simulated_engine_service_client::SimulatedEngineServiceClient;
use evenkeel_proto::v1::{self, BalancerState, GetLeaderResponse};
use evenkeel_transport::credentials::Server;
use evenkeel_transport::{Security, dial};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

/// Name of the only unit.
pub const UNIT: &str = "u";
/// A call that is not answered by then is made again, elsewhere: a process that was stopped keeps its connections.
const CALL_DEADLINE: Duration = Duration::from_secs(2);
/// Steps of a load window.
const WINDOW_STEPS: u64 = 4;
/// Layers and experts of the unit.
const LAYERS: u32 = 2;
const EXPERTS: u32 = 8;

struct Balancer {
    name: String,
    process: Option<Process>,
    ports: Ports,
    client: AdminServiceClient<Channel>,
}

struct Agent {
    process: Process,
    engine: String,
}

/// See the module.
pub struct Balancers {
    runtime: Runtime,
    /// The store that they share.
    pub etcd: Etcd,
    ttl_ms: u64,
    certificates: Option<Certificates>,
    balancers: Vec<Balancer>,
    agents: Vec<Agent>,
    dir: tempfile::TempDir,
    step: u64,
}

impl Balancers {
    /// Starts etcd and `count` balancers, the first of which leads, and waits until the others stand by.
    pub fn start(count: usize, ttl_ms: u64) -> Self {
        Self::start_with(count, ttl_ms, |_| None)
    }

    /// The same over TLS.
    pub fn start_secured(count: usize, ttl_ms: u64) -> Self {
        Self::start_with(count, ttl_ms, |dir| {
            let certificates = Certificates::init(&dir.join("certificates"), "test");
            certificates.issue(&["balancer"]);
            certificates.issue(&["admin", "rig"]);
            certificates.issue(&["agent", "n-0"]);
            Some(certificates)
        })
    }

    fn start_with(
        count: usize,
        ttl_ms: u64,
        certificates: impl FnOnce(&Path) -> Option<Certificates>,
    ) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let mut this = Self {
            runtime: runtime.expect("a runtime"),
            etcd: Etcd::start(EtcdSettings { members: 3, ..EtcdSettings::default() }),
            ttl_ms,
            certificates: certificates(dir.path()),
            balancers: Vec::new(),
            agents: Vec::new(),
            dir,
            step: 0,
        };
        for i in 0..count {
            let any = || "127.0.0.1:0".to_owned();
            let ports = Ports { agents: any(), admin: any(), metrics: any() };
            let balancer = this.start_balancer(&format!("b-{i}"), &ports);
            this.balancers.push(balancer);
            if i == 0 {
                wait_for("a leader", || this.leader());
            }
        }
        this.wait_until_all_stand_by();
        this
    }

    fn start_balancer(&self, name: &str, ports: &Ports) -> Balancer {
        let dir = self.dir.path();
        let file = |end: &str| dir.join(format!("{name}{end}"));
        let config = format!(
            "cluster = \"test\"\n[store]\nkind = \"etcd\"\nendpoints = {:?}\n[election]\nttl_ms = {}\n[control]\nwindow_steps = {WINDOW_STEPS}\nabort_pause_ms = 100\nreport_interval_ms = 20\nping_interval_ms = 200\nsilence_limit_ms = 2000\n",
            self.etcd.endpoints(),
            self.ttl_ms
        );
        let tls = self.certificates.as_ref().map_or(String::new(), crate::rig::tls_section);
        std::fs::write(file(".toml"), config + &tls).expect("written");
        let ports_file = file("-ports.json");
        let _ = std::fs::remove_file(&ports_file);
        let mut command = Command::new(program("evenkeel"));
        command.arg("serve").arg("--config").arg(file(".toml")).arg("--ports-file").arg(&ports_file);
        command.args(["--balancer-name", name, "--agents-listen", &ports.agents]);
        command.args(["--admin-listen", &ports.admin, "--metrics-listen", &ports.metrics]);
        let mut process = Process::start(command, &file(".log"));
        let bound = wait_for("a balancer to listen", || {
            process.assert_alive();
            read_json(&ports_file)
        });
        let address = |key: &str| bound[key].as_str().expect("an address").to_owned();
        let ports = Ports { agents: address("agents"), admin: address("admin"), metrics: address("metrics") };
        let security = self.certificates.as_ref().map_or(Security::Loopback, |c| c.security("admin-rig"));
        let channel = self.runtime.block_on(dial::connect(
            &security,
            Server::Balancer,
            &ports.admin,
            CALL_DEADLINE,
            |endpoint| endpoint.timeout(CALL_DEADLINE),
        ));
        let (channel, _) = channel.expect("a balancer that listens is reached");
        let client = AdminServiceClient::new(channel);
        Balancer { name: name.to_owned(), process: Some(process), ports, client }
    }

    /// Starts one agent of two ranks, which makes the unit, and waits until the leader says that it serves a plan.
    pub fn start_agent(&mut self) {
        let state_dir = self.dir.path().join("agent");
        let addresses: Vec<&str> = self.balancers.iter().map(|b| b.ports.agents.as_str()).collect();
        let mut command = Command::new(program("evenkeel-agent"));
        command.args([
            "--balancer",
            &addresses.join(","),
            "--cluster",
            "test",
            "--node",
            "n-0",
            "--unit",
            UNIT,
        ]);
        command.args([
            "--role",
            "decode",
            "--layers",
            &LAYERS.to_string(),
            "--experts",
            &EXPERTS.to_string(),
        ]);
        command.args(["--top-k", "2", "--ranks-total", "2", "--ranks", "0-1", "--slots-per-rank", "6"]);
        command.args(["--spare-per-rank", "1", "--expert-bytes", "1000", "--weights-seed", "7"]);
        for listen in ["--metrics", "--transfer", "--engine"] {
            command.args([listen, "127.0.0.1:0"]);
        }
        command.arg("--state-dir").arg(&state_dir);
        for (name, value) in self.certificates.iter().flat_map(|c| c.flags("agent-n-0")) {
            command.arg(name).arg(value);
        }
        let mut process = Process::start(command, &self.dir.path().join("agent.log"));
        let ports = wait_for("an agent to listen", || {
            process.assert_alive();
            read_json(&state_dir.join("ports.json"))
        });
        let address = |port: &str| ports[port].as_str().expect("an address").to_owned();
        self.agents.push(Agent { engine: address("engine"), process });
        wait_for("the unit to serve a plan", || {
            let status = self.status()?;
            let head = status.units.into_iter().find(|unit| unit.unit == UNIT)?.head?;
            let served = Some(head);
            status.agents.iter().any(|agent| agent.connected && agent.applied == served).then_some(())
        });
    }

    /// What the leader says of the cluster.
    fn status(&self) -> Option<v1::GetStatusResponse> {
        self.call(self.leader()?, async |mut c| c.get_status(v1::GetStatusRequest {}).await).ok()
    }

    /// Ends the agent and its workers, and starts them without anything that they knew.
    pub fn restart_agent_without_state(&mut self) {
        self.agents.pop().expect("an agent runs").process.kill();
        wait_for("it to be gone", || {
            (!self.status()?.agents.iter().any(|agent| agent.connected)).then_some(())
        });
        std::fs::remove_dir_all(self.dir.path().join("agent")).expect("the state can be removed");
        self.start_agent();
    }

    /// Calls the admin service of one balancer.
    pub fn call<T>(
        &self,
        which: usize,
        call: impl AsyncFnOnce(AdminServiceClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, tonic::Status> {
        let client = self.balancers[which].client.clone();
        self.runtime.block_on(call(client)).map(tonic::Response::into_inner)
    }

    /// Who leads, says a balancer that runs.
    pub fn shown(&self, which: usize) -> Option<GetLeaderResponse> {
        self.call(which, async |mut c| c.get_leader(v1::GetLeaderRequest {}).await).ok()
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.balancers.len()).filter(|i| self.balancers[*i].process.is_some())
    }

    /// The balancer that says of itself that it leads.
    pub fn leader(&self) -> Option<usize> {
        self.running().find(|i| self.shown(*i).is_some_and(|s| s.state() == BalancerState::Leading))
    }

    /// Waits until one leads and all others that run are connected to it.
    #[track_caller]
    pub fn wait_until_all_stand_by(&self) -> usize {
        let others = self.running().count() - 1;
        wait_for("the others to stand by", || {
            let leader = self.leader()?;
            (self.shown(leader)?.standbys.len() == others).then_some(leader)
        })
    }

    /// Name of a balancer.
    pub fn name(&self, which: usize) -> &str {
        &self.balancers[which].name
    }

    /// Addresses of a balancer.
    pub fn ports(&self, which: usize) -> &Ports {
        &self.balancers[which].ports
    }

    /// Process id of a balancer that runs.
    pub fn process_id(&self, which: usize) -> u32 {
        self.balancers[which].process.as_ref().expect("it runs").id()
    }

    /// SIGKILL.
    pub fn kill(&mut self, which: usize) {
        self.balancers[which].process.take().expect("it runs").kill();
    }

    /// SIGTERM, and waits for a good end.
    pub fn terminate(&mut self, which: usize) {
        let status = self.balancers[which].process.take().expect("it runs").terminate();
        assert!(status.success(), "a balancer stops cleanly");
    }

    /// Starts one that has ended, at its addresses.
    pub fn restart(&mut self, which: usize) {
        let old = &self.balancers[which];
        assert!(old.process.is_none(), "it runs");
        self.balancers[which] = self.start_balancer(&old.name.clone(), &old.ports.clone());
    }

    /// Pauses or resumes the unit, by a request that is made again under its id at one balancer after the other until one
    /// accepts it. Answers how long that took.
    pub fn write(&self, id: &str, pause: bool) -> Duration {
        let began = Instant::now();
        loop {
            for which in self.running() {
                let (unit, request_id) = (UNIT.to_owned(), id.to_owned());
                let answer = self.call(which, async |mut c| match pause {
                    true => {
                        let request = v1::PauseRequest { unit, request_id, ..Default::default() };
                        c.pause(request).await.map(|r| r.map(drop))
                    }
                    false => {
                        let request = v1::ResumeRequest { unit, request_id, ..Default::default() };
                        c.resume(request).await.map(|r| r.map(drop))
                    }
                });
                if answer.is_ok() {
                    return began.elapsed();
                }
            }
            assert!(began.elapsed() < DEADLINE, "nobody accepted a write within {} s", DEADLINE.as_secs());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// kill -9 of the leader until another one has accepted a write; then the dead one is started again.
    pub fn measure_failover(&mut self, round: usize) -> Duration {
        let leader = self.wait_until_all_stand_by();
        self.write(&format!("before-{round}"), round % 2 == 1);
        let began = Instant::now();
        self.kill(leader);
        self.write(&format!("after-{round}"), round.is_multiple_of(2));
        let took = began.elapsed();
        self.restart(leader);
        took
    }

    /// Runs one step on every agent, in which one expert has most of the tokens. Panics if an agent does not answer: no
    /// worker ever waits for a balancer.
    #[track_caller]
    pub fn feed_step(&mut self, busiest: usize) {
        let of_layer = (0..EXPERTS as usize).map(|expert| if expert == busiest { 1000 } else { 100 });
        let counts = of_layer.collect::<Vec<u64>>().repeat(LAYERS as usize);
        let counts = v1::LoadTable { layers: LAYERS, experts: EXPERTS, counts };
        let request = v1::StepRequest {
            step: self.step,
            routing: Some(v1::step_request::Routing::Counts(counts)),
            ..Default::default()
        };
        for agent in &self.agents {
            let (address, request) = (format!("http://{}", agent.engine), request.clone());
            let answer = self.runtime.block_on(async {
                let mut client = SimulatedEngineServiceClient::connect(address).await.expect("connects");
                client.step(request).await
            });
            answer.expect("a step is run");
        }
        self.step += 1;
    }

    /// Feeds load windows, now one expert the busiest and now another, until a plan after `epoch` is committed.
    #[track_caller]
    pub fn feed_until_plan_after(&mut self, epoch: u64) -> u64 {
        let deadline = Instant::now() + DEADLINE;
        let mut window = 0;
        while Instant::now() < deadline {
            for _ in 0..WINDOW_STEPS {
                self.feed_step((epoch as usize * 3 + window / 8) % EXPERTS as usize);
            }
            window += 1;
            let Some(leader) = self.leader() else { continue };
            if let Some(last) = self.epochs(leader).last().copied().filter(|last| *last > epoch) {
                return last;
            }
            std::thread::sleep(POLL);
        }
        panic!("no plan after {epoch} within {} s", DEADLINE.as_secs());
    }

    /// The audit as one balancer lists it, oldest first: term, verb, epoch of the plan.
    pub fn audit(&self, which: usize) -> Vec<((u64, u64), String, Option<u64>)> {
        let request = v1::ListAuditRequest { unit: UNIT.to_owned(), limit: 500 };
        let entries =
            self.call(which, async |mut c| c.list_audit(request).await).expect("the audit is listed");
        let row = |entry: &v1::AuditEntry| {
            let term = entry.term.map_or((0, 0), |term| (term.generation, term.revision));
            (term, entry.verb.clone(), entry.plan.as_ref().map(|plan| plan.epoch))
        };
        entries.entries.iter().rev().map(row).collect()
    }

    /// Value of a metric of a balancer, 0 if it is not there.
    pub fn metric(&self, which: usize, series: &str) -> f64 {
        let (_, text) = crate::http::get(&self.balancers[which].ports.metrics, "/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Runs the command line against one balancer.
    pub fn command(&self, which: usize, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("evenkeel"));
        command.args(arguments).args(["--server", &self.balancers[which].ports.admin]);
        command.output().expect("runs")
    }

    /// Log of a balancer so far.
    pub fn log(&self, which: usize) -> String {
        std::fs::read_to_string(self.log_path(which)).unwrap_or_default()
    }

    fn log_path(&self, which: usize) -> PathBuf {
        self.dir.path().join(format!("{}.log", self.balancers[which].name))
    }

    /// Log of the agent so far.
    pub fn agent_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    /// Epochs of the unit's plans as one balancer lists them, oldest first.
    pub fn epochs(&self, which: usize) -> Vec<u64> {
        let request = v1::ListPlansRequest { unit: UNIT.to_owned(), limit: 500 };
        let plans = self.call(which, async |mut c| c.list_plans(request).await).expect("plans are listed");
        plans.plans.iter().rev().map(|plan| plan.id.as_ref().expect("an id").epoch).collect()
    }

    /// Waits a moment between two looks.
    pub fn pause(&self) {
        std::thread::sleep(POLL);
    }
}

fn read_json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
