//! From one placement to another in as few plans as possible, each within the spare slots.
//!
//! A plan may add at most `spare` experts to a rank, into empty slots, and drops as many; both take effect at
//! one table flip. Draw an edge from every rank that drops something to a rank that adds something: a
//! replica that moves is one edge, other drops and adds are paired at will. Padded with loops the graph is
//! `d`-regular, `d` being the most changes of any rank, and falls into `d` perfect matchings (Koenig 1916). In a
//! matching every rank drops one and adds one, or does nothing, so each is a valid step, `spare` of them make
//! a plan, and `ceil(d / spare)` plans are needed, which no schedule undercuts.

use super::problem::{LayerProblem, Placement, Replicas};
use super::split::exact_split;

/// Most rounds compared when the next one is chosen: each costs an exact split.
const ROUNDS_COMPARED_MAX: usize = 12;

/// One change of one rank; `None` stands for an empty slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    rank: usize,
    drops: Option<u16>,
    adds: Option<u16>,
}

/// Plans needed from `from` to `to`; 0 when they are equal, `None` when there is no spare slot to stage into.
pub(super) fn plans_needed(from: &Placement, to: &Placement, spare: usize) -> Option<usize> {
    let most = (0..from.ranks()).map(|rank| changes_of(from, to, rank).drops.len()).max().unwrap_or(0);
    match (most, spare) {
        (0, _) => Some(0),
        (_, 0) => None,
        (most, spare) => Some(most.div_ceil(spare)),
    }
}

/// The placement after the next plan on the way from `from` to `to`. Of the possible rounds those are taken
/// first after which the best split is best. With no spare slot nothing changes.
pub(super) fn next_step(problem: &LayerProblem, from: &Placement, to: &Placement, spare: usize) -> Placement {
    let mut rounds = rounds(from, to);
    let mut state = from.clone();
    for _ in 0..spare {
        let compared = rounds.len().min(ROUNDS_COMPARED_MAX);
        let level_after = |round: &Vec<Change>| {
            let next = apply(&state, round);
            exact_split(problem, &Replicas::of(&next, problem.experts())).level
        };
        let levels: Vec<f64> = match rounds.len() <= spare {
            true => vec![0.0; compared],
            false => rounds[..compared].iter().map(level_after).collect(),
        };
        let Some(best) = (0..compared).min_by(|&a, &b| levels[a].total_cmp(&levels[b])) else { break };
        state = apply(&state, &rounds.remove(best));
    }
    state
}

/// All that one rank drops and adds, padded with `None` to the same number.
struct Changes {
    drops: Vec<Option<u16>>,
    adds: Vec<Option<u16>>,
}

/// What one rank drops and adds, padded with empty slots to the same number.
fn changes_of(from: &Placement, to: &Placement, rank: usize) -> Changes {
    let (have, want) = (from.of(rank), to.of(rank));
    let mut drops: Vec<_> = have.iter().filter(|e| !want.contains(e)).map(|&e| Some(e)).collect();
    let mut adds: Vec<_> = want.iter().filter(|e| !have.contains(e)).map(|&e| Some(e)).collect();
    let most = drops.len().max(adds.len());
    drops.resize(most, None);
    adds.resize(most, None);
    Changes { drops, adds }
}

/// The edges, `(rank that drops, rank that adds)`, each with what is dropped and added.
struct Edge {
    from: usize,
    drops: Option<u16>,
    to: usize,
    adds: Option<u16>,
}

/// All rounds of the way; each is a list of changes with at most one per rank.
fn rounds(from: &Placement, to: &Placement) -> Vec<Vec<Change>> {
    let ranks = from.ranks();
    let changes: Vec<_> = (0..ranks).map(|rank| changes_of(from, to, rank)).collect();
    let degree = changes.iter().map(|change| change.drops.len()).max().unwrap_or(0);
    let edges = edges(&changes);
    let colours = colour(&edges, ranks, degree);
    let mut rounds = Vec::with_capacity(degree);
    for colour in 0..degree {
        let mut round: Vec<Change> = Vec::new();
        let mut at_rank = vec![Change { rank: 0, drops: None, adds: None }; ranks];
        for (edge, _) in edges.iter().zip(&colours).filter(|(_, c)| **c == colour) {
            at_rank[edge.from].drops = edge.drops;
            at_rank[edge.to].adds = edge.adds;
        }
        for (rank, change) in at_rank.into_iter().enumerate() {
            if change.drops.is_some() || change.adds.is_some() {
                round.push(Change { rank, ..change });
            }
        }
        rounds.push(round);
    }
    rounds
}

