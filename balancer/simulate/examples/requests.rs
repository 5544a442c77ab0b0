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
use evenkeel_simulate::replicate::{Replicated, copies_for_decode, period_ms, prefill_work};
use evenkeel_simulate::trace::{TraceRequest, read_all};
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

const SEED: u64 = 7;
const DECODE_RANKS: u16 = 144;
const PREFILL_RANKS: u16 = 32;
const CACHE_BLOCKS: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let minutes: u64 = arguments.next().map_or(Ok(20), |text| text.parse())?;
    let default =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/mooncake_conversation_first20min.jsonl.gz");
    let path = PathBuf::from(arguments.next().unwrap_or_else(|| default.to_owned()));
    let trace: Arc<[TraceRequest]> = read_all(&path)?.into();
    decode(&trace, minutes * 60_000)?;
    prefill(&trace, minutes * 60_000)
}

fn decode(trace: &Arc<[TraceRequest]>, end_ms: u64) -> Result<(), Box<dyn Error>> {
    let cost = DecodeCost::default();
    let copies = copies_for_decode(trace, DECODE_RANKS, 60.0, &cost);
    println!("decode: {DECODE_RANKS} ranks, trace x {copies} with jitter, seed {SEED}; times modelled");
    println!(
        "{:<16}{:>9}{:>9}{:>9}{:>9}{:>10}{:>9}{:>8}{:>8}",
        "policy", "req/rank", "KV/rank", "KV", "requests", "step ms", "ideal", "steps", "wall s"
    );
    let unit = DecodeUnit { ranks: DECODE_RANKS, cost, warm_up_ms: 90_000.min(end_ms / 2), end_ms };
    let arrivals = Replicated::new(trace.clone(), copies, SEED);
    let mut row = |name: &str,
                   policy: &mut dyn FnMut(&mut DecodeEngine<Replicated>) -> Result<(), Box<dyn Error>>|
     -> Result<(), Box<dyn Error>> {
        let began = Instant::now();
        let mut engine = DecodeEngine::new(unit.clone(), arrivals.clone());
        policy(&mut engine)?;
        let f = engine.figures();
        println!(
            "{name:<16}{:>9.1}{:>8.0}k{:>9.3}{:>9.3}{:>10.2}{:>9.2}{:>8}{:>8.1}",
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
    };
    row("round robin", &mut |e| Ok(run(e, &mut RoundRobin::new(DECODE_RANKS))?))?;
    row("least requests", &mut |e| Ok(run(e, &mut LeastRequests::new(DECODE_RANKS))?))?;
    row("Evenkeel", &mut |e| {
        Ok(run(e, &mut Router::new(Role::Decode, DECODE_RANKS, RoutingPolicy::default())?)?)
    })?;
    Ok(())
}

fn prefill(trace: &Arc<[TraceRequest]>, end_ms: u64) -> Result<(), Box<dyn Error>> {
    let cost = PrefillCost::default();
    let copies = 2;
    let round_tokens: u64 = std::env::var("ROUND").ok().map_or(Ok(4096), |t| t.parse())?;
    let load = f64::from(copies) * cost.time_ms(prefill_work(trace, CACHE_BLOCKS))
        / (f64::from(PREFILL_RANKS) * period_ms(trace) as f64);
    println!(
        "\nprefill: {PREFILL_RANKS} ranks, trace x {copies}, load {:.0} % of a perfectly balanced unit",
        100.0 * load
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
    let unit = PrefillUnit {
        ranks: PREFILL_RANKS,
        round_tokens,
        cost,
        cache_blocks: CACHE_BLOCKS,
        warm_up_ms: 90_000.min(end_ms / 2),
        end_ms,
    };
    let whole = RoutingPolicy::default();
    let chunked = RoutingPolicy { round_tokens: Some(round_tokens), ..RoutingPolicy::default() };
    let arrivals = Replicated::new(trace.clone(), copies, SEED);
    fn row<P: RequestPolicy>(
        name: &str,
        unit: &PrefillUnit,
        arrivals: &Replicated,
        mut policy: P,
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
    row("round robin", &unit, &arrivals, RoundRobin::new(PREFILL_RANKS))?;
    row("least requests", &unit, &arrivals, LeastRequests::new(PREFILL_RANKS))?;
    row("Evenkeel whole", &unit, &arrivals, Router::new(Role::Prefill, PREFILL_RANKS, whole)?)?;
    row("Evenkeel", &unit, &arrivals, Router::new(Role::Prefill, PREFILL_RANKS, chunked)?)?;
    Ok(())
}
