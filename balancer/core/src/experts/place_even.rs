//! A fresh placement for engines that share an expert's load evenly over its replicas.
//!
//! Then nothing can be levelled later, so replica counts and placement are chosen together: after a first placement, one
//! replica at a time is taken from an expert that can spare it and given to one on the highest rank, as long as that
//! helps. With two slots a rank the best placement of given counts is known, the largest replica beside the smallest and so
//! on inwards, so that many counts can be tried; with more slots, placements are levelled by swaps, in which replicas
//! take part as well.

use super::groups::home_nodes;
use super::level::{Effort, Rows};
use super::place_connected::{place_at_home, place_connected};
use super::problem::{LayerProblem, Placement};
use super::replicas::replica_counts;

/// Placements of other counts tried with three and more slots; each costs a placement.
const COUNTS_TRIED: usize = 24;
/// Height above the mean at which no other counts are tried.
const GOOD_ENOUGH: f64 = 5e-4;
/// Experts that could spare a replica, tried for each step: those whose remaining replicas grow least.
const DONORS_TRIED: usize = 24;
/// Changes of counts with two slots a rank.
const CHANGES_MAX: usize = 96;
/// Power of the norm that stands for the largest rank: of two counts with the same largest rank the one with
/// fewer ranks near it is better, since the next change may then lower it.
const NORM: i32 = 32;

/// Swaps of the highest rank, per rank, before giving up; a usual layer needs one or two.
const SWAPS_PER_RANK_MAX: usize = 8;

fn thorough(problem: &LayerProblem) -> Effort {
    Effort { enough: GOOD_ENOUGH, swaps: SWAPS_PER_RANK_MAX * problem.ranks() }
}

/// Places a layer for the even split.
pub(super) fn place_even(problem: &LayerProblem) -> Placement {
    let counts = replica_counts(problem);
    if let Some(homes) = home_nodes(problem) {
        return place_at_home(problem, &counts, thorough(problem), &homes);
    }
    let two_slots = problem.deployment.is_uniform() && problem.slots(0) == 2;
    let replicas: usize = counts.iter().map(|&count| usize::from(count)).sum();
    if two_slots && replicas == problem.deployment.slots() && problem.total() > 0.0 {
        let folded = Fold::new(problem, counts.clone()).search();
        if let Some(placement) = folded.placement() {
            return placement;
        }
    }
    place_levelled(problem, counts)
}

/// Three and more slots: levelled placements of neighbouring counts.
fn place_levelled(problem: &LayerProblem, mut counts: Vec<u16>) -> Placement {
    let enough = problem.mean() * (1.0 + GOOD_ENOUGH);
    let (mut placement, mut level) = levelled(problem, &counts);
    let mut tried = 0;
    while level > enough && tried < COUNTS_TRIED {
        let before = tried;
        for (to, from) in exchanges(problem, &counts, &placement) {
            tried += 1;
            let mut other = counts.clone();
            other[usize::from(to)] += 1;
            other[usize::from(from)] -= 1;
            let (candidate, reached) = levelled(problem, &other);
            if reached < level {
                (placement, level, counts) = (candidate, reached, other);
                break;
            }
            if tried >= COUNTS_TRIED {
                break;
            }
        }
        if tried == before {
            break;
        }
    }
    placement
}

/// Experts of the highest rank, heaviest replica first, each with the experts that could spare one for it.
fn exchanges(problem: &LayerProblem, counts: &[u16], placement: &Placement) -> Vec<(u16, u16)> {
    let part = |expert: u16| problem.loads[usize::from(expert)] / f64::from(counts[usize::from(expert)]);
    let speed = problem.deployment.speed();
    let level = |rank: usize| match speed[rank] > 0.0 {
        true => placement.of(rank).iter().map(|&expert| part(expert)).sum::<f64>() / speed[rank],
        false => 0.0,
    };
    let highest = (0..problem.ranks()).max_by(|&a, &b| level(a).total_cmp(&level(b)).then(b.cmp(&a)));
    let mut takers: Vec<u16> = placement.of(highest.expect("there is a rank")).to_vec();
    takers.retain(|&expert| usize::from(counts[usize::from(expert)]) < problem.deployment.live());
    takers.sort_by(|&a, &b| part(b).total_cmp(&part(a)).then(a.cmp(&b)));
    let donors = donors(problem, counts);
    let pairs =
        |&to: &u16| donors.iter().filter(move |&&from| from != to).take(3).map(move |&from| (to, from));
    takers.iter().take(3).flat_map(pairs).collect()
}

