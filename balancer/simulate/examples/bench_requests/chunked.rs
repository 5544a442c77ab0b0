//! Chunked prompts on a saturated unit: every step each rank runs its tokens of the prompts that it holds.

use crate::figures::Figures;
use crate::goals::{Bound, Goal};
use crate::layout::{new_table, percent, ratio, right};
use comfy_table::{Cell, Table};
use evenkeel_core::prefill::{Prompt, RankBacklog, RoundBudget, Source, Work, plan_round};
use evenkeel_simulate::prompts::{PromptMix, Prompts};
use std::collections::VecDeque;
use std::time::Instant;

pub(crate) const TITLE: &str = "CHUNKED";

const OURS: &str = "Evenkeel";
const RANKS: usize = 32;
/// New tokens of a rank and step.
const ROUND_TOKENS: u64 = 8192;
/// c_att / c_lin: the upper end of what is measured, where attention weighs most.
const TIME_PER_PAIR: f64 = 1.4e-4;
const STEPS: usize = 600;
/// Steps that are not measured: the unit starts empty.
const DROPPED: usize = 100;
/// Prompts that wait centrally before each step.
const HELD: usize = 16 * RANKS;

/// A prompt and the step in which it came.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    prompt: Prompt,
    since: usize,
}

/// A part of a prompt as a rank runs it.
#[derive(Debug, Clone, Copy)]
struct Part {
    context: u64,
    tokens: u64,
    half: u8,
}

impl Part {
    fn work(&self) -> Work {
        Work::of(self.context, self.tokens)
    }
}

#[derive(Default)]
struct Sums {
    tokens: f64,
    attention: f64,
    time: f64,
    mean_time: f64,
    max_time: f64,
    alike: f64,
    waits: Vec<usize>,
    plan_s: f64,
}

fn time(work: Work) -> f64 {
    work.tokens as f64 + TIME_PER_PAIR * work.attention as f64
}

fn max_over_mean(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let mean = values.clone().sum::<f64>() / RANKS as f64;
    (values.fold(0.0, f64::max), mean)
}

impl Sums {
    fn take(&mut self, step: &[Vec<Part>]) {
        let total = |parts: &[Part], half: Option<u8>| {
            let parts = parts.iter().filter(|p| half.is_none_or(|h| p.half == h));
            parts.fold(Work::default(), |sum, part| sum + part.work())
        };
        let ranks: Vec<Work> = step.iter().map(|parts| total(parts, None)).collect();
        let (max, mean) = max_over_mean(ranks.iter().map(|w| w.tokens as f64));
        self.tokens += max / mean;
        let (max, mean) = max_over_mean(ranks.iter().map(|w| w.attention as f64));
        self.attention += max / mean;
        let (max, mean) = max_over_mean(ranks.iter().map(|&w| time(w)));
        self.time += max / mean;
        self.max_time += max;
        self.mean_time += mean;
        let near = |x: u64, y: u64| x.abs_diff(y) as f64 <= 0.02 * (x + y) as f64 / 2.0;
        let alike = step.iter().filter(|parts| {
            let [zero, one] = [0, 1].map(|half| total(parts, Some(half)));
            near(zero.tokens, one.tokens) && near(zero.attention, one.attention)
        });
        if std::env::var("HALVES").is_ok() {
            for parts in step {
                let [zero, one] = [0, 1].map(|half| total(parts, Some(half)));
                if !(near(zero.tokens, one.tokens) && near(zero.attention, one.attention)) {
                    println!(
                        "{:.3} {:.3} {:?}",
                        zero.tokens as f64 / one.tokens as f64,
                        zero.attention as f64 / one.attention as f64,
                        parts.iter().map(|p| (p.context, p.tokens, p.half)).collect::<Vec<_>>()
                    );
                }
            }
        }
        self.alike += alike.count() as f64 / RANKS as f64;
    }
}

