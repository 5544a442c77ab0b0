//! Every policy decides as its reference does, on 10,000 events that `tests/reference/decisions.py` makes up.

use super::{PEERS, bf_io, by_name, dynamo, one_by_one::OneByOne, staggered, tensorrt_llm, vllm_router};
use crate::dispatch::{Arrival, CachedBlocks, DispatchPolicy, RankView};
use serde::Deserialize;
use std::process::Command;

pub(super) const EVENTS: usize = 10_000;

#[derive(Deserialize)]
struct Setting {
    ranks: u16,
    seed: u64,
    interval: f64,
}

/// First block, blocks.
type Run = (u64, u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Reports { reports: Vec<(u32, u32, u64, u64, u64, u64, f64)>, cached: Vec<(usize, Vec<Run>, Vec<Run>)> },
    Arrive { arrive: Vec<Row>, now: f64, decided: Vec<(u64, u16)> },
    First { first: (u64, u16) },
    Finish { finish: (u64, u16) },
}

#[derive(Deserialize)]
struct Row(u64, u64, Vec<Run>, Option<u64>, Option<u16>, u32);

fn blocks(runs: &[Run]) -> impl Iterator<Item = u64> {
    runs.iter().flat_map(|&(first, count)| first..first + count)
}

impl From<Row> for Arrival {
    fn from(Row(id, prompt_tokens, runs, room, pin, turn): Row) -> Self {
        Self { id, prompt_tokens, blocks: blocks(&runs).collect(), room, pin, turn }
    }
}

