//! A plan: for every layer, which expert each physical slot holds and which share of the expert's load it
//! takes. Plans are immutable, name their parent and carry a digest of their canonical bytes.
//!
//! Shares are integers in units of 1/65536 that sum to exactly [`SHARE_ONE`] per expert, so that every
//! machine derives the same tables and the same digest from a plan.

use crate::ids::{Digest, Epoch, ExpertId, LayerId, UnitId};
use crate::topology::{UnitShape, UnitTopology};
use sha2::{Digest as _, Sha256};

/// The share of a slot that takes all of its expert's load.
pub const SHARE_ONE: u32 = 1 << 16;

/// One layer of a plan, over the physical slots of all ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlan {
    /// `[physical slots]`: the expert in each slot; `None` is an empty (spare) slot.
    pub physical_to_logical: Vec<Option<ExpertId>>,
    /// `[physical slots]`: the slot's share of its expert's load, in units of 1/65536; 0 for empty slots.
    pub share: Vec<u32>,
}

/// What a plan does to the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PlanKind {
    /// The placement the engine booted with.
    Boot,
    /// New shares on the same placement: no byte moves.
    WeightsOnly,
    /// Some slots change their expert.
    Moves,
}

impl PlanKind {
    /// The kind's name, as in metrics and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            PlanKind::Boot => "boot",
            PlanKind::WeightsOnly => "weights",
            PlanKind::Moves => "moves",
        }
    }
}

/// A complete placement of one unit's experts, under an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The unit.
    pub unit: UnitId,
    /// The plan's number: the parent's plus one.
    pub epoch: Epoch,
    /// Epoch and digest of the plan this one follows; `None` only for the boot plan.
    pub parent: Option<(Epoch, Digest)>,
    /// `[layers]`.
    pub layers: Vec<LayerPlan>,
}

/// One slot that receives an expert it does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Move {
    /// The layer.
    pub layer: LayerId,
    /// Physical slot (of the layer) that receives the expert; empty in the running plan.
    pub destination: u32,
    /// The expert.
    pub expert: ExpertId,
    /// Physical slot (of the layer) that holds the expert in the running plan and is the source of the bytes.
    pub source: u32,
}

/// The difference between a plan and the one it follows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlanDiff {
    /// Slots that receive an expert, in order of layer and slot.
    pub moves: Vec<Move>,
    /// Slots (layer, physical slot) that hold an expert before and none after.
    pub released: Vec<(LayerId, u32)>,
    /// Layers in which some share differs.
    pub layers_reweighted: usize,
}

impl Plan {
    /// What stock engines load: slot `i` of the block numbering (spares not counted) holds expert
    /// `i mod experts`, replicas share evenly. vLLM and SGLang call it the trivial placement. A rank with more
    /// slots than the model has experts leaves the rest empty.
    pub fn boot(unit: UnitId, shape: &UnitShape) -> Plan {
        let (per_rank, slots) = (shape.physical_per_rank(), usize::from(shape.slots_per_rank));
        let usable = slots.min(shape.experts.into());
        let expert_of = |physical: usize| {
            let (rank, local) = (physical / per_rank, physical % per_rank);
            let ordinal = (rank * slots + local) % usize::from(shape.experts);
            (local < usable).then(|| ExpertId(u16::try_from(ordinal).expect("experts fit 16 bits")))
        };
        let physical_to_logical: Vec<_> = (0..shape.physical_per_layer()).map(expert_of).collect();
        let layer = LayerPlan::even(physical_to_logical, shape.experts.into());
        Plan { unit, epoch: Epoch::BOOT, parent: None, layers: vec![layer; shape.layers.into()] }
    }

    /// The plan that follows this one with other layers.
    #[must_use]
    pub fn child(&self, layers: Vec<LayerPlan>) -> Plan {
        Plan {
            unit: self.unit.clone(),
            epoch: self.epoch.next(),
            parent: Some((self.epoch, self.digest())),
            layers,
        }
    }

    /// The same plan under another number.
    #[must_use]
    pub fn numbered(self, epoch: Epoch) -> Plan {
        Plan { epoch, ..self }
    }

