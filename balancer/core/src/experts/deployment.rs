//! What the planner knows of the GPUs and of the loads, validated once.

use crate::topology::{EXPERTS_MAX, RANKS_MAX, UnitShape};

/// Most slots of one rank: a single GPU can be asked to hold every expert there may be.
const SLOTS_PER_RANK_MAX: u16 = EXPERTS_MAX;

/// One GPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankSpec {
    /// Physical experts it can hold; 0 for a GPU that is dead or being drained.
    pub slots: u16,
    /// Relative speed, finite and positive; only ratios between ranks matter.
    pub speed: f64,
    /// The node it is in; experts move cheaply within a node and dearly between nodes.
    pub node: u16,
}

/// The GPUs of one expert-parallel unit. Physical slots are numbered rank after rank: the slots of rank `r` are
/// [`Deployment::slots_of`]`(r)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployment {
    ranks: Vec<RankSpec>,
    /// `[ranks + 1]`.
    first_slot: Vec<usize>,
    /// `[ranks]`: speeds scaled so that those of the ranks with slots have the mean 1; 0 without slots.
    speed: Vec<f64>,
    /// Ranks with slots.
    live: usize,
    nodes: usize,
    groups: usize,
}

/// A deployment or loads that cannot be planned for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InputError {
    /// No rank, or too many.
    #[error("[experts_ranks] {value} ranks: 1 to {RANKS_MAX} are supported")]
    Ranks {
        /// What was asked for.
        value: usize,
    },
    /// Slots that do not divide over the ranks.
    #[error("[experts_slots_not_divisible] {slots} slots do not divide over {ranks} ranks: use {down} or {up}{more}", down = slots / ranks * ranks, up = slots.div_ceil(*ranks) * ranks, more = ", or give every rank its own number")]
    SlotsNotDivisible {
        /// Slots in all.
        slots: usize,
        /// Ranks.
        ranks: usize,
    },
    /// More slots on a rank than supported.
    #[error("[experts_slots] rank {rank} has {value} slots: at most {SLOTS_PER_RANK_MAX} are supported")]
    Slots {
        /// The rank.
        rank: usize,
        /// Its slots.
        value: usize,
    },
    /// A speed that is no positive number.
    #[error(
        "[experts_speed] the speed of rank {rank} is {value}: it must be finite and above 0, 1 for an ordinary GPU"
    )]
    Speed {
        /// The rank.
        rank: usize,
        /// The refused speed.
        value: f64,
    },
    /// Ranks that do not divide over the nodes.
    #[error(
        "[experts_nodes_not_divisible] {ranks} ranks do not divide over {nodes} nodes: use a number of nodes that divides {ranks}"
    )]
    NodesNotDivisible {
        /// Ranks.
        ranks: usize,
        /// Nodes.
        nodes: usize,
    },
    /// Experts that do not divide over the groups.
    #[error(
        "[experts_groups_not_divisible] {experts} experts do not divide over {groups} groups: use a number of groups that divides {experts}, or 1 for none"
    )]
    GroupsNotDivisible {
        /// Experts of a layer.
        experts: usize,
        /// Groups.
        groups: usize,
    },
    /// No expert, or too many.
    #[error("[experts_experts] {value} experts a layer: 1 to {EXPERTS_MAX} are supported")]
    Experts {
        /// What was asked for.
        value: usize,
    },
    /// Fewer slots than experts.
    #[error(
        "[experts_too_few_slots] {experts} experts need as many slots, and there are {slots}: use at least {experts} slots"
    )]
    TooFewSlots {
        /// Experts of a layer.
        experts: usize,
        /// Slots in all.
        slots: usize,
    },
    /// A layer of another length.
    #[error(
        "[experts_uneven_layers] layer {layer} has {found} experts, and layer 0 has {expected}: every layer needs {expected}"
    )]
    UnevenLayers {
        /// The layer.
        layer: usize,
        /// Its experts.
        found: usize,
        /// Experts of layer 0.
        expected: usize,
    },
    /// A load that is no finite number, or negative.
    #[error(
        "[experts_load] the load of expert {expert} in layer {layer} is {value}: it must be finite and at least 0"
    )]
    Load {
        /// The layer.
        layer: usize,
        /// The expert.
        expert: usize,
        /// The refused load.
        value: f64,
    },
    /// A current placement of another shape.
    #[error("[experts_current_shape] the current placement has {found} {what}, and the input has {expected}")]
    CurrentShape {
        /// `layers` or `slots`.
        what: &'static str,
        /// Found.
        found: usize,
        /// Expected.
        expected: usize,
    },
    /// A current placement that names an expert that does not exist.
    #[error("[experts_current_expert] slot {slot} of layer {layer} in the current placement holds expert {expert}: experts are 0 to {last}, and -1 is an empty slot", last = experts - 1)]
    CurrentExpert {
        /// The layer.
        layer: usize,
        /// The slot.
        slot: usize,
        /// The expert.
        expert: usize,
        /// Experts of a layer.
        experts: usize,
    },
    /// Fewer moves allowed than experts to bring back.
    #[error(
        "[experts_budget] {missing} experts of layer {layer} are in no slot, and the budget allows {allowed} moves: allow at least {missing}"
    )]
    Budget {
        /// The layer.
        layer: usize,
        /// Experts that are in no slot.
        missing: usize,
        /// Moves allowed, those between nodes among them.
        allowed: usize,
    },
    /// A placement that leaves an expert out, where a complete one is needed.
    #[error(
        "[experts_current_missing] expert {expert} of layer {layer} is in no slot: solve a placement with moves first"
    )]
    CurrentMissing {
        /// The layer.
        layer: usize,
        /// The expert.
        expert: usize,
    },
}

