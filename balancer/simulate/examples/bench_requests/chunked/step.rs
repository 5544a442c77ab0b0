//! One lockstep round, and what is measured of it.

use super::RANKS;
use evenkeel_core::prefill::{Prompt, Work};

/// c_att / c_lin: the upper end of what is measured, where attention weighs most.
pub(super) const TIME_PER_PAIR: f64 = 1.4e-4;
/// How alike the halves of a rank are to be, over their mean.
const HALVES_WITHIN: f64 = 0.02;

pub(super) const N: &str = "N, max / mean";
pub(super) const T: &str = "T, max / mean";
pub(super) const EFFICIENCY: &str = "efficiency";
pub(super) const ALIKE: &str = "halves alike";

/// Time of a rank's round, in tokens.
pub(super) fn time(work: Work) -> f64 {
    work.tokens as f64 + TIME_PER_PAIR * work.attention as f64
}

/// A prompt and the step in which it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    pub(super) prompt: Prompt,
    pub(super) since: usize,
}

impl Waiting {
    /// Runs so many tokens in this half.
    pub(super) fn advance(&mut self, tokens: u64, half: u8) -> Part {
        let part = Part { context: self.prompt.context, tokens, half };
        self.prompt.context += tokens;
        self.prompt.remaining -= tokens;
        part
    }
}

/// A part of a prompt as a rank runs it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) context: u64,
    pub(super) tokens: u64,
    pub(super) half: u8,
}

/// Sums over the measured steps, of one seed or of several.
#[derive(Default)]
pub(super) struct Sums {
    steps: f64,
    tokens: f64,
    attention: f64,
    time: f64,
    run: f64,
    mean_time: f64,
    max_time: f64,
    alike: f64,
    waits: Vec<usize>,
    plans_ms: Vec<f64>,
}

impl Sums {
    pub(super) fn plan_ms(&mut self, ms: f64) {
        self.plans_ms.push(ms);
    }

    /// A step: what each rank ran, and the prompts that ended.
    pub(super) fn take(&mut self, step: usize, parts: &[Vec<Part>], ended: &[Waiting]) {
        assert_eq!(parts.len(), RANKS);
        let halves: Vec<[Work; 2]> = parts.iter().map(|parts| halves(parts)).collect();
        let ranks: Vec<Work> = halves.iter().map(|[zero, one]| *zero + *one).collect();
        let max_and_mean = |value: fn(Work) -> f64| {
            let values = || ranks.iter().map(|&work| value(work));
            (values().fold(0.0, f64::max), values().sum::<f64>() / RANKS as f64)
        };
        let (max, mean) = max_and_mean(|work| work.tokens as f64);
        self.tokens += max / mean;
        self.run += mean;
        let (max, mean) = max_and_mean(|work| work.attention as f64);
        self.attention += max / mean;
        let (max, mean) = max_and_mean(time);
        self.time += max / mean;
        self.max_time += max;
        self.mean_time += mean;
        self.alike += halves.iter().filter(|halves| are_alike(halves)).count() as f64 / RANKS as f64;
        self.waits.extend(ended.iter().map(|waiting| step + 1 - waiting.since));
        self.steps += 1.0;
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.steps += other.steps;
        self.tokens += other.tokens;
        self.attention += other.attention;
        self.time += other.time;
        self.run += other.run;
        self.mean_time += other.mean_time;
        self.max_time += other.max_time;
        self.alike += other.alike;
        self.waits.extend(other.waits);
        self.plans_ms.extend(other.plans_ms);
    }

    pub(super) fn figures(mut self) -> [(&'static str, f64); 10] {
        self.waits.sort_unstable();
        self.plans_ms.sort_by(f64::total_cmp);
        let last = self.waits.len().saturating_sub(1);
        let wait = |percent: usize| self.waits.get(last * percent / 100).map_or(0.0, |&wait| wait as f64);
        [
            (N, self.tokens / self.steps),
            ("A, max / mean", self.attention / self.steps),
            (T, self.time / self.steps),
            (EFFICIENCY, self.mean_time / self.max_time),
            ("tokens a rank / T", self.run / self.max_time),
            (ALIKE, self.alike / self.steps),
            ("wait p50, steps", wait(50)),
            ("wait p99, steps", wait(99)),
            ("wait max, steps", wait(100)),
            ("ms a plan, median", self.plans_ms.get(self.plans_ms.len() / 2).copied().unwrap_or(0.0)),
        ]
    }
}

fn halves(parts: &[Part]) -> [Work; 2] {
    let mut halves = [Work::default(); 2];
    for part in parts {
        halves[usize::from(part.half)] += Work::of(part.context, part.tokens);
    }
    halves
}

fn are_alike(halves: &[Work; 2]) -> bool {
    let near = |x: u64, y: u64| x.abs_diff(y) as f64 <= HALVES_WITHIN * (x + y) as f64 / 2.0;
    near(halves[0].tokens, halves[1].tokens) && near(halves[0].attention, halves[1].attention)
}
