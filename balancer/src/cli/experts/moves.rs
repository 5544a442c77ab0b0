//! What a change of placement moves. Looks at the slots alone.

use evenkeel_core::experts::{Deployment, RankSpec};
use evenkeel_core::ids::ExpertId;
use std::collections::HashSet;

/// What one layer's change moves.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Change {
    /// Slots that hold something else.
    pub(super) slots: usize,
    /// `[ranks]`: experts that each GPU fetches.
    pub(super) fetched: Vec<usize>,
    /// Of all those, the ones from another node.
    pub(super) between_nodes: usize,
}

impl Change {
    /// Experts fetched by all GPUs.
    pub(super) fn moves(&self) -> usize {
        self.fetched.iter().sum()
    }
}

/// Compares the slots of one layer. Releasing an expert moves nothing.
pub(super) fn change(deployment: &Deployment, from: &[Option<ExpertId>], to: &[Option<ExpertId>]) -> Change {
    let ranks = deployment.ranks();
    let mut change = Change {
        slots: from.iter().zip(to).filter(|(a, b)| a != b).count(),
        fetched: vec![0; ranks.len()],
        between_nodes: 0,
    };
    let of_rank = |(rank, spec): (usize, &RankSpec)| {
        from[deployment.slots_of(rank)]
            .iter()
            .flatten()
            .map(|expert| (spec.node, *expert))
            .collect::<Vec<_>>()
    };
    let on_node: HashSet<(u16, ExpertId)> = ranks.iter().enumerate().flat_map(of_rank).collect();
    for (rank, spec) in ranks.iter().enumerate() {
        let slots = deployment.slots_of(rank);
        let mut arriving: Vec<ExpertId> = to[slots.clone()].iter().flatten().copied().collect();
        arriving.sort_unstable();
        // Twice on a GPU is fetched once.
        arriving.dedup();
        arriving.retain(|expert| !from[slots.clone()].contains(&Some(*expert)));
        change.fetched[rank] = arriving.len();
        change.between_nodes +=
            arriving.iter().filter(|expert| !on_node.contains(&(spec.node, **expert))).count();
    }
    change
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(from: &[i32], to: &[i32], slots: usize, fetched: &[usize], between_nodes: usize) {
        let deployment = Deployment::uniform(4, 8, 2, 1).unwrap();
        let held = |row: &[i32]| -> Vec<Option<ExpertId>> {
            row.iter().map(|&e| u16::try_from(e).ok().map(ExpertId)).collect()
        };
        let found = change(&deployment, &held(from), &held(to));
        assert_eq!(found, Change { slots, fetched: fetched.to_vec(), between_nodes });
    }

    #[test]
    fn only_what_a_gpu_did_not_hold_is_fetched() {
        let from = [0, 1, 2, 3, 4, 5, 6, 7];
        check(&from, &from, 0, &[0; 4], 0);
        check(&from, &[1, 0, 2, 3, 4, 5, 6, 7], 2, &[0; 4], 0);
        check(&from, &[0, -1, 2, 3, 4, 5, 6, 7], 1, &[0; 4], 0);
        check(&from, &[0, 2, 1, 3, 4, 5, 6, 7], 2, &[1, 1, 0, 0], 0);
        check(&from, &[0, 4, 2, 3, 1, 5, 6, 7], 2, &[1, 0, 1, 0], 2);
        check(&from, &[4, 4, 2, 3, 1, 0, 6, 7], 4, &[1, 0, 2, 0], 3);
    }
}
