//! A small unit: one balancer, a few agents, and the means to feed, break and inspect them.

use crate::certificates::Certificates;
use crate::process::{DEADLINE, POLL, Process, program, wait_for};
use evenkeel_agent::config::{Output, TlsFlags, VerifyFlags};
use evenkeel_agent::crash_point::{self, CrashPoint};
use evenkeel_agent::ledger::Ledger;
use evenkeel_agent::verify;
use evenkeel_core::plan::Plan;
use evenkeel_proto::v1::admin_service_client::AdminServiceClient;
use evenkeel_proto::v1::routing_service_client::RoutingServiceClient;
use evenkeel_proto::v1::simulated_engine_service_client::SimulatedEngineServiceClient;
use evenkeel_proto::v1::{self, UnitState};
use evenkeel_transport::credentials::Server;
use evenkeel_transport::{Security, dial};
use evenkeel_worker::simulated::control;
use prost::Message as _;
use rustix::process::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output as ProcessOutput};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

/// Steps of a load window.
pub const WINDOW_STEPS: u64 = 4;
/// Name of the only unit.
pub const UNIT: &str = "u";

/// Size of the unit.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Nodes, one agent each.
    pub nodes: u16,
    /// Ranks of a node.
    pub ranks_per_node: u16,
    /// Layers.
    pub layers: u16,
    /// Experts.
    pub experts: u16,
    /// Slots that a plan may fill.
    pub slots_per_rank: u16,
    /// Bytes of one expert.
    pub expert_bytes: u64,
    /// Bytes a second that each node may receive: slows staging down, so that a test can strike inside it.
    pub transfer_bytes_per_second: Option<u64>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            nodes: 3,
            ranks_per_node: 2,
            layers: 4,
            experts: 16,
            slots_per_rank: 4,
            expert_bytes: 1000,
            transfer_bytes_per_second: None,
        }
    }
}

struct Agent {
    process: Process,
    state_dir: PathBuf,
    engine: String,
    metrics: String,
}

/// Addresses of the balancer.
#[derive(Debug, Clone)]
pub struct Ports {
    /// Agents' stream.
    pub agents: String,
    /// Admin and routing.
    pub admin: String,
    /// Metrics and page.
    pub metrics: String,
}

/// See the module.
pub struct Rig {
    runtime: Runtime,
    shape: Shape,
    dir: tempfile::TempDir,
    balancer: Process,
    /// Where the balancer listens, the same over restarts.
    pub ports: Ports,
    agents: Vec<Agent>,
    /// With these everything runs over TLS.
    certificates: Option<Certificates>,
    /// Number of the next step.
    step: u64,
}

impl Rig {
    /// Starts everything and waits until the unit has formed.
    pub fn start(shape: Shape) -> Self {
        Self::start_with(shape, |_| None)
    }

    /// The same over TLS: an authority, and certificates of the balancer, of every agent, of one called `stranger`, and
    /// of an operator, a viewer, an admin and a gateway called `rig`.
    pub fn start_secured(shape: Shape) -> Self {
        Self::start_with(shape, |dir| {
            let certificates = Certificates::init(&dir.join("certificates"), "test");
            certificates.issue(&["balancer"]);
            for role in ["viewer", "operator", "admin", "gateway"] {
                certificates.issue(&[role, "rig"]);
            }
            for node in 0..shape.nodes {
                certificates.issue(&["agent", &format!("n-{node}")]);
            }
            certificates.issue(&["agent", "stranger"]);
            Some(certificates)
        })
    }

    fn start_with(shape: Shape, certificates: impl FnOnce(&Path) -> Option<Certificates>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let certificates = certificates(dir.path());
        let config = format!(
            "cluster = \"test\"\n[control]\nwindow_steps = {WINDOW_STEPS}\nreport_interval_ms = 20\nabort_pause_ms = 100\nping_interval_ms = 200\nsilence_limit_ms = 2000\n[routing]\nrecord = {:?}\n",
            dir.path().join("decisions")
        );
        let config = config + &certificates.as_ref().map_or(String::new(), tls_section);
        std::fs::write(dir.path().join("balancer.toml"), config).expect("written");
        let any = "127.0.0.1:0".to_owned();
        let any = Ports { agents: any.clone(), admin: any.clone(), metrics: any };
        let (balancer, ports) = start_balancer(dir.path(), &any);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let mut rig = Self {
            runtime: runtime.expect("a runtime"),
            shape,
            dir,
            balancer,
            ports,
            agents: Vec::new(),
            certificates,
            step: 0,
        };
        for node in 0..shape.nodes {
            let agent = rig.start_agent(node, None);
            rig.agents.push(agent);
        }
        rig.wait_for_state(UnitState::Steady);
        rig
    }

