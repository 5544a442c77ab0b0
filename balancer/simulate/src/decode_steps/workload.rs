//! The requests of a decode unit, drawn once and given to every policy alike. Synthetic.

use crate::expert_loads::SplitMix64;

/// Shortest and longest prompt, in tokens.
const PROMPT_TOKENS: (f64, f64) = (16.0, 131_072.0);
/// Shortest and longest output, in tokens.
pub(super) const OUTPUT_TOKENS: (f64, f64) = (2.0, 16_384.0);

/// Draws that estimate the mean output length from which the arrival rate follows: to about 0.4 %.
const MEAN_DRAWS: u32 = 100_000;

/// A decode unit and the lengths of its requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeCase {
    /// As tables show it.
    pub name: &'static str,
    /// Ranks.
    pub ranks: u16,
    /// Requests that run at once on a rank; more wait in the engine.
    pub slots: u32,
    /// KV tokens that fit on a rank.
    pub kv_capacity: u64,
    /// Mean share of the slots that are taken.
    pub occupancy: f64,
    /// Median prompt, in tokens.
    pub prompt_median: f64,
    /// Log-normal sigma of prompts.
    pub prompt_sigma: f64,
    /// Median output, in tokens.
    pub output_median: f64,
    /// Log-normal sigma of outputs.
    pub output_sigma: f64,
    /// Steps.
    pub steps: u32,
    /// Of these, not measured.
    pub dropped: u32,
}

impl DecodeCase {
    /// The case at 40, 75 or 90 % occupancy, or whichever.
    pub const fn at(name: &'static str, occupancy: f64) -> Self {
        Self {
            name,
            ranks: 144,
            slots: 128,
            kv_capacity: 700_000,
            occupancy,
            prompt_median: 1500.0,
            prompt_sigma: 1.0,
            output_median: 600.0,
            output_sigma: 1.0,
            steps: 6000,
            dropped: 2500,
        }
    }

    /// Long prompts.
    pub const fn long() -> Self {
        Self {
            kv_capacity: 2_000_000,
            prompt_median: 4000.0,
            prompt_sigma: 1.4,
            ..Self::at("decode, long", 0.5)
        }
    }

    /// The four of the comparison.
    pub const ALL: [Self; 4] = [
        Self::at("decode, 40 %", 0.4),
        Self::at("decode, 75 %", 0.75),
        Self::at("decode, 90 %", 0.9),
        Self::long(),
    ];
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens that it generates in all.
    pub output: u32,
    /// Of these, generated before the simulation begins.
    pub age: u32,
}

impl Request {
    /// KV tokens with which it joins a rank.
    pub fn kv_at_start(&self) -> u64 {
        u64::from(self.prompt) + u64::from(self.age)
    }
}

/// All requests of one run, by the step before which they arrive: the same whatever a policy does, and however long its steps
/// take.
#[derive(Debug, Clone)]
pub struct Workload {
    /// What it was drawn for.
    pub case: DecodeCase,
    /// Those that run at the start come first.
    pub requests: Vec<Request>,
    /// How many run at the start.
    pub started: usize,
    /// Arrivals before each step.
    pub arrivals: Vec<u32>,
}

impl Workload {
    /// Draws it.
    ///
    /// The start holds what a unit in balance holds: longer outputs more often, in proportion to their length, each at a
    /// uniform age.
    pub fn draw(case: DecodeCase, seed: u64) -> Self {
        let mut draw = SplitMix64::new(seed);
        let output = |draw: &mut SplitMix64| {
            let tokens = case.output_median * draw.log_normal(case.output_sigma);
            tokens.clamp(OUTPUT_TOKENS.0, OUTPUT_TOKENS.1) as u32
        };
        let prompt = |draw: &mut SplitMix64| {
            let tokens = case.prompt_median * draw.log_normal(case.prompt_sigma);
            tokens.clamp(PROMPT_TOKENS.0, PROMPT_TOKENS.1) as u32
        };
        let mean_output = {
            // A stream of its own: the mean belongs to the case, not to the seed.
            let mut draw = SplitMix64::new(0);
            (0..MEAN_DRAWS).map(|_| f64::from(output(&mut draw))).sum::<f64>() / f64::from(MEAN_DRAWS)
        };
        let running = f64::from(case.ranks) * f64::from(case.slots) * case.occupancy;
        let started = running.round() as usize;
        let mut requests = Vec::new();
        while requests.len() < started {
            let whole = output(&mut draw);
            if draw.uniform() * OUTPUT_TOKENS.1 <= f64::from(whole) {
                let age = (draw.uniform() * f64::from(whole)) as u32;
                requests.push(Request { prompt: prompt(&mut draw), output: whole, age: age.min(whole - 1) });
            }
        }
        let arrivals: Vec<u32> = (0..case.steps).map(|_| poisson(&mut draw, running / mean_output)).collect();
        for _ in 0..arrivals.iter().sum() {
            requests.push(Request { prompt: prompt(&mut draw), output: output(&mut draw), age: 0 });
        }
        Self { case, requests, started, arrivals }
    }
}

/// A Poisson number by Knuth's product of uniforms: for means of some tens.
fn poisson(draw: &mut SplitMix64, mean: f64) -> u32 {
    let (limit, mut product, mut count) = ((-mean).exp(), draw.uniform(), 0);
    while product > limit {
        product *= draw.uniform();
        count += 1;
    }
    count
}
