//! Recorded traces, prefill and decode apart, with every policy.

use crate::contenders::{Contender, contenders};
use crate::figures::Figures;
use crate::goals::{Bound, Goal};
use crate::layout::{new_table, percent, right};
use crate::pooled::Pooled;
use crate::workload::{Case, Workload, decode_workload};
use comfy_table::{Cell, Table};
use evenkeel_simulate::cluster::{
    Assumed, DecodePool, Demand, HandOff, News, Objectives, Pool, PrefillPool, Request, Setup, Units,
    simulate,
};
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) const TITLE: &str = "RECORDED TRACES, replicated with jitter: four prefill units of 32 ranks, KV handed over to one decode unit. Step \
    times are modelled. Goodput: TTFT within 2 s + 1 ms per 10 uncached tokens and TPOT within 50 ms. Load: prefill time with perfect \
    balance and an endless cache, by what there is; the first row of each case has what it came to. The time to a first token that \
    never came counts until the end. Where one seed has less than 1000 measured prompts, several make one distribution. Agentic prompts \
    have up to 838k tokens, DeepSeek-V3 takes no more than 160k: such long ones run for up to an hour, and as long that case goes on";

/// Arrivals are simulated for so long; caches fill first, then queues settle.
pub(crate) const END_US: u64 = 210_000_000;
pub(crate) const WARM_UP_US: u64 = 90_000_000;
const FILL_US: u64 = 70_000_000;
pub(crate) const PREFILL_UNITS: u16 = 4;
pub(crate) const PREFILL_RANKS: u16 = 32;
/// KV room of a prefill rank: 50 GB of 80, beside an EP32 share of the weights.
const PREFILL_KV_TOKENS: u64 = 700_000;
/// KV room of a decode rank: 91 GB of an H200's 141. With 60 and more of Mooncake's requests a rank holds 63 GB on average.
const DECODE_KV_TOKENS: u64 = 1_300_000;
/// New tokens of a rank and step: a third of a second without long contexts, so that the first-token objective leaves room for
/// waiting; with a context of 100k on one rank it is 3.5 s for all.
pub(crate) const STEP_TOKENS: u64 = 2048;

const CASES: [Case; 3] = [
    Case {
        name: "Mooncake",
        file: "mooncake_conversation_first20min.jsonl.gz",
        requests_per_rank: 62.0,
        alone_per_rank: 62.0,
        context_max: None,
        loads: [0.2, 0.4, 0.6],
        grace_s: 120,
    },
    // Contexts of 100k tokens: a decode rank has no room for 60 of them.
    Case {
        name: "agentic",
        file: "agentic_sessions_first80.jsonl.gz",
        requests_per_rank: 6.0,
        alone_per_rank: 4.5,
        context_max: None,
        loads: [0.05, 0.1, 0.2],
        grace_s: 3600,
    },
    // The same without what DeepSeek-V3 cannot take (`max_position_embeddings` in its config.json). The recorded model takes more:
    // one request in nine is longer, up to 838k tokens, and these have a third of the tokens.
    Case {
        name: "agentic to 160k",
        file: "agentic_sessions_first80.jsonl.gz",
        requests_per_rank: 6.0,
        alone_per_rank: 11.5,
        context_max: Some(163_840),
        loads: [0.1, 0.2, 0.4],
        grace_s: 120,
    },
];

/// Prompts that a case has at least, of as many seeds as that takes: the last percent is then ten of them or more, and not what
/// one session does.
const PROMPTS_MIN: u64 = 1000;

/// Ranks of the cases without prefill.
pub(crate) const DECODE_RANKS: u16 = 32;

fn setup(units: Units, seed: u64, grace_s: u64) -> Setup {
    Setup {
        units,
        news: News::default(),
        objectives: Objectives::default(),
        incidents: Vec::new(),
        fill_us: FILL_US,
        warm_up_us: WARM_UP_US,
        end_us: END_US,
        grace_us: grace_s * 1_000_000,
        seed,
    }
}

