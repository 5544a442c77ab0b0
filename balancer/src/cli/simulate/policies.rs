//! Which policies are compared, by name.

use super::refused;
use crate::cli::Failure;
use evenkeel_core::policy::RoutingPolicy;
use evenkeel_core::topology::Role;
use evenkeel_simulate::baselines::requests::{PEERS, Peer, Phase};
use evenkeel_simulate::cluster::{Kind, News, PeerSeat, RouterSeat, Seat, Setup};

/// Names of Evenkeel's policies: prompts in chunks that it cuts, or whole; and of all policies.
const EVENKEEL: &str = "evenkeel";
const EVENKEEL_WHOLE: &str = "evenkeel-whole";
const ALL: &str = "all";
/// A name is offered instead of an unknown one where they are so alike.
const ALIKE: f64 = 0.6;

/// A policy of one kind of unit.
#[derive(Debug, Clone, Copy)]
enum Policy {
    Evenkeel { chunks: bool },
    Peer(&'static Peer),
}

/// What stands in front of the units of a simulation.
#[derive(Debug, Clone)]
pub(super) struct Contender {
    /// As it was named.
    pub(super) key: String,
    prefill: Option<Policy>,
    decode: Option<Policy>,
}

/// Which kinds of unit there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kinds {
    pub(super) prefill: bool,
    pub(super) decode: bool,
}

impl Kinds {
    fn take(self, phase: Phase) -> bool {
        match phase {
            Phase::Both => true,
            Phase::Prefill => !self.decode,
            Phase::Decode => !self.prefill,
        }
    }
}

/// The contenders of a list of names; `all` stands for all that fit.
pub(super) fn parse(names: &[String], kinds: Kinds) -> Result<Vec<Contender>, Failure> {
    let mut contenders: Vec<Contender> = Vec::new();
    for name in names {
        if name == ALL {
            let peers = PEERS.iter().filter(|peer| kinds.take(peer.phase)).map(|peer| peer.key);
            let ours = [EVENKEEL].into_iter().chain(kinds.prefill.then_some(EVENKEEL_WHOLE));
            for key in ours.chain(peers) {
                contenders.push(contender(key, kinds)?);
            }
        } else {
            contenders.push(contender(name, kinds)?);
        }
    }
    let mut seen = std::collections::HashSet::new();
    contenders.retain(|contender| seen.insert(contender.key.clone()));
    Ok(contenders)
}

fn contender(name: &str, kinds: Kinds) -> Result<Contender, Failure> {
    let both = kinds.prefill && kinds.decode;
    let (first, second) = match name.split_once('+') {
        Some((first, second)) if both => (first, second),
        Some(_) => {
            let problem =
                format!("--policy {name}: PREFILL+DECODE is for disaggregated units; name one policy");
            return Err(refused("simulate_policy", problem));
        }
        None => (name, name),
    };
    let prefill = kinds.prefill.then(|| policy(first, Phase::Decode, both)).transpose()?;
    let decode = kinds.decode.then(|| policy(second, Phase::Prefill, both)).transpose()?;
    Ok(Contender { key: name.to_owned(), prefill, decode })
}

/// The policy of that name, unless it is only for the other kind of unit.
fn policy(key: &str, other: Phase, both: bool) -> Result<Policy, Failure> {
    if [EVENKEEL, EVENKEEL_WHOLE].contains(&key) {
        return Ok(Policy::Evenkeel { chunks: key == EVENKEEL });
    }
    let Some(peer) = PEERS.iter().find(|peer| peer.key == key) else {
        return Err(unknown(key));
    };
    if peer.phase != other {
        return Ok(Policy::Peer(peer));
    }
    let (this, that) = if other == Phase::Decode { ("prefill", "decode") } else { ("decode", "prefill") };
    let remedy = if both { "; name two policies as PREFILL+DECODE" } else { "" };
    Err(refused(
        "simulate_policy",
        format!("--policy {key} is for {that} units, not for {this} units{remedy}"),
    ))
}

