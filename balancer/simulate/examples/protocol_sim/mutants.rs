//! Every planted bug, each against seeds until an invariant shows it.

use evenkeel_core::mutants::{Mutant, switch};
use evenkeel_simulate::protocol::{Invariant, run as simulate};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// Percent of the bugs that must be caught.
const CAUGHT_PERCENT: usize = 95;

/// How a bug fared.
struct Verdict {
    mutant: Mutant,
    /// The invariant that showed it, and after how many seeds.
    caught: Option<(Invariant, u64, String)>,
}

pub(crate) fn by_name(name: &str) -> Option<Mutant> {
    Mutant::ALL.iter().copied().find(|mutant| mutant.name() == name)
}

/// Runs each bug over at most `seeds` seeds.
pub(crate) fn run(seeds: u64, only: Option<&str>, threads: usize) -> ExitCode {
    let began = Instant::now();
    let chosen: Vec<Mutant> =
        Mutant::ALL.iter().copied().filter(|mutant| only.is_none_or(|name| mutant.name() == name)).collect();
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&mutant) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let verdict = hunt(mutant, seeds);
                    tell(&verdict, seeds);
                    verdicts.lock().unwrap_or_else(PoisonError::into_inner).push(verdict);
                }
            });
        }
    });
    let mut verdicts = verdicts.into_inner().unwrap_or_else(PoisonError::into_inner);
    verdicts.sort_by_key(|verdict| verdict.mutant);
    let caught = summarise(&verdicts);
    println!("{caught} of {} bugs caught, {:.0} s", verdicts.len(), began.elapsed().as_secs_f64());
    if caught * 100 >= CAUGHT_PERCENT * verdicts.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn hunt(mutant: Mutant, seeds: u64) -> Verdict {
    let caught = (0..seeds).find_map(|seed| {
        switch(Some(mutant));
        let run = simulate(seed, false);
        switch(None);
        let (failure, _) = run.failure?;
        // A run that fails by itself says nothing of the bug.
        let by_itself = simulate(seed, false).failure.is_some();
        (!by_itself).then_some((failure.invariant, seed + 1, failure.message))
    });
    Verdict { mutant, caught }
}

fn tell(Verdict { mutant, caught }: &Verdict, seeds: u64) {
    let (name, meant) = (mutant.name(), mutant.invariant());
    match caught {
        Some((invariant, count, message)) => {
            let short: String = message.chars().take(90).collect();
            println!("{meant:>3}  {name:<30} {invariant} after {count} seeds: {short}");
        }
        None => println!("{meant:>3}  {name:<30} survives {seeds} seeds: {}", mutant.what()),
    }
}

/// A table by the invariant that a bug is meant to break, and the survivors; returns how many were caught.
fn summarise(verdicts: &[Verdict]) -> usize {
    let mut rows: BTreeMap<(usize, &str), (usize, usize, usize)> = BTreeMap::new();
    for Verdict { mutant, caught } in verdicts {
        let meant = mutant.invariant();
        let number = meant[1..].parse().unwrap_or(0);
        let row = rows.entry((number, meant)).or_default();
        row.0 += 1;
        row.1 += usize::from(caught.is_some());
        row.2 += usize::from(caught.as_ref().is_some_and(|(by, ..)| by.to_string() == meant));
    }
    println!("\nmeant to break | bugs | caught | by that invariant");
    for ((_, meant), (bugs, caught, by_it)) in &rows {
        println!("{meant:>14} | {bugs:>4} | {caught:>6} | {by_it:>6}");
    }
    for verdict in verdicts.iter().filter(|verdict| verdict.caught.is_none()) {
        println!("survivor: {} ({})", verdict.mutant.name(), verdict.mutant.what());
    }
    verdicts.iter().filter(|verdict| verdict.caught.is_some()).count()
}
