//! The balancer's process: started, killed, and looked at from outside.

use evenkeel::certificates::{Authority, Issue};
use evenkeel_proto::v1::admin_service_client::AdminServiceClient;
use evenkeel_proto::v1::{GetStatusRequest, UnitState};
use evenkeel_tests::process::{Process, program};
use evenkeel_transport::credentials::Server;
use evenkeel_transport::{Credentials, PeerRole, Security, TlsFiles};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::time::Instant;

/// Name of the cluster.
pub(crate) const CLUSTER: &str = "bench";
/// How often it looks.
const POLL: Duration = Duration::from_millis(50);
/// Days that the certificates last.
const DAYS: u32 = 2;

/// See the module.
pub(crate) struct Balancer {
    directory: tempfile::TempDir,
    process: Process,
    agents: String,
    admin: String,
    operator: Security,
}

impl Balancer {
    /// Makes certificates for it and for as many agents, and starts it.
    pub(crate) fn start(agents: usize) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
        certificates(&directory.path().join("certs"), agents)?;
        let [agents, admin, metrics] = [(); 3].map(|()| free_address());
        let config = format!(
            "cluster = \"{CLUSTER}\"\nagents_listen = \"{agents}\"\nadmin_listen = \"{admin}\"\nmetrics_listen = \"{metrics}\"\nstate_dir = {:?}\n[control]\nwindow_steps = 1\n[tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
            directory.path().join("state"),
            directory.path().join("certs/ca.crt"),
            directory.path().join("certs/balancer.crt"),
            directory.path().join("certs/balancer.key"),
        );
        std::fs::write(directory.path().join("balancer.toml"), config).map_err(|e| e.to_string())?;
        let operator = security(directory.path(), "viewer-bench")?;
        let process = spawn(directory.path());
        Ok(Self { directory, process, agents, admin, operator })
    }

    /// Where agents connect.
    pub(crate) fn address(&self) -> &str {
        &self.agents
    }

    /// How agent number `n` proves its name.
    pub(crate) fn agent(&self, n: usize) -> Result<Security, String> {
        security(self.directory.path(), &format!("agent-{}", node(n)))
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on its state and addresses.
    pub(crate) fn restart(&mut self) -> Result<(), String> {
        self.process = spawn(self.directory.path());
        Ok(())
    }

    /// Waits until every unit is steady and has all its agents.
    pub(crate) async fn wait_until_formed(&self, agents: usize, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Ok((steady, connected)) = self.units().await
                && steady
                && connected == agents
            {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        Err(format!("the units did not form within {} s", patience.as_secs()))
    }

    async fn units(&self) -> Result<(bool, usize), String> {
        let opened = evenkeel_transport::dial::connect(
            &self.operator,
            Server::Balancer,
            &self.admin,
            patience(),
            |e| e,
        );
        let (channel, _) = opened.await.map_err(|e| e.to_string())?;
        let mut client = AdminServiceClient::new(channel).max_decoding_message_size(64 << 20);
        let status = client.get_status(GetStatusRequest {}).await.map_err(|e| e.to_string())?.into_inner();
        let steady = status.units.iter().all(|unit| unit.state() == UnitState::Steady);
        Ok((steady, status.units.iter().map(|unit| unit.ranks_connected as usize).sum()))
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most it ever was, since this process started.
    pub(crate) fn peak(&self) -> u64 {
        self.status("VmHWM:")
    }

    fn status(&self, field: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
    }

    /// Processor time used so far.
    pub(crate) fn cpu(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap_or_default();
        // The name of the program, which may hold spaces, ends with the last parenthesis.
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        // Fields 14 and 15 of proc(5), utime and stime, in ticks of 10 ms on every Linux we know.
        Duration::from_millis((ticks(11) + ticks(12)) * 10)
    }
}

fn patience() -> Duration {
    Duration::from_secs(10)
}

/// Name of agent number `n`.
pub(crate) fn node(n: usize) -> String {
    format!("n-{n}")
}

fn certificates(directory: &Path, agents: usize) -> Result<(), String> {
    Authority::init(directory, CLUSTER, false).map_err(|e| e.to_string())?;
    let authority = Authority::open(directory).map_err(|e| e.to_string())?;
    let names = (0..agents).map(|n| (PeerRole::Agent, node(n)));
    let rest = [(PeerRole::Balancer, String::new()), (PeerRole::Viewer, "bench".to_owned())];
    for (role, name) in rest.into_iter().chain(names) {
        let issue = Issue { role, name: &name, also: &[], days: DAYS, force: false };
        authority.issue(directory, &issue).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn security(directory: &Path, name: &str) -> Result<Security, String> {
    let file = |name: String| -> PathBuf { directory.join("certs").join(name) };
    let files = TlsFiles {
        ca: file("ca.crt".to_owned()),
        certificate: file(format!("{name}.crt")),
        key: file(format!("{name}.key")),
    };
    Ok(Security::Tls(Credentials::load(files, Some(CLUSTER)).map_err(|e| e.to_string())?))
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    listener.local_addr().expect("bound").to_string()
}

fn spawn(directory: &Path) -> Process {
    let mut command = Command::new(program("evenkeel"));
    command.arg("serve").arg("--config").arg(directory.join("balancer.toml"));
    Process::start(command, &directory.join("balancer.log"))
}
