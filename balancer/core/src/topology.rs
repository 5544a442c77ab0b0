//! What a unit consists of: ranks on nodes, and the slots in which each rank holds expert weights.
//!
//! A rank has, per layer, `slots` that may carry an expert in a plan and `spare` more that stay empty
//! between plans. New experts are staged into empty slots while the running plan is still served from
//! the others (make before break), so one plan changes at most `spare` slots of a rank and layer.
//!
//! Physical slots of a layer are numbered rank by rank: rank `r` owns the block
//! `[r * (slots + spare), (r + 1) * (slots + spare))`, as in DeepSeek's EPLB.

use crate::ids::{NodeId, Rank, UnitId};
use std::collections::BTreeMap;
use std::ops::Range;

/// Highest number of experts of a layer: ids travel as 16-bit values, and the largest open model has 1024.
pub const EXPERTS_MAX: u16 = 4096;
/// Highest number of ranks of one unit.
pub const RANKS_MAX: u16 = 2048;
/// Highest number of MoE layers.
pub const LAYERS_MAX: u16 = 512;
/// Highest number of slots, spares included, of one rank and layer.
pub const SLOTS_PER_RANK_MAX: u16 = 1024;

/// What a unit is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Role {
    /// Processes prompts.
    Prefill,
    /// Generates tokens.
    Decode,
    /// Does both in one engine.
    Mixed,
}

impl Role {
    /// The role's name, as in metrics and configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
            Role::Mixed => "mixed",
        }
    }
}

/// The shape that every agent of a unit must agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitShape {
    /// Prefill, decode or both.
    pub role: Role,
    /// MoE layers.
    pub layers: u16,
    /// Logical experts per layer.
    pub experts: u16,
    /// Experts chosen per token.
    pub top_k: u16,
    /// EP ranks in the unit.
    pub ranks: u16,
    /// Slots per rank and layer that a plan may fill.
    pub slots_per_rank: u16,
    /// Further slots per rank and layer, empty between plans.
    pub spare_per_rank: u16,
    /// Bytes of one expert's weights in one layer.
    pub expert_bytes: u64,
}

/// Why a unit cannot be run. `code` is stable; the text names field, value, range and remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// A count outside its range.
    #[error("{field} is {value}: must be {min} to {max}")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
        /// Value given.
        value: u64,
        /// Least accepted value.
        min: u64,
        /// Greatest accepted value.
        max: u64,
    },
    /// The unit cannot hold every expert once.
    #[error(
        "slots_per_rank is {slots_per_rank}: {ranks} ranks hold {have} experts but the model has {experts}; set slots_per_rank to at least {fix_slots}, or use at least {fix_ranks} ranks"
    )]
    TooFewSlots {
        /// Slots per rank given.
        slots_per_rank: u16,
        /// Ranks given.
        ranks: u16,
        /// Slots in all.
        have: u64,
        /// Experts to hold.
        experts: u16,
        /// Smallest sufficient number of slots per rank at this number of ranks.
        fix_slots: u64,
        /// Smallest sufficient number of ranks at this number of slots.
        fix_ranks: u64,
    },
    /// Two nodes claim one rank.
    #[error("rank {rank} is claimed by node {first} and by node {second}: each rank belongs to one node")]
    DuplicateRank {
        /// The rank.
        rank: Rank,
        /// The node that has it.
        first: NodeId,
        /// The node that also claims it.
        second: NodeId,
    },
    /// A rank outside the unit.
    #[error("rank {rank} of node {node} is outside the unit: it has ranks 0 to {last}")]
    UnknownRank {
        /// The rank.
        rank: Rank,
        /// The node that claims it.
        node: NodeId,
        /// Last rank of the unit.
        last: u16,
    },
    /// A rank that no node claims.
    #[error("rank {rank} belongs to no node: {missing} of {ranks} ranks are missing")]
    MissingRank {
        /// The first such rank.
        rank: Rank,
        /// How many are missing.
        missing: usize,
        /// Ranks of the unit.
        ranks: u16,
    },
}

