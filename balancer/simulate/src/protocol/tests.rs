use super::{Invariant, Run, run, run_without_store};

#[track_caller]
fn check(run: Run) -> Run {
    if let Some((failure, tail)) = &run.failure {
        let (seed, tail) = (run.seed, tail.join("\n"));
        panic!("seed {seed} breaks {}: {}\n{tail}", failure.invariant, failure.message);
    }
    run
}

/// A few seeds: the many are run by `make sim`.
#[test]
fn no_invariant_breaks() {
    for seed in 0..20 {
        check(run(seed, false));
    }
}

/// Workers step on, since that is checked at each step; and once the store is back a balancer leads by itself, and another
/// plan gets through.
#[test]
fn a_store_that_is_away_for_an_hour_stops_nothing_but_plans() {
    const HOUR_MS: u64 = 3_600_000;
    for seed in 0..3 {
        let run = check(run_without_store(seed, HOUR_MS));
        assert!(run.time_ms > HOUR_MS && run.plans > 0, "{run:?}");
    }
}

#[test]
fn a_seed_gives_the_same_run_twice() {
    for seed in 100..105 {
        assert_eq!(run(seed, false), run(seed, false));
    }
    assert_ne!(run(100, false).hash, run(101, false).hash);
}

#[test]
fn every_invariant_has_a_name() {
    let names: Vec<String> = Invariant::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(names[..2], ["I1", "I2"]);
    assert_eq!(names[11], "assertion");
}