fn edges(changes: &[Changes]) -> Vec<Edge> {
    let list = |of: fn(&Changes) -> &Vec<Option<u16>>| {
        let mut all: Vec<(Option<u16>, usize)> = changes
            .iter()
            .enumerate()
            .flat_map(|(rank, change)| of(change).iter().map(move |&expert| (expert, rank)))
            .collect();
        all.sort_unstable();
        all
    };
    let (drops, adds) = (list(|c| &c.drops), list(|c| &c.adds));
    // Merge by expert; what finds no partner is paired afterwards.
    let (mut edges, mut lone_drops, mut lone_adds) = (Vec::new(), Vec::new(), Vec::new());
    let (mut d, mut a) = (0, 0);
    while d < drops.len() || a < adds.len() {
        let (drop, add) = (drops.get(d), adds.get(a));
        match (drop, add) {
            (Some(drop), Some(add)) if drop.0 == add.0 => {
                edges.push(Edge { from: drop.1, drops: drop.0, to: add.1, adds: add.0 });
                d += 1;
                a += 1;
            }
            (Some(drop), add) if add.is_none_or(|add| drop.0 < add.0) => {
                lone_drops.push(*drop);
                d += 1;
            }
            (_, add) => {
                lone_adds.push(*add.expect("one list is left"));
                a += 1;
            }
        }
    }
    lone_drops.sort_unstable_by_key(|&(expert, rank)| (rank, expert));
    lone_adds.sort_unstable_by_key(|&(expert, rank)| (rank, expert));
    assert_eq!(lone_drops.len(), lone_adds.len(), "every rank drops as much as it adds");
    for ((drops, from), (adds, to)) in lone_drops.into_iter().zip(lone_adds) {
        edges.push(Edge { from, drops, to, adds });
    }
    edges
}

/// A colour in `0..degree` for every edge such that no rank drops, or adds, twice in a colour, and every
/// rank does both or neither. Each edge takes a colour free at one end; where the other end has it already,
/// the alternating path from there is flipped.
fn colour(edges: &[Edge], ranks: usize, degree: usize) -> Vec<usize> {
    const FREE: usize = usize::MAX;
    let mut ends: Vec<(usize, usize)> = edges.iter().map(|edge| (edge.from, edge.to)).collect();
    let mut have = vec![0; ranks];
    edges.iter().for_each(|edge| have[edge.from] += 1);
    for (rank, have) in have.into_iter().enumerate() {
        ends.extend(std::iter::repeat_n((rank, rank), degree - have));
    }
    // `[side][rank * degree + colour]`: the edge.
    let mut at = [vec![FREE; ranks * degree], vec![FREE; ranks * degree]];
    let mut colours = vec![FREE; ends.len()];
    for (edge, &(from, to)) in ends.iter().enumerate() {
        let free = |table: &[usize], rank: usize| {
            (0..degree).find(|colour| table[rank * degree + colour] == FREE).expect("degrees bound the edges")
        };
        let both = (0..degree).find(|c| at[0][from * degree + c] == FREE && at[1][to * degree + c] == FREE);
        let wanted = both.unwrap_or_else(|| {
            let (here, there) = (free(&at[0], from), free(&at[1], to));
            flip(&ends, &mut at, &mut colours, degree, to, here, there);
            here
        });
        colours[edge] = wanted;
        at[0][from * degree + wanted] = edge;
        at[1][to * degree + wanted] = edge;
    }
    colours.truncate(edges.len());
    colours
}