impl TopologyError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            TopologyError::OutOfRange { .. } => "topology_out_of_range",
            TopologyError::TooFewSlots { .. } => "topology_too_few_slots",
            TopologyError::DuplicateRank { .. } => "topology_duplicate_rank",
            TopologyError::UnknownRank { .. } => "topology_unknown_rank",
            TopologyError::MissingRank { .. } => "topology_missing_rank",
        }
    }
}

impl UnitShape {
    /// Checks every count, and that the slots hold all experts.
    pub fn validate(&self) -> Result<(), TopologyError> {
        let within = |field, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(TopologyError::OutOfRange { field, value, min, max })
            }
        };
        within("layers", self.layers.into(), 1, LAYERS_MAX.into())?;
        within("experts", self.experts.into(), 1, EXPERTS_MAX.into())?;
        within("top_k", self.top_k.into(), 1, self.experts.into())?;
        within("ranks", self.ranks.into(), 1, RANKS_MAX.into())?;
        within("slots_per_rank", self.slots_per_rank.into(), 1, SLOTS_PER_RANK_MAX.into())?;
        within(
            "spare_per_rank",
            self.spare_per_rank.into(),
            0,
            u64::from(SLOTS_PER_RANK_MAX - self.slots_per_rank),
        )?;
        within("expert_bytes", self.expert_bytes, 1, 1 << 32)?;
        let (slots, ranks, experts) =
            (u64::from(self.slots_per_rank), u64::from(self.ranks), u64::from(self.experts));
        if slots * ranks < experts {
            return Err(TopologyError::TooFewSlots {
                slots_per_rank: self.slots_per_rank,
                ranks: self.ranks,
                have: slots * ranks,
                experts: self.experts,
                fix_slots: experts.div_ceil(ranks),
                fix_ranks: experts.div_ceil(slots),
            });
        }
        Ok(())
    }

    /// Physical slots of one rank and layer, spares included.
    pub fn physical_per_rank(&self) -> usize {
        usize::from(self.slots_per_rank) + usize::from(self.spare_per_rank)
    }

    /// Physical slots of one layer over all ranks, spares included.
    pub fn physical_per_layer(&self) -> usize {
        self.physical_per_rank() * usize::from(self.ranks)
    }

    /// The rank that owns a physical slot of a layer.
    pub fn rank_of_slot(&self, slot: usize) -> Rank {
        let rank = slot / self.physical_per_rank();
        Rank(u16::try_from(rank).expect("a slot belongs to a rank of the unit"))
    }

    /// The physical slots of one rank within a layer.
    pub fn slots_of_rank(&self, rank: Rank) -> Range<usize> {
        let per_rank = self.physical_per_rank();
        rank.index() * per_rank..(rank.index() + 1) * per_rank
    }
}

/// A complete unit: a valid shape, and a node for every rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitTopology {
    unit: UnitId,
    shape: UnitShape,
    nodes: Vec<NodeId>,
    node_of_rank: Vec<u16>,
}

impl UnitTopology {
    /// Joins what the nodes claim into one unit. Every rank must be claimed exactly once.
    pub fn new(
        unit: UnitId,
        shape: UnitShape,
        claims: &BTreeMap<NodeId, Vec<Rank>>,
    ) -> Result<Self, TopologyError> {
        shape.validate()?;
        let mut owner: Vec<Option<u16>> = vec![None; shape.ranks.into()];
        let nodes: Vec<NodeId> = claims.keys().cloned().collect();
        for (ordinal, (node, ranks)) in (0u16..).zip(claims) {
            for &rank in ranks {
                let Some(entry) = owner.get_mut(rank.index()) else {
                    return Err(TopologyError::UnknownRank {
                        rank,
                        node: node.clone(),
                        last: shape.ranks - 1,
                    });
                };
                if let Some(first) = *entry {
                    let first = nodes[usize::from(first)].clone();
                    return Err(TopologyError::DuplicateRank { rank, first, second: node.clone() });
                }
                *entry = Some(ordinal);
            }
        }
        let missing = owner.iter().filter(|node| node.is_none()).count();
        if let Some(rank) = (0u16..).zip(&owner).find(|(_, node)| node.is_none()).map(|(rank, _)| Rank(rank))
        {
            return Err(TopologyError::MissingRank { rank, missing, ranks: shape.ranks });
        }
        Ok(Self { unit, shape, nodes, node_of_rank: owner.into_iter().flatten().collect() })
    }