/// Experts with several replicas, those first whose replicas would stay smallest with one less.
fn donors(problem: &LayerProblem, counts: &[u16]) -> Vec<u16> {
    let left = |expert: u16| problem.loads[usize::from(expert)] / f64::from(counts[usize::from(expert)] - 1);
    let several = problem.heaviest_first.iter().copied().filter(|&expert| counts[usize::from(expert)] > 1);
    let mut donors: Vec<u16> = several.collect();
    donors.sort_by(|&a, &b| left(a).total_cmp(&left(b)));
    donors
}

/// A placement of these counts whose ranks are levelled by swaps of any replicas.
fn levelled(problem: &LayerProblem, counts: &[u16]) -> (Placement, f64) {
    let mut placement = place_connected(problem, counts, Effort { enough: 1e-3, swaps: 0 });
    let part: Vec<f64> = problem.loads.iter().zip(counts).map(|(w, &c)| w / f64::from(c)).collect();
    let descending = |a: &u16, b: &u16| part[usize::from(*b)].total_cmp(&part[usize::from(*a)]);
    for rank in 0..placement.ranks() {
        placement.row_mut(rank).sort_by(descending);
    }
    let mut load: Vec<f64> =
        placement.rows().map(|row| row.iter().map(|&expert| part[usize::from(expert)]).sum()).collect();
    let fixed = vec![0; problem.ranks()];
    let mut rows = Rows {
        problem,
        part: &part,
        counts,
        fixed: &fixed,
        placement: &mut placement,
        load: &mut load,
        node: None,
    };
    let level = rows.level(thorough(problem));
    (placement, level)
}

/// Two slots a rank: replicas from the largest to the smallest, the first and the last on one rank, the second and the
/// last but one on the next. No other pairing of these replicas has a smaller largest pair.
#[derive(Clone)]
struct Fold<'a> {
    problem: &'a LayerProblem,
    counts: Vec<u16>,
    /// `[2 * ranks]`: replicas, largest first, with their experts.
    parts: Vec<(f64, u16)>,
    norm: f64,
}

impl<'a> Fold<'a> {
    fn new(problem: &'a LayerProblem, counts: Vec<u16>) -> Self {
        let part = |expert: u16| problem.loads[usize::from(expert)] / f64::from(counts[usize::from(expert)]);
        let replicas =
            |&expert: &u16| std::iter::repeat_n((part(expert), expert), counts[usize::from(expert)].into());
        let mut parts: Vec<(f64, u16)> = problem.heaviest_first.iter().flat_map(replicas).collect();
        parts.sort_by(|a, b| b.0.total_cmp(&a.0));
        let norm = norm(&parts, problem.mean());
        Self { problem, counts, parts, norm }
    }

    /// Moves single replicas between experts while the norm falls, and keeps the counts with the smallest largest pair.
    fn search(mut self) -> Self {
        let mut best = self.clone();
        for _ in 0..CHANGES_MAX {
            let Some(next) = self.improved() else { break };
            self = next;
            if self.largest() < best.largest() {
                best = self.clone();
            }
        }
        best
    }

    fn largest(&self) -> f64 {
        let half = self.parts.len() / 2;
        let pairs = self.parts[..half].iter().zip(self.parts[half..].iter().rev());
        pairs.map(|(a, b)| a.0 + b.0).fold(0.0, f64::max)
    }

    /// The change that lowers the norm most.
    fn improved(&self) -> Option<Self> {
        let last = self.parts.len() - 1;
        let pair = |at: &usize| self.parts[*at].0 + self.parts[last - at].0;
        let worst = (0..self.parts.len() / 2).max_by(|a, b| pair(a).total_cmp(&pair(b)).then(b.cmp(a)));
        let worst = worst.expect("there is a rank");
        let takers = [self.parts[worst].1, self.parts[last - worst].1];
        let donors = donors(self.problem, &self.counts);
        let mut best: Option<Self> = None;
        for (at, &to) in takers.iter().enumerate() {
            let full = usize::from(self.counts[usize::from(to)]) >= self.problem.deployment.live();
            if full || takers[..at].contains(&to) {
                continue;
            }
            for &from in donors.iter().filter(|&&from| from != to).take(DONORS_TRIED) {
                let parts = self.changed(to, from);
                let norm = norm(&parts, self.problem.mean());
                if norm < best.as_ref().map_or(self.norm * (1.0 - 1e-9), |best| best.norm) {
                    let mut counts = self.counts.clone();
                    counts[usize::from(to)] += 1;
                    counts[usize::from(from)] -= 1;
                    best = Some(Self { problem: self.problem, counts, parts, norm });
                }
            }
        }
        best
    }

