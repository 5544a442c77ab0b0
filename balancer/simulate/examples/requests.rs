//! Decode and prefill of the Mooncake trace under round robin, least requests and Evenkeel, on the same
//! arrivals: `requests [MINUTES [TRACE]]`. All times are modelled.

use evenkeel_core::policy::RoutingPolicy;
use evenkeel_core::routing::Router;
use evenkeel_core::topology::Role;
use evenkeel_simulate::baselines::requests::{LeastRequests, RoundRobin};
use evenkeel_simulate::cost::{DecodeCost, PrefillCost};
use evenkeel_simulate::decode_engine::{DecodeEngine, DecodeUnit};
use evenkeel_simulate::policy::{RequestPolicy, run};
use evenkeel_simulate::prefill_engine::{PrefillEngine, PrefillUnit};
use evenkeel_simulate::replicate::{
    Replicated, balanced_step_ms, copies_for_decode, period_ms, prefill_work,
};
use evenkeel_simulate::trace::{TraceRequest, read_all};
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// Of the copies' starts and of the jitter.
const SEED: u64 = 7;
/// DeepSeek's decode unit.
const DECODE_RANKS: u16 = 144;
/// Requests that a decode rank holds on average: far enough from empty for imbalance to mean something.
const DECODE_REQUESTS_PER_RANK: f64 = 60.0;
/// DeepSeek's prefill unit.
const PREFILL_RANKS: u16 = 32;
/// Copies of the trace that bring the prefill unit to about four fifths of what it can do.
const PREFILL_COPIES: u32 = 2;
/// New tokens of a prefill rank and round.
const ROUND_TOKENS: u64 = 4096;
/// Blocks of the shared prefix cache: 512M tokens, more than the trace has.
const CACHE_BLOCKS: usize = 1 << 23;
/// The units start empty: the first 90 s, or the first half of a shorter run, are not measured.
const WARM_UP_MS: u64 = 90_000;

const DEFAULT_TRACE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/mooncake_conversation_first20min.jsonl.gz");

fn main() -> ExitCode {
    let Err(error) = compare() else { return ExitCode::SUCCESS };
    let reason = error.source().map_or(String::new(), |source| format!(": {source}"));
    eprintln!("{error}{reason}");
    ExitCode::FAILURE
}

fn compare() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let minutes = arguments.next().map_or(Ok(20), |text| minutes(&text))?;
    let path = PathBuf::from(arguments.next().unwrap_or_else(|| DEFAULT_TRACE.to_owned()));
    let trace: Arc<[TraceRequest]> = read_all(&path)?.into();
    let cost = DecodeCost::default();
    let balanced_ms = balanced_step_ms(&trace, DECODE_REQUESTS_PER_RANK, &cost);
    decode(&trace, minutes * 60_000, Some(balanced_ms))?;
    println!();
    decode(&trace, minutes * 60_000, None)?;
    println!();
    prefill(&trace, minutes * 60_000)
}

fn minutes(text: &str) -> Result<u64, String> {
    let minutes = text.parse().ok().filter(|minutes| (1..=10_000).contains(minutes));
    minutes.ok_or_else(|| {
        format!("MINUTES is {text:?}: accepted are 1 to 10000; usage: requests [MINUTES [TRACE]]")
    })
}

fn decode(
    trace: &Arc<[TraceRequest]>,
    end_ms: u64,
    arrivals_per_step_ms: Option<f64>,
) -> Result<(), Box<dyn Error>> {
    let cost = DecodeCost::default();
    let copies = copies_for_decode(trace, DECODE_RANKS, DECODE_REQUESTS_PER_RANK, &cost);
    let warm_up_ms = WARM_UP_MS.min(end_ms / 2);
    let unit = DecodeUnit { ranks: DECODE_RANKS, cost, arrivals_per_step_ms, warm_up_ms, end_ms };
    let arrivals = Replicated::new(trace.clone(), copies, SEED);
    println!("DECODE, modelled: {DECODE_RANKS} ranks in lockstep, {} min", end_ms / 60_000);
    println!(
        "arrivals: {copies} copies of the trace, each shifted and jittered (seed {SEED}); {}",
        match arrivals_per_step_ms {
            Some(ms) =>
                format!("as many in each step as come in {ms:.1} ms: all policies hold the same requests"),
            None => "by the clock: the slower the step, the more requests run at once".to_owned(),
        }
    );
    println!(
        "step = {} ms + {} ms per 100k KV tokens of the fullest rank + {} ms per 100 requests of the rank with most",
        unit.cost.fixed_ms,
        rounded(unit.cost.per_kv_token_ms * 1e5),
        rounded(unit.cost.per_request_ms * 100.0)
    );
    println!("KV, requests: max over mean of the ranks; ideal: the step with means in place of maxima");
    println!(
        "{:<16}{:>9}{:>9}{:>9}{:>9}{:>10}{:>10}{:>8}{:>8}",
        "policy", "req/rank", "KV/rank", "KV", "requests", "step ms", "ideal ms", "steps", "wall s"
    );
    decode_row("round robin", &unit, &arrivals, RoundRobin::new(DECODE_RANKS))?;
    decode_row("least requests", &unit, &arrivals, LeastRequests::new(DECODE_RANKS))?;
    let router = Router::new(Role::Decode, DECODE_RANKS, RoutingPolicy::default())?;
    decode_row("Evenkeel", &unit, &arrivals, router)
}

