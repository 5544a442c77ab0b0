//! The components of the replica graph: ranks are connected when they hold a replica of the same expert.
//!
//! What a component's experts carry stays in it, whatever the split, so its mean is a floor of the optimum, and so is what
//! a rank carries alone.

use super::problem::{LayerProblem, Replicas};

/// Names of components by rank.
pub(super) struct Components {
    /// `[ranks]`: the lowest rank of the rank's component.
    pub(super) name: Vec<u16>,
}

/// The component, or the rank in it, with the highest floor.
pub(super) struct Highest {
    /// Load by speed that some rank has to carry.
    pub(super) level: f64,
    /// The ranks that prove it, ascending.
    pub(super) ranks: Vec<u16>,
}

impl Components {
    /// Joins all ranks that a loaded expert connects.
    pub(super) fn of(problem: &LayerProblem, replicas: &Replicas) -> Self {
        let mut name: Vec<u16> = (0..).take(problem.ranks()).collect();
        for expert in 0..replicas.experts() {
            let ranks = &replicas.rank[replicas.range(expert)];
            if ranks.len() > 1 && problem.loads[expert] > 0.0 {
                ranks[1..].iter().for_each(|&rank| join(&mut name, ranks[0], rank));
            }
        }
        // A name is never above its rank, so one pass makes all final.
        for rank in 0..name.len() {
            name[rank] = name[usize::from(name[rank])];
        }
        Self { name }
    }

    /// The highest floor, of components first and then of single ranks.
    pub(super) fn highest(&self, problem: &LayerProblem, replicas: &Replicas) -> Highest {
        let speed = problem.deployment.speed();
        let (mut load, mut base) = (vec![0.0; self.name.len()], vec![0.0; self.name.len()]);
        for &expert in &problem.heaviest_first {
            let ranks = &replicas.rank[replicas.range(expert.into())];
            let first = usize::from(ranks[0]);
            load[usize::from(self.name[first])] += problem.loads[usize::from(expert)];
            if ranks.len() == 1 {
                base[first] += problem.loads[usize::from(expert)];
            }
        }
        let mut of_name = vec![0.0; self.name.len()];
        self.name.iter().zip(speed).for_each(|(&name, speed)| of_name[usize::from(name)] += speed);
        let highest = |load: &[f64], speed: &[f64]| {
            let mut best = (0, 0.0);
            for (at, (load, speed)) in load.iter().zip(speed).enumerate() {
                // Ranks without speed have no slots and carry nothing.
                if *load > best.1 * speed {
                    best = (at, load / speed);
                }
            }
            best
        };
        let (component, of_component) = highest(&load, &of_name);
        let (rank, of_rank) = highest(&base, speed);
        if of_rank > of_component * (1.0 + 1e-12) {
            return Highest { level: of_rank, ranks: vec![rank as u16] };
        }
        let is_in = |(_, name): &(u16, &u16)| of_component <= 0.0 || usize::from(**name) == component;
        let ranks = (0..).zip(&self.name).filter(is_in).map(|(rank, _)| rank).collect();
        Highest { level: of_component, ranks }
    }
}

fn join(name: &mut [u16], a: u16, b: u16) {
    let (a, b) = (root(name, a), root(name, b));
    name[usize::from(a.max(b))] = a.min(b);
}

/// The lowest rank of a component, halving the way there.
fn root(name: &mut [u16], mut rank: u16) -> u16 {
    while name[usize::from(rank)] != rank {
        let above = name[usize::from(name[usize::from(rank)])];
        name[usize::from(rank)] = above;
        rank = above;
    }
    rank
}

#[cfg(test)]
mod tests {
    use super::super::problem::Placement;
    use super::*;

    #[track_caller]
    fn check(loads: &[f64], rows: &[&[u16]], names: &[u16], level: f64, ranks: &[u16]) {
        let problem = LayerProblem::uniform(rows.len(), 4, loads.to_vec());
        let replicas = Replicas::of(&Placement::of_rows(4, rows), loads.len());
        let components = Components::of(&problem, &replicas);
        assert_eq!(components.name, names);
        let highest = components.highest(&problem, &replicas);
        assert_eq!((highest.level, highest.ranks.as_slice()), (level, ranks));
    }

    #[test]
    fn shared_experts_connect_ranks() {
        check(&[4.0, 2.0, 1.0, 1.0], &[&[0, 1], &[2], &[0, 3]], &[0, 1, 0], 3.5, &[0, 2]);
        check(&[4.0, 1.0, 1.0, 1.0], &[&[2, 3], &[1, 2], &[0], &[0, 1]], &[0, 0, 0, 0], 1.75, &[0, 1, 2, 3]);
    }

    #[test]
    fn a_rank_alone_can_be_the_highest() {
        check(&[2.0, 9.0, 1.0], &[&[0, 1], &[0, 2]], &[0, 0], 9.0, &[0]);
    }

    #[test]
    fn without_load_nothing_is_connected_and_all_ranks_are_alike() {
        check(&[0.0, 0.0], &[&[0, 1], &[0]], &[0, 1], 0.0, &[0, 1]);
    }
}