fn ours(mix: PromptMix, seed: u64) -> Sums {
    let mut stream = Prompts::new(mix, seed);
    let mut held: VecDeque<Waiting> = VecDeque::new();
    let mut pinned: Vec<Vec<Waiting>> = vec![Vec::new(); RANKS];
    let mut sums = Sums::default();
    for step in 0..STEPS {
        while held.len() < HELD {
            held.push_back(Waiting { prompt: stream.next().expect("endless"), since: step });
        }
        let backlogs: Vec<RankBacklog> = pinned
            .iter()
            .map(|p| RankBacklog {
                pinned: p.iter().map(|w| w.prompt).collect(),
                outstanding: Work::default(),
            })
            .collect();
        let waiting: Vec<Prompt> = held.iter().map(|w| w.prompt).collect();
        let start = Instant::now();
        let round = plan_round(&backlogs, &waiting, &RoundBudget::of(ROUND_TOKENS));
        sums.plan_s += start.elapsed().as_secs_f64();
        let mut parts = vec![Vec::new(); RANKS];
        let mut taken = vec![None; held.len()];
        for chunk in &round.chunks {
            let place = match chunk.prompt {
                Source::Pinned(index) => index,
                Source::Held(index) => *taken[index].get_or_insert_with(|| {
                    pinned[chunk.rank].push(held[index]);
                    pinned[chunk.rank].len() - 1
                }),
            };
            let prompt = &mut pinned[chunk.rank][place].prompt;
            parts[chunk.rank].push(Part {
                context: prompt.context,
                tokens: chunk.tokens,
                half: chunk.microbatch,
            });
            prompt.context += chunk.tokens;
            prompt.remaining -= chunk.tokens;
        }
        let mut index = 0;
        held.retain(|_| {
            index += 1;
            taken[index - 1].is_none()
        });
        let measured = step >= DROPPED;
        for rank in &mut pinned {
            rank.retain(|w| {
                let done = w.prompt.remaining == 0;
                if done && measured {
                    sums.waits.push(step + 1 - w.since);
                }
                !done
            });
        }
        if std::env::var("ODD").is_ok() && measured {
            let t: Vec<f64> =
                parts.iter().map(|p| time(p.iter().fold(Work::default(), |s, p| s + p.work()))).collect();
            let max = t.iter().copied().fold(0.0, f64::max);
            for r in 0..RANKS {
                if t[r] < 0.9 * max {
                    let n: u64 = parts[r].iter().map(|p| p.tokens).sum();
                    println!(
                        "ODD {step} t {:.2} n {n} members {:?} parts {:?}",
                        t[r] / max,
                        backlogs[r].pinned.iter().map(|p| (p.context, p.remaining)).collect::<Vec<_>>(),
                        parts[r].iter().map(|p| (p.context, p.tokens)).collect::<Vec<_>>()
                    );
                }
            }
        }
        if measured {
            sums.take(&parts);
        }
        if std::env::var("TRACE").is_ok() && step % 50 == 0 {
            let heavy: f64 = pinned
                .iter()
                .flatten()
                .map(|w| Work::of(w.prompt.context, w.prompt.remaining).attention as f64)
                .sum();
            let held_a: f64 =
                held.iter().map(|w| Work::of(w.prompt.context, w.prompt.remaining).attention as f64).sum();
            let a: Vec<f64> =
                parts.iter().map(|p| p.iter().map(|p| p.work().attention as f64 / 1e6).sum()).collect();
            let n: u64 = parts.iter().map(|p| p.iter().map(|p| p.tokens).sum::<u64>()).sum();
            println!(
                "{step} pinned {:.1} held A {:.0}M pinned A {:.0}M a {:.0?} n {n}",
                pinned.iter().map(Vec::len).sum::<usize>() as f64 / RANKS as f64,
                held_a / 1e6,
                heavy / 1e6,
                a
            );
        }
    }
    sums
}

fn fcfs(mix: PromptMix, seed: u64, fill: fn(&Waiting, Work) -> u64, halve: fn(&mut Vec<Part>)) -> Sums {
    let mut stream = Prompts::new(mix, seed);
    let mut queues: Vec<VecDeque<Waiting>> = vec![VecDeque::new(); RANKS];
    let mut next = 0;
    let mut sums = Sums::default();
    for step in 0..STEPS {
        while queues.iter().map(VecDeque::len).sum::<usize>() < HELD
            || queues.iter().any(|q| q.iter().map(|w| w.prompt.remaining).sum::<u64>() < 2 * ROUND_TOKENS)
        {
            queues[next % RANKS].push_back(Waiting { prompt: stream.next().expect("endless"), since: step });
            next += 1;
        }
        let mut step_parts = Vec::new();
        for queue in &mut queues {
            let mut parts = Vec::new();
            let mut work = Work::default();
            while let Some(first) = queue.front_mut() {
                let tokens = fill(first, work).min(first.prompt.remaining);
                if tokens == 0 {
                    break;
                }
                let part = Part { context: first.prompt.context, tokens, half: 0 };
                work += part.work();
                parts.push(part);
                first.prompt.context += tokens;
                first.prompt.remaining -= tokens;
                if first.prompt.remaining == 0 {
                    if step >= DROPPED {
                        sums.waits.push(step + 1 - first.since);
                    }
                    queue.pop_front();
                }
            }
            halve(&mut parts);
            step_parts.push(parts);
        }
        if step >= DROPPED {
            sums.take(&step_parts);
        }
    }
    sums
}

fn fixed(_: &Waiting, work: Work) -> u64 {
    ROUND_TOKENS - work.tokens
}

/// As many tokens as end the step at the time of a first chunk of the full length.
fn equal_time(waiting: &Waiting, work: Work) -> u64 {
    let left = time(Work::of(0, ROUND_TOKENS)) - time(work);
    if left <= 0.0 {
        return 0;
    }
    // x + c (p x + x^2 / 2) = left
    let (b, a) = (1.0 + TIME_PER_PAIR * waiting.prompt.context as f64, TIME_PER_PAIR / 2.0);
    ((-b + (b * b + 4.0 * a * left).sqrt()) / (2.0 * a)) as u64
}

