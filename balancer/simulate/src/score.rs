//! What a placement is worth, judged without its planner: loads under the even and under a given split, the best
//! possible split, and what one placement moves compared with another.
//!
//! Independent of the core on purpose: the even split, the exact level and the count of moves are computed here
//! from the slots alone, so that no planner is believed.

mod best_split;
mod change;
mod locality;

pub use best_split::best_split_imbalance;
pub use change::{Change, change};
pub use locality::{Locality, locality};

use evenkeel_core::experts::Deployment;
use evenkeel_core::ids::ExpertId;
use evenkeel_core::plan::max_over_mean;

/// What each slot of one layer holds.
pub type Slots = [Option<ExpertId>];

/// Why a placement cannot be served.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Flaw {
    /// Another number of slots than the deployment has.
    #[error("{found} slots, and the deployment has {expected}")]
    Slots {
        /// Found.
        found: usize,
        /// Expected.
        expected: usize,
    },
    /// An expert that the model does not have.
    #[error("slot {slot} holds expert {expert}, and the model has {experts}")]
    UnknownExpert {
        /// The slot.
        slot: usize,
        /// What it holds.
        expert: usize,
        /// Experts of the model.
        experts: usize,
    },
    /// An expert in no slot.
    #[error("expert {expert} is in no slot")]
    Missing {
        /// The expert.
        expert: usize,
    },
}

/// Every slot holds an expert of the model or none, and every expert has a slot.
pub fn check(deployment: &Deployment, slots: &Slots, experts: usize) -> Result<(), Flaw> {
    if slots.len() != deployment.slots() {
        return Err(Flaw::Slots { found: slots.len(), expected: deployment.slots() });
    }
    let count = counts(slots, experts).map_err(|slot| Flaw::UnknownExpert {
        slot,
        expert: slots[slot].map_or(0, ExpertId::index),
        experts,
    })?;
    match count.iter().position(|&count| count == 0) {
        Some(expert) => Err(Flaw::Missing { expert }),
        None => Ok(()),
    }
}

/// Slots whose expert is on the same rank in an earlier slot already: memory that balances nothing.
pub fn doubles(deployment: &Deployment, slots: &Slots) -> usize {
    let of_rank = |rank| {
        let held = &slots[deployment.slots_of(rank)];
        (0..held.len()).filter(|&at| held[at].is_some() && held[..at].contains(&held[at])).count()
    };
    (0..deployment.ranks().len()).map(of_rank).sum()
}

/// `[experts]`: replicas; or the slot that holds an unknown expert.
fn counts(slots: &Slots, experts: usize) -> Result<Vec<u32>, usize> {
    let mut count = vec![0; experts];
    for (slot, held) in slots.iter().enumerate() {
        if let Some(expert) = held {
            *count.get_mut(expert.index()).ok_or(slot)? += 1;
        }
    }
    Ok(count)
}

/// Max over mean of the ranks' loads (by their speed) when replicas share evenly.
pub fn even_imbalance(deployment: &Deployment, slots: &Slots, loads: &[f64]) -> f64 {
    let count = counts(slots, loads.len()).expect("a checked placement");
    imbalance(deployment, |slot| {
        slots[slot].map_or(0.0, |expert| loads[expert.index()] / f64::from(count[expert.index()]))
    })
}

/// The same when every slot gets the given part of its expert's load.
///
/// # Panics
/// When the parts of an expert do not sum to 1 within 1e-9: a planner's bug.
pub fn split_imbalance(deployment: &Deployment, slots: &Slots, share: &[f64], loads: &[f64]) -> f64 {
    let mut sum = vec![0.0; loads.len()];
    for (held, share) in slots.iter().zip(share) {
        held.iter().for_each(|expert| sum[expert.index()] += share);
    }
    assert!(sum.iter().all(|sum| (sum - 1.0f64).abs() < 1e-9), "the shares of an expert sum to 1: {sum:?}");
    imbalance(deployment, |slot| slots[slot].map_or(0.0, |expert| loads[expert.index()] * share[slot]))
}

fn imbalance(deployment: &Deployment, load: impl Fn(usize) -> f64) -> f64 {
    let ranks = deployment.ranks();
    let of_rank: Vec<f64> = (0..ranks.len()).map(|rank| deployment.slots_of(rank).map(&load).sum()).collect();
    if deployment.is_uniform() {
        return max_over_mean(&of_rank);
    }
    let speed: f64 = ranks.iter().map(|rank| rank.speed).sum();
    let total: f64 = of_rank.iter().sum();
    let most = of_rank.iter().zip(ranks).map(|(load, rank)| load / rank.speed).fold(0.0, f64::max);
    if total > 0.0 { most * speed / total } else { 1.0 }
}

/// No placement in these slots reaches less, whatever the split: the largest load per replica when replicas are handed
/// out best. For ranks of equal speed. More replicas than ranks would help nobody: such a replica is below the mean.
pub fn replica_bound(deployment: &Deployment, loads: &[f64]) -> f64 {
    let total: f64 = loads.iter().sum();
    if total <= 0.0 {
        return 1.0;
    }
    let (ranks, mut free) = (deployment.ranks().len(), deployment.slots() - loads.len());
    let mut count = vec![1usize; loads.len()];
    let per_replica = |count: &[usize], expert: usize| loads[expert] / count[expert] as f64;
    loop {
        let all = 0..loads.len();
        let hottest = all.max_by(|&a, &b| per_replica(&count, a).total_cmp(&per_replica(&count, b)));
        let hottest = hottest.expect("there are experts");
        if free == 0 {
            return (per_replica(&count, hottest) * ranks as f64 / total).max(1.0);
        }
        count[hottest] += 1;
        free -= 1;
    }
}

#[cfg(test)]
#[path = "score_tests.rs"]
mod tests;