fn unknown(key: &str) -> Failure {
    let names = || [EVENKEEL, EVENKEEL_WHOLE, ALL].into_iter().chain(PEERS.iter().map(|peer| peer.key));
    let (likeness, nearest) = names()
        .map(|name| (strsim::jaro_winkler(key, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .expect("there are names");
    let nearest = if likeness >= ALIKE { format!("; did you mean {nearest}?") } else { String::new() };
    let accepted = names().collect::<Vec<_>>().join(", ");
    refused("simulate_policy", format!("--policy {key:?} is not known{nearest} Accepted are {accepted}"))
}

impl Contender {
    /// Whether it is Evenkeel throughout.
    pub(super) fn ours(&self) -> bool {
        [self.prefill, self.decode]
            .into_iter()
            .flatten()
            .all(|policy| matches!(policy, Policy::Evenkeel { .. }))
    }

    /// The seat at a unit.
    pub(super) fn seat(&self, kind: Kind, (unit, ranks): (u16, u16), setup: &Setup) -> Box<dyn Seat> {
        let (policy, role) = match kind {
            Kind::Prefill => (self.prefill, Role::Prefill),
            Kind::Decode => (self.decode, Role::Decode),
        };
        match policy.expect("units of a kind that there is") {
            Policy::Peer(peer) => {
                let seed = setup.seed.wrapping_add(unit.into());
                Box::new(PeerSeat::new(peer.build(ranks, seed), ranks, &setup.news))
            }
            Policy::Evenkeel { chunks } => {
                let step_tokens = setup.pools().0.map(|prefill| prefill.step_tokens);
                let routing = RoutingPolicy {
                    round_tokens: step_tokens.filter(|_| chunks),
                    ..RoutingPolicy::default()
                };
                let seat = RouterSeat::new(name(chunks), (role, ranks), routing, &setup.news);
                Box::new(seat.expect("the flags keep to what the router takes"))
            }
        }
    }

    /// As tables show it, and how often it hears from the engines, if that is one interval.
    pub(super) fn shown(&self, news: &News) -> (String, Option<f64>) {
        let of = |policy: Policy| match policy {
            Policy::Evenkeel { chunks } => (name(chunks).to_owned(), news.report_interval_us as f64 / 1e6),
            Policy::Peer(peer) => {
                let policy = peer.build(1, 0);
                (policy.name().to_owned(), policy.report_interval_s())
            }
        };
        match (self.prefill.map(of), self.decode.map(of)) {
            (Some(first), Some(second)) if first != second => {
                (format!("{} + {}", first.0, second.0), (first.1 == second.1).then_some(first.1))
            }
            (Some(one), _) | (None, Some(one)) => (one.0, Some(one.1)),
            (None, None) => unreachable!("every simulation has units"),
        }
    }
}

fn name(chunks: bool) -> &'static str {
    if chunks { "Evenkeel" } else { "Evenkeel, whole prompts" }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFILL: Kinds = Kinds { prefill: true, decode: false };
    const DECODE: Kinds = Kinds { prefill: false, decode: true };
    const BOTH: Kinds = Kinds { prefill: true, decode: true };

    fn named(names: &[&str], kinds: Kinds) -> Result<Vec<String>, String> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let contenders =
            parse(&names, kinds).map_err(|failure| format!("{}: {}", failure.code, failure.message))?;
        Ok(contenders.into_iter().map(|contender| contender.key).collect())
    }

    #[test]
    fn policies_are_found_by_name_and_where_they_fit() {
        let check = |names: &[&str], kinds, found: &[&str]| assert_eq!(named(names, kinds).unwrap(), found);
        check(&["vllm-0.33", "evenkeel"], DECODE, &["vllm-0.33", "evenkeel"]);
        check(&["bf-io"], DECODE, &["bf-io"]);
        check(
            &["dynamo-rank-cohort+bf-io", "vllm-0.33", "vllm-0.33"],
            BOTH,
            &["dynamo-rank-cohort+bf-io", "vllm-0.33"],
        );
        for kinds in [PREFILL, DECODE, BOTH] {
            let all = named(&["all"], kinds).unwrap();
            assert_eq!(all[0], "evenkeel");
            assert!(all.len() > 15, "{all:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_a_remedy() {
        let check = |name, kinds, words: &str| {
            let error = named(&[name], kinds).unwrap_err();
            assert!(error.starts_with("simulate_policy: ") && error.contains(words), "{error}");
        };
        check("vlm-0.33", DECODE, "did you mean vllm-0.33?");
        check("bf-io", PREFILL, "is for decode units");
        check("bf-io", BOTH, "PREFILL+DECODE");
        check("vllm-0.33+bf-io", DECODE, "disaggregated");
    }
}
