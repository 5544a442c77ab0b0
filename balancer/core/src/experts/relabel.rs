//! Ranks are alike, so a fresh placement may be handed to them in any order: the one that moves least.

use super::problem::{Placement, Replicas};

/// Gives every rank of `running` one rank of `fresh`, so that many experts stay where they are: the pair with
/// the largest overlap first. (Greedy reaches at least half of the best total overlap; an exact assignment
/// costs more time than the few moves it saves.)
pub(super) fn relabel(fresh: &Placement, running: &Placement, experts: usize) -> Placement {
    let ranks = running.ranks();
    let holders = Replicas::of(running, experts);
    let mut pairs: Vec<(u16, u16, u16)> = Vec::new();
    let mut overlap = vec![0u16; ranks];
    for (from, held) in (0u16..).zip(fresh.rows()) {
        overlap.fill(0);
        for &expert in held {
            holders.rank[holders.range(expert.into())]
                .iter()
                .for_each(|&rank| overlap[usize::from(rank)] += 1);
        }
        pairs.extend((0u16..).zip(&overlap).filter(|(_, n)| **n > 0).map(|(rank, &n)| (n, from, rank)));
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
    let mut left = (0..ranks).filter(|&from| !used[from]);
    let mut relabelled = running.clone();
    for (rank, from) in given.into_iter().enumerate() {
        let from = from.map_or_else(|| left.next().expect("as many ranks as ranks"), usize::from);
        relabelled.set(rank, fresh.of(from));
    }
    relabelled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(fresh: &[&[u16]], running: &[&[u16]], expected: &[&[u16]]) {
        let placement = |rows: &[&[u16]]| Placement::of_rows(3, rows);
        assert_eq!(relabel(&placement(fresh), &placement(running), 6), placement(expected));
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
