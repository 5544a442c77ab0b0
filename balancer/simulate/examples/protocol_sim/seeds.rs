//! Many seeds, or one.

use evenkeel_simulate::protocol::{Run, run as simulate};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Every this many seeds one is run twice and the traces compared.
const SAMPLE: u64 = 50;
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(5);
/// Failures that are printed whole before the run is given up.
const FAILURES_MAX: usize = 5;

/// A broken assertion of a machine is a result like others; its message is printed with the run's.
pub(crate) fn quiet_panics() {
    std::panic::set_hook(Box::new(|_| {}));
}

/// One seed, with its trace.
pub(crate) fn replay(seed: u64) -> ExitCode {
    let run = simulate(seed, true);
    println!("seed {seed}: trace hash {:016x}, {} lines", run.hash, run.lines);
    match &run.failure {
        None => {
            println!("no invariant broke; everything converged at {:.3} s", run.time_ms as f64 / 1e3);
            ExitCode::SUCCESS
        }
        Some((failure, _)) => {
            println!("{} broke: {}", failure.invariant, failure.message);
            ExitCode::FAILURE
        }
    }
}

/// `count` seeds from `first` on.
pub(crate) fn run(first: u64, count: u64, threads: usize) -> ExitCode {
    let began = Instant::now();
    let mut told = began;
    let mut sum = Sum::default();
    for_each(first, count, threads, |outcome| {
        sum.add(outcome);
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            println!(
                "{} of {count} seeds, {} failed, {:.0} s",
                sum.runs,
                sum.failed,
                began.elapsed().as_secs_f64()
            );
        }
        sum.failed < FAILURES_MAX
    });
    println!(
        "{} seeds: {} failed; {} plans committed, {:.1} h of virtual time, {} traces compared with themselves, {:.1} s",
        sum.runs,
        sum.failed,
        sum.plans,
        sum.time_ms as f64 / 3.6e6,
        sum.compared,
        began.elapsed().as_secs_f64()
    );
    if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One seed's run, and whether a second one was the same.
struct Outcome {
    run: Run,
    again: Option<bool>,
}

#[derive(Default)]
struct Sum {
    runs: u64,
    failed: usize,
    plans: u64,
    time_ms: u64,
    compared: u64,
}

impl Sum {
    fn add(&mut self, Outcome { run, again }: Outcome) {
        self.runs += 1;
        self.plans += run.plans;
        self.time_ms += run.time_ms;
        self.compared += u64::from(again.is_some());
        if again == Some(false) {
            self.failed += 1;
            println!("seed {}: two runs differ: something is drawn from elsewhere than the seed", run.seed);
        }
        let Some((failure, tail)) = run.failure else { return };
        self.failed += 1;
        println!("\nseed {}: {} broke: {}", run.seed, failure.invariant, failure.message);
        tail.iter().for_each(|line| println!("  {line}"));
        println!("replay: make sim SIM_ARGS='--seed {}'", run.seed);
    }
}

/// Runs seeds on several threads until `take` has enough.
fn for_each(first: u64, count: u64, threads: usize, mut take: impl FnMut(Outcome) -> bool) {
    let next = AtomicU64::new(0);
    let enough = AtomicBool::new(false);
    let (sender, outcomes) = mpsc::sync_channel(threads);
    thread::scope(|scope| {
        for _ in 0..threads {
            let sender = sender.clone();
            let (next, enough) = (&next, &enough);
            scope.spawn(move || {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= count || enough.load(Ordering::Relaxed) {
                        return;
                    }
                    let run = simulate(first + i, false);
                    let again = i.is_multiple_of(SAMPLE).then(|| simulate(first + i, false) == run);
                    if sender.send(Outcome { run, again }).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        while let Ok(outcome) = outcomes.recv() {
            if !take(outcome) {
                enough.store(true, Ordering::Relaxed);
                // The threads end with the run that they are at.
                while outcomes.recv().is_ok() {}
            }
        }
    });
}
