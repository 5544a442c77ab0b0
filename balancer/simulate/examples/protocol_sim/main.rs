//! Runs the simulation of the control protocol over many seeds, or one seed with its trace, or every planted bug.
//!
//! Exit codes: 0 no invariant broke (with `--mutants`: enough bugs were caught), 1 one did, 2 wrong usage.

#[cfg(feature = "mutants")]
mod mutants;
mod seeds;

use clap::Parser;
use std::process::ExitCode;

/// Seeded simulation of the control protocol.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Runs this seed alone and prints its trace.
    #[arg(long, conflicts_with_all = ["seeds", "first", "mutants"])]
    seed: Option<u64>,
    /// Threads; all cores without it.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Runs each planted bug until it is caught, over at most this many seeds; needs the feature `mutants`.
    #[arg(long, default_value_t = false)]
    mutants: bool,
    /// With `--mutants` or `--seed`: this bug alone.
    #[arg(long)]
    mutant: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.map_or(cores, usize::from);
    if let Err(message) = choose(arguments.mutant.as_deref(), arguments.mutants) {
        eprintln!("error: {message}");
        return ExitCode::from(2);
    }
    if let Some(seed) = arguments.seed {
        return seeds::replay(seed);
    }
    seeds::quiet_panics();
    if arguments.mutants {
        return mutants(arguments.seeds, arguments.mutant.as_deref(), threads);
    }
    seeds::run(arguments.first, arguments.seeds, threads)
}

#[cfg(feature = "mutants")]
fn choose(mutant: Option<&str>, _all: bool) -> Result<(), String> {
    let Some(name) = mutant else { return Ok(()) };
    let found = mutants::by_name(name).ok_or_else(|| format!("--mutant {name}: there is no such bug"))?;
    evenkeel_core::mutants::switch(Some(found));
    Ok(())
}

#[cfg(not(feature = "mutants"))]
fn choose(mutant: Option<&str>, all: bool) -> Result<(), String> {
    if all || mutant.is_some() {
        return Err("no bug is planted in this build: build it with --features mutants".to_owned());
    }
    Ok(())
}

#[cfg(feature = "mutants")]
fn mutants(seeds: u64, only: Option<&str>, threads: usize) -> ExitCode {
    mutants::run(seeds, only, threads)
}

#[cfg(not(feature = "mutants"))]
fn mutants(_seeds: u64, _only: Option<&str>, _threads: usize) -> ExitCode {
    unreachable!("refused before")
}
