//! Recorded traces, prefill and decode apart, with every policy.

use crate::contenders::{Contender, contenders};
use crate::figures::Figures;
use crate::goals::{Bound, Goal};
use crate::layout::{new_table, percent, right};
use comfy_table::{Cell, Table};
use evenkeel_simulate::cluster::{
    Assumed, DecodePool, HandOff, News, Objectives, Pool, PrefillPool, Request, Setup, StepTime, Units,
    demand, of_trace, simulate,
};
use evenkeel_simulate::trace::{TraceOptions, load};
use std::path::Path;

pub(crate) const TITLE: &str = "RECORDED TRACES, replicated with jitter: two prefill units of 32 ranks, KV handed over to one decode unit. Step \
    times are modelled. Goodput: TTFT within 2 s + 1 ms per 10 uncached tokens and TPOT within 50 ms. Load: prefill time with perfect \
    balance and an endless cache, by what there is";

/// Loads of prefill.
const LOADS: [f64; 3] = [0.60, 0.80, 0.95];
/// Arrivals are simulated for so long; caches fill first, then queues settle.
const END_US: u64 = 300_000_000;
const WARM_UP_US: u64 = 120_000_000;
const FILL_US: u64 = 80_000_000;
const PREFILL_UNITS: u16 = 2;
const PREFILL_RANKS: u16 = 32;
/// KV room of a prefill rank: 50 GB of 80, beside an EP32 share of the weights.
const PREFILL_KV_TOKENS: u64 = 700_000;
/// KV room of a decode rank: 63 GB of 80.
const DECODE_KV_TOKENS: u64 = 900_000;
/// New tokens of a rank and step: 0.6 to 1 s, so that the first-token objective leaves room for waiting.
pub(crate) const STEP_TOKENS: u64 = 4096;

struct Case {
    name: &'static str,
    file: &'static str,
    /// Running requests of a decode rank, on average and with perfect balance.
    requests_per_rank: f64,
}

const CASES: [Case; 2] = [
    Case { name: "Mooncake", file: "mooncake_conversation_first20min.jsonl.gz", requests_per_rank: 62.0 },
    // Contexts of 100k tokens: a decode rank has no room for 60 of them.
    Case { name: "agentic", file: "agentic_sessions_first80.jsonl.gz", requests_per_rank: 6.0 },
];

/// As many copies of the trace as bring prefill nearest to the load, and decode ranks for what they generate.
fn workload(case: &Case, load_part: f64, seed: u64) -> (Vec<Request>, u16) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(case.file);
    let window = (WARM_UP_US, END_US);
    let of_copies = |copies: u32| {
        let options = TraceOptions { copies, seed, ..TraceOptions::default() };
        let trace = load(&path, &options).unwrap_or_else(|error| panic!("{error}"));
        of_trace(&trace, END_US / 1000)
    };
    let ranks = f64::from(PREFILL_UNITS * PREFILL_RANKS) * load_part;
    let one = demand(&of_copies(64), window, &Assumed::default()).prefill_ranks / 64.0;
    let requests = of_copies((ranks / one).round().max(1.0) as u32);
    let demand = demand(&requests, window, &Assumed::default());
    let kv_tokens = (demand.kv_tokens * case.requests_per_rank) as u64;
    let step_s = Assumed::default().decode_us(kv_tokens, case.requests_per_rank as u32) / 1e6;
    let running = demand.output_per_s * step_s;
    (requests, ((running / case.requests_per_rank).round() as u16).max(1))
}

fn setup(decode_ranks: u16, seed: u64) -> Setup {
    let prefill = Pool { units: PREFILL_UNITS, ranks: PREFILL_RANKS, kv_tokens: PREFILL_KV_TOKENS };
    let decode = Pool { units: 1, ranks: decode_ranks, kv_tokens: DECODE_KV_TOKENS };
    Setup {
        units: Units::Disaggregated(
            PrefillPool { pool: prefill, step_tokens: STEP_TOKENS, shared_cache_tokens: 0 },
            DecodePool { pool: decode, slots: 128, reserve_tokens: DecodePool::RESERVE_TOKENS },
            HandOff::default(),
        ),
        news: News::default(),
        objectives: Objectives::default(),
        incidents: Vec::new(),
        fill_us: FILL_US,
        warm_up_us: WARM_UP_US,
        end_us: END_US,
        grace_us: 120_000_000,
        seed,
    }
}

fn name(case: &Case, load_part: f64) -> String {
    format!("{} {:.0} %", case.name, load_part * 100.0)
}

pub(crate) fn run(seeds: &[u64], figures: &mut Figures) -> Table {
    let mut table = new_table(&[
        "trace and load",
        "policy",
        "goodput",
        "req/s",
        "hit tokens",
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
        for load_part in LOADS {
            let (requests, decode_ranks) = workload(case, load_part, seed);
            let (setup, case) = (setup(decode_ranks, seed), name(case, load_part));
            for contender in contenders() {
                row(&case, &setup, &requests, &contender, figures, &mut table);
            }
        }
    }
    table
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
    let (prefill, decode) = (shown.prefill.as_ref(), shown.decode.as_ref());
    let (prefill, decode) = prefill.zip(decode).expect("both kinds of unit are simulated");
    let name = contender.name();
    for (quantity, value) in [
        ("goodput", shown.goodput_part),
        ("hit tokens", shown.hit_part()),
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
        percent(shown.hit_part()),
        right(format!("{:.0}", shown.ttft_ms.p50)),
        right(format!("{:.0}", shown.ttft_ms.p99)),
        right(format!("{:.1}", shown.tpot_ms.p50)),
        right(format!("{:.1}", shown.tpot_ms.p99)),
        percent(prefill.idle_at_barrier),
        right(format!("{:.3}", decode.tokens_imbalance.mean)),
        right(format!("{:.3}", decode.second_imbalance.mean)),
    ]);
}

pub(crate) fn goals(figures: &Figures) -> Vec<Goal> {
    let is_peer = |name: &str| !name.starts_with("Evenkeel");
    let mut goals = Vec::new();
    for case in &CASES {
        for load_part in LOADS {
            for (quantity, bound) in [
                ("goodput", Bound::AtLeast),
                ("hit tokens", Bound::AtLeast),
                ("TTFT p50 ms", Bound::AtMost),
                ("TTFT p99 ms", Bound::AtMost),
                ("TPOT p50 ms", Bound::AtMost),
                ("TPOT p99 ms", Bound::AtMost),
            ] {
                let case = name(case, load_part);
                goals.push(Goal::best(figures, (&case, "Evenkeel, chunks", quantity), bound, is_peer));
            }
        }
    }
    goals
}