    /// The command of an agent on the ranks of a node, `changes` in place of its usual flags.
    fn agent_command(&self, name: &str, node: u16, state_dir: &Path, changes: &[(&str, &str)]) -> Command {
        let shape = &self.shape;
        let (first, last) = (node * shape.ranks_per_node, (node + 1) * shape.ranks_per_node - 1);
        let mut command = Command::new(program("evenkeel-agent"));
        let mut flag = |name: &str, value: String| {
            let changed = changes.iter().find(|(changed, _)| *changed == name);
            command.arg(name).arg(changed.map_or(value, |(_, value)| (*value).to_owned()));
        };
        flag("--balancer", self.ports.agents.clone());
        flag("--cluster", "test".to_owned());
        flag("--node", name.to_owned());
        flag("--unit", UNIT.to_owned());
        flag("--role", "decode".to_owned());
        flag("--layers", shape.layers.to_string());
        flag("--experts", shape.experts.to_string());
        flag("--top-k", "2".to_owned());
        flag("--ranks-total", (shape.nodes * shape.ranks_per_node).to_string());
        flag("--ranks", format!("{first}-{last}"));
        flag("--slots-per-rank", shape.slots_per_rank.to_string());
        flag("--spare-per-rank", "1".to_owned());
        flag("--expert-bytes", shape.expert_bytes.to_string());
        flag("--weights-seed", "7".to_owned());
        flag("--state-dir", state_dir.display().to_string());
        for listen in ["--metrics", "--transfer", "--engine"] {
            flag(listen, "127.0.0.1:0".to_owned());
        }
        for (name, value) in self.certificates.iter().flat_map(|c| c.flags(&format!("agent-{name}"))) {
            flag(name, value);
        }
        if let Some(rate) = shape.transfer_bytes_per_second {
            flag("--transfer-bytes-per-second", rate.to_string());
        }
        command
    }

    /// Starts an agent that does not belong to the unit as it is, waits until its log names `code`, stops it, and
    /// returns the log.
    pub fn start_stranger(&self, changes: &[(&str, &str)], code: &str) -> String {
        let log = self.dir.path().join("stranger.log");
        let _ = std::fs::remove_file(&log);
        let state_dir = tempfile::tempdir().expect("a temporary directory");
        let command = self.agent_command("stranger", 0, state_dir.path(), changes);
        let _process = Process::start(command, &log);
        wait_for(code, || std::fs::read_to_string(&log).ok().filter(|text| text.contains(code)))
    }

    fn start_agent(&self, node: u16, crash_at: Option<CrashPoint>) -> Agent {
        let state_dir = self.dir.path().join(format!("agent-{node}"));
        let ports_file = state_dir.join("ports.json");
        let _ = std::fs::remove_file(&ports_file);
        let mut command = self.agent_command(&format!("n-{node}"), node, &state_dir, &[]);
        if let Some(point) = crash_at {
            command.env(crash_point::VARIABLE, point.name());
        }
        let mut process = Process::start(command, &self.dir.path().join(format!("agent-{node}.log")));
        let ports = wait_for("an agent to listen", || {
            process.assert_alive();
            read_json(&ports_file)
        });
        let address = |port: &str| ports[port].as_str().expect("an address").to_owned();
        let (engine, metrics) = (address("engine"), address("metrics"));
        Agent { process, state_dir, engine, metrics }
    }

    /// kill -9 of an agent.
    pub fn kill_agent(&mut self, node: usize) {
        self.agents[node].process.kill();
    }

    /// Removes a killed agent's state, as a replaced disk would.
    pub fn forget_agent_state(&self, node: usize) {
        std::fs::remove_dir_all(&self.agents[node].state_dir).expect("the state can be removed");
    }

    /// Starts a killed agent again on its state.
    pub fn restart_agent(&mut self, node: usize) {
        self.agents[node] = self.start_agent(u16::try_from(node).expect("few nodes"), None);
    }

    /// The same, to die at a moment of a plan.
    pub fn restart_agent_to_crash(&mut self, node: usize, at: CrashPoint) {
        self.agents[node] = self.start_agent(u16::try_from(node).expect("few nodes"), Some(at));
    }