    /// SHA-256 over the canonical bytes: a version tag, the unit, the epoch, then per layer the slots
    /// (expert + 1 as little-endian u16, 0 for empty) and the shares (little-endian u32).
    /// The parent is not covered: the digest names content at an epoch, so a repeat is recognised.
    pub fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        hash.update(b"evenkeel plan 1\0");
        hash.update(self.unit.as_str().as_bytes());
        hash.update([0]);
        hash.update(self.epoch.0.to_le_bytes());
        for layer in &self.layers {
            let mut bytes = Vec::with_capacity(layer.physical_to_logical.len() * 6);
            for slot in &layer.physical_to_logical {
                bytes.extend_from_slice(&slot.map_or(0, |e| e.0 + 1).to_le_bytes());
            }
            for share in &layer.share {
                bytes.extend_from_slice(&share.to_le_bytes());
            }
            hash.update(&bytes);
        }
        Digest(hash.finalize().into())
    }

    /// What this plan changes against `base`. Sources are chosen here, so that the agents have no choice
    /// left: a slot on the destination's own node if there is one, else the slot whose node has sent the
    /// fewest bytes so far in this plan, else the lowest slot.
    ///
    /// Both plans must have passed [`crate::invariants::check`] for this topology.
    pub fn diff(&self, base: &Plan, topology: &UnitTopology) -> PlanDiff {
        assert_eq!(self.layers.len(), base.layers.len(), "plans of one unit have the same layers");
        let shape = topology.shape();
        let mut sent = vec![0u32; topology.nodes().len()];
        let mut diff = PlanDiff::default();
        for (layer, (new, old)) in (0u16..).zip(self.layers.iter().zip(&base.layers)) {
            if new.share != old.share {
                diff.layers_reweighted += 1;
            }
            if new.physical_to_logical == old.physical_to_logical {
                continue;
            }
            let holders = old.slots_of_experts(shape.experts.into());
            for (slot, (after, before)) in
                (0u32..).zip(new.physical_to_logical.iter().zip(&old.physical_to_logical))
            {
                match (after, before) {
                    (Some(expert), _) if after != before => {
                        let home = topology.node_of(shape.rank_of_slot(slot as usize));
                        let node_of = |s: u32| topology.node_of(shape.rank_of_slot(s as usize));
                        let source = *holders[expert.index()]
                            .iter()
                            .min_by_key(|&&s| (node_of(s) != home, sent[node_of(s)], s))
                            .expect("invariants: every expert has a replica in the base plan");
                        if node_of(source) != home {
                            sent[node_of(source)] += 1;
                        }
                        diff.moves.push(Move {
                            layer: LayerId(layer),
                            destination: slot,
                            expert: *expert,
                            source,
                        });
                    }
                    (None, Some(_)) => diff.released.push((LayerId(layer), slot)),
                    _ => {}
                }
            }
        }
        diff
    }

    /// Whether the plan moves weights against its parent `base`.
    pub fn kind(&self, base: Option<&Plan>) -> PlanKind {
        match base {
            None => PlanKind::Boot,
            Some(base) => {
                let same = |(a, b): (&LayerPlan, &LayerPlan)| a.physical_to_logical == b.physical_to_logical;
                if self.layers.iter().zip(&base.layers).all(same) {
                    PlanKind::WeightsOnly
                } else {
                    PlanKind::Moves
                }
            }
        }
    }
}

impl LayerPlan {
    /// A layer in which the replicas of an expert share its load as evenly as integers allow.
    pub fn even(physical_to_logical: Vec<Option<ExpertId>>, experts: usize) -> LayerPlan {
        let mut layer = LayerPlan { share: vec![0; physical_to_logical.len()], physical_to_logical };
        for slots in layer.slots_of_experts(experts) {
            let count = u32::try_from(slots.len()).expect("slots of a layer fit 32 bits");
            for (ordinal, slot) in (0u32..).zip(slots) {
                layer.share[slot as usize] = SHARE_ONE / count + u32::from(ordinal < SHARE_ONE % count);
            }
        }
        layer
    }

    /// `[experts]`: the physical slots that hold each expert, ascending.
    pub fn slots_of_experts(&self, experts: usize) -> Vec<Vec<u32>> {
        let mut slots = vec![Vec::new(); experts];
        for (slot, expert) in (0u32..).zip(&self.physical_to_logical) {
            if let Some(expert) = expert {
                slots[expert.index()].push(slot);
            }
        }
        slots
    }

