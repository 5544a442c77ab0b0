//! Feeds one target until its time is over, an answer takes too long, or it panics.

use crate::mutate::Mutator;
use crate::targets::Target;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Inputs are a few KB at most; a decoder that needs longer does work that the input's size does not explain.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// What a target was fed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fed {
    /// Inputs in all.
    pub(crate) inputs: u64,
    /// Inputs that it took for valid.
    pub(crate) accepted: u64,
}

/// An input that a target did not stand.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Number of the input in its run.
    pub(crate) number: u64,
    /// The input.
    pub(crate) input: Vec<u8>,
    /// What happened.
    pub(crate) what: String,
}

/// Feeds one input.
pub(crate) fn once(target: &Target, input: &[u8]) -> Result<Fed, Failure> {
    let accepted = feed(target, 0, input)?;
    Ok(Fed { inputs: 1, accepted: accepted.into() })
}

/// Feeds the target's valid inputs, which it must accept, and then damaged ones until the time is over.
pub(crate) fn run(target: &Target, seed: u64, time: Duration) -> Result<Fed, Failure> {
    let seeds = (target.seeds)();
    let mut fed = Fed::default();
    for (number, input) in seeds.iter().enumerate() {
        if !feed(target, number as u64, input)? {
            let what = format!("its valid input {number} was refused");
            return Err(Failure { number: number as u64, input: input.clone(), what });
        }
        fed.inputs += 1;
        fed.accepted += 1;
    }
    let mut mutator = Mutator::new(seed, seeds);
    let began = Instant::now();
    while began.elapsed() < time {
        let input = mutator.next();
        fed.accepted += u64::from(feed(target, fed.inputs, &input)?);
        fed.inputs += 1;
    }
    Ok(fed)
}

fn feed(target: &Target, number: u64, input: &[u8]) -> Result<bool, Failure> {
    let failed = |what: String| Failure { number, input: input.to_vec(), what };
    let began = Instant::now();
    let ended = catch_unwind(AssertUnwindSafe(|| (target.accepts)(input)));
    let accepted = ended.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        failed(format!("panicked: {}", text.unwrap_or_default()))
    })?;
    let took = began.elapsed();
    if took > ANSWER_MAX { Err(failed(format!("took {took:?}"))) } else { Ok(accepted) }
}
