//! What operators hold: ranks that are emptied and experts that stay on a rank. Steps to the nearest placement that keeps
//! all of it, without regard to load; the solver balances what is left.

use super::problem::{LayerProblem, Placement};
use super::solve::deployment_of;
use super::towards::{Step, step_of_layer};
use crate::ids::Rank;
use crate::plan::{LayerPlan, Plan};
use crate::records::Pin;
use crate::topology::{UnitShape, UnitTopology};
use std::collections::{BTreeMap, BTreeSet};

/// Whether no expert is on a drained rank, and every pinned one on its rank.
pub fn is_arranged(
    shape: &UnitShape,
    layers: &[LayerPlan],
    drained: &BTreeSet<Rank>,
    pins: &BTreeSet<Pin>,
) -> bool {
    let empty = |layer: &LayerPlan| {
        drained
            .iter()
            .all(|&rank| layer.physical_to_logical[shape.slots_of_rank(rank)].iter().all(Option::is_none))
    };
    let kept = |pin: &Pin| {
        layers[pin.layer.index()].physical_to_logical[shape.slots_of_rank(pin.rank)]
            .contains(&Some(pin.expert))
    };
    layers.iter().all(empty) && pins.iter().all(kept)
}

/// The next plan from `running` to one in which drained ranks are empty and pinned experts on their ranks. `None`: it is so.
///
/// There must be room: on the ranks that stay, a slot in every layer for each expert and for each pin beyond an expert's
/// first, and for each pin of a rank a slot there; no pin on a drained rank; at least one spare slot.
pub fn arrange_step(
    topology: &UnitTopology,
    running: &Plan,
    drained: &BTreeSet<Rank>,
    pins: &BTreeSet<Pin>,
) -> Option<Step> {
    let shape = topology.shape();
    if is_arranged(shape, &running.layers, drained, pins) {
        return None;
    }
    let deployment = deployment_of(topology);
    let mut pinned: BTreeMap<usize, BTreeSet<(usize, u16)>> = BTreeMap::new();
    for pin in pins {
        pinned.entry(pin.layer.index()).or_default().insert((pin.rank.index(), pin.expert.0));
    }
    let none = BTreeSet::new();
    let mut step = Step { layers: Vec::with_capacity(running.layers.len()), plans_left: Some(0) };
    for (at, layer) in running.layers.iter().enumerate() {
        let from = Placement::of_plan(&deployment, shape, layer);
        let pinned = pinned.get(&at).unwrap_or(&none);
        let wanted = Wanted::of(&from, usize::from(shape.experts), shape, drained, pinned);
        let Some(wanted) = wanted else {
            step.layers.push(layer.clone());
            continue;
        };
        let mut to = Placement::empty(&deployment);
        for (rank, experts) in wanted.iter().enumerate() {
            experts.iter().for_each(|&expert| to.push(rank, expert));
        }
        to.sort();
        let problem = LayerProblem::plain(&deployment, vec![1.0; shape.experts.into()]);
        let even = |replicas: &super::problem::Replicas| replicas.even_split(&problem.loads);
        let (layer, left) = step_of_layer(&problem, shape, layer, from, &to, even);
        step.plans_left = step.plans_left.zip(left).map(|(most, left)| most.max(left));
        step.layers.push(layer);
    }
    Some(step)
}

/// A placement that is being made to keep what is held.
struct Wanted<'a> {
    /// `[ranks]`: the experts of each.
    rows: Vec<BTreeSet<u16>>,
    /// `[experts]`: replicas of each.
    count: Vec<usize>,
    slots: usize,
    drained: &'a BTreeSet<Rank>,
    pinned: &'a BTreeSet<(usize, u16)>,
}

impl<'a> Wanted<'a> {
    /// The nearest placement that keeps what is held; `None`: `from` does.
    fn of(
        from: &Placement,
        experts: usize,
        shape: &UnitShape,
        drained: &'a BTreeSet<Rank>,
        pinned: &'a BTreeSet<(usize, u16)>,
    ) -> Option<Vec<BTreeSet<u16>>> {
        let rows: Vec<BTreeSet<u16>> = from.rows().map(|row| row.iter().copied().collect()).collect();
        let mut count = vec![0; experts];
        rows.iter().flatten().for_each(|&expert| count[usize::from(expert)] += 1);
        let before = rows.clone();
        let mut wanted = Self { rows, count, slots: shape.slots_per_rank.into(), drained, pinned };
        wanted.empty_drained();
        wanted.add_pinned();
        wanted.place_homeless();
        (wanted.rows != before).then_some(wanted.rows)
    }

    fn remove(&mut self, rank: usize, expert: u16) {
        assert!(self.rows[rank].remove(&expert), "only what is there is removed");
        self.count[usize::from(expert)] -= 1;
    }

    fn add(&mut self, rank: usize, expert: u16) {
        assert!(self.rows[rank].insert(expert), "no expert is on a rank twice");
        self.count[usize::from(expert)] += 1;
    }

    fn empty_drained(&mut self) {
        for rank in self.drained {
            for expert in std::mem::take(&mut self.rows[rank.index()]) {
                self.count[usize::from(expert)] -= 1;
            }
        }
    }