    /// Runs steps until an agent has ended at its crash point. The others must answer each.
    #[track_caller]
    pub fn feed_until_crash(&mut self, node: usize, tokens: &[u64]) {
        use std::os::unix::process::ExitStatusExt as _;
        let status = wait_for("the agent to die", || {
            for of in 0..self.agents.len() {
                let ran = self.feed_node(of, tokens);
                assert!(ran.is_ok() || of == node, "a living agent runs its step: {ran:?}");
            }
            self.step += 1;
            self.agents[node].process.ended()
        });
        // The next step begins a window.
        self.step = self.step.next_multiple_of(WINDOW_STEPS);
        assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{status}");
    }

    /// Epoch of the last good plan in a dead agent's ledger.
    pub fn epoch_on_disk(&self, node: usize) -> u64 {
        let ledger = Ledger::open(&self.agents[node].state_dir).expect("a ledger can be opened");
        ledger.record().plan.as_ref().expect("it had a plan").epoch.0
    }

    /// Epoch of the last committed plan.
    pub fn last_epoch(&self) -> u64 {
        self.plans().last().and_then(|plan| plan.id.as_ref()).expect("the unit has a plan").epoch
    }

    /// Removes what a dead agent's workers held: they died too, and only the agent's own state is left.
    pub fn forget_workers(&self, node: usize) {
        for file in ["control.bin", "slots.bin"] {
            std::fs::remove_file(self.agents[node].state_dir.join(file)).expect("workers have state");
        }
    }

