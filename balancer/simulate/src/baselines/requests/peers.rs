//! The list of all request policies of the peers, by the names that the command line takes.

use super::one_by_one::{OneByOne, Rule};
use super::{bf_io, dynamo, llmd, lmetric, sglang, smg, staggered, tensorrt_llm, vllm, vllm_router};
use crate::dispatch::DispatchPolicy;

/// Where a policy is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// In front of prefill units and of decode units.
    Both,
    /// In front of prefill units only.
    Prefill,
    /// In front of decode units only.
    Decode,
}

/// A policy of a peer, with the peer's defaults.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// As the command line takes it.
    pub key: &'static str,
    /// Where it is used.
    pub phase: Phase,
    build: fn(u16, u64) -> Box<dyn DispatchPolicy>,
}

impl Peer {
    /// Over `ranks` ranks, at least one; what it draws comes from `seed`.
    pub fn build(&self, ranks: u16, seed: u64) -> Box<dyn DispatchPolicy> {
        (self.build)(ranks, seed)
    }
}

/// All of them, in the order of tables.
pub const PEERS: &[Peer] = &[
    peer("sglang-round-robin", Phase::Both, |n, _| seat(n, sglang::RoundRobin::default())),
    peer("sglang-follow-room", Phase::Both, |n, _| seat(n, sglang::FollowBootstrapRoom)),
    peer("sglang-total-requests", Phase::Both, |n, _| seat(n, sglang::TotalRequests::new(n))),
    peer("sglang-total-tokens", Phase::Both, |n, _| seat(n, sglang::TotalTokens::new(n))),
    peer("vllm-before-0.33", Phase::Both, |n, _| seat(n, vllm::WaitingTimesFour::new(n))),
    peer("vllm-0.33", Phase::Both, |n, _| seat(n, vllm::InflightOrReported::new(n))),
    peer("smg-cache-aware", Phase::Both, |n, _| seat(n, smg::CacheAware::new(n))),
    peer("smg-power-of-two", Phase::Both, |n, seed| seat(n, smg::PowerOfTwo::new(n, seed))),
    peer("smg-least-load", Phase::Both, |n, _| seat(n, smg::LeastLoad::new(n))),
    peer("smg-dp-min-token", Phase::Both, |n, _| seat(n, smg::DpMinToken::new(n))),
    peer("vllm-router-smetric", Phase::Both, |n, _| seat(n, vllm_router::SMetric::new(n, None, false))),
    peer("lmetric", Phase::Both, |n, _| seat(n, lmetric::LMetric::new(n))),
    peer("dynamo-kv", Phase::Both, |n, seed| seat(n, dynamo::Kv::new(n, seed, dynamo::KvOptions::default()))),
    peer("dynamo-token-balance", Phase::Both, |n, seed| seat(n, dynamo::TokenBalance::new(n, seed))),
    peer("llmd-default", Phase::Both, |n, seed| seat(n, llmd::Scorers::new(n, seed))),
    peer("llmd-sticky-token-load", Phase::Both, |n, seed| seat(n, llmd::StickyTokenLoad::new(n, seed))),
    peer("tensorrt-llm-default-adp", Phase::Both, |n, _| Box::new(tensorrt_llm::DefaultAdp::new(n, None))),
    peer("tensorrt-llm-kv-aware-adp", Phase::Both, |n, _| Box::new(tensorrt_llm::KvAwareAdp::new(n))),
    peer("dynamo-decode", Phase::Decode, |n, seed| seat(n, dynamo::Decode::new(n, seed, 0.0))),
    peer("bf-io", Phase::Decode, |n, _| Box::new(bf_io::BfIo::new(n, None))),
    peer("staggered-decode", Phase::Decode, |n, _| seat(n, staggered::StaggeredDecode::new(n))),
    peer("dynamo-rank-cohort", Phase::Prefill, |n, _| Box::new(dynamo::RankCohort::new(n))),
    peer("staggered-prefill", Phase::Prefill, |n, _| {
        Box::new(staggered::StaggeredPrefill::new(n, staggered::StaggeredPrefill::INTERVAL_S))
    }),
];

const fn peer(key: &'static str, phase: Phase, build: fn(u16, u64) -> Box<dyn DispatchPolicy>) -> Peer {
    Peer { key, phase, build }
}

fn seat<R: Rule + 'static>(ranks: u16, rule: R) -> Box<dyn DispatchPolicy> {
    Box::new(OneByOne::new(ranks, rule))
}

/// The policy of that name over `ranks` ranks, at least one; `None` if [`PEERS`] has none.
pub fn by_name(key: &str, ranks: u16, seed: u64) -> Option<Box<dyn DispatchPolicy>> {
    PEERS.iter().find(|peer| peer.key == key).map(|peer| peer.build(ranks, seed))
}

/// All that are used in front of decode units.
pub fn decode_peers(ranks: u16, seed: u64) -> Vec<Box<dyn DispatchPolicy>> {
    all_but(Phase::Prefill, ranks, seed)
}

/// All that are used in front of prefill units.
pub fn prefill_peers(ranks: u16, seed: u64) -> Vec<Box<dyn DispatchPolicy>> {
    all_but(Phase::Decode, ranks, seed)
}

fn all_but(other: Phase, ranks: u16, seed: u64) -> Vec<Box<dyn DispatchPolicy>> {
    let peers = PEERS.iter().filter(|peer| peer.phase != other);
    peers.map(|peer| peer.build(ranks, seed)).collect()
}
