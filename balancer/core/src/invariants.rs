//! The linter for plans. The balancer runs it before it commits a plan, the agent before it applies one,
//! and every test that makes a plan. It knows nothing of how plans are made.

use crate::ids::{Epoch, ExpertId, LayerId, Rank};
use crate::plan::{Plan, SHARE_ONE};
use crate::topology::UnitTopology;

/// Something no plan may do. `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Another number of layers or slots than the unit has.
    #[error("plan has {have} {what}: the unit has {need}")]
    WrongShape {
        /// `layers`, `slots` or `shares`.
        what: &'static str,
        /// In the plan.
        have: usize,
        /// In the unit.
        need: usize,
    },
    /// A plan for another unit.
    #[error("plan is for unit {plan}, not for unit {unit}")]
    WrongUnit {
        /// The plan's unit.
        plan: String,
        /// The unit checked.
        unit: String,
    },
    /// An expert the model does not have.
    #[error("layer {layer}, slot {slot}: expert {expert} does not exist, the model has {experts}")]
    UnknownExpert {
        /// Layer.
        layer: LayerId,
        /// Physical slot.
        slot: usize,
        /// The expert.
        expert: ExpertId,
        /// Experts of the model.
        experts: u16,
    },
    /// An expert without a slot: its tokens would be lost.
    #[error("layer {layer}: expert {expert} is in no slot")]
    ExpertMissing {
        /// Layer.
        layer: LayerId,
        /// The expert.
        expert: ExpertId,
    },
    /// Two replicas of an expert on one rank: the second buys nothing.
    #[error("layer {layer}, rank {rank}: expert {expert} is there twice")]
    ExpertTwiceOnRank {
        /// Layer.
        layer: LayerId,
        /// The rank.
        rank: Rank,
        /// The expert.
        expert: ExpertId,
    },
    /// More experts on a rank than it has slots for, leaving too few spares.
    #[error("layer {layer}, rank {rank}: {have} slots are filled, at most {max} may be")]
    RankOverfull {
        /// Layer.
        layer: LayerId,
        /// The rank.
        rank: Rank,
        /// Slots filled.
        have: usize,
        /// Slots that may be.
        max: u16,
    },
    /// Shares that do not sum to one.
    #[error("layer {layer}: the shares of expert {expert} sum to {sum}, not to {SHARE_ONE}")]
    SharesNotOne {
        /// Layer.
        layer: LayerId,
        /// The expert.
        expert: ExpertId,
        /// Their sum.
        sum: u64,
    },
    /// An empty slot that is given load.
    #[error("layer {layer}, slot {slot}: the slot is empty but has share {share}")]
    ShareOfEmptySlot {
        /// Layer.
        layer: LayerId,
        /// Physical slot.
        slot: usize,
        /// Its share.
        share: u32,
    },
    /// A plan that does not follow the one it is compared with.
    #[error("plan {epoch} does not follow plan {base}: it has another parent, or no higher number")]
    NotAChild {
        /// The plan's epoch.
        epoch: Epoch,
        /// The base's epoch.
        base: Epoch,
    },
    /// A slot whose expert is overwritten while the running plan still serves from it.
    #[error(
        "layer {layer}, slot {slot}: expert {expert} would be staged over expert {live}, which is still served from there"
    )]
    OverwritesLiveSlot {
        /// Layer.
        layer: LayerId,
        /// Physical slot.
        slot: usize,
        /// The arriving expert.
        expert: ExpertId,
        /// The expert in the running plan.
        live: ExpertId,
    },
}

impl Violation {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            Violation::WrongShape { .. } => "plan_wrong_shape",
            Violation::WrongUnit { .. } => "plan_wrong_unit",
            Violation::UnknownExpert { .. } => "plan_unknown_expert",
            Violation::ExpertMissing { .. } => "plan_expert_missing",
            Violation::ExpertTwiceOnRank { .. } => "plan_expert_twice_on_rank",
            Violation::RankOverfull { .. } => "plan_rank_overfull",
            Violation::SharesNotOne { .. } => "plan_shares_not_one",
            Violation::ShareOfEmptySlot { .. } => "plan_share_of_empty_slot",
            Violation::NotAChild { .. } => "plan_not_a_child",
            Violation::OverwritesLiveSlot { .. } => "plan_overwrites_live_slot",
        }
    }
}

/// Checks a plan by itself and, when `base` is the plan that runs, as its successor. The first violation
/// found is returned: one is enough to refuse a plan.
pub fn check(plan: &Plan, base: Option<&Plan>, topology: &UnitTopology) -> Result<(), Violation> {
    if plan.unit != *topology.unit() {
        return Err(Violation::WrongUnit { plan: plan.unit.to_string(), unit: topology.unit().to_string() });
    }
    let layers = usize::from(topology.shape().layers);
    if plan.layers.len() != layers {
        return Err(Violation::WrongShape { what: "layers", have: plan.layers.len(), need: layers });
    }
    for layer in 0..topology.shape().layers {
        check_layer(plan, LayerId(layer), topology)?;
    }
    base.map_or(Ok(()), |base| check_succession(plan, base))
}

