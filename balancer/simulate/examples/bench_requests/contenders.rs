//! Who is compared on a simulated cluster: every peer with its own age of reports, and Evenkeel.

use crate::traces::STEP_TOKENS;
use evenkeel_core::policy::RoutingPolicy;
use evenkeel_core::topology::Role;
use evenkeel_simulate::baselines::requests::{PEERS, Phase, by_name};
use evenkeel_simulate::cluster::{Kind, PeerSeat, RouterSeat, Seat, Setup};

/// A policy in front of prefill and one in front of decode.
pub(crate) enum Contender {
    Peer { prefill: &'static str, decode: &'static str },
    Evenkeel { name: &'static str, policy: RoutingPolicy },
}

/// All of them. A peer's policy for one phase only stands beside the same system's for the other, where it has one.
pub(crate) fn contenders() -> Vec<Contender> {
    let peer = |prefill, decode| Contender::Peer { prefill, decode };
    let both = PEERS.iter().filter(|peer| peer.phase == Phase::Both);
    let mut all: Vec<Contender> = both.map(|both| peer(both.key, both.key)).collect();
    all.push(peer("dynamo-kv", "dynamo-decode"));
    all.push(peer("dynamo-rank-cohort", "dynamo-decode"));
    all.push(peer("staggered-prefill", "staggered-decode"));
    all.push(peer("lmetric", "bf-io"));
    let evenkeel = |name, policy| Contender::Evenkeel { name, policy };
    let chunks = RoutingPolicy { round_tokens: Some(STEP_TOKENS), ..RoutingPolicy::default() };
    let moves = RoutingPolicy { migrations_per_step: 1, ..chunks.clone() };
    all.push(evenkeel("Evenkeel, whole prompts", RoutingPolicy::default()));
    all.push(evenkeel("Evenkeel, chunks", chunks));
    all.push(evenkeel("Evenkeel, chunks and moves", moves));
    all
}

impl Contender {
    pub(crate) fn name(&self) -> String {
        match self {
            Contender::Peer { prefill, decode } if prefill == decode => (*prefill).to_owned(),
            Contender::Peer { prefill, decode } => format!("{prefill} + {decode}"),
            Contender::Evenkeel { name, .. } => (*name).to_owned(),
        }
    }

    pub(crate) fn seat(&self, (kind, unit, ranks): (Kind, u16, u16), setup: &Setup) -> Box<dyn Seat> {
        match self {
            Contender::Peer { prefill, decode } => {
                let key = if kind == Kind::Prefill { prefill } else { decode };
                let policy = by_name(key, ranks, setup.seed + u64::from(unit));
                let policy = policy.expect("the list of peers has it");
                Box::new(PeerSeat::new(policy, ranks, &setup.news))
            }
            Contender::Evenkeel { name, policy } => {
                let role = if kind == Kind::Prefill { Role::Prefill } else { Role::Decode };
                let seat = RouterSeat::new(*name, (role, ranks), policy.clone(), &setup.news);
                Box::new(seat.expect("the policy is within its ranges"))
            }
        }
    }
}