/// The lines that the reference prints for `name`.
pub(super) fn reference(script: &str, name: &str) -> Vec<String> {
    let script = format!("{}/../../tests/reference/{script}", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("python3").args(["-B", &script, name, &EVENTS.to_string()]).output();
    let output = output.expect("python3 runs the references");
    assert!(output.status.success(), "{script} {name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("JSON").lines().map(str::to_owned).collect()
}

/// Both sides on the same events.
#[track_caller]
fn check(name: &str, build: impl FnOnce(u16, u64) -> Box<dyn DispatchPolicy>) {
    let mut lines = reference("decisions.py", name).into_iter();
    let setting: Setting = serde_json::from_str(&lines.next().expect("a setting")).unwrap();
    let mut policy = build(setting.ranks, setting.seed);
    assert_eq!(policy.report_interval_s(), setting.interval, "age of reports of {name}");
    let mut views = vec![RankView::default(); setting.ranks.into()];
    let mut events = 0;
    for line in lines {
        match serde_json::from_str(&line).unwrap() {
            Line::Reports { reports, cached } => {
                renew(&mut views, reports, cached);
                policy.on_reports(&views);
                events += 1;
            }
            Line::Arrive { arrive, now, decided } => {
                let arrivals: Vec<Arrival> = arrive.into_iter().map(Arrival::from).collect();
                let dispatched = policy.assign(&arrivals, now);
                let mut dispatched: Vec<_> = dispatched.iter().map(|d| (d.id, d.rank)).collect();
                dispatched.sort_unstable();
                assert_eq!(dispatched, decided, "{name}, after {events} events: {arrivals:?}");
                events += arrivals.len();
            }
            Line::First { first: (id, rank) } => {
                policy.on_first_token(id, rank);
                events += 1;
            }
            Line::Finish { finish: (id, rank) } => {
                policy.on_finish(id, rank);
                events += 1;
            }
        }
    }
    assert!(events >= EVENTS, "{events} events");
}

fn renew(
    views: &mut [RankView],
    reports: Vec<(u32, u32, u64, u64, u64, u64, f64)>,
    cached: Vec<(usize, Vec<Run>, Vec<Run>)>,
) {
    for (rank, added, removed) in cached {
        let known: &mut CachedBlocks = &mut views[rank].cached;
        blocks(&added).for_each(|block| known.insert(block));
        blocks(&removed).for_each(|block| known.remove(block));
    }
    for (view, report) in views.iter_mut().zip(reports) {
        (view.running, view.waiting, view.used_tokens, view.queued_tokens, ..) = report;
        (.., view.waiting_uncached, view.capacity_tokens, view.generated_per_s) = report;
    }
}

/// One test for each policy of [`PEERS`], as it is there.
macro_rules! peers {
    ($($test:ident $key:literal)*) => {
        $(#[test]
        fn $test() {
            check($key, |ranks, seed| by_name($key, ranks, seed).expect("a peer"));
        })*

        #[test]
        fn every_peer_has_a_reference() {
            let keys: Vec<&str> = PEERS.iter().map(|peer| peer.key).collect();
            assert_eq!(keys, [$($key),*]);
        }
    };
}

peers! {
    sglang_round_robin_decides_alike "sglang-round-robin"
    sglang_follow_room_decides_alike "sglang-follow-room"
    sglang_total_requests_decides_alike "sglang-total-requests"
    sglang_total_tokens_decides_alike "sglang-total-tokens"
    vllm_before_0_33_decides_alike "vllm-before-0.33"
    vllm_0_33_decides_alike "vllm-0.33"
    smg_cache_aware_decides_alike "smg-cache-aware"
    smg_power_of_two_decides_alike "smg-power-of-two"
    smg_least_load_decides_alike "smg-least-load"
    smg_dp_min_token_decides_alike "smg-dp-min-token"
    vllm_router_smetric_decides_alike "vllm-router-smetric"
    lmetric_decides_alike "lmetric"
    dynamo_kv_decides_alike "dynamo-kv"
    dynamo_token_balance_decides_alike "dynamo-token-balance"
    llmd_default_decides_alike "llmd-default"
    llmd_sticky_token_load_decides_alike "llmd-sticky-token-load"
    tensorrt_llm_default_adp_decides_alike "tensorrt-llm-default-adp"
    tensorrt_llm_kv_aware_adp_decides_alike "tensorrt-llm-kv-aware-adp"
    dynamo_decode_decides_alike "dynamo-decode"
    bf_io_decides_alike "bf-io"
    staggered_decode_decides_alike "staggered-decode"
    dynamo_rank_cohort_decides_alike "dynamo-rank-cohort"
    staggered_prefill_decides_alike "staggered-prefill"
}

#[test]
fn smetric_with_an_objective_beside_decode_decides_alike() {
    let objective = vllm_router::TtftObjective { rate: 20e3 };
    check("vllm-router-smetric, objective, colocated", |ranks, _| {
        Box::new(OneByOne::new(ranks, vllm_router::SMetric::new(ranks, Some(objective), true)))
    });
}

#[track_caller]
fn check_dynamo(name: &str, options: dynamo::KvOptions) {
    check(name, |ranks, seed| Box::new(OneByOne::new(ranks, dynamo::Kv::new(ranks, seed, options))));
}

#[test]
fn dynamo_with_other_weights_decides_alike() {
    let options = dynamo::KvOptions {
        overlap_credit: 0.9,
        credit_decay: 0.5,
        prefill_scale: 2.0,
        request_weight: 1.5,
        temperature: 0.0,
    };
    check_dynamo("dynamo-kv, decay, weights", options);
}

#[test]
fn dynamo_with_a_temperature_draws_alike() {
    check_dynamo("dynamo-kv, temperature", dynamo::KvOptions { temperature: 0.3, ..Default::default() });
}

#[test]
fn dynamo_decode_that_counts_requests_decides_alike() {
    check("dynamo-decode, request weight", |ranks, seed| {
        Box::new(OneByOne::new(ranks, dynamo::Decode::new(ranks, seed, 40.0)))
    });
}

#[test]
fn tensorrt_llm_with_full_ranks_decides_alike() {
    check("tensorrt-llm-default-adp, most active", |ranks, _| {
        Box::new(tensorrt_llm::DefaultAdp::new(ranks, Some(40)))
    });
}

#[test]
fn bf_io_with_full_ranks_decides_alike() {
    check("bf-io, slots", |ranks, _| Box::new(bf_io::BfIo::new(ranks, Some(40))));
}

#[test]
fn staggered_prefill_without_a_buffer_decides_alike() {
    check("staggered-prefill, at once", |ranks, _| Box::new(staggered::StaggeredPrefill::new(ranks, 0.0)));
}
