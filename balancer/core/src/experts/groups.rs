//! Where groups of experts live. Routing that visits few groups per token sends little between nodes when every group has a
//! node of its own on which all its experts are.

use super::deployment::Deployment;
use super::problem::{LayerProblem, Placement};

/// Groups up to which all assignments are compared; beyond, groups are dealt by load and then swapped.
const ENUMERATED_MAX: usize = 10;

/// `[experts]`: the node of each expert's group, so that the nodes' loads are as equal as whole groups allow. `None` when
/// there are no groups, when they do not divide over the nodes, or when a node lacks the slots.
pub(super) fn home_nodes(problem: &LayerProblem) -> Option<Vec<u16>> {
    let (groups, nodes) = (problem.deployment.groups(), problem.deployment.nodes());
    if groups < 2 || nodes < 2 || !groups.is_multiple_of(nodes) {
        return None;
    }
    let size = problem.experts() / groups;
    let per_node = groups / nodes;
    if slots_of_nodes(&problem.deployment).iter().any(|&slots| slots < per_node * size) {
        return None;
    }
    let loads: Vec<f64> = problem.loads.chunks(size).map(|group| group.iter().sum()).collect();
    let node_of = assign(&loads, nodes);
    Some((0..problem.experts()).map(|expert| node_of[expert / size]).collect())
}

/// The nodes of the groups in a placement that runs: each group belongs where most of its experts are.
pub(super) fn present_homes(problem: &LayerProblem, running: &Placement) -> Option<Vec<u16>> {
    let (groups, nodes) = (problem.deployment.groups(), problem.deployment.nodes());
    if groups < 2 || nodes < 2 || !groups.is_multiple_of(nodes) {
        return None;
    }
    let size = problem.experts() / groups;
    let mut seen = vec![false; nodes * problem.experts()];
    for (rank, spec) in problem.deployment.ranks().iter().enumerate() {
        let node = usize::from(spec.node);
        running
            .of(rank)
            .iter()
            .for_each(|&expert| seen[node * problem.experts() + usize::from(expert)] = true);
    }
    let on_node = |group: usize, node: usize| {
        let first = node * problem.experts() + group * size;
        seen[first..first + size].iter().filter(|seen| **seen).count()
    };
    let home = |group: usize| (0..nodes).max_by_key(|&node| (on_node(group, node), std::cmp::Reverse(node)));
    let homes: Vec<u16> = (0..groups).map(|group| home(group).expect("there are nodes") as u16).collect();
    Some((0..problem.experts()).map(|expert| homes[expert / size]).collect())
}

/// `[nodes]`.
pub(super) fn slots_of_nodes(deployment: &Deployment) -> Vec<usize> {
    let mut slots = vec![0; deployment.nodes()];
    deployment.ranks().iter().for_each(|rank| slots[usize::from(rank.node)] += usize::from(rank.slots));
    slots
}

/// `[groups]`: a node each, the same number of groups on every node, with the least sum of squared node loads.
fn assign(loads: &[f64], nodes: usize) -> Vec<u16> {
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_by(|&a, &b| loads[b].total_cmp(&loads[a]).then(a.cmp(&b)));
    let mut search = Search {
        loads,
        order,
        per_node: loads.len() / nodes,
        sums: vec![0.0; nodes],
        held: vec![0; nodes],
        node_of: vec![0; loads.len()],
        best: f64::INFINITY,
        best_node_of: vec![0; loads.len()],
    };
    search.deal();
    if loads.len() <= ENUMERATED_MAX {
        search.enumerate(0);
    } else {
        search.swap();
    }
    search.best_node_of
}

struct Search<'a> {
    loads: &'a [f64],
    /// Groups from the heaviest down.
    order: Vec<usize>,
    per_node: usize,
    /// `[nodes]`: load and number of the groups dealt so far.
    sums: Vec<f64>,
    held: Vec<usize>,
    /// `[groups]`.
    node_of: Vec<u16>,
    best: f64,
    best_node_of: Vec<u16>,
}

impl Search<'_> {
    /// Heaviest first, to the lowest node with room.
    fn deal(&mut self) {
        let (mut sums, mut held) = (self.sums.clone(), self.held.clone());
        for &group in &self.order {
            let open = (0..sums.len()).filter(|&node| held[node] < self.per_node);
            let node =
                open.min_by(|&a, &b| sums[a].total_cmp(&sums[b])).expect("nodes have room for all groups");
            sums[node] += self.loads[group];
            held[node] += 1;
            self.best_node_of[group] = node as u16;
        }
        self.best = squares(&sums);
    }

    /// All ways to deal the groups from `at` on. Empty nodes are alike, so only the first is tried.
    fn enumerate(&mut self, at: usize) {
        let Some(&group) = self.order.get(at) else {
            if squares(&self.sums) < self.best * (1.0 - 1e-12) {
                self.best = squares(&self.sums);
                self.best_node_of.clone_from(&self.node_of);
            }
            return;
        };
        for node in 0..self.sums.len() {
            if self.held[node] < self.per_node {
                let was_empty = self.held[node] == 0;
                self.sums[node] += self.loads[group];
                self.held[node] += 1;
                self.node_of[group] = node as u16;
                self.enumerate(at + 1);
                self.sums[node] -= self.loads[group];
                self.held[node] -= 1;
                if was_empty {
                    return;
                }
            }
        }
    }

    /// Swaps two groups between nodes while that lowers the sum of squares.
    fn swap(&mut self) {
        let mut sums = vec![0.0; self.sums.len()];
        (0..self.loads.len()).for_each(|g| sums[usize::from(self.best_node_of[g])] += self.loads[g]);
        // Each swap lowers the sum; the limit guards against rounding alone.
        for _ in 0..self.loads.len() * self.loads.len() {
            let mut changed = false;
            for a in 0..self.loads.len() {
                for b in a + 1..self.loads.len() {
                    let (from, to) = (usize::from(self.best_node_of[a]), usize::from(self.best_node_of[b]));
                    let by = self.loads[a] - self.loads[b];
                    if from != to && by * (sums[from] - sums[to] - by) > 1e-12 * self.best {
                        sums[from] -= by;
                        sums[to] += by;
                        self.best_node_of.swap(a, b);
                        changed = true;
                    }
                }
            }
            if !changed {
                return;
            }
        }
    }
}

fn squares(sums: &[f64]) -> f64 {
    sums.iter().map(|sum| sum * sum).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(loads: &[f64], nodes: usize, expected: f64) {
        let node_of = assign(loads, nodes);
        let mut sums = vec![0.0; nodes];
        let mut held = vec![0; nodes];
        node_of.iter().zip(loads).for_each(|(&node, load)| {
            sums[usize::from(node)] += load;
            held[usize::from(node)] += 1;
        });
        assert!(held.iter().all(|&held| held == loads.len() / nodes), "{node_of:?}");
        assert_eq!(sums.into_iter().fold(0.0, f64::max), expected, "{node_of:?}");
    }

    #[test]
    fn nodes_carry_as_equal_loads_as_whole_groups_allow() {
        check(&[4.0, 3.0, 2.0, 1.0], 2, 5.0);
        // Heaviest first would deal 8 + 5 + 3 and 5 + 5 + 3.
        check(&[8.0, 5.0, 5.0, 5.0, 3.0, 3.0], 2, 15.0);
        check(&[0.0; 4], 2, 0.0);
        check(&(1..=16).map(f64::from).collect::<Vec<_>>(), 4, 34.0);
    }
}
