//! The `evenkeel` program.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    evenkeel::cli::main()
}