    /// The replicas when one goes from one expert to another.
    fn changed(&self, to: u16, from: u16) -> Vec<(f64, u16)> {
        let group = |expert: u16, count: u16| {
            (self.problem.loads[usize::from(expert)] / f64::from(count), expert, count)
        };
        let a = group(to, self.counts[usize::from(to)] + 1);
        let b = group(from, self.counts[usize::from(from)] - 1);
        let (mut first, mut second) = if a.0 >= b.0 { (a, b) } else { (b, a) };
        let mut parts = Vec::with_capacity(self.parts.len());
        for &(part, expert) in self.parts.iter().filter(|(_, expert)| *expert != to && *expert != from) {
            for group in [&mut first, &mut second] {
                while group.2 > 0 && group.0 >= part {
                    parts.push((group.0, group.1));
                    group.2 -= 1;
                }
            }
            parts.push((part, expert));
        }
        for group in [first, second] {
            parts.extend(std::iter::repeat_n((group.0, group.1), group.2.into()));
        }
        parts
    }

    /// The folded pairs on their ranks. A replica that would meet its own expert changes places with the nearest that
    /// both ranks can take; `None` when there is none.
    fn placement(&self) -> Option<Placement> {
        let ranks = self.parts.len() / 2;
        let last = self.parts.len() - 1;
        let mut pairs: Vec<(u16, u16)> =
            (0..ranks).map(|at| (self.parts[at].1, self.parts[last - at].1)).collect();
        for at in 0..ranks {
            if pairs[at].0 != pairs[at].1 {
                continue;
            }
            let fits = |other: &usize| pairs[*other].0 != pairs[at].1 && pairs[*other].1 != pairs[at].0;
            let nearest = (0..ranks).filter(fits).min_by_key(|other| other.abs_diff(at))?;
            let small = pairs[at].1;
            pairs[at].1 = pairs[nearest].1;
            pairs[nearest].1 = small;
        }
        let mut placement = Placement::empty(&self.problem.deployment);
        for (rank, (large, small)) in pairs.into_iter().enumerate() {
            placement.push(rank, large);
            placement.push(rank, small);
        }
        Some(placement)
    }
}

fn norm(parts: &[(f64, u16)], mean: f64) -> f64 {
    let half = parts.len() / 2;
    parts[..half].iter().zip(parts[half..].iter().rev()).map(|(a, b)| ((a.0 + b.0) / mean).powi(NORM)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::problem::Replicas;
    use super::*;

    /// Max over mean under the even split.
    #[track_caller]
    fn check(loads: Vec<f64>, ranks: usize, slots: usize, most: f64) {
        let problem = LayerProblem::uniform(ranks, slots, loads);
        let placement = place_even(&problem);
        for row in placement.rows() {
            let mut experts = row.to_vec();
            experts.sort_unstable();
            experts.dedup();
            assert_eq!(experts.len(), row.len(), "no expert twice on a rank: {placement:?}");
        }
        let replicas = Replicas::of(&placement, problem.experts());
        let split = replicas.even_split(&problem.loads);
        let level = problem.level_of(&replicas.rank_loads(ranks, &split)) / problem.mean();
        assert!(level <= most, "{level} {placement:?}");
    }

    #[test]
    fn counts_and_pairs_are_chosen_together() {
        // By counts for the largest replica alone: 3, 1, 1, 1 and ranks of 3 + 1 and 3 + 2.
        check(vec![9.0, 2.0, 2.0, 1.0], 3, 2, 1.08);
        check(vec![6.0, 6.0, 1.0, 1.0], 4, 2, 4.0 / 3.5);
        check((1..=12).map(f64::from).collect(), 8, 2, 1.2);
    }

    #[test]
    fn several_slots_are_levelled_by_swaps_of_replicas_too() {
        check((1..=64).map(f64::from).collect(), 8, 9, 1.002);
        check((1..=32).map(f64::from).collect(), 8, 5, 1.01);
    }

    #[test]
    fn an_expert_never_meets_itself() {
        check(vec![8.0, 1.0], 4, 2, 1.0);
        check(vec![8.0, 1.0, 0.0, 0.0], 4, 2, 1.2);
    }
}
