//! Whole prompts: one cohort on empty ranks, two microbatches each.

use crate::figures::Figures;
use crate::goals::{Bound, Goal};
use crate::layout::{ms, new_table, percent, ratio};
use comfy_table::{Cell, Table};
use evenkeel_core::prefill::{Cohort, Imbalance, Item, MICROBATCHES, Work, assign};
use evenkeel_simulate::prompts::{PromptMix, Prompts};
use std::hint::black_box;
use std::time::Instant;

pub(crate) const TITLE: &str = "WHOLE PROMPTS  a cohort on empty ranks, synthetic; tokens and attention: max over max(mean, largest prompt), by microbatch (bin) and by rank; the worst of 20 cohorts a seed\nHalves alike: ranks whose microbatches are within 2 % of their mean in both. Time: one core, least and median over 15 turns of the best of 5.";

const OURS: &str = "Evenkeel";
/// (ranks, prompts).
const SIZES: [(usize, usize); 4] = [(32, 1024), (128, 4096), (320, 10_240), (320, 5120)];
/// Cohorts of a seed.
const COHORTS: u64 = 20;
/// Everyone's turns on the clock, and the cohorts of a turn, of which the fastest counts.
const TURNS: usize = 15;
const SOLVES_PER_TURN: usize = 5;
/// How alike the halves of a rank are to be, over their mean.
const ALIKE: f64 = 0.02;

type Solve = fn(&Cohort) -> Vec<usize>;

const CONTESTANTS: [(&str, Solve); 4] = [
    (OURS, |cohort| assign(cohort).bin_of),
    ("round robin", round_robin),
    ("LPT on tokens", |cohort| largest_first(cohort, |n, _| n)),
    ("LPT on max(N, A)", |cohort| largest_first(cohort, f64::max)),
];

fn round_robin(cohort: &Cohort) -> Vec<usize> {
    (0..cohort.items.len()).map(|item| item % cohort.carried.len()).collect()
}

