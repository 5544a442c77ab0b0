//! A unit without its drained ranks: what is left is a smaller unit, for which the solver needs no word about drains.

use crate::ids::{NodeId, Rank};
use crate::plan::{LayerPlan, Plan};
use crate::topology::{UnitShape, UnitTopology};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// See the module.
#[derive(Debug, Clone)]
pub struct Without {
    whole: Arc<UnitTopology>,
    part: Arc<UnitTopology>,
    /// `[ranks of the part]`: the rank of the whole, ascending.
    ranks: Vec<Rank>,
}

impl Without {
    /// `topology` without `drained` ranks, which must leave room for every expert.
    pub fn new(topology: &Arc<UnitTopology>, drained: &BTreeSet<Rank>) -> Self {
        let whole = Arc::clone(topology);
        let shape = whole.shape();
        let ranks: Vec<Rank> = (0..shape.ranks).map(Rank).filter(|rank| !drained.contains(rank)).collect();
        if ranks.len() == usize::from(shape.ranks) {
            return Self { part: Arc::clone(&whole), whole, ranks };
        }
        let count = u16::try_from(ranks.len()).expect("fewer than the whole has");
        let mut claims: BTreeMap<NodeId, Vec<Rank>> = BTreeMap::new();
        for (new, &old) in (0..count).zip(&ranks) {
            claims.entry(whole.nodes()[whole.node_of(old)].clone()).or_default().push(Rank(new));
        }
        let part = UnitShape { ranks: count, ..shape.clone() };
        let part = UnitTopology::new(whole.unit().clone(), part, &claims);
        let part = Arc::new(part.expect("drains leave room for every expert"));
        Self { whole, part, ranks }
    }

    /// What is left. Ranks are numbered anew, in the same order.
    pub fn topology(&self) -> Arc<UnitTopology> {
        Arc::clone(&self.part)
    }

    /// The plan on what is left. Nothing may be on the ranks that are not.
    pub fn project(&self, plan: &Plan) -> Plan {
        let shape = self.whole.shape();
        let layer = |layer: &LayerPlan| {
            let slots = || self.ranks.iter().flat_map(|&rank| shape.slots_of_rank(rank));
            LayerPlan {
                physical_to_logical: slots().map(|slot| layer.physical_to_logical[slot]).collect(),
                share: slots().map(|slot| layer.share[slot]).collect(),
            }
        };
        Plan { layers: plan.layers.iter().map(layer).collect(), ..plan.clone() }
    }

    /// The child of `running`, which is of the whole, with the layers of `plan`, which is of the part.
    pub fn lift(&self, plan: &Plan, running: &Plan) -> Plan {
        let shape = self.whole.shape();
        let layer = |layer: &LayerPlan| {
            let count = shape.physical_per_layer();
            let mut whole = LayerPlan { physical_to_logical: vec![None; count], share: vec![0; count] };
            let slots = self.ranks.iter().flat_map(|&rank| shape.slots_of_rank(rank));
            for (part, slot) in slots.enumerate() {
                whole.physical_to_logical[slot] = layer.physical_to_logical[part];
                whole.share[slot] = layer.share[part];
            }
            whole
        };
        running.child(plan.layers.iter().map(layer).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experts::arrange::{arrange_step, tests::unit};
    use crate::experts::{place, solve};
    use crate::invariants;
    use crate::policy::ExpertPolicy;
    use crate::snapshot::{LoadTable, Snapshot, Window};

    #[test]
    fn what_is_solved_without_the_drained_ranks_is_a_plan_of_the_whole() {
        let topology = Arc::new(unit(8, 4, 4, 1));
        let drained = BTreeSet::from([Rank(1)]);
        let mut running = Plan::boot(topology.unit().clone(), topology.shape());
        while let Some(step) = arrange_step(&topology, &running, &drained, &BTreeSet::new()) {
            running = running.child(step.layers);
        }
        let without = Without::new(&topology, &drained);
        let part = without.topology();
        assert_eq!(part.shape().ranks, 3);
        let loads: Vec<u64> = [900, 500, 100, 90, 80, 70, 60, 50].repeat(2);
        let loads = LoadTable::new(2, 8, loads).expect("valid");
        let window = Window { from_step: 0, to_step: 4 };
        let snapshot = Snapshot::new(part, window, loads, 3, 0).expect("complete");
        let solved = solve(&snapshot, &without.project(&running), None, &ExpertPolicy::default());
        let plan = without.lift(&solved.plan.expect("loads are far from level"), &running);
        assert_eq!(invariants::check(&plan, Some(&running), &topology), Ok(()));
        let of_drained = topology.shape().slots_of_rank(Rank(1));
        assert!(
            plan.layers
                .iter()
                .all(|layer| layer.physical_to_logical[of_drained.clone()].iter().all(Option::is_none))
        );
        assert_eq!(place(&snapshot, &ExpertPolicy::default()).len(), 2);
    }

    #[test]
    fn nothing_drained_is_the_whole() {
        let topology = Arc::new(unit(8, 4, 4, 1));
        let running = Plan::boot(topology.unit().clone(), topology.shape());
        let without = Without::new(&topology, &BTreeSet::new());
        assert_eq!(without.project(&running), running);
        assert_eq!(without.lift(&running, &running).layers, running.layers);
    }
}
