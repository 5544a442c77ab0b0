//! etcd for tests: one member or several, real processes on free loopback ports in a temporary directory. What happens to
//! them happens to the programs of the distribution: kill -9, a stop, a small quota, a backup that is restored.

use crate::process::{Process, wait_for};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// How the members are started.
#[derive(Debug, Clone)]
pub struct EtcdSettings {
    /// Number of members.
    pub members: usize,
    /// Bytes of the database at which it takes no more; 0: etcd's own limit.
    pub quota_bytes: u64,
    /// Certificates that members and clients show; `None`: plaintext.
    pub tls: Option<EtcdTls>,
}

/// Files in PEM.
#[derive(Debug, Clone)]
pub struct EtcdTls {
    /// The authority of all.
    pub ca: PathBuf,
    /// What the member shows its clients, and etcdctl the member.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Name and password for etcdctl, as `name:password`, once users are needed.
    pub user: Option<String>,
}

impl Default for EtcdSettings {
    fn default() -> Self {
        Self { members: 1, quota_bytes: 0, tls: None }
    }
}

#[derive(Debug)]
struct Member {
    name: String,
    client: String,
    peer: String,
    data: PathBuf,
    process: Option<Process>,
}

/// A running etcd. Its processes are killed when it is dropped.
#[derive(Debug)]
pub struct Etcd {
    settings: EtcdSettings,
    members: Vec<Member>,
    dir: TempDir,
}

/// The folder with the programs, if they are there: that of `EVENKEEL_ETCD`, or the first on the PATH, or where
/// `tests/setup/etcd` puts them.
pub fn programs() -> Option<PathBuf> {
    let named = std::env::var_os("EVENKEEL_ETCD").map(PathBuf::from);
    let named = named.and_then(|etcd| etcd.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Tests are built into target/PROFILE/deps.
    let test = std::env::current_exe().ok();
    let target = test.as_deref().and_then(|test| test.ancestors().nth(3));
    let unpacked = target.map(|target| target.join("etcd/usr/bin"));
    let folders = named.into_iter().chain(std::env::split_paths(&path)).chain(unpacked);
    folders.into_iter().find(|folder| folder.join("etcd").is_file() && folder.join("etcdctl").is_file())
}

/// As [`programs`]; a test that needs them fails with what to do.
fn program(name: &str) -> PathBuf {
    let folder = programs().expect("etcd is not installed: run tests/setup/etcd, or set EVENKEEL_ETCD");
    folder.join(name)
}

/// A port that nobody had a moment ago. Members must know each other's before they start.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    listener.local_addr().expect("a bound listener has an address").port()
}

