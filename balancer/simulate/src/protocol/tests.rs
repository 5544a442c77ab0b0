use super::{Invariant, run};

/// A few seeds: the many are run by `make sim`.
#[test]
fn no_invariant_breaks() {
    for seed in 0..20 {
        let run = run(seed, false);
        if let Some((failure, tail)) = run.failure {
            panic!("seed {seed} breaks {}: {}\n{}", failure.invariant, failure.message, tail.join("\n"));
        }
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