fn check_layer(plan: &Plan, layer: LayerId, topology: &UnitTopology) -> Result<(), Violation> {
    let (shape, content) = (topology.shape(), &plan.layers[layer.index()]);
    let need = shape.physical_per_layer();
    for (what, have) in [("slots", content.physical_to_logical.len()), ("shares", content.share.len())] {
        if have != need {
            return Err(Violation::WrongShape { what, have, need });
        }
    }
    let mut sums = vec![0u64; shape.experts.into()];
    let mut last_rank_of = vec![None; shape.experts.into()];
    for rank in (0..shape.ranks).map(Rank) {
        let mut have = 0;
        for slot in shape.slots_of_rank(rank) {
            let share = content.share[slot];
            let Some(expert) = content.physical_to_logical[slot] else {
                if share != 0 {
                    return Err(Violation::ShareOfEmptySlot { layer, slot, share });
                }
                continue;
            };
            if expert.0 >= shape.experts {
                return Err(Violation::UnknownExpert { layer, slot, expert, experts: shape.experts });
            }
            if last_rank_of[expert.index()].replace(rank) == Some(rank) {
                return Err(Violation::ExpertTwiceOnRank { layer, rank, expert });
            }
            sums[expert.index()] += u64::from(share);
            have += 1;
        }
        if have > usize::from(shape.slots_per_rank) {
            return Err(Violation::RankOverfull { layer, rank, have, max: shape.slots_per_rank });
        }
    }
    for expert in (0..shape.experts).map(ExpertId) {
        if last_rank_of[expert.index()].is_none() {
            return Err(Violation::ExpertMissing { layer, expert });
        }
        let sum = sums[expert.index()];
        if sum != u64::from(SHARE_ONE) {
            return Err(Violation::SharesNotOne { layer, expert, sum });
        }
    }
    Ok(())
}

fn check_succession(plan: &Plan, base: &Plan) -> Result<(), Violation> {
    if plan.epoch <= base.epoch || plan.parent != Some((base.epoch, base.digest())) {
        return Err(Violation::NotAChild { epoch: plan.epoch, base: base.epoch });
    }
    for (layer, (new, old)) in (0u16..).zip(plan.layers.iter().zip(&base.layers)) {
        for (slot, (after, before)) in
            new.physical_to_logical.iter().zip(&old.physical_to_logical).enumerate()
        {
            if let (Some(expert), Some(live)) = (after, before)
                && expert != live
            {
                return Err(Violation::OverwritesLiveSlot {
                    layer: LayerId(layer),
                    slot,
                    expert: *expert,
                    live: *live,
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{NodeId, UnitId};
    use crate::topology::{Role, UnitShape};
    use std::collections::BTreeMap;

    fn topology() -> UnitTopology {
        let shape = UnitShape {
            role: Role::Decode,
            layers: 2,
            experts: 3,
            top_k: 1,
            ranks: 2,
            slots_per_rank: 2,
            spare_per_rank: 1,
            expert_bytes: 8,
        };
        let claims = BTreeMap::from([(NodeId::new("a").unwrap(), vec![Rank(0), Rank(1)])]);
        UnitTopology::new(UnitId::new("u").unwrap(), shape, &claims).unwrap()
    }

    /// Breaks the boot plan's child (`0 1 - 2 0 -`) and expects one code.
    #[track_caller]
    fn check_broken(expected: &str, break_it: impl Fn(&mut Plan)) {
        let topology = topology();
        let base = Plan::boot(topology.unit().clone(), topology.shape());
        let mut plan = base.child(base.layers.clone());
        assert_eq!(check(&plan, Some(&base), &topology), Ok(()));
        break_it(&mut plan);
        let violation = check(&plan, Some(&base), &topology).expect_err("broken plan");
        assert_eq!(violation.code(), expected, "{violation}");
    }

    #[test]
    fn every_violation_is_found() {
        let slot =
            |p: &mut Plan, s: usize, e: Option<u16>| p.layers[1].physical_to_logical[s] = e.map(ExpertId);
        check_broken("plan_wrong_unit", |p| p.unit = UnitId::new("v").unwrap());
        check_broken("plan_wrong_shape", |p| p.layers.truncate(1));
        check_broken("plan_wrong_shape", |p| p.layers[1].share.truncate(5));
        check_broken("plan_unknown_expert", |p| slot(p, 0, Some(3)));
        check_broken("plan_expert_missing", |p| {
            slot(p, 3, None);
            p.layers[1].share[3] = 0;
        });
        check_broken("plan_expert_twice_on_rank", |p| slot(p, 2, Some(1)));
        check_broken("plan_rank_overfull", |p| slot(p, 2, Some(2)));
        check_broken("plan_shares_not_one", |p| p.layers[1].share[0] += 1);
        check_broken("plan_share_of_empty_slot", |p| p.layers[1].share[2] = 1);
        check_broken("plan_not_a_child", |p| p.epoch = Epoch(0));
        check_broken("plan_not_a_child", |p| p.parent = None);
        check_broken("plan_overwrites_live_slot", |p| {
            p.layers[1] = {
                let slots = [Some(0), Some(2), None, Some(1), Some(0), None].map(|e| e.map(ExpertId));
                crate::plan::LayerPlan::even(slots.to_vec(), 3)
            }
        });
    }
}
