//! `evenkeel experts`: placement without a running balancer, from files to files.

mod convert;
mod current;
mod diff;
mod evaluate;
mod gpus;
mod layers;
mod list;
mod moves;
mod plan_input;
mod score;
mod slots;
mod solve;
mod table;
mod verify;

use super::Failure;
use crate::expert_files::FileError;
use clap::{Args, Subcommand, ValueEnum};
use evenkeel_core::experts::InputError;

/// Bytes of one expert in one layer of DeepSeek-V3: three matrices of 7168 x 2048 in FP8.
const EXPERT_BYTES: u64 = 3 * 7168 * 2048;

/// Exit code for flags and files that cannot be used.
const EXIT_INPUT: u8 = 2;

/// Place experts from recorded loads, and compare, size and convert plans; needs no balancer
#[derive(Args)]
pub(super) struct Experts {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Plan the placement and the split of all layers
    Solve(solve::Solve),
    /// Show how evenly plans balance given loads
    Score(score::Score),
    /// Show what a change from one plan to another moves
    Diff(diff::Diff),
    /// Show what more redundant slots would buy, and what they cost
    Slots(slots::Slots),
    /// Translate plans between Evenkeel and the engines
    Convert(convert::Convert),
}

impl Experts {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Solve(command) => command.run(),
            Command::Score(command) => command.run(),
            Command::Diff(command) => command.run(),
            Command::Slots(command) => command.run(),
            Command::Convert(command) => command.run(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// What an operator gave cannot be used.
fn refused(code: &str, message: impl ToString) -> Failure {
    Failure { exit: EXIT_INPUT, ..Failure::new(code, message) }
}

impl From<InputError> for Failure {
    fn from(error: InputError) -> Self {
        let message = error.to_string();
        // The code heads the message of the core, and the command line prints it itself.
        let bare = message.split_once("] ").map_or(message.as_str(), |(_, rest)| rest);
        refused(error.code(), bare)
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        let exit = if matches!(error, FileError::Unwritable { .. }) { 1 } else { EXIT_INPUT };
        Failure { exit, ..Failure::new(error.code(), &error) }
    }
}