fn decode_pool(ranks: u16) -> DecodePool {
    let pool = Pool { units: 1, ranks, kv_tokens: DECODE_KV_TOKENS };
    DecodePool { pool, slots: 128, reserve_tokens: DecodePool::RESERVE_TOKENS }
}

fn disaggregated(decode_ranks: u16) -> Units {
    let pool = Pool { units: PREFILL_UNITS, ranks: PREFILL_RANKS, kv_tokens: PREFILL_KV_TOKENS };
    let prefill = PrefillPool { pool, step_tokens: STEP_TOKENS, shared_cache_tokens: 0 };
    Units::Disaggregated(prefill, decode_pool(decode_ranks), HandOff::default())
}

fn name(case: &Case, load_part: f64) -> String {
    format!("{} {:.0} %", case.name, load_part * 100.0)
}

fn decode_name(case: &Case) -> String {
    format!("{}, decode alone", case.name)
}

pub(crate) fn run(seeds: &[u64], figures: &mut Figures) -> Table {
    let mut table = new_table(&[
        "trace and load",
        "policy",
        "goodput",
        "req/s",
        "hit tokens of all",
        "of those that ran",
        "TTFT p50 ms",
        "p95",
        "p99",
        "TPOT p50 ms",
        "p99",
        "idle at barrier",
        "decode KV",
        "requests",
    ]);
    let first = seeds[0];
    for case in &CASES {
        for load_part in case.loads {
            let workloads = workloads(case, load_part, first);
            let runs: Vec<Run> = (first..)
                .zip(&workloads)
                .map(|(seed, workload)| {
                    let setup = setup(disaggregated(workload.decode_ranks), seed, case.grace_s);
                    Run { setup, requests: &workload.requests }
                })
                .collect();
            let case = name(case, load_part);
            table.add_row(bound(&case, &workloads));
            rows(&case, &runs, figures, &mut table);
        }
    }
    for case in &CASES {
        let requests = decode_workload(case, first);
        let setup = setup(Units::Decode(decode_pool(DECODE_RANKS)), first, case.grace_s);
        rows(&decode_name(case), &[Run { setup, requests: &requests }], figures, &mut table);
    }
    table
}

/// As many, one a seed, as have [`PROMPTS_MIN`] prompts.
fn workloads(case: &Case, load_part: f64, first_seed: u64) -> Vec<Workload> {
    let mut workloads = Vec::new();
    let mut prompts = 0;
    for seed in first_seed.. {
        let workload = Workload::nearest(case, load_part, seed);
        prompts += workload.demand.requests;
        workloads.push(workload);
        if prompts >= PROMPTS_MIN {
            break;
        }
    }
    workloads
}

/// What nobody can be above.
fn bound(case: &str, workloads: &[Workload]) -> Vec<Cell> {
    let sum = |of: fn(&Demand) -> u64| workloads.iter().map(|workload| of(&workload.demand)).sum::<u64>();
    let hit_part = sum(|d| d.hit_tokens) as f64 / sum(|d| d.prompt_tokens).max(1) as f64;
    let load = workloads.iter().map(Workload::load).sum::<f64>() / workloads.len() as f64;
    let (prompts, seeds) = (sum(|d| d.requests), workloads.len());
    let what = format!("({prompts} prompts of {seeds} seeds, load {:.1} %, endless cache)", load * 100.0);
    vec![Cell::new(case), Cell::new(what), Cell::new(""), Cell::new(""), percent(hit_part)]
}

/// One seed of a case.
struct Run<'a> {
    setup: Setup,
    requests: &'a [Request],
}

