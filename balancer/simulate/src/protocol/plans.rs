//! Random plans: each a valid child of the one before.

use super::random::Random;
use evenkeel_core::ids::{ExpertId, Rank};
use evenkeel_core::plan::{LayerPlan, Plan, SHARE_ONE};
use evenkeel_core::topology::UnitShape;

/// A child of `head`: in each layer one expert more on some rank and one less, or other shares, or nothing.
pub(super) fn child(head: &Plan, shape: &UnitShape, random: &mut Random) -> Plan {
    let layers = head.layers.iter().map(|layer| match random.below(4) {
        0 => layer.clone(),
        1 => reweighted(layer, shape, random),
        _ => moved(layer, shape, random).unwrap_or_else(|| layer.clone()),
    });
    head.child(layers.collect())
}

/// A replica of an expert that has others makes room for one of an expert that the rank lacks.
fn moved(layer: &LayerPlan, shape: &UnitShape, random: &mut Random) -> Option<LayerPlan> {
    let rank = Rank(u16::try_from(random.below(shape.ranks.into())).expect("ranks fit 16 bits"));
    let slots = &layer.physical_to_logical;
    let held: Vec<ExpertId> = shape.slots_of_rank(rank).filter_map(|slot| slots[slot]).collect();
    let holders = layer.slots_of_experts(shape.experts.into());
    let given: Vec<usize> = shape
        .slots_of_rank(rank)
        .filter(|&slot| slots[slot].is_some_and(|expert| holders[expert.index()].len() > 1))
        .collect();
    let free: Vec<usize> = shape.slots_of_rank(rank).filter(|&slot| slots[slot].is_none()).collect();
    let lacking: Vec<ExpertId> = (0..shape.experts).map(ExpertId).filter(|e| !held.contains(e)).collect();
    let (from, to, expert) = (*random.of(&given)?, *random.of(&free)?, *random.of(&lacking)?);
    let mut slots = slots.clone();
    slots[from] = None;
    slots[to] = Some(expert);
    Some(LayerPlan::even(slots, shape.experts.into()))
}

/// Every expert with several replicas gives one of them a random part.
fn reweighted(layer: &LayerPlan, shape: &UnitShape, random: &mut Random) -> LayerPlan {
    let mut layer = layer.clone();
    for slots in layer.slots_of_experts(shape.experts.into()) {
        let [first, second, ..] = slots[..] else { continue };
        let both = layer.share[first as usize] + layer.share[second as usize];
        debug_assert!(both <= SHARE_ONE, "shares sum to one");
        let part = u32::try_from(random.below(u64::from(both) + 1)).expect("a share fits 32 bits");
        layer.share[first as usize] = part;
        layer.share[second as usize] = both - part;
    }
    layer
}

#[cfg(test)]
mod tests {
    use super::super::shape;
    use super::*;
    use evenkeel_core::ids::{NodeId, UnitId};
    use evenkeel_core::invariants;
    use evenkeel_core::protocol::agent::node_view;

    #[test]
    fn every_plan_is_a_valid_child() {
        let mut random = Random::new(1);
        for _ in 0..20 {
            let shape = shape(&mut random, 3);
            let unit = UnitId::new("u").unwrap();
            let topology =
                node_view(unit.clone(), shape.clone(), &NodeId::new("a").unwrap(), &[Rank(0)]).unwrap();
            let mut head = Plan::boot(unit, &shape);
            for _ in 0..50 {
                let next = child(&head, &shape, &mut random);
                invariants::check(&next, Some(&head), &topology).unwrap();
                head = next;
            }
        }
    }
}