    /// `[ranks]`: the load of each rank when experts carry `loads` and replicas take their shares.
    pub fn rank_loads(&self, shape: &UnitShape, loads: &[u64]) -> Vec<f64> {
        let mut ranks = vec![0.0; shape.ranks.into()];
        for (slot, (expert, share)) in self.physical_to_logical.iter().zip(&self.share).enumerate() {
            if let Some(expert) = expert {
                ranks[slot / shape.physical_per_rank()] +=
                    loads[expert.index()] as f64 * f64::from(*share) / f64::from(SHARE_ONE);
            }
        }
        ranks
    }

    /// Max over mean of the rank loads; 1 when there is no load at all.
    pub fn imbalance(&self, shape: &UnitShape, loads: &[u64]) -> f64 {
        max_over_mean(&self.rank_loads(shape, loads))
    }
}

/// Max over mean; 1 for no values or no load, since nothing waits for anything then.
pub fn max_over_mean(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    if sum <= 0.0 {
        return 1.0;
    }
    values.iter().copied().fold(0.0, f64::max) * values.len() as f64 / sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{NodeId, Rank};
    use crate::topology::Role;
    use std::collections::BTreeMap;

    fn topology() -> UnitTopology {
        let shape = UnitShape {
            role: Role::Decode,
            layers: 1,
            experts: 6,
            top_k: 2,
            ranks: 4,
            slots_per_rank: 2,
            spare_per_rank: 1,
            expert_bytes: 8,
        };
        let claims = BTreeMap::from([
            (NodeId::new("a").unwrap(), vec![Rank(0), Rank(1)]),
            (NodeId::new("b").unwrap(), vec![Rank(2), Rank(3)]),
        ]);
        UnitTopology::new(UnitId::new("u").unwrap(), shape, &claims).unwrap()
    }

    fn layer(text: &str) -> LayerPlan {
        let slots = text.split_whitespace().map(|s| s.parse().ok().map(ExpertId)).collect();
        LayerPlan::even(slots, 6)
    }

    #[test]
    fn the_boot_plan_is_the_engines_trivial_placement() {
        let topology = topology();
        let plan = Plan::boot(topology.unit().clone(), topology.shape());
        assert_eq!(plan.layers[0], layer("0 1 - 2 3 - 4 5 - 0 1 -"));
        assert_eq!(
            plan.layers[0].share,
            [32768, 32768, 0, 65536, 65536, 0, 65536, 65536, 0, 32768, 32768, 0]
        );
    }

    #[track_caller]
    fn check_diff(after: &str, moves: &[(u32, u16, u32)], released: &[u32]) {
        let topology = topology();
        let base = Plan::boot(topology.unit().clone(), topology.shape());
        let diff = base.child(vec![layer(after)]).diff(&base, &topology);
        let found: Vec<_> = diff.moves.iter().map(|m| (m.destination, m.expert.0, m.source)).collect();
        assert_eq!(found, moves);
        assert_eq!(diff.released.iter().map(|r| r.1).collect::<Vec<_>>(), released);
    }

    #[test]
    fn a_diff_names_destination_expert_and_source() {
        check_diff("0 1 - 2 3 - 4 5 - 0 1 -", &[], &[]);
        check_diff("0 1 - 2 3 - 4 5 - 0 - 2", &[(11, 2, 3)], &[10]);
    }

    #[test]
    fn a_source_on_the_same_node_is_preferred() {
        check_diff("0 1 - 2 3 - 4 - 0 0 1 -", &[(8, 0, 9)], &[7]);
        check_diff("0 1 - 2 - 0 4 5 - 0 1 -", &[(5, 0, 0)], &[4]);
    }

    #[test]
    fn the_digest_covers_content_and_epoch() {
        let topology = topology();
        let base = Plan::boot(topology.unit().clone(), topology.shape());
        let same = base.child(base.layers.clone());
        assert_eq!(same.digest(), base.child(base.layers.clone()).digest());
        assert_ne!(same.digest(), base.digest());
        let mut other = base.clone();
        other.layers[0].share[0] += 1;
        assert_ne!(other.digest(), base.digest());
    }

    /// Agents of another version compute the same digest or refuse every plan: this one never changes.
    #[test]
    fn the_digest_of_a_known_plan_is_known() {
        let topology = topology();
        let boot = Plan::boot(topology.unit().clone(), topology.shape());
        assert_eq!(boot.digest().short(), "4c98d045");
    }

    #[test]
    fn no_load_is_balanced() {
        assert_eq!(max_over_mean(&[0.0, 0.0]), 1.0);
        assert_eq!(max_over_mean(&[]), 1.0);
        assert_eq!(max_over_mean(&[3.0, 1.0]), 1.5);
    }
}