fn rows(case: &str, runs: &[Run<'_>], figures: &mut Figures, table: &mut Table) {
    let contenders = contenders();
    // Each is simulated by itself: to do so side by side changes nothing but the time it takes.
    let next = AtomicUsize::new(0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut pooled: Vec<(usize, Pooled)> = std::thread::scope(|scope| {
        let work = || {
            let turn =
                || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&index| index < contenders.len());
            std::iter::from_fn(turn)
                .map(|index| (index, pool(case, runs, &contenders[index])))
                .collect::<Vec<_>>()
        };
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a panic has been printed")).collect()
    });
    pooled.sort_by_key(|&(index, _)| index);
    for (contender, (_, pooled)) in contenders.iter().zip(&pooled) {
        row(case, &contender.name(), pooled, figures, table);
    }
}

fn pool(case: &str, runs: &[Run<'_>], contender: &Contender) -> Pooled {
    let one = |run: &Run<'_>| {
        let mut seat = |kind, unit, ranks| contender.seat((kind, unit, ranks), &run.setup);
        let shown = simulate(&run.setup, run.requests, &Assumed::default(), &mut seat, &mut |_| {});
        shown.unwrap_or_else(|error| panic!("{case}, {}: {error}", contender.name()))
    };
    Pooled::of(runs.iter().map(one).collect())
}

fn row(case: &str, name: &str, pooled: &Pooled, figures: &mut Figures, table: &mut Table) {
    let (ttft, tpot) = (pooled.ttft_ms(), pooled.tpot_ms());
    for (quantity, value) in [
        ("goodput", pooled.goodput()),
        ("hit tokens", pooled.hit_part_of_all()),
        ("hit tokens of those that ran", pooled.hit_part()),
        ("TTFT p50 ms", ttft.p50),
        ("TTFT p95 ms", ttft.p95),
        ("TTFT p99 ms", ttft.p99),
        ("TPOT p50 ms", tpot.p50),
        ("TPOT p99 ms", tpot.p99),
    ] {
        figures.record(case, name, quantity, value);
    }
    let [good_per_s, idle, kv, requests] = pooled.means();
    table.add_row([
        Cell::new(case),
        Cell::new(name),
        percent(pooled.goodput()),
        right(format!("{good_per_s:.2}")),
        percent(pooled.hit_part_of_all()),
        percent(pooled.hit_part()),
        right(format!("{:.0}", ttft.p50)),
        right(format!("{:.0}", ttft.p95)),
        right(format!("{:.0}", ttft.p99)),
        right(format!("{:.1}", tpot.p50)),
        right(format!("{:.1}", tpot.p99)),
        percent(idle),
        right(format!("{kv:.3}")),
        right(format!("{requests:.3}")),
    ]);
}

/// Decode is compared where all get the same arrivals: behind prefill a policy that lets fewer prompts through has faster steps.
/// For the same reason hit tokens are those of all that arrived. The part of those that ran is shown beside it and is no goal: who
/// leaves cold prompts unrun has the higher one, at Mooncake 60 % higher than an endless cache would give for all.
pub(crate) fn goals(figures: &Figures) -> Vec<Goal> {
    let goal = |case: &str, quantity, bound| {
        let is_peer = |name: &str| !name.starts_with("Evenkeel");
        Goal::best(figures, (case, "Evenkeel, chunks", quantity), bound, is_peer)
    };
    let mut goals = Vec::new();
    for case in &CASES {
        for load_part in case.loads {
            let case = name(case, load_part);
            goals.push(goal(&case, "goodput", Bound::AtLeast));
            goals.push(goal(&case, "hit tokens", Bound::AtLeast));
            goals.push(goal(&case, "TTFT p50 ms", Bound::AtMost));
            goals.push(goal(&case, "TTFT p99 ms", Bound::AtMost));
        }
    }
    for case in &CASES {
        let case = decode_name(case);
        goals.push(goal(&case, "goodput", Bound::AtLeast));
        goals.push(goal(&case, "TPOT p50 ms", Bound::AtMost));
        goals.push(goal(&case, "TPOT p99 ms", Bound::AtMost));
    }
    goals
}