    /// Where a rank is full, an expert that has other replicas makes room; if there is none, one that then has none.
    fn add_pinned(&mut self) {
        for &(rank, expert) in self.pinned {
            if !self.rows[rank].contains(&expert) {
                self.add(rank, expert);
            }
        }
        for rank in 0..self.rows.len() {
            while self.rows[rank].len() > self.slots {
                let free = self.rows[rank].iter().copied().filter(|&e| !self.pinned.contains(&(rank, e)));
                let most = free.max_by_key(|&e| (self.count[usize::from(e)], e));
                let expert = most.expect("a rank has a slot for each of its pins");
                self.remove(rank, expert);
            }
        }
    }

    fn place_homeless(&mut self) {
        for expert in 0..self.count.len() {
            if self.count[expert] > 0 {
                continue;
            }
            let rank = self.roomiest().unwrap_or_else(|| self.make_room());
            self.add(rank, u16::try_from(expert).expect("experts fit 16 bits"));
        }
    }

    /// The rank that stays with the most free slots.
    fn roomiest(&self) -> Option<usize> {
        let stays = |rank: &usize| !self.drained.iter().any(|drained| drained.index() == *rank);
        let ranks = (0..self.rows.len()).filter(stays);
        let rank = ranks.min_by_key(|&rank| (self.rows[rank].len(), rank))?;
        (self.rows[rank].len() < self.slots).then_some(rank)
    }

    /// Drops a replica of the expert that has the most, so that its rank has room.
    fn make_room(&mut self) -> usize {
        let mut redundant: Option<(usize, usize, u16)> = None;
        for (rank, row) in self.rows.iter().enumerate() {
            for &expert in row.iter().filter(|&&expert| !self.pinned.contains(&(rank, expert))) {
                let candidate = (self.count[usize::from(expert)], rank, expert);
                if candidate.0 > 1 && redundant.is_none_or(|best| candidate > best) {
                    redundant = Some(candidate);
                }
            }
        }
        let (_, rank, expert) = redundant.expect("there is room for every expert and every pin");
        self.remove(rank, expert);
        rank
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ids::{ExpertId, LayerId, NodeId, UnitId};
    use crate::invariants;
    use crate::topology::Role;
    use proptest::prelude::*;

    /// A unit of two layers with a rank a node.
    pub(in crate::experts) fn unit(experts: u16, ranks: u16, slots: u16, spare: u16) -> UnitTopology {
        let shape = UnitShape {
            role: Role::Decode,
            layers: 2,
            experts,
            top_k: 1,
            ranks,
            slots_per_rank: slots,
            spare_per_rank: spare,
            expert_bytes: 64,
        };
        let node = |rank: u16| (NodeId::new(format!("n{rank}")).expect("valid"), vec![Rank(rank)]);
        let claims = (0..ranks).map(node).collect();
        UnitTopology::new(UnitId::new("u").expect("valid"), shape, &claims).expect("complete")
    }

    /// Layers in which every expert is somewhere; the rest is filled by chance.
    pub(in crate::experts) fn random_layers(topology: &UnitTopology, seed: u64) -> Vec<LayerPlan> {
        let shape = topology.shape();
        let mut state = seed;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        let ranks = usize::from(shape.ranks);
        let layer = |next: &mut dyn FnMut(usize) -> usize| {
            let mut slots: Vec<Option<ExpertId>> = vec![None; shape.physical_per_layer()];
            let mut put = |expert: u16, rank: usize| {
                let block = shape.slots_of_rank(Rank(rank as u16));
                let used = slots[block.clone()].iter().flatten().count();
                let free = block.clone().find(|&slot| slots[slot].is_none());
                let there = slots[block].contains(&Some(ExpertId(expert)));
                if used >= usize::from(shape.slots_per_rank) || there {
                    return false;
                }
                slots[free.expect("spares are free")] = Some(ExpertId(expert));
                true
            };
            for expert in 0..shape.experts {
                let first = next(ranks);
                assert!((0..ranks).any(|step| put(expert, (first + step) % ranks)));
            }
            for _ in 0..2 * ranks {
                let (expert, rank) = (next(shape.experts.into()) as u16, next(ranks));
                put(expert, rank);
            }
            LayerPlan::even(slots, shape.experts.into())
        };
        vec![layer(&mut next), layer(&mut next)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_held_is_reached_by_valid_plans_and_then_kept(
            seed in any::<u64>(), spare in 1u16..3, drained in prop::collection::btree_set(0u16..5, 0..3),
            pins in prop::collection::btree_set((0u16..2, 0u16..8, 0u16..5), 0..5),
        ) {
            let topology = unit(8, 5, 4, spare);
            let mut running = Plan { layers: random_layers(&topology, seed), ..Plan::boot(topology.unit().clone(), topology.shape()) };
            let pins: BTreeSet<Pin> = pins.into_iter().filter(|(_, _, rank)| !drained.contains(rank))
                .map(|(layer, expert, rank)| Pin { layer: LayerId(layer), expert: ExpertId(expert), rank: Rank(rank) }).collect();
            let drained: BTreeSet<Rank> = drained.into_iter().map(Rank).collect();
            let mut plans = 0;
            while let Some(step) = arrange_step(&topology, &running, &drained, &pins) {
                let next = running.child(step.layers);
                prop_assert_eq!(invariants::check(&next, Some(&running), &topology), Ok(()));
                prop_assert_ne!(&next.layers, &running.layers, "every plan is a step");
                running = next;
                plans += 1;
                prop_assert!(plans <= 8, "a rank of four slots is rearranged in few plans");
            }
            prop_assert!(is_arranged(topology.shape(), &running.layers, &drained, &pins));
        }
    }
}