fn decode_row(
    name: &str,
    unit: &DecodeUnit,
    arrivals: &Replicated,
    mut policy: impl RequestPolicy,
) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let mut engine = DecodeEngine::new(unit.clone(), arrivals.clone());
    run(&mut engine, &mut policy)?;
    let f = engine.figures();
    println!(
        "{name:<16}{:>9.1}{:>8.0}k{:>9.3}{:>9.3}{:>10.2}{:>10.2}{:>8}{:>8.1}",
        f.requests_per_rank,
        f.kv_per_rank / 1000.0,
        f.kv_imbalance,
        f.requests_imbalance,
        f.step_ms,
        f.ideal_step_ms,
        f.steps,
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

fn prefill(trace: &Arc<[TraceRequest]>, end_ms: u64) -> Result<(), Box<dyn Error>> {
    let unit = PrefillUnit {
        ranks: PREFILL_RANKS,
        round_tokens: ROUND_TOKENS,
        cost: PrefillCost::default(),
        cache_blocks: CACHE_BLOCKS,
        warm_up_ms: WARM_UP_MS.min(end_ms / 2),
        end_ms,
    };
    let arrivals = Replicated::new(trace.clone(), PREFILL_COPIES, SEED);
    let whole_ms = f64::from(PREFILL_COPIES) * unit.cost.time_ms(prefill_work(trace, CACHE_BLOCKS));
    let load = whole_ms / (f64::from(PREFILL_RANKS) * period_ms(trace) as f64);
    println!(
        "PREFILL, modelled: {PREFILL_RANKS} ranks in lockstep, rounds of at most {ROUND_TOKENS} new tokens a rank"
    );
    println!(
        "arrivals: {PREFILL_COPIES} copies of the trace, each shifted and jittered (seed {SEED}), with a shared prefix cache;"
    );
    println!("load {:.0} % of what the unit can do with perfect balance", 100.0 * load);
    println!(
        "round = {} ms per 1000 new tokens + {} ms per 10M attention pairs, of the slowest rank",
        rounded(unit.cost.per_token_ms * 1e3),
        rounded(unit.cost.per_pair_ms * 1e7)
    );
    println!(
        "tokens, attention: max over mean of the ranks; to bound: attention over max(mean, largest chunk);"
    );
    println!(
        "ideal: the round with means; wait: arrival to last prompt token; left: prompts not done at the end"
    );
    println!(
        "{:<16}{:>9}{:>10}{:>10}{:>10}{:>10}{:>8}{:>9}{:>9}{:>8}{:>7}{:>8}",
        "policy",
        "tokens",
        "attention",
        "to bound",
        "T/ideal",
        "us/token",
        "rounds",
        "wait s",
        "p99 s",
        "done",
        "left",
        "wall s"
    );
    prefill_row("round robin", &unit, &arrivals, RoundRobin::new(PREFILL_RANKS))?;
    prefill_row("least requests", &unit, &arrivals, LeastRequests::new(PREFILL_RANKS))?;
    let whole = RoutingPolicy::default();
    prefill_row("Evenkeel whole", &unit, &arrivals, Router::new(Role::Prefill, PREFILL_RANKS, whole)?)?;
    let chunked = RoutingPolicy { round_tokens: Some(ROUND_TOKENS), ..RoutingPolicy::default() };
    prefill_row("Evenkeel chunked", &unit, &arrivals, Router::new(Role::Prefill, PREFILL_RANKS, chunked)?)
}

fn prefill_row(
    name: &str,
    unit: &PrefillUnit,
    arrivals: &Replicated,
    mut policy: impl RequestPolicy,
) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let mut engine = PrefillEngine::new(unit.clone(), arrivals.clone());
    run(&mut engine, &mut policy)?;
    let f = engine.figures();
    println!(
        "{name:<16}{:>9.3}{:>10.3}{:>10.3}{:>10.3}{:>10.2}{:>8}{:>9.1}{:>9.1}{:>8}{:>7}{:>8.1}",
        f.tokens_imbalance,
        f.attention_imbalance,
        f.attention_over_bound,
        f.time_over_ideal,
        f.us_per_token,
        f.rounds,
        f.wait_mean_ms / 1000.0,
        f.wait_p99_ms / 1000.0,
        f.prompts,
        f.unfinished,
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// For a headline: two decimals at most.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