/// Largest first into the bin with least, both by `key` of the shares of all tokens and attention.
fn largest_first(cohort: &Cohort, key: fn(f64, f64) -> f64) -> Vec<usize> {
    let works: Vec<Work> = cohort.items.iter().map(|item| item.work_on(0)).collect();
    let all = works.iter().fold(Work::default(), |sum, &work| sum + work);
    let size = |w: &Work| key(w.tokens as f64 / all.tokens as f64, w.attention as f64 / all.attention as f64);
    let mut order: Vec<(f64, usize)> = works.iter().map(size).zip(0..).collect();
    order.sort_unstable_by(|x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
    let mut bins = cohort.carried.clone();
    let mut heap: std::collections::BinaryHeap<_> =
        (0..bins.len()).map(|bin| std::cmp::Reverse((0u64, bin))).collect();
    let mut bin_of = vec![0; works.len()];
    for (_, item) in order {
        let std::cmp::Reverse((_, bin)) = heap.pop().expect("there are bins");
        bins[bin] += works[item];
        bin_of[item] = bin;
        // Loads are positive: their bits sort as they do.
        heap.push(std::cmp::Reverse((size(&bins[bin]).to_bits(), bin)));
    }
    bin_of
}

/// What an assignment is worth.
struct Judged {
    bins: [f64; 2],
    ranks: [f64; 2],
    alike: f64,
}

fn judge(cohort: &Cohort, bin_of: &[usize]) -> Judged {
    let mut bins = vec![Work::default(); cohort.carried.len()];
    let (mut tokens, mut attention) = (0, 0);
    for (item, &bin) in cohort.items.iter().zip(bin_of) {
        let work = item.work_on(bin / MICROBATCHES);
        bins[bin] += work;
        (tokens, attention) = (work.tokens.max(tokens), work.attention.max(attention));
    }
    let over_bound = |loads: &[Work]| {
        [
            Imbalance::of(loads.iter().map(|w| w.tokens as f64), tokens as f64).over_bound,
            Imbalance::of(loads.iter().map(|w| w.attention as f64), attention as f64).over_bound,
        ]
    };
    let ranks: Vec<Work> = bins.chunks(MICROBATCHES).map(|halves| halves[0] + halves[1]).collect();
    let near = |x: u64, y: u64| x.abs_diff(y) as f64 <= ALIKE * (x + y) as f64 / 2.0;
    let alike = |halves: &&[Work]| {
        near(halves[0].tokens, halves[1].tokens) && near(halves[0].attention, halves[1].attention)
    };
    let alike = bins.chunks(MICROBATCHES).filter(alike).count();
    Judged { bins: over_bound(&bins), ranks: over_bound(&ranks), alike: alike as f64 / ranks.len() as f64 }
}

fn cohorts(ranks: usize, prompts: usize, seed: u64) -> Vec<Cohort> {
    let mut stream = Prompts::new(PromptMix::WHOLE, seed);
    let mut cohort = || Cohort {
        carried: vec![Work::default(); MICROBATCHES * ranks],
        items: stream.by_ref().take(prompts).map(Item::from).collect(),
    };
    (0..COHORTS).map(|_| cohort()).collect()
}

fn case((ranks, prompts): (usize, usize)) -> String {
    format!("{prompts} prompts on {ranks} ranks")
}

pub(crate) fn run(seeds: &[u64], figures: &mut Figures) -> Table {
    let mut table = new_table(&[
        "cohort",
        "policy",
        "bin tokens",
        "bin attention",
        "rank tokens",
        "rank attention",
        "halves alike",
        "ms, least",
        "median",
    ]);
    for size in SIZES {
        let cohorts: Vec<Cohort> = seeds.iter().flat_map(|&seed| cohorts(size.0, size.1, seed)).collect();
        let times = time(&cohorts);
        for ((name, solve), times) in CONTESTANTS.iter().zip(times) {
            let judged: Vec<Judged> = cohorts.iter().map(|cohort| judge(cohort, &solve(cohort))).collect();
            let worst = |value: fn(&Judged) -> f64| judged.iter().map(value).fold(0.0, f64::max);
            let alike = judged.iter().map(|j| j.alike).sum::<f64>() / judged.len() as f64;
            let row = [
                ("bin tokens", worst(|j| j.bins[0])),
                ("bin attention", worst(|j| j.bins[1])),
                ("rank tokens", worst(|j| j.ranks[0])),
                ("rank attention", worst(|j| j.ranks[1])),
                ("halves alike", alike),
                ("ms, least", times[0]),
                ("ms, median", times[times.len() / 2]),
            ];
            for (quantity, value) in row {
                figures.record(&case(size), name, quantity, value);
            }
            let cells = row[..4].iter().map(|&(_, value)| ratio(value));
            let rest = [percent(alike), ms(row[5].1), ms(row[6].1)];
            table.add_row([Cell::new(case(size)), Cell::new(name)].into_iter().chain(cells).chain(rest));
        }
    }
    table
}

/// Ascending times of everyone's turns, ms: one after the other, so that the machine's moods meet all alike.
fn time(cohorts: &[Cohort]) -> [Vec<f64>; CONTESTANTS.len()] {
    let mut times = [const { Vec::new() }; CONTESTANTS.len()];
    for turn in 0..TURNS {
        for ((_, solve), times) in CONTESTANTS.iter().zip(&mut times) {
            let mut best = f64::INFINITY;
            for solve_number in 0..SOLVES_PER_TURN {
                let cohort = &cohorts[turn % cohorts.len()];
                let start = Instant::now();
                black_box(solve(black_box(cohort)));
                best = best.min(start.elapsed().as_secs_f64() * 1e3);
                let _ = solve_number;
            }
            times.push(best);
        }
    }
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    times
}

pub(crate) fn goals(figures: &Figures) -> Vec<Goal> {
    let is_peer = |name: &str| name != OURS;
    let mut goals = Vec::new();
    for size in &SIZES[..3] {
        for quantity in ["bin tokens", "bin attention", "rank tokens", "rank attention"] {
            goals.push(Goal::of(figures, (&case(*size), OURS, quantity), Bound::AtMost, 1.01, is_peer));
        }
        goals.push(Goal::of(figures, (&case(*size), OURS, "halves alike"), Bound::AtLeast, 0.99, is_peer));
    }
    for (size, bound) in [(SIZES[0], 0.8), (SIZES[3], 3.0)] {
        goals.push(Goal::of(figures, (&case(size), OURS, "ms, median"), Bound::AtMost, bound, is_peer));
    }
    goals
}