/// Exchanges colours `here` and `there` along the path that leaves the adding side of `rank` with `here`, so that
/// `here` becomes free there. The path cannot end at the dropping side where `here` is free already.
fn flip(
    ends: &[(usize, usize)],
    at: &mut [Vec<usize>; 2],
    colours: &mut [usize],
    degree: usize,
    rank: usize,
    here: usize,
    there: usize,
) {
    let (mut side, mut rank, mut colour) = (1, rank, here);
    let mut path = Vec::new();
    while let edge @ 0..usize::MAX = at[side][rank * degree + colour] {
        path.push(edge);
        rank = if side == 1 { ends[edge].0 } else { ends[edge].1 };
        side = 1 - side;
        colour = if colour == here { there } else { here };
    }
    for &edge in &path {
        at[0][ends[edge].0 * degree + colours[edge]] = usize::MAX;
        at[1][ends[edge].1 * degree + colours[edge]] = usize::MAX;
    }
    for &edge in &path {
        colours[edge] = if colours[edge] == here { there } else { here };
        at[0][ends[edge].0 * degree + colours[edge]] = edge;
        at[1][ends[edge].1 * degree + colours[edge]] = edge;
    }
}

fn apply(state: &Placement, round: &[Change]) -> Placement {
    let mut next = state.clone();
    for change in round {
        if let Some(expert) = change.drops {
            next.remove(change.rank, expert);
        }
        if let Some(expert) = change.adds {
            next.push(change.rank, expert);
        }
    }
    next.sort();
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn experts_of(seed: u64, ranks: usize, slots: usize, experts: usize) -> Placement {
        // A simple generator keeps the two placements of a case independent of each other.
        let mut state = seed;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        let mut placement = Placement::of_rows(slots, &vec![&[][..]; ranks]);
        for expert in 0..experts {
            let first = next(ranks);
            let rank = (0..ranks).map(|r| (first + r) % ranks).find(|&r| placement.room(r) > 0).unwrap();
            placement.push(rank, expert as u16);
        }
        for _ in 0..2 * ranks * slots {
            let (rank, expert) = (next(ranks), next(experts) as u16);
            if placement.room(rank) > 0 && !placement.holds(rank, expert) {
                placement.push(rank, expert);
            }
        }
        placement.sort();
        placement
    }

    proptest! {
        #[test]
        fn every_step_is_valid_and_the_last_is_the_target(
            ranks in 1usize..9, slots in 1usize..6, fill in 1usize..=100, spare in 1usize..4, seeds in any::<(u64, u64)>(),
        ) {
            let experts = (ranks * slots * fill / 100).max(1);
            let (mut state, to) =
                (experts_of(seeds.0, ranks, slots, experts), experts_of(seeds.1, ranks, slots, experts));
            let loads = (0..experts).map(|e| ((e * 7) % 13) as f64).collect();
            let problem = LayerProblem::uniform(ranks, slots, loads);
            let plans = plans_needed(&state, &to, spare).unwrap();
            for left in (0..plans).rev() {
                let next = next_step(&problem, &state, &to, spare);
                for rank in 0..ranks {
                    let added = next.of(rank).iter().filter(|e| !state.of(rank).contains(e)).count();
                    prop_assert!(added <= spare, "rank {rank} adds {added}");
                }
                Replicas::of(&next, experts); // asserts that every expert is somewhere
                state = next;
                prop_assert_eq!(plans_needed(&state, &to, spare), Some(left));
            }
            prop_assert_eq!(state, to);
        }
    }

    #[test]
    fn without_a_spare_slot_nothing_moves() {
        let placement = |of: [u16; 2]| Placement::of_rows(1, &[&of[..1], &of[1..]]);
        let problem = LayerProblem::uniform(2, 1, vec![1.0, 2.0]);
        let (from, to) = (placement([0, 1]), placement([1, 0]));
        assert_eq!(next_step(&problem, &from, &to, 0), from);
        assert_eq!(plans_needed(&from, &to, 0), None);
        assert_eq!(next_step(&problem, &from, &to, 1), to);
    }
}
