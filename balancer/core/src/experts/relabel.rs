//! Ranks that are alike may be handed a fresh placement in any order: the one that moves least.

use super::problem::{LayerProblem, Placement, Replicas};

/// Gives every rank of `running` the row of a rank of `fresh` that is like it, so that many experts stay where they are: the
/// pair with the largest overlap first. (Greedy reaches at least half of the best total overlap; an exact assignment
/// costs more time than the few moves it saves.)
pub(super) fn relabel(problem: &LayerProblem, fresh: &Placement, running: &Placement) -> Placement {
    let ranks = running.ranks();
    let holders = Replicas::of(running, problem.experts());
    let mut pairs: Vec<(u16, u16, u16)> = Vec::new();
    let mut overlap = vec![0u16; ranks];
    for (from, held) in (0u16..).zip(fresh.rows()) {
        overlap.fill(0);
        for &expert in held {
            holders.rank[holders.range(expert.into())]
                .iter()
                .for_each(|&rank| overlap[usize::from(rank)] += 1);
        }
        let like = |(rank, n): &(u16, &u16)| **n > 0 && alike(problem, (*rank).into(), from.into());
        pairs.extend((0u16..).zip(&overlap).filter(like).map(|(rank, &n)| (n, from, rank)));
    }
    // The most overlap first; of equals the lowest rank, which keeps the order of both.
    pairs.sort_unstable_by_key(|&(n, from, rank)| (std::cmp::Reverse(n), from, rank));
    let mut given: Vec<Option<u16>> = vec![None; ranks];
    let mut used = vec![false; ranks];
    for (_, from, rank) in pairs {
        if given[usize::from(rank)].is_none() && !used[usize::from(from)] {
            given[usize::from(rank)] = Some(from);
            used[usize::from(from)] = true;
        }
    }
    let mut relabelled = running.clone();
    for (rank, from) in given.into_iter().enumerate() {
        let from = from.map_or_else(
            || {
                (0..ranks)
                    .find(|&from| !used[from] && alike(problem, rank, from))
                    .expect("as many ranks as ranks")
            },
            usize::from,
        );
        used[from] = true;
        relabelled.set(rank, fresh.of(from));
    }
    relabelled
}

/// Whether two ranks may change places: the same slots and speed and, where groups have nodes, the same node.
fn alike(problem: &LayerProblem, a: usize, b: usize) -> bool {
    let ranks = problem.deployment.ranks();
    let (a, b) = (ranks[a], ranks[b]);
    a.slots == b.slots && a.speed == b.speed && (problem.deployment.groups() == 1 || a.node == b.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(fresh: &[&[u16]], running: &[&[u16]], expected: &[&[u16]]) {
        let placement = |rows: &[&[u16]]| Placement::of_rows(3, rows);
        let problem = LayerProblem::uniform(running.len(), 3, vec![1.0; 6]);
        assert_eq!(relabel(&problem, &placement(fresh), &placement(running)), placement(expected));
    }

    #[test]
    fn ranks_keep_what_they_hold() {
        check(&[&[2, 3], &[0, 1], &[4, 5]], &[&[0, 1], &[2, 3], &[4, 5]], &[&[0, 1], &[2, 3], &[4, 5]]);
        check(&[&[2, 4], &[0, 5], &[1, 3]], &[&[0, 1], &[2, 3], &[4, 5]], &[&[0, 5], &[2, 4], &[1, 3]]);
    }

    #[test]
    fn the_largest_overlap_goes_first() {
        check(&[&[0, 1, 2], &[2, 3, 4]], &[&[2, 3, 4], &[0, 1, 5]], &[&[2, 3, 4], &[0, 1, 2]]);
    }
}