fn cut_at(parts: &mut Vec<Part>, mut at: u64) {
    let mut out = Vec::new();
    for part in parts.drain(..) {
        let first = part.tokens.min(at);
        at -= first;
        if first > 0 {
            out.push(Part { tokens: first, half: 0, ..part });
        }
        if first < part.tokens {
            out.push(Part { context: part.context + first, tokens: part.tokens - first, half: 1 });
        }
    }
    *parts = out;
}

/// vLLM's: half of the tokens, cut through.
fn vllm(parts: &mut Vec<Part>) {
    let total: u64 = parts.iter().map(|p| p.tokens).sum();
    cut_at(parts, total / 2);
}

/// SGLang's: at the bound between requests nearest to half, unless that is below 48 %.
fn sglang(parts: &mut Vec<Part>) {
    let total: u64 = parts.iter().map(|p| p.tokens).sum();
    let mut left = 0;
    let mut best = (u64::MAX, 0);
    for part in parts.iter() {
        left += part.tokens;
        let distance = (2 * left).abs_diff(total);
        if distance > best.0 {
            break;
        }
        best = (distance, left);
    }
    let cut = best.1;
    let even = (cut as f64) >= 0.48 * total as f64 && (cut as f64) <= 0.52 * total as f64;
    cut_at(parts, if even { cut } else { total / 2 });
}

fn case(mix: PromptMix) -> String {
    format!("sigma {}, up to {}k", mix.sigma, mix.length_max >> 10)
}

pub(crate) fn run(seeds: &[u64], figures: &mut Figures) -> Table {
    let mut table = new_table(&[
        "prompts",
        "policy",
        "N",
        "A",
        "T",
        "efficiency",
        "halves alike",
        "wait p50",
        "p99",
        "max",
        "tokens/T",
        "ms a plan",
    ]);
    for mix in PromptMix::CHUNKED {
        let policies: [(&str, fn(PromptMix, u64) -> Sums); 4] = [
            (OURS, ours),
            ("fixed chunks, vLLM's halves", |mix, seed| fcfs(mix, seed, fixed, vllm)),
            ("fixed chunks, SGLang's halves", |mix, seed| fcfs(mix, seed, fixed, sglang)),
            ("equal-time chunks", |mix, seed| fcfs(mix, seed, equal_time, vllm)),
        ];
        for (name, policy) in policies {
            let runs: Vec<Sums> = seeds.iter().map(|&seed| policy(mix, seed)).collect();
            let steps = (STEPS - DROPPED) as f64;
            let mean = |value: fn(&Sums) -> f64| runs.iter().map(value).sum::<f64>() / runs.len() as f64;
            let mut waits: Vec<usize> = runs.iter().flat_map(|s| &s.waits).copied().collect();
            waits.sort_unstable();
            let wait = |percent: usize| {
                waits.get((waits.len().max(1) - 1) * percent / 100).copied().unwrap_or(0) as f64
            };
            let row = [
                ("N, max / mean", mean(|s| s.tokens) / steps),
                ("A, max / mean", mean(|s| s.attention) / steps),
                ("T, max / mean", mean(|s| s.time) / steps),
                ("efficiency", mean(|s| s.mean_time / s.max_time)),
                ("halves alike", mean(|s| s.alike) / steps),
                ("wait p50, steps", wait(50)),
                ("wait p99, steps", wait(99)),
                ("wait max, steps", wait(100)),
                ("T a step", mean(|s| s.max_time) / steps),
                ("ms a plan", 1e3 * mean(|s| s.plan_s) / STEPS as f64),
            ];
            for (quantity, value) in row {
                figures.record(&case(mix), name, quantity, value);
            }
            let v = |i: usize| row[i].1;
            table.add_row([
                Cell::new(case(mix)),
                Cell::new(name),
                ratio(v(0)),
                ratio(v(1)),
                ratio(v(2)),
                percent(v(3)),
                percent(v(4)),
                right(format!("{}", v(5))),
                right(format!("{}", v(6))),
                right(format!("{}", v(7))),
                right(format!("{:.0}", v(8))),
                right(format!("{:.3}", v(9))),
            ]);
        }
    }
    table
}

pub(crate) fn goals(figures: &Figures) -> Vec<Goal> {
    let is_peer = |name: &str| name != OURS;
    let mut goals = Vec::new();
    for mix in PromptMix::CHUNKED {
        for (quantity, bound, value) in [
            ("N, max / mean", Bound::AtMost, 1.02),
            ("T, max / mean", Bound::AtMost, 1.05),
            ("efficiency", Bound::AtLeast, 0.95),
            ("halves alike", Bound::AtLeast, 0.95),
        ] {
            goals.push(Goal::of(figures, (&case(mix), OURS, quantity), bound, value, is_peer));
        }
    }
    goals
}
