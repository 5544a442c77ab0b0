//! Chunked prompts on a saturated unit: each step every rank runs its tokens of the prompts that it holds.

mod engines;
mod step;

use crate::figures::Figures;
use crate::goals::{Bound, Goal};
use crate::layout::{ms, new_table, percent, ratio, right};
use comfy_table::{Cell, Table};
use evenkeel_core::prefill::{Prompt, RankBacklog, RoundBudget, Source, plan_round};
use evenkeel_simulate::prompts::{PromptMix, Prompts};
use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;
use step::{Sums, Waiting};

pub(crate) const TITLE: &str = "CHUNKED PROMPTS  32 ranks, always saturated, 8192 tokens a rank and step, T = N + 1.4e-4 * A; 600 steps, the first 100 dropped. Synthetic.\nN, A, T: max over mean of the ranks, mean over steps. Efficiency: sum of mean T over sum of max T. Halves alike: ranks whose microbatches are within 2 % of\ntheir mean in tokens and in attention. Wait: steps from the prompt's arrival to its last token; 512 prompts wait at any time unless said otherwise.";

const OURS: &str = "Evenkeel";
pub(crate) const RANKS: usize = 32;
/// New tokens of a rank and step.
const ROUND_TOKENS: u64 = 8192;
/// Steps that are run, and those at the beginning that are not measured: the unit starts empty.
const STEPS: usize = 600;
const DROPPED: usize = 100;
/// Prompts that wait before each step.
const HELD: usize = 16 * RANKS;
/// The same for the row that shows what a short queue costs.
const HELD_SHORT: usize = 4 * RANKS;

type Policy = fn(PromptMix, u64) -> Sums;

const POLICIES: [(&str, Policy); 5] = [
    (OURS, |mix, seed| ours(mix, seed, HELD)),
    ("Evenkeel, 128 waiting", |mix, seed| ours(mix, seed, HELD_SHORT)),
    ("fixed chunks, vLLM's halves", |mix, seed| {
        engines::run(mix, seed, engines::fixed, engines::vllm_halves)
    }),
    ("fixed chunks, SGLang's halves", |mix, seed| {
        engines::run(mix, seed, engines::fixed, engines::sglang_halves)
    }),
    ("equal-time chunks", |mix, seed| engines::run(mix, seed, engines::equal_time, engines::vllm_halves)),
];

/// The planner with a central queue of `held` prompts.
fn ours(mix: PromptMix, seed: u64, held: usize) -> Sums {
    let mut stream = Prompts::new(mix, seed);
    let mut queue: VecDeque<Waiting> = VecDeque::new();
    let mut pinned: Vec<Vec<Waiting>> = vec![Vec::new(); RANKS];
    let mut sums = Sums::default();
    for step in 0..STEPS {
        let more = held - queue.len();
        queue.extend(stream.by_ref().take(more).map(|prompt| Waiting { prompt, since: step }));
        let backlog = |rank: &Vec<Waiting>| RankBacklog {
            pinned: rank.iter().map(|waiting| waiting.prompt).collect(),
            ..RankBacklog::default()
        };
        let backlogs: Vec<RankBacklog> = pinned.iter().map(backlog).collect();
        let prompts: Vec<Prompt> = queue.iter().map(|waiting| waiting.prompt).collect();
        let start = Instant::now();
        let round = plan_round(&backlogs, &prompts, &RoundBudget::of(ROUND_TOKENS));
        sums.plan_ms(start.elapsed().as_secs_f64() * 1e3);
        let mut parts = vec![Vec::new(); RANKS];
        // Where a held prompt is pinned.
        let mut began: BTreeMap<usize, usize> = BTreeMap::new();
        for chunk in &round.chunks {
            let rank = &mut pinned[chunk.rank];
            let place = match chunk.prompt {
                Source::Pinned(index) => index,
                Source::Held(index) => *began.entry(index).or_insert_with(|| {
                    rank.push(queue[index]);
                    rank.len() - 1
                }),
            };
            parts[chunk.rank].push(rank[place].advance(chunk.tokens, chunk.microbatch));
        }
        began.keys().rev().for_each(|&index| {
            queue.remove(index);
        });
        let mut ended = Vec::new();
        for rank in &mut pinned {
            ended.extend(rank.extract_if(.., |waiting| waiting.prompt.remaining == 0));
        }
        if step >= DROPPED {
            sums.take(step, &parts, &ended);
        }
    }
    sums
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
        "tokens / T",
        "halves alike",
        "wait p50",
        "p99",
        "max",
        "ms a plan",
    ]);
    for mix in PromptMix::CHUNKED {
        for (name, policy) in POLICIES {
            let mut sums = Sums::default();
            seeds.iter().for_each(|&seed| sums.merge(policy(mix, seed)));
            let row = sums.figures();
            for (quantity, value) in row {
                figures.record(&case(mix), name, quantity, value);
            }
            let [n, a, t, efficiency, speed, alike, p50, p99, max, plan_ms] = row.map(|(_, value)| value);
            let steps = |value: f64| right(format!("{value:.0}"));
            table.add_row([
                Cell::new(case(mix)),
                Cell::new(name),
                ratio(n),
                ratio(a),
                ratio(t),
                percent(efficiency),
                ratio(speed),
                percent(alike),
                steps(p50),
                steps(p99),
                steps(max),
                if name.starts_with(OURS) { ms(plan_ms) } else { right("-") },
            ]);
        }
    }
    table
}

pub(crate) fn goals(figures: &Figures) -> Vec<Goal> {
    let is_peer = |name: &str| !name.starts_with(OURS);
    let goal = |mix, (quantity, bound, value)| {
        Goal::of(figures, (&case(mix), OURS, quantity), bound, value, is_peer)
    };
    let wanted = [
        (step::N, Bound::AtMost, 1.02),
        (step::T, Bound::AtMost, 1.05),
        (step::T, Bound::AtMost, 1.02),
        (step::EFFICIENCY, Bound::AtLeast, 0.95),
        (step::EFFICIENCY, Bound::AtLeast, 0.98),
        (step::ALIKE, Bound::AtLeast, 0.95),
    ];
    PromptMix::CHUNKED.into_iter().flat_map(|mix| wanted.map(|wanted| goal(mix, wanted))).collect()
}
