//! `evenkeel simulate`: policies side by side on a trace, on clusters that are modelled. Nothing here is measured on hardware.

mod calibration;
mod cluster;
mod command;
mod output;
mod policies;
mod progress;
mod run;
mod timeline;
mod workload;

use super::Failure;
use clap::{Args, Subcommand, ValueEnum};
use evenkeel_simulate::step_time::calibration::Calibration;

/// Exit code for flags and files that cannot be used.
const EXIT_INPUT: u8 = 2;

/// Replay a trace on modelled prefill and decode units, policies side by side; needs no balancer
#[derive(Args)]
pub(super) struct Simulate {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prompts on prefill units: a request ends with its first token
    Prefill(cluster::Prefill),
    /// Outputs on decode units: a request arrives with its KV
    Decode(cluster::Decode),
    /// Prefill units, a hand-off of KV, decode units
    Disaggregated(cluster::Disaggregated),
    /// Draw how the stages of two microbatches overlap
    Timeline(timeline::TimelineCommand),
    /// Show the modelled step times beside what was published
    Calibration(calibration::CalibrationCommand),
}

impl Simulate {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Prefill(command) => command.run(),
            Command::Decode(command) => command.run(),
            Command::Disaggregated(command) => command.run(),
            Command::Timeline(command) => command.run(),
            Command::Calibration(command) => command.run(),
        }
    }
}

/// To what step times are fitted.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum FittedTo {
    /// DeepSeek's service over a day: 73.7k tokens in and 14.8k out a second and node; a service's waits are in it
    Service,
    /// DeepSeek's published profiles: full batches, experts in perfect balance
    Profile,
}

impl From<FittedTo> for Calibration {
    fn from(fitted: FittedTo) -> Self {
        match fitted {
            FittedTo::Service => Self::Service,
            FittedTo::Profile => Self::Profile,
        }
    }
}

/// What an operator gave cannot be used.
fn refused(code: &str, message: impl ToString) -> Failure {
    Failure { exit: EXIT_INPUT, ..Failure::new(code, message) }
}
