//! Gates, splits and plans answer as their references do, on 10,000 questions that `tests/reference/answers.py` makes up.

use super::dyntra::{self, RankRequests};
use super::gates::{AdpWaitGate, PrefillDelayer, Prefillable, Work, prefill_cadence_allows};
use super::llumnix::{self, Kept, Load};
use super::microbatch_splits::{Cut, TWO_BATCH_THRESHOLD, dual_batch_overlap, two_batch_overlap};
use super::oracle_tests::{EVENTS, reference};
use serde::de::DeserializeOwned;
use std::fmt::Debug;

#[track_caller]
fn check<Q, A>(name: &str, mut answer: impl FnMut(Q) -> A)
where
    Q: DeserializeOwned,
    A: DeserializeOwned + PartialEq + Debug,
{
    let lines = reference("answers.py", name);
    assert_eq!(lines.len(), EVENTS);
    for line in lines {
        let (question, expected): (Q, A) = serde_json::from_str(&line).unwrap();
        assert_eq!(answer(question), expected, "{name}: {line}");
    }
}

#[track_caller]
fn check_wait_gate(name: &str, mut gate: AdpWaitGate) {
    check(name, |ranks: Vec<(u32, u32)>| {
        let work = |(context, generation)| Work { context, generation };
        gate.allows(&ranks.into_iter().map(work).collect::<Vec<_>>())
    });
}

#[test]
fn the_wait_gate_of_tensorrt_llm_answers_alike() {
    check_wait_gate("adp wait gate", AdpWaitGate::new(AdpWaitGate::TIMEOUT, AdpWaitGate::BATCHING, None));
    check_wait_gate("adp wait gate, short", AdpWaitGate::new(3, 2, Some(32)));
}

#[track_caller]
fn check_delayer(name: &str, mut delayer: PrefillDelayer) {
    check(name, |ranks: Vec<(bool, f64)>| {
        let rank = |(prefillable, kv_usage)| Prefillable { prefillable, kv_usage };
        delayer.allows(&ranks.into_iter().map(rank).collect::<Vec<_>>())
    });
}

#[test]
fn the_prefill_delayer_of_sglang_answers_alike() {
    check_delayer("prefill delayer", PrefillDelayer::new(PrefillDelayer::MOST_PASSES, None));
    check_delayer("prefill delayer, watermark", PrefillDelayer::new(4, Some(0.4)));
}

#[test]
fn the_prefill_cadence_of_vllm_answers_alike() {
    check("prefill cadence", |(interval, step): (u64, u64)| prefill_cadence_allows(interval, step));
}

#[test]
fn the_two_batch_overlap_of_sglang_cuts_alike() {
    check("two-batch overlap", |prompts: Vec<u64>| {
        let Cut { request, tokens } = two_batch_overlap(&prompts, TWO_BATCH_THRESHOLD);
        (request, tokens)
    });
}

#[test]
fn the_dual_batch_overlap_of_vllm_cuts_alike() {
    check("dual-batch overlap", |(prompts, parts): (Vec<u64>, u64)| dual_batch_overlap(&prompts, parts));
}

type Requests = Vec<(Vec<u64>, Vec<u64>)>;

#[test]
fn dyntra_plans_alike() {
    check("dyntra", |(ranks, threshold, rounds, most_running): (Requests, f64, usize, Option<usize>)| {
        let rank = |(running, waiting)| RankRequests { running, waiting };
        let ranks: Vec<RankRequests> = ranks.into_iter().map(rank).collect();
        let plan = dyntra::balance(&ranks, dyntra::Options { threshold, rounds, most_running });
        plan.into_iter().map(|rank| (rank.running, rank.waiting)).collect::<Requests>()
    });
}

#[test]
fn llumnix_pairs_alike() {
    check("llumnix", |(ranks, threshold, balanced): (Vec<(f64, f64, f64)>, f64, bool)| {
        let load = |(now, after_out, after_in)| Load { now, after_out, after_in };
        let ranks: Vec<Load> = ranks.into_iter().map(load).collect();
        llumnix::migration_pairs(&ranks, if balanced { Kept::Balanced { threshold } } else { Kept::All })
    });
}