impl InputError {
    /// The stable code that also begins the message.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Ranks { .. } => "experts_ranks",
            Self::SlotsNotDivisible { .. } => "experts_slots_not_divisible",
            Self::Slots { .. } => "experts_slots",
            Self::Speed { .. } => "experts_speed",
            Self::NodesNotDivisible { .. } => "experts_nodes_not_divisible",
            Self::GroupsNotDivisible { .. } => "experts_groups_not_divisible",
            Self::Experts { .. } => "experts_experts",
            Self::TooFewSlots { .. } => "experts_too_few_slots",
            Self::UnevenLayers { .. } => "experts_uneven_layers",
            Self::Load { .. } => "experts_load",
            Self::CurrentShape { .. } => "experts_current_shape",
            Self::CurrentExpert { .. } => "experts_current_expert",
            Self::Budget { .. } => "experts_budget",
            Self::CurrentMissing { .. } => "experts_current_missing",
        }
    }
}

impl Deployment {
    /// Any ranks, in one hierarchy or none: with `groups` above 1, experts fall into as many equal neighbouring groups,
    /// which routing visits together, and an expert's first replica stays on its group's node.
    pub fn new(ranks: Vec<RankSpec>, groups: usize) -> Result<Self, InputError> {
        if ranks.is_empty() || ranks.len() > RANKS_MAX.into() {
            return Err(InputError::Ranks { value: ranks.len() });
        }
        let mut first_slot = vec![0];
        for (rank, spec) in ranks.iter().enumerate() {
            if spec.slots > SLOTS_PER_RANK_MAX {
                return Err(InputError::Slots { rank, value: spec.slots.into() });
            }
            if !(spec.speed.is_finite() && spec.speed > 0.0) {
                return Err(InputError::Speed { rank, value: spec.speed });
            }
            first_slot.push(first_slot[rank] + usize::from(spec.slots));
        }
        let nodes = ranks.iter().map(|spec| usize::from(spec.node) + 1).max().unwrap_or(1);
        let has_slots = |spec: &&RankSpec| spec.slots > 0;
        let live = ranks.iter().filter(has_slots).count();
        let mean = ranks.iter().filter(has_slots).map(|spec| spec.speed).sum::<f64>() / live.max(1) as f64;
        let speed = ranks.iter().map(|spec| if spec.slots > 0 { spec.speed / mean } else { 0.0 }).collect();
        Ok(Self { ranks, first_slot, speed, live, nodes, groups: groups.max(1) })
    }

