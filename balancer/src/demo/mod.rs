//! `evenkeel demo`: the whole road on one machine. Balancer and agents are real processes; the engines and
//! their clocks are simulated; the request trace and the V2-Lite routing are recorded; the 58 x 256 expert
//! loads are synthetic.

mod cluster;
mod experts;
mod figures;
mod live;
mod progress;
mod report;
mod requests;
mod run;
mod units;
mod verify;
mod windows;

use crate::cli::{Failure, runtime};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Cluster name of the demo, so that no agent of a real cluster is taken in.
const CLUSTER: &str = "demo";

/// Run balancer, agents and simulated workers on this machine and replay a real trace.
///
/// Starts one balancer and 23 agents as processes on free loopback ports: a prefill unit (EP32), a decode
/// unit (EP144) and a unit that replays recorded routing. Engines and their clocks are simulated; plans,
/// weight transfers and routing decisions are real.
#[derive(Args)]
pub(crate) struct Demo {
    /// Form of the result
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    /// Virtual minutes of the request trace to replay
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..=20))]
    minutes: u64,
    /// Request trace in the format of Mooncake (.jsonl or .jsonl.gz) [default: the recorded one]
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Directory of the recorded data [default: tests/data of the source tree]
    #[arg(long, value_name = "DIR", env = "EVENKEEL_DEMO_DATA")]
    data: Option<PathBuf>,
    /// Bytes of one expert's weights in one layer; small, so that every slot can be compared
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(8..=1 << 20))]
    expert_bytes: u64,
    /// Seed of the synthetic loads and of the jitter
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The agent's program [default: evenkeel-agent beside this one]
    #[arg(long, value_name = "FILE")]
    agent_program: Option<PathBuf>,
    /// Keep the processes' directory and print it
    #[arg(long)]
    keep: bool,
    /// Seconds to leave the page up after the replay, before the processes are stopped
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    linger: u64,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Why the demo did not come to its table. `code` is stable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    #[error("{path}: {source}")]
    File { path: String, source: std::io::Error },
    #[error("{program} cannot be started: {source}; build it with `cargo build --release`, or name it by --agent-program", program = program.display())]
    Spawn { program: PathBuf, source: std::io::Error },
    #[error(
        "process {process} ended early ({status}); its log stands in the demo's directory, which --keep keeps"
    )]
    Exited { process: String, status: String },
    #[error("waited {} s for {what}", after.as_secs())]
    Deadline { what: String, after: Duration },
    #[error("{address}: {reason}")]
    Connect { address: String, reason: String },
    #[error("the balancer answered: {}", .0.message())]
    Admin(tonic::Status),
    #[error("an agent's simulated engine answered: {}", .0.message())]
    Engine(tonic::Status),
    #[error(transparent)]
    Trace(#[from] evenkeel_simulate::trace::TraceError),
    #[error(transparent)]
    Loads(#[from] evenkeel_simulate::expert_loads::RoutingError),
    #[error(transparent)]
    Simulation(#[from] evenkeel_simulate::policy::SimulationError),
    #[error("the verifier ended with {status}: {message}")]
    Verify { status: String, message: String },
    #[error("stopped by a signal")]
    Interrupted,
}

impl DemoError {
    fn file(path: &Path, source: std::io::Error) -> Self {
        Self::File { path: path.display().to_string(), source }
    }

    fn code(&self) -> &'static str {
        match self {
            DemoError::File { .. } => "demo_file",
            DemoError::Spawn { .. } => "demo_cannot_start",
            DemoError::Exited { .. } => "demo_process_ended",
            DemoError::Deadline { .. } => "demo_deadline",
            DemoError::Connect { .. } => "demo_unreachable",
            DemoError::Admin(_) | DemoError::Engine(_) => "demo_call_failed",
            DemoError::Trace(e) => e.code(),
            DemoError::Loads(e) => e.code(),
            DemoError::Simulation(e) => e.code(),
            DemoError::Verify { .. } => "demo_verify_failed",
            DemoError::Interrupted => "interrupted",
        }
    }
}

impl Demo {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let result = runtime().block_on(async {
            tokio::select! {
                result = run::run(&self) => result,
                _ = tokio::signal::ctrl_c() => Err(DemoError::Interrupted),
            }
        });
        let figures = result.map_err(|e| Failure::new(e.code(), &e))?;
        match self.output {
            Output::Table => println!("{}", report::table(&figures)),
            Output::Json => println!("{:#}", report::json(&figures)),
        }
        if figures.verified.slots_wrong > 0 {
            let text = format!("{} slots do not hold the bytes they must hold", figures.verified.slots_wrong);
            return Err(Failure::new("demo_wrong_bytes", text));
        }
        Ok(())
    }

    fn data_dir(&self) -> PathBuf {
        // The source tree this binary was built in; a packaged binary is told by --data.
        let built_in = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data");
        self.data.clone().unwrap_or_else(|| PathBuf::from(built_in))
    }

    fn trace_file(&self) -> PathBuf {
        let recorded = || self.data_dir().join("mooncake_conversation_first20min.jsonl.gz");
        self.trace.clone().unwrap_or_else(recorded)
    }

    fn agent_program(&self) -> Result<PathBuf, DemoError> {
        if let Some(program) = &self.agent_program {
            return Ok(program.clone());
        }
        let own = std::env::current_exe().map_err(|e| DemoError::file(Path::new("evenkeel"), e))?;
        Ok(own.with_file_name("evenkeel-agent"))
    }
}
