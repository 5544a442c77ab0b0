//! One child process with its log, and how it is found, signalled and waited for.

use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Everything a test waits for happens within this time on a machine of two busy cores.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// How often it looks.
pub const POLL: Duration = Duration::from_millis(10);

/// Path of one of the project's programs, in the directory that the test itself was built into.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let directory = test.parent().and_then(Path::parent).expect("tests are built into target/PROFILE/deps");
    let path = directory.join(name);
    assert!(path.exists(), "{} is not built: run `cargo build --workspace --bins`", path.display());
    path
}

/// Waits until `look` finds something.
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {} s for {what}", DEADLINE.as_secs());
        std::thread::sleep(POLL);
    }
}

/// A running process. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it prints is appended to `log`.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let file =
            std::fs::File::options().create(true).append(true).open(log).expect("a log can be written");
        let errors = file.try_clone().expect("a handle can be copied");
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn().expect("starts");
        Self { child, log: log.to_owned() }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: what a crash looks like.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    /// SIGTERM, then waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(id, Signal::TERM).expect("a child can be signalled");
        wait_for("a process to stop", || self.ended())
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("can be asked")
    }

    /// Panics with the log if the process has ended.
    #[track_caller]
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.ended() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            panic!("{} ended: {status}\n{log}", self.log.display());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("--- {}\n{log}", self.log.display());
        }
    }
}
