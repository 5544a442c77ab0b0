//! Groups of experts and the nodes they are at home on.

use super::{Slots, counts};
use evenkeel_core::experts::Deployment;
use evenkeel_core::ids::ExpertId;

/// How far a placement keeps groups of experts on their nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Locality {
    /// Experts without a replica on the node of their group.
    pub away: usize,
    /// The part of all load that is served on another node than the group's.
    pub crossing: f64,
}

/// The locality of a placement under a split (`None`: even). A group's node is the one that holds most of its experts,
/// the first among equals: planners choose it and need not say so.
pub fn locality(deployment: &Deployment, slots: &Slots, share: Option<&[f64]>, loads: &[f64]) -> Locality {
    let count = counts(slots, loads.len()).expect("a checked placement");
    let mut locality = Locality::default();
    let total: f64 = loads.iter().sum();
    let size = loads.len() / deployment.groups();
    for group in (0..loads.len()).collect::<Vec<_>>().chunks(size) {
        let held = |node: usize, expert: usize| {
            let ranks = deployment.ranks().iter().enumerate();
            let mut on_node = ranks.filter(|(_, rank)| usize::from(rank.node) == node);
            on_node.any(|(rank, _)| slots[deployment.slots_of(rank)].contains(&Some(ExpertId(expert as u16))))
        };
        let held_by = |node: usize| group.iter().filter(|&&expert| held(node, expert)).count();
        // The first of the largest: `max_by_key` alone would take the last.
        let home = (0..deployment.nodes()).rev().max_by_key(|&node| held_by(node)).expect("there are nodes");
        locality.away += group.len() - held_by(home);
        for (rank, spec) in deployment.ranks().iter().enumerate() {
            for slot in deployment.slots_of(rank).filter(|_| usize::from(spec.node) != home) {
                let Some(expert) = slots[slot].map(ExpertId::index).filter(|e| group.contains(e)) else {
                    continue;
                };
                let part = share.map_or(1.0 / f64::from(count[expert]), |share| share[slot]);
                locality.crossing += loads[expert] * part / total.max(f64::MIN_POSITIVE);
            }
        }
    }
    locality
}
