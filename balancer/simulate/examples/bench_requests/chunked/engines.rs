//! What engines do by themselves: each rank has its own queue, first come, first served, and cuts the batch of a
//! step in two by tokens, in the order in which it was filled.

use super::step::{Part, Sums, TIME_PER_PAIR, Waiting, time};
use super::{DROPPED, HELD, RANKS, ROUND_TOKENS, STEPS};
use evenkeel_core::prefill::{Prompt, Work};
use evenkeel_simulate::prompts::{PromptMix, Prompts};
use std::collections::VecDeque;

/// Tokens of a prompt that a rank would run on top of the work that it has in this step.
type Fill = fn(&Prompt, Work) -> u64;
/// Which tokens of a batch are in half 0: so many leading ones.
type Halves = fn(&[Part]) -> u64;

/// As many prompts wait as with a central queue, and none of the ranks runs dry.
pub(super) fn run(mix: PromptMix, seed: u64, fill: Fill, halves: Halves) -> Sums {
    let mut stream = Prompts::new(mix, seed);
    let mut queues: Vec<VecDeque<Waiting>> = vec![VecDeque::new(); RANKS];
    let mut next = 0;
    let mut sums = Sums::default();
    for step in 0..STEPS {
        while queues.iter().map(VecDeque::len).sum::<usize>() < HELD || queues.iter().any(runs_dry) {
            let prompt = stream.next().expect("the stream has no end");
            queues[next].push_back(Waiting { prompt, since: step });
            next = (next + 1) % RANKS;
        }
        let mut ended = Vec::new();
        let mut parts: Vec<Vec<Part>> = queues.iter_mut().map(|q| run_rank(q, fill, &mut ended)).collect();
        for parts in &mut parts {
            let first = halves(parts);
            *parts = cut(parts, first);
        }
        if step >= DROPPED {
            sums.take(step, &parts, &ended);
        }
    }
    sums
}

fn runs_dry(queue: &VecDeque<Waiting>) -> bool {
    queue.iter().map(|waiting| waiting.prompt.remaining).sum::<u64>() < 2 * ROUND_TOKENS
}

fn run_rank(queue: &mut VecDeque<Waiting>, fill: Fill, ended: &mut Vec<Waiting>) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut work = Work::default();
    while let Some(first) = queue.front_mut() {
        let tokens = fill(&first.prompt, work).min(first.prompt.remaining);
        if tokens == 0 {
            break;
        }
        let part = first.advance(tokens, 0);
        work += Work::of(part.context, part.tokens);
        parts.push(part);
        if first.prompt.remaining == 0 {
            ended.extend(queue.pop_front());
        }
    }
    parts
}

/// The token budget, whatever the context.
pub(super) fn fixed(_: &Prompt, work: Work) -> u64 {
    ROUND_TOKENS - work.tokens
}

/// As many tokens as end the step at the time of a first chunk of the full budget: time is equal, tokens are not.
pub(super) fn equal_time(prompt: &Prompt, work: Work) -> u64 {
    let left = time(Work::of(0, ROUND_TOKENS)) - time(work);
    if left <= 0.0 {
        return 0;
    }
    // x + c (p x + x^2 / 2) = left
    let (a, b) = (TIME_PER_PAIR / 2.0, 1.0 + TIME_PER_PAIR * prompt.context as f64);
    ((-b + (b * b + 4.0 * a * left).sqrt()) / (2.0 * a)) as u64
}

/// vLLM 0.33 (`ubatch_utils.py`): half of the tokens, through a prompt if need be.
pub(super) fn vllm_halves(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.tokens).sum::<u64>() / 2
}

/// SGLang 0.5.23 (`two_batch_overlap.py`): between the prompts where the tokens are nearest to half, unless that
/// leaves one side less than 48 %: then through a prompt at half.
pub(super) fn sglang_halves(parts: &[Part]) -> u64 {
    let total: u64 = parts.iter().map(|part| part.tokens).sum();
    let ends = parts[..parts.len().saturating_sub(1)].iter().scan(0, |end, part| {
        *end += part.tokens;
        Some(*end)
    });
    let nearest = ends.min_by_key(|&end| ((2 * end).abs_diff(total), std::cmp::Reverse(end)));
    let smaller = |cut: u64| cut.min(total - cut) as f64;
    nearest.filter(|&cut| smaller(cut) >= 0.48 * total as f64).unwrap_or(total / 2)
}

fn cut(parts: &[Part], mut first: u64) -> Vec<Part> {
    let mut halves = Vec::new();
    for part in parts {
        let zero = part.tokens.min(first);
        first -= zero;
        if zero > 0 {
            halves.push(Part { tokens: zero, half: 0, ..*part });
        }
        if zero < part.tokens {
            halves.push(Part { context: part.context + zero, tokens: part.tokens - zero, half: 1 });
        }
    }
    halves
}