    /// What the balancer recorded of its routing, oldest first.
    pub fn recordings(&self) -> Vec<PathBuf> {
        let entries =
            std::fs::read_dir(self.dir.path().join("decisions")).expect("a directory of recordings");
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("can be listed").path()).collect();
        files.sort_unstable();
        files
    }

    /// kill -9 of the balancer.
    pub fn kill_balancer(&mut self) {
        self.balancer.kill();
    }

    /// Starts the balancer again on its state, at the same addresses.
    pub fn restart_balancer(&mut self) {
        (self.balancer, _) = start_balancer(self.dir.path(), &self.ports);
    }

    /// Stops everything by SIGTERM; each process must end well.
    pub fn stop(mut self) {
        for agent in &mut self.agents {
            assert!(agent.process.terminate().success(), "an agent stops cleanly");
        }
        assert!(self.balancer.terminate().success(), "the balancer stops cleanly");
    }

    /// Runs one window in which `tokens` go to each logical expert of every layer.
    pub fn feed(&mut self, tokens: &[u64]) {
        assert_eq!(tokens.len(), usize::from(self.shape.experts));
        for _ in 0..WINDOW_STEPS {
            self.feed_step(tokens);
        }
    }

    /// Runs one step on every living agent. Panics if an agent that should live does not answer.
    pub fn feed_step(&mut self, tokens: &[u64]) {
        for node in 0..self.agents.len() {
            self.feed_node(node, tokens).expect("a living agent runs its step");
        }
        self.step += 1;
    }

    /// Makes a node's workers hang, or go on.
    pub fn hang_workers(&self, node: usize, hang: bool) {
        let address = format!("http://{}", self.agents[node].engine);
        self.runtime.block_on(async {
            let mut client = SimulatedEngineServiceClient::connect(address).await.expect("connects");
            let request = v1::DisturbRequest { hang: Some(hang), event: None };
            client.disturb(request).await.expect("the engine takes it");
        });
    }

    /// What a node's ranks say of themselves, the same in every step.
    fn gauges(&self, node: usize) -> Vec<v1::RankGauges> {
        let per_node = u32::from(self.shape.ranks_per_node);
        let first = u32::try_from(node).expect("few nodes") * per_node;
        let gauge = |rank| v1::RankGauges {
            rank,
            kv_used_tokens: 1000,
            kv_total_tokens: 2000,
            requests: 3,
            step_us_p50: 40_000,
            step_us_p99: 50_000,
            ..v1::RankGauges::default()
        };
        (first..first + per_node).map(gauge).collect()
    }

    /// Runs the current step on one agent.
    fn feed_node(&self, node: usize, tokens: &[u64]) -> Result<v1::StepResponse, String> {
        let layers = usize::from(self.shape.layers);
        let counts = v1::LoadTable {
            layers: self.shape.layers.into(),
            experts: self.shape.experts.into(),
            counts: tokens.repeat(layers),
        };
        let request = v1::StepRequest {
            step: self.step,
            routing: Some(v1::step_request::Routing::Counts(counts)),
            gauges: self.gauges(node),
        };
        self.runtime.block_on(async {
            let channel = self.channel("operator-rig", Server::Agent, &self.agents[node].engine).await?;
            let mut client = SimulatedEngineServiceClient::new(channel);
            client.step(request).await.map(tonic::Response::into_inner).map_err(|e| e.to_string())
        })
    }

    /// The certificates of a secured rig.
    #[track_caller]
    pub fn certificates(&self) -> &Certificates {
        self.certificates.as_ref().expect("a secured rig")
    }

    /// How the owner of a certificate connects.
    pub fn security(&self, name: &str) -> Security {
        self.certificates.as_ref().map_or(Security::Loopback, |certificates| certificates.security(name))
    }

    async fn channel(&self, name: &str, server: Server, address: &str) -> Result<Channel, String> {
        let security = self.security(name);
        let dialled = dial::connect(&security, server, address, DEADLINE, |endpoint| endpoint).await;
        dialled.map(|(channel, _)| channel).map_err(|fault| fault.to_string())
    }

    /// Calls the admin service.
    pub fn admin<T>(
        &self,
        call: impl AsyncFnOnce(AdminServiceClient<Channel>) -> Result<T, tonic::Status>,
    ) -> Result<T, String> {
        self.runtime.block_on(async {
            let channel = self.channel("operator-rig", Server::Balancer, &self.ports.admin).await?;
            let client = AdminServiceClient::new(channel);
            call(client.max_decoding_message_size(evenkeel_proto::MESSAGE_BYTES_MAX))
                .await
                .map_err(|e| e.message().to_owned())
        })
    }

    /// Where an agent serves its metrics.
    pub fn agent_metrics(&self, node: usize) -> &str {
        &self.agents[node].metrics
    }

    /// Sends batches of routing events over one stream, and returns the response to each.
    pub fn route(&self, batches: Vec<v1::RouteRequest>) -> Vec<v1::RouteResponse> {
        self.runtime.block_on(async {
            let channel = self.channel("gateway-rig", Server::Balancer, &self.ports.admin).await;
            let mut client = RoutingServiceClient::new(channel.expect("connects"));
            let stream = client.route(tokio_stream::iter(batches)).await.expect("a stream");
            let mut stream = stream.into_inner();
            let mut responses = Vec::new();
            while let Some(response) = stream.message().await.expect("a response") {
                responses.push(response);
            }
            responses
        })
    }

    /// Pauses or resumes the unit.
    pub fn pause(&self, paused: bool) {
        let unit = UNIT.to_owned();
        let answer = self.admin(async |mut c| match paused {
            true => c.pause(v1::PauseRequest { unit, ..Default::default() }).await.map(drop),
            false => c.resume(v1::ResumeRequest { unit, ..Default::default() }).await.map(drop),
        });
        answer.expect("a pause is taken");
    }

    /// Status of the unit, if the balancer answers and knows it.
    pub fn status(&self) -> Option<v1::UnitStatus> {
        let status = self.admin(async |mut c| Ok(c.get_status(v1::GetStatusRequest {}).await?.into_inner()));
        status.ok()?.units.into_iter().find(|u| u.unit == UNIT)
    }

    /// Waits for a state of the unit.
    #[track_caller]
    pub fn wait_for_state(&self, state: UnitState) -> v1::UnitStatus {
        wait_for(state.as_str_name(), || self.status().filter(|u| u.state() == state))
    }

    /// Feeds windows until the unit has carried out its decision on one of them. One is enough unless a plan is
    /// applied within it, which makes it unfit to be decided on.
    #[track_caller]
    pub fn feed_until_settled(&mut self, tokens: &[u64]) -> v1::UnitStatus {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            self.feed(tokens);
            let last = self.step - WINDOW_STEPS;
            let patience = Instant::now() + Duration::from_secs(2);
            while Instant::now() < patience {
                let unit = self.status();
                if let Some(unit) = unit.filter(|u| u.settled.is_some_and(|w| w.from_step >= last)) {
                    return unit;
                }
                std::thread::sleep(POLL);
            }
        }
        panic!("the unit did not come to rest within {} s", DEADLINE.as_secs());
    }

    /// Accounts of all committed plans, oldest first.
    pub fn plans(&self) -> Vec<v1::PlanSummary> {
        let request = v1::ListPlansRequest { unit: UNIT.to_owned(), limit: 500 };
        let answer = self.admin(async |mut c| Ok(c.list_plans(request).await?.into_inner().plans));
        let mut plans = answer.expect("plans are listed");
        plans.reverse();
        plans
    }

    /// Every committed epoch is one more than the one before, from the boot plan on.
    #[track_caller]
    pub fn assert_epochs_committed_once(&self) {
        let epochs: Vec<u64> = self.plans().iter().map(|p| p.id.as_ref().expect("an id").epoch).collect();
        assert_eq!(epochs, (0..epochs.len() as u64).collect::<Vec<_>>());
    }

    /// Runs the independent verifier as a process of its own against the committed plan.
    pub fn verify(&self) -> (ProcessOutput, Value) {
        let mut command = Command::new(program("evenkeel-agent"));
        command.args(["verify", "--output", "json", "--admin", &self.ports.admin]);
        for (name, value) in self.certificates.iter().flat_map(|c| c.flags("viewer-rig")) {
            command.arg(name).arg(value);
        }
        for agent in &self.agents {
            command.arg("--state").arg(&agent.state_dir);
        }
        let output = command.output().expect("the verifier runs");
        let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output, report)
    }

    /// The verifier must compare every filled slot and find nothing wrong.
    #[track_caller]
    pub fn assert_all_slots_hold_what_the_plan_says(&self) {
        let (output, report) = self.verify();
        assert!(output.status.success(), "{report:#}\n{}", String::from_utf8_lossy(&output.stderr));
        let Shape { nodes, ranks_per_node, layers, slots_per_rank, .. } = self.shape;
        let slots = u64::from(nodes) * u64::from(ranks_per_node) * u64::from(layers * slots_per_rank);
        assert_eq!(report["slots_compared"], slots);
        assert_eq!(report["slots_wrong"], 0);
    }

    /// Changes one byte in the middle of an agent's slots.
    pub fn plant_wrong_byte(&self, node: usize) {
        use std::os::unix::fs::FileExt as _;
        let path = self.agents[node].state_dir.join("slots.bin");
        let file = std::fs::File::options().read(true).write(true).open(&path).expect("slots are a file");
        // The last slots of the file are the last rank's spare; half way stands some slot's content.
        let at = file.metadata().expect("has a size").len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("readable");
        file.write_all_at(&[byte[0] ^ 1], at).expect("writable");
    }

    /// See [`Self::live_replicas_seen`]; looks until a look is conclusive.
    #[track_caller]
    pub fn assert_no_expert_without_live_replica(&self) {
        wait_for("a moment in which nothing flips", || self.live_replicas_seen().then_some(()));
    }

    /// The plans that the nodes' workers serve right now, read from their files: nodes may differ while a
    /// plan is being applied.
    fn plans_in_service(&self) -> Vec<Plan> {
        let read = |agent: &Agent| control::read(&agent.state_dir.join("control.bin")).ok().flatten();
        self.agents.iter().filter_map(read).collect()
    }

    /// Every slot that any node's tables name holds its expert, on whatever node the slot is: no token can
    /// be sent to a slot without its expert. Returns whether the look was conclusive: nothing flipped
    /// meanwhile.
    #[track_caller]
    pub fn live_replicas_seen(&self) -> bool {
        let before = self.plans_in_service();
        let mut reports = Vec::new();
        for plan in &before {
            let file = self.dir.path().join("in-service.plan");
            std::fs::write(&file, v1::Plan::from(plan).encode_to_vec()).expect("written");
            let flags = VerifyFlags {
                admin: String::new(),
                plan: Some(file),
                states: self.agents.iter().map(|a| a.state_dir.clone()).collect(),
                output: Output::Json,
                tls: TlsFlags::default(),
            };
            reports.push(self.runtime.block_on(verify::run(&flags)).expect("slots can be read"));
        }
        if before.is_empty() || self.plans_in_service() != before {
            return false;
        }
        for report in reports {
            assert!(report.is_clean(), "{report:?}");
        }
        true
    }
}

pub(crate) fn tls_section(certificates: &Certificates) -> String {
    let files = certificates.files("balancer");
    format!("[tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n", files.ca, files.certificate, files.key)
}

fn read_json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn start_balancer(dir: &Path, ports: &Ports) -> (Process, Ports) {
    let ports_file = dir.join("ports.json");
    let _ = std::fs::remove_file(&ports_file);
    let mut command = Command::new(program("evenkeel"));
    command.arg("serve").arg("--config").arg(dir.join("balancer.toml"));
    command.arg("--state-dir").arg(dir.join("balancer")).arg("--ports-file").arg(&ports_file);
    command.args(["--agents-listen", &ports.agents, "--admin-listen", &ports.admin]);
    command.args(["--metrics-listen", &ports.metrics]);
    let mut process = Process::start(command, &dir.join("balancer.log"));
    let bound = wait_for("the balancer to listen", || {
        process.assert_alive();
        read_json(&ports_file)
    });
    let address = |key: &str| bound[key].as_str().expect("an address").to_owned();
    let ports = Ports { agents: address("agents"), admin: address("admin"), metrics: address("metrics") };
    (process, ports)
}