impl Etcd {
    /// Starts the members and waits until they answer.
    pub fn start(settings: EtcdSettings) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (scheme, members) = (if settings.tls.is_some() { "https" } else { "http" }, settings.members);
        let member = |i| Member {
            name: format!("m{i}"),
            client: format!("{scheme}://127.0.0.1:{}", free_port()),
            peer: format!("http://127.0.0.1:{}", free_port()),
            data: dir.path().join(format!("m{i}")),
            process: None,
        };
        let mut etcd = Self { settings, members: (0..members).map(member).collect(), dir };
        for i in 0..members {
            etcd.spawn(i);
        }
        etcd.wait_until_it_answers();
        etcd
    }

    fn initial_cluster(&self) -> String {
        let member = |member: &Member| format!("{}={}", member.name, member.peer);
        self.members.iter().map(member).collect::<Vec<_>>().join(",")
    }

    fn spawn(&mut self, i: usize) {
        let cluster = self.initial_cluster();
        let log = self.dir.path().join(format!("m{i}.log"));
        let Member { name, client, peer, data, process } = &mut self.members[i];
        let mut command = Command::new(program("etcd"));
        command.args(["--name", name]).arg("--data-dir").arg(data);
        command.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
        command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
        command.args(["--initial-cluster", &cluster, "--initial-cluster-token", "evenkeel-tests"]);
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        if let Some(EtcdTls { ca, certificate, key, .. }) = &self.settings.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
        }
        if self.settings.quota_bytes > 0 {
            command.args(["--quota-backend-bytes", &self.settings.quota_bytes.to_string()]);
        }
        *process = Some(Process::start(command, &log));
    }

    /// Waits until a majority answers.
    #[track_caller]
    pub fn wait_until_it_answers(&self) {
        wait_for("etcd to answer", || self.try_ctl(&["get", "none"]).ok());
    }

    /// Addresses of all members, for clients.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client.clone()).collect()
    }

    /// The member that leads the others.
    #[track_caller]
    pub fn leader(&self) -> usize {
        wait_for("etcd to have a leader", || {
            (0..self.members.len()).filter(|i| self.members[*i].process.is_some()).find(|i| {
                let endpoint = &self.members[*i].client;
                let status =
                    self.ctl_at(endpoint, &["endpoint", "status", "--write-out=json"]).unwrap_or_default();
                let status: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
                let status = &status[0]["Status"];
                status["leader"].is_u64() && status["leader"] == status["header"]["member_id"]
            })
        })
    }

    /// SIGKILL.
    pub fn kill(&mut self, i: usize) {
        self.members[i].process.take().expect("it runs").kill();
    }

    /// Starts a member that was killed, on what it had.
    pub fn restart(&mut self, i: usize) {
        assert!(self.members[i].process.is_none(), "it runs");
        self.spawn(i);
    }

    /// SIGSTOP: it keeps its connections and answers nothing.
    pub fn freeze(&self, i: usize) {
        self.signal(i, Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self, i: usize) {
        self.signal(i, Signal::CONT);
    }

    /// Its disk takes no more: every write to a file fails from now on.
    pub fn fill_disk(&self, i: usize) {
        let nothing = Rlimit { current: Some(0), maximum: Some(0) };
        prlimit(Some(self.process_id(i)), Resource::Fsize, nothing).expect("a child can be limited");
    }

    fn signal(&self, i: usize, signal: Signal) {
        kill_process(self.process_id(i), signal).expect("a child can be signalled");
    }

    fn process_id(&self, i: usize) -> Pid {
        let id = self.members[i].process.as_ref().expect("it runs").id();
        i32::try_from(id).ok().and_then(Pid::from_raw).expect("a process id")
    }

    /// Runs etcdctl against the members that run; what it prints.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.try_ctl(arguments).unwrap_or_else(|error| panic!("etcdctl {arguments:?}: {error}"))
    }

    fn try_ctl(&self, arguments: &[&str]) -> Result<String, String> {
        let running = self.members.iter().filter(|member| member.process.is_some());
        let endpoints: Vec<&str> = running.map(|member| member.client.as_str()).collect();
        let endpoints = endpoints.join(",");
        let Some(user) = self.settings.tls.as_ref().and_then(|tls| tls.user.as_ref()) else {
            return self.ctl_at(&endpoints, arguments);
        };
        // Before users are needed, there is none to be.
        let with_user = [&["--user", user.as_str()], arguments].concat();
        self.ctl_at(&endpoints, arguments).or_else(|_| self.ctl_at(&endpoints, &with_user))
    }

    fn ctl_at(&self, endpoints: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(program("etcdctl"));
        command.env("ETCDCTL_API", "3").args(["--endpoints", endpoints, "--command-timeout", "5s"]);
        if let Some(EtcdTls { ca, certificate, key, .. }) = &self.settings.tls {
            command.arg("--cacert").arg(ca).arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        let output = command.args(arguments).output().map_err(|e| e.to_string())?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// The store's revision.
    #[track_caller]
    pub fn revision(&self) -> u64 {
        let found = self.ctl(&["get", "none", "--write-out=json"]);
        let found: serde_json::Value = serde_json::from_str(&found).expect("JSON");
        found["header"]["revision"].as_u64().expect("a revision")
    }

    /// Forgets old revisions, returns what they took, and lifts the alarm of a used-up quota.
    pub fn make_room(&self) {
        let revision = self.revision().to_string();
        self.ctl(&["compact", &revision, "--physical"]);
        self.ctl(&["defrag"]);
        self.ctl(&["alarm", "disarm"]);
    }

    /// A backup of what the first running member holds.
    pub fn back_up(&self) -> PathBuf {
        let file = self.dir.path().join("backup");
        let running = self.members.iter().find(|member| member.process.is_some()).expect("one runs");
        let path = file.to_str().expect("a plain path");
        self.ctl_at(&running.client, &["snapshot", "save", path]).expect("a backup");
        file
    }

    /// Kills everything and starts it again from a backup, at the same addresses.
    pub fn restore(&mut self, backup: &Path) {
        let cluster = self.initial_cluster();
        for i in 0..self.members.len() {
            if self.members[i].process.is_some() {
                self.kill(i);
            }
            let Member { name, peer, data, .. } = &self.members[i];
            std::fs::remove_dir_all(data).expect("the data are there");
            let mut command = restore_command();
            command.arg("snapshot").arg("restore").arg(backup).args(["--name", name]);
            command.arg("--data-dir").arg(data).args(["--initial-cluster", &cluster]);
            command.args([
                "--initial-cluster-token",
                "evenkeel-tests",
                "--initial-advertise-peer-urls",
                peer,
            ]);
            let output = command.output().expect("runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            self.spawn(i);
        }
        self.wait_until_it_answers();
    }
}

/// Restoring is etcdutl's business from 3.5 on.
fn restore_command() -> Command {
    let utility = program("etcdutl");
    let mut command = Command::new(if utility.is_file() { utility } else { program("etcdctl") });
    command.env("ETCDCTL_API", "3");
    command
}