    /// Equal ranks: `slots` in all on `ranks` GPUs in `nodes` nodes.
    pub fn uniform(ranks: usize, slots: usize, nodes: usize, groups: usize) -> Result<Self, InputError> {
        if ranks == 0 || ranks > usize::from(RANKS_MAX) {
            return Err(InputError::Ranks { value: ranks });
        }
        if !slots.is_multiple_of(ranks) {
            return Err(InputError::SlotsNotDivisible { slots, ranks });
        }
        if nodes == 0 || !ranks.is_multiple_of(nodes) {
            return Err(InputError::NodesNotDivisible { ranks, nodes });
        }
        let per_rank = slots / ranks;
        if per_rank > usize::from(SLOTS_PER_RANK_MAX) {
            return Err(InputError::Slots { rank: 0, value: per_rank });
        }
        let spec = |rank: usize| RankSpec {
            slots: per_rank as u16,
            speed: 1.0,
            node: (rank / (ranks / nodes)) as u16,
        };
        Self::new((0..ranks).map(spec).collect(), groups)
    }

    /// The slots of a unit that a plan may fill. `node_of_rank[r]` numbers the node of rank `r`.
    pub fn of_unit(shape: &UnitShape, node_of_rank: &[u16]) -> Self {
        let spec = |&node: &u16| RankSpec { slots: shape.slots_per_rank, speed: 1.0, node };
        Self::new(node_of_rank.iter().map(spec).collect(), 1).expect("a validated unit is a valid deployment")
    }

    /// The GPUs.
    pub fn ranks(&self) -> &[RankSpec] {
        &self.ranks
    }

    /// Physical slots in all.
    pub fn slots(&self) -> usize {
        self.first_slot[self.ranks.len()]
    }

    /// The physical slots of a rank.
    pub fn slots_of(&self, rank: usize) -> std::ops::Range<usize> {
        self.first_slot[rank]..self.first_slot[rank + 1]
    }

    /// `[ranks]`: speeds, of which those of the ranks with slots have the mean 1; 0 for a rank without slots.
    pub(super) fn speed(&self) -> &[f64] {
        &self.speed
    }

    /// Ranks that have slots.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// One more than the largest node number.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Groups of experts; 1 when there are none.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Whether all ranks have the same slots and speed.
    pub fn is_uniform(&self) -> bool {
        self.ranks.iter().all(|rank| rank.slots == self.ranks[0].slots && rank.speed == self.ranks[0].speed)
    }
}

/// `[layers][experts]` loads, finite and not negative.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertLoads {
    layers: usize,
    experts: usize,
    loads: Vec<f64>,
}

impl ExpertLoads {
    /// Takes rows of equal length.
    pub fn new(rows: &[Vec<f64>]) -> Result<Self, InputError> {
        let experts = rows.first().map_or(0, Vec::len);
        if experts == 0 || experts > usize::from(EXPERTS_MAX) {
            return Err(InputError::Experts { value: experts });
        }
        let mut loads = Vec::with_capacity(rows.len() * experts);
        for (layer, row) in rows.iter().enumerate() {
            if row.len() != experts {
                return Err(InputError::UnevenLayers { layer, found: row.len(), expected: experts });
            }
            if let Some(expert) = row.iter().position(|load| !(load.is_finite() && *load >= 0.0)) {
                return Err(InputError::Load { layer, expert, value: row[expert] });
            }
            // Minus zero is a zero: its sign must not reach code that looks at bits.
            loads.extend(row.iter().map(|load| load + 0.0));
        }
        Ok(Self { layers: rows.len(), experts, loads })
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Experts of every layer.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// `[experts]` of one layer.
    pub fn layer(&self, layer: usize) -> &[f64] {
        &self.loads[layer * self.experts..(layer + 1) * self.experts]
    }
}
