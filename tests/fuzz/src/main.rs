//! `evenkeel-fuzz`: feeds every decoder of the project with valid messages that were damaged, for a while each. A decoder
//! must answer, with a value or an error; a panic, or an answer that takes longer than the limit, is a failure. The input is
//! kept, and the command that repeats it printed.
//!
//! It needs nothing but the stable toolchain, so it runs wherever the tests do. It knows no coverage: depth comes from
//! starting with valid input and damaging little of it.
#![forbid(unsafe_code)]

mod mutate;
mod runner;
mod targets;

use clap::Parser;
use runner::Failure;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

#[derive(Debug, Parser)]
#[command(
    name = "evenkeel-fuzz",
    about = "Feeds every decoder with damaged input and reports panics and slow answers"
)]
struct Flags {
    /// Seconds for each target
    #[arg(long, default_value_t = 10, value_name = "N")]
    seconds: u64,
    /// Only targets whose name contains this
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// First seed; each run of the same seed damages alike
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Feed this file once instead, to the target named
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
    /// Where failing inputs are kept
    #[arg(long, default_value = "target/fuzz-failures", value_name = "DIR")]
    keep: PathBuf,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let wanted = |name: &str| flags.target.as_deref().is_none_or(|part| name.contains(part));
    let targets: Vec<_> = targets::all().into_iter().filter(|target| wanted(target.name)).collect();
    if targets.is_empty() {
        let names: Vec<_> = targets::all().iter().map(|target| target.name).collect();
        eprintln!("unknown_target: no target's name contains that; there are {}", names.join(", "));
        return ExitCode::from(2);
    }
    let input = match flags.input.as_deref().map(|path| std::fs::read(path).map_err(|error| (path, error))) {
        None => None,
        Some(Ok(input)) => Some(input),
        Some(Err((path, error))) => {
            eprintln!("input_unreadable: {}: {error}", path.display());
            return ExitCode::from(2);
        }
    };
    let failed = AtomicBool::new(false);
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
            let ended = match &input {
                Some(input) => runner::once(target, input),
                None => runner::run(target, flags.seed, Duration::from_secs(flags.seconds)),
            };
            match ended {
                Ok(fed) => {
                    println!("{:<20} {:>9} inputs, {:>8} accepted", target.name, fed.inputs, fed.accepted)
                }
                Err(failure) => {
                    report(target.name, &failure, &flags.keep);
                    failed.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    if failed.into_inner() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn report(target: &str, failure: &Failure, keep: &std::path::Path) {
    let path = keep.join(format!("{target}-{}", failure.number));
    let kept = std::fs::create_dir_all(keep).and_then(|()| std::fs::write(&path, &failure.input));
    println!("{target:<20} FAILED: {}", failure.what);
    match kept {
        Ok(()) => println!("  again: evenkeel-fuzz --target {target} --input {}", path.display()),
        Err(error) => println!("  the input could not be kept: {error}"),
    }
}