    /// The unit's name.
    pub fn unit(&self) -> &UnitId {
        &self.unit
    }

    /// Its shape.
    pub fn shape(&self) -> &UnitShape {
        &self.shape
    }

    /// Its nodes, in the order of their names.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// Ordinal (into [`Self::nodes`]) of a node.
    pub fn ordinal_of(&self, node: &NodeId) -> Option<usize> {
        // Nodes stand in the order of the claims, which are sorted.
        self.nodes.binary_search(node).ok()
    }

    /// Ordinal (into [`Self::nodes`]) of the node that runs a rank.
    pub fn node_of(&self, rank: Rank) -> usize {
        self.node_of_rank[rank.index()].into()
    }

    /// The ranks of a node, ascending.
    pub fn ranks_of(&self, node: usize) -> impl Iterator<Item = Rank> + '_ {
        (0u16..)
            .zip(&self.node_of_rank)
            .filter(move |(_, n)| usize::from(**n) == node)
            .map(|(rank, _)| Rank(rank))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(experts: u16, ranks: u16, slots: u16) -> UnitShape {
        UnitShape {
            role: Role::Decode,
            layers: 2,
            experts,
            top_k: 1,
            ranks,
            slots_per_rank: slots,
            spare_per_rank: 1,
            expert_bytes: 64,
        }
    }

    fn claims(of: &[(&str, &[u16])]) -> BTreeMap<NodeId, Vec<Rank>> {
        of.iter().map(|(n, r)| (NodeId::new(*n).unwrap(), r.iter().map(|&r| Rank(r)).collect())).collect()
    }

    #[track_caller]
    fn check_claims(of: &[(&str, &[u16])], code: Option<&str>) {
        let result = UnitTopology::new(UnitId::new("u").unwrap(), shape(4, 4, 1), &claims(of));
        assert_eq!(result.err().map(|e| e.code()), code, "{of:?}");
    }

    #[test]
    fn every_rank_is_claimed_exactly_once() {
        check_claims(&[("a", &[0, 1]), ("b", &[2, 3])], None);
        check_claims(&[("a", &[0, 1]), ("b", &[1, 2, 3])], Some("topology_duplicate_rank"));
        check_claims(&[("a", &[0, 1]), ("b", &[3])], Some("topology_missing_rank"));
        check_claims(&[("a", &[0, 1, 2, 3, 4])], Some("topology_unknown_rank"));
    }

    #[test]
    fn too_few_slots_names_the_smallest_fix() {
        let error = shape(256, 32, 7).validate().unwrap_err();
        assert_eq!(
            error.to_string(),
            "slots_per_rank is 7: 32 ranks hold 224 experts but the model has 256; set slots_per_rank to at least 8, or use at least 37 ranks"
        );
        assert_eq!(shape(256, 32, 8).validate(), Ok(()));
    }

    #[test]
    fn a_slot_belongs_to_the_rank_of_its_block() {
        let shape = shape(4, 4, 2);
        assert_eq!(shape.slots_of_rank(Rank(2)), 6..9);
        assert_eq!(shape.rank_of_slot(8), Rank(2));
        assert_eq!(shape.physical_per_layer(), 12);
    }
}
