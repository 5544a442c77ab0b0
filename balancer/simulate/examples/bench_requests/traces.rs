//! Recorded traces, prefill and decode apart, with every policy.

use crate::contenders::{Contender, contenders};
use crate::figures::Figures;
use crate::goals::{Bound, Goal};
use crate::layout::{new_table, percent, right};
use crate::workload::{Case, Workload, decode_workload};
use comfy_table::{Cell, Table};
use evenkeel_simulate::cluster::{
    Assumed, DecodePool, Demand, HandOff, News, Objectives, Pool, PrefillPool, Request, Setup, Units,
    simulate,
};

pub(crate) const TITLE: &str = "RECORDED TRACES, replicated with jitter: four prefill units of 32 ranks, KV handed over to one decode unit. Step \
    times are modelled. Goodput: TTFT within 2 s + 1 ms per 10 uncached tokens and TPOT within 50 ms. Load: prefill time with perfect \
    balance and an endless cache, by what there is; the first row of each case has what it came to. The time to a first token that \
    never came counts until the end. Agentic prompts have up to 838k tokens, and one of 400k takes a rank longer than that: where \
    they are more than one in a hundred, every p99 is the same. DeepSeek-V3 takes no more than 160k";

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
    },
    // Contexts of 100k tokens: a decode rank has no room for 60 of them.
    Case {
        name: "agentic",
        file: "agentic_sessions_first80.jsonl.gz",
        requests_per_rank: 6.0,
        alone_per_rank: 4.5,
        context_max: None,
        loads: [0.05, 0.1, 0.2],
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
    },
];

/// Ranks of the cases without prefill.
pub(crate) const DECODE_RANKS: u16 = 32;

fn setup(units: Units, seed: u64, grace_s: u32) -> Setup {
    Setup {
        units,
        news: News::default(),
        objectives: Objectives::default(),
        incidents: Vec::new(),
        fill_us: FILL_US,
        warm_up_us: WARM_UP_US,
        end_us: END_US,
        grace_us: u64::from(grace_s) * 1_000_000,
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

pub(crate) fn run(seeds: &[u64], grace_s: u32, figures: &mut Figures) -> Table {
    let mut table = new_table(&[
        "trace and load",
        "policy",
        "goodput",
        "req/s",
        "hit tokens of all",
        "of those that ran",
        "TTFT p50 ms",
        "p99",
        "TPOT p50 ms",
        "p99",
        "idle at barrier",
        "decode KV",
        "requests",
    ]);
    // One seed: the trace is recorded, and only the copies' places in it are drawn.
    let seed = seeds[0];
    for case in &CASES {
        for load_part in case.loads {
            let workload = Workload::nearest(case, load_part, seed);
            let setup = setup(disaggregated(workload.decode_ranks), seed, grace_s);
            let case = name(case, load_part);
            table.add_row(bound(&case, &workload));
            for contender in contenders() {
                row(&case, &setup, &workload.requests, &contender, figures, &mut table);
            }
        }
    }
    let setup = setup(Units::Decode(decode_pool(DECODE_RANKS)), seed, grace_s);
    for case in &CASES {
        let requests = decode_workload(case, seed);
        for contender in contenders() {
            row(&decode_name(case), &setup, &requests, &contender, figures, &mut table);
        }
    }
    table
}

/// What nobody can be above.
fn bound(case: &str, workload: &Workload) -> Vec<Cell> {
    let Demand { requests, prompt_tokens, hit_tokens, .. } = workload.demand;
    let hit_part = hit_tokens as f64 / prompt_tokens.max(1) as f64;
    vec![
        Cell::new(case),
        Cell::new(format!("({requests} prompts, load {:.1} %, endless cache)", workload.load() * 100.0)),
        Cell::new(""),
        Cell::new(""),
        percent(hit_part),
    ]
}

fn row(
    case: &str,
    setup: &Setup,
    requests: &[Request],
    contender: &Contender,
    figures: &mut Figures,
    table: &mut Table,
) {
    let mut seat = |kind, unit, ranks| contender.seat((kind, unit, ranks), setup);
    let shown = simulate(setup, requests, &Assumed::default(), &mut seat, &mut |_| {});
    let shown = shown.unwrap_or_else(|error| panic!("{case}, {}: {error}", contender.name()));
    let decode = shown.decode.as_ref().expect("decode units are simulated");
    let idle = shown.prefill.as_ref().map_or(decode.idle_at_barrier, |prefill| prefill.idle_at_barrier);
    let name = contender.name();
    for (quantity, value) in [
        ("goodput", shown.goodput_part),
        ("hit tokens", shown.hit_part_of_all()),
        ("hit tokens of those that ran", shown.hit_part()),
        ("TTFT p50 ms", shown.ttft_ms.p50),
        ("TTFT p99 ms", shown.ttft_ms.p99),
        ("TPOT p50 ms", shown.tpot_ms.p50),
        ("TPOT p99 ms", shown.tpot_ms.p99),
    ] {
        figures.record(case, &name, quantity, value);
    }
    table.add_row([
        Cell::new(case),
        Cell::new(&name),
        percent(shown.goodput_part),
        right(format!("{:.2}", shown.goodput_per_s)),
        percent(shown.hit_part_of_all()),
        percent(shown.hit_part()),
        right(format!("{:.0}", shown.ttft_ms.p50)),
        right(format!("{:.0}", shown.ttft_ms.p99)),
        right(format!("{:.1}", shown.tpot_ms.p50)),
        right(format!("{:.1}", shown.tpot_ms.p99)),
        percent(idle),
        right(format!("{:.3}", decode.tokens_imbalance.mean)),
        right(format!("{:.3}", decode.second_imbalance.mean)),
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
