//! The command line: data on stdout, messages on stderr, one clear line with a stable code per failure.

mod admin;
mod audit;
mod certs;
mod changes;
mod experts;
mod leader;
mod plan;
mod route;
mod serve;
mod simulate;
mod tls;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// What a command failed with. Exit codes: 1 error, 2 usage (clap's own) and bad input of `experts`, `route` and `simulate`, 4
/// unreachable, 5 denied.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) exit: u8,
}

impl Failure {
    pub(crate) fn new(code: impl Into<String>, message: impl ToString) -> Self {
        Self { code: code.into(), message: message.to_string(), exit: 1 }
    }
}

/// Keeps every GPU of a large MoE inference cluster equally busy.
#[derive(Parser)]
#[command(name = "evenkeel", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the balancer: agents' stream, admin and routing gRPC, metrics and page
    Serve(serve::Serve),
    /// Run balancer, agents and simulated workers on this machine and replay a real trace
    Demo(crate::demo::Demo),
    /// Place experts from recorded loads, and compare, size and convert plans; needs no balancer
    Experts(experts::Experts),
    /// Decide routing events from JSON lines, and replay recorded decisions; needs no balancer
    Route(route::Route),
    /// Replay a trace on modelled prefill and decode units, policies side by side; needs no balancer
    Simulate(simulate::Simulate),
    /// Make and show certificates, for tests and small clusters; needs no balancer
    ///
    /// The authority is a key in a file, without revocation: good for tests and for small clusters whose directory is
    /// kept safe. A cluster that has an authority of its own (cert-manager, Vault, step-ca) uses that instead; all that
    /// counts are the names in certificates.
    Certs(certs::Certs),
    /// Show which balancer leads, hand the lead over, adopt a restored store
    Leader(leader::Leader),
    /// Show units and agents of a running balancer
    Status(admin::Status),
    /// Show committed plans of a unit
    Plans(admin::Plans),
    /// Make no new plan for a unit until it is resumed
    Pause(changes::Pause),
    /// Make plans for a unit again
    Resume(changes::Resume),
    /// Empty a node, so that it can be switched off
    Drain(changes::Drain),
    /// Use a drained node again
    Undrain(changes::Undrain),
    /// Keep a replica of an expert on a rank
    Pin(changes::Pin),
    /// Let a pinned replica move again
    Unpin(changes::Unpin),
    /// Show plans of a unit, go back to an older one, give up one that is being prepared
    Plan(plan::Plan),
    /// Show what was changed by whom
    Audit(audit::Audit),
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Experts(command) => command.run(),
        Command::Route(command) => command.run(),
        Command::Simulate(command) => command.run(),
        Command::Certs(command) => command.run(),
        Command::Leader(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Plans(command) => command.run(),
        Command::Pause(command) => command.run(),
        Command::Resume(command) => command.run(),
        Command::Drain(command) => command.run(),
        Command::Undrain(command) => command.run(),
        Command::Pin(command) => command.run(),
        Command::Unpin(command) => command.run(),
        Command::Plan(command) => command.run(),
        Command::Audit(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message, exit }) => {
            eprintln!("error: {code}: {message}");
            ExitCode::from(exit)
        }
    }
}

/// The runtime of a command.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("the system gives a runtime")
}
