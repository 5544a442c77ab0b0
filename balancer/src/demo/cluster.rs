//! The demo's processes: one balancer and one agent per node, on free loopback ports, in one directory.

use super::DemoError;
use super::units::DemoUnit;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// A process on a busy machine of two cores must say where it listens within this time.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// After SIGTERM a process gets this long before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// How often a file or a status is looked at while waiting.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// Addresses of the balancer, as it wrote them.
pub(super) type BalancerPorts = crate::serve::Bound;

/// Addresses of an agent, as it wrote them.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct AgentPorts {
    /// Simulated engine.
    pub engine: String,
}

/// A running agent.
pub(super) struct Agent {
    /// Its node.
    pub node: String,
    /// Its state directory, with the slots' bytes.
    pub state_dir: PathBuf,
    /// Where it listens.
    pub ports: AgentPorts,
    child: Child,
}

/// All processes. Dropping it kills those that are left.
pub(super) struct Cluster {
    /// Where the balancer listens.
    pub balancer: BalancerPorts,
    /// Per unit, in the order of their nodes.
    pub agents: Vec<Vec<Agent>>,
    balancer_child: Child,
}

/// What the processes are started with.
pub(super) struct Launch<'a> {
    /// Directory for state, configuration and logs.
    pub dir: &'a Path,
    /// The `evenkeel-agent` program.
    pub agent_program: &'a Path,
    /// The balancer's configuration.
    pub config: &'a str,
    /// The units.
    pub units: &'a [DemoUnit],
    /// Bytes of one expert.
    pub expert_bytes: u64,
}

impl Cluster {
    /// Starts every process and waits until all of them listen.
    pub(super) async fn start(launch: &Launch<'_>) -> Result<Cluster, DemoError> {
        let config = launch.dir.join("balancer.toml");
        std::fs::write(&config, launch.config).map_err(|e| DemoError::file(&config, e))?;
        let ports_file = launch.dir.join("balancer-ports.json");
        let program = std::env::current_exe().map_err(|e| DemoError::file(Path::new("evenkeel"), e))?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(&config).arg("--ports-file").arg(&ports_file);
        command.arg("--state-dir").arg(launch.dir.join("balancer"));
        for listen in ["--agents-listen", "--admin-listen", "--metrics-listen"] {
            command.args([listen, "127.0.0.1:0"]);
        }
        let mut balancer_child = spawn(command, &launch.dir.join("balancer.log"))?;
        let balancer: BalancerPorts = ports("balancer", &ports_file, &mut balancer_child).await?;
        let mut started = Vec::new();
        for unit in launch.units {
            let mut children = Vec::new();
            for node in 0..unit.nodes {
                let name = unit.node_name(node);
                let state_dir = launch.dir.join(&name);
                let command = agent_command(launch, unit, node, &state_dir, &balancer);
                children.push((
                    name.clone(),
                    spawn(command, &launch.dir.join(format!("{name}.log")))?,
                    state_dir,
                ));
            }
            started.push(children);
        }
        let mut agents = Vec::new();
        for children in started {
            let mut of_unit = Vec::new();
            for (node, mut child, state_dir) in children {
                let ports = ports(&node, &state_dir.join("ports.json"), &mut child).await?;
                of_unit.push(Agent { node, state_dir, ports, child });
            }
            agents.push(of_unit);
        }
        Ok(Cluster { balancer, agents, balancer_child })
    }

    /// Processes, the balancer included.
    pub(super) fn processes(&self) -> usize {
        1 + self.agents.iter().map(Vec::len).sum::<usize>()
    }

    /// Highest resident memory of the balancer so far, in bytes, as the kernel counted it.
    pub(super) fn balancer_peak_memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.balancer_child.id()?)).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    }

    /// An error if a process has ended: none may before [`Self::stop`].
    pub(super) fn check_alive(&mut self) -> Result<(), DemoError> {
        let agents = self.agents.iter_mut().flatten().map(|a| (a.node.as_str(), &mut a.child));
        for (name, child) in std::iter::once(("balancer", &mut self.balancer_child)).chain(agents) {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(DemoError::Exited { process: name.to_owned(), status: status.to_string() });
            }
        }
        Ok(())
    }

    /// Stops the agents, then the balancer, each cleanly.
    pub(super) async fn stop(self) {
        let mut agents: Vec<Child> = self.agents.into_iter().flatten().map(|a| a.child).collect();
        agents.iter().for_each(terminate);
        for child in &mut agents {
            finish(child).await;
        }
        let mut balancer = self.balancer_child;
        terminate(&balancer);
        finish(&mut balancer).await;
    }
}

fn agent_command(
    launch: &Launch<'_>,
    unit: &DemoUnit,
    node: u16,
    state_dir: &Path,
    balancer: &BalancerPorts,
) -> Command {
    let shape = &unit.shape;
    let mut command = Command::new(launch.agent_program);
    let mut flag = |name: &str, value: String| {
        command.arg(name).arg(value);
    };
    flag("--balancer", balancer.agents.to_string());
    flag("--cluster", super::CLUSTER.to_owned());
    flag("--node", unit.node_name(node));
    flag("--unit", unit.name.to_owned());
    flag("--role", shape.role.as_str().to_owned());
    flag("--layers", shape.layers.to_string());
    flag("--experts", shape.experts.to_string());
    flag("--top-k", shape.top_k.to_string());
    flag("--ranks-total", shape.ranks.to_string());
    let per_node = shape.ranks / unit.nodes;
    flag("--ranks", format!("{}-{}", node * per_node, (node + 1) * per_node - 1));
    flag("--slots-per-rank", shape.slots_per_rank.to_string());
    flag("--spare-per-rank", shape.spare_per_rank.to_string());
    flag("--expert-bytes", launch.expert_bytes.to_string());
    flag("--weights-seed", unit.weights_seed.to_string());
    flag("--state-dir", state_dir.display().to_string());
    for listen in ["--metrics", "--transfer", "--engine"] {
        flag(listen, "127.0.0.1:0".to_owned());
    }
    command
}

fn spawn(mut command: Command, log: &Path) -> Result<Child, DemoError> {
    let file = std::fs::File::create(log).map_err(|e| DemoError::file(log, e))?;
    let errors = file.try_clone().map_err(|e| DemoError::file(log, e))?;
    command.stdin(Stdio::null()).stdout(file).stderr(errors).kill_on_drop(true);
    // Ctrl-C reaches the demo alone, which then stops the others in order.
    command.process_group(0);
    let program = command.as_std().get_program().to_owned();
    command.spawn().map_err(|source| DemoError::Spawn { program: PathBuf::from(program), source })
}

/// Waits until a process has written where it listens.
async fn ports<T: DeserializeOwned>(process: &str, file: &Path, child: &mut Child) -> Result<T, DemoError> {
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        if let Ok(text) = std::fs::read(file) {
            return serde_json::from_slice(&text)
                .map_err(|e| DemoError::file(file, std::io::Error::other(e.to_string())));
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(DemoError::Exited { process: process.to_owned(), status: status.to_string() });
        }
        if Instant::now() >= deadline {
            return Err(DemoError::Deadline { what: format!("{process} to listen"), after: START_DEADLINE });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// SIGTERM: agents and balancer stop cleanly on it.
fn terminate(child: &Child) {
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(id) = id {
        // A process that has ended by itself needs no signal.
        let _ = kill_process(id, Signal::TERM);
    }
}

async fn finish(child: &mut Child) {
    if tokio::time::timeout(STOP_DEADLINE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}
