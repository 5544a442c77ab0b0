//! Checks the moves of a PREPARE against the two plans: an agent has no choice in them, so they must be
//! exactly the slots of its ranks that change their expert.

use super::Prepare;
use crate::ids::{ExpertId, LayerId, Rank};
use crate::plan::{Move, Plan};
use crate::topology::UnitShape;
use std::collections::BTreeSet;

/// One slot of this node that receives an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeMove {
    /// Destination, expert and source.
    pub slot: Move,
    /// Which of the command's peers holds the source; `None` when this node does.
    pub peer: Option<usize>,
}

/// Moves that do not lead from the base to the plan. `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MovesError {
    /// A slot of this node that changes its expert, without a move or with two.
    #[error("layer {layer}, slot {slot}: expert {expert} is to arrive, but {count} moves bring it")]
    NotOnce {
        /// Layer.
        layer: LayerId,
        /// Physical slot.
        slot: usize,
        /// The expert of the new plan.
        expert: ExpertId,
        /// Moves that name the slot and the expert.
        count: usize,
    },
    /// A move that the plans do not ask for.
    #[error("layer {layer}, slot {slot}: a move brings expert {expert}, which the plan does not ask for")]
    NotAsked {
        /// Layer.
        layer: LayerId,
        /// Physical slot.
        slot: u32,
        /// The move's expert.
        expert: ExpertId,
    },
    /// A source that does not hold the expert.
    #[error(
        "layer {layer}, slot {slot}: the source slot {origin} does not hold expert {expert} in the base plan"
    )]
    WrongSource {
        /// Layer.
        layer: LayerId,
        /// Physical slot that receives.
        slot: u32,
        /// Physical slot that should send.
        origin: u32,
        /// The move's expert.
        expert: ExpertId,
    },
    /// A source on this node with a peer, on another node without one, or with an unknown one.
    #[error("layer {layer}, slot {slot}: the source slot {origin} does not match peer {peer:?} of {peers}")]
    WrongPeer {
        /// Layer.
        layer: LayerId,
        /// Physical slot that receives.
        slot: u32,
        /// Physical slot that should send.
        origin: u32,
        /// The move's peer.
        peer: Option<usize>,
        /// Peers that the command lists.
        peers: usize,
    },
}

impl MovesError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            MovesError::NotOnce { .. } => "move_not_once",
            MovesError::NotAsked { .. } => "move_not_asked",
            MovesError::WrongSource { .. } => "move_wrong_source",
            MovesError::WrongPeer { .. } => "move_wrong_peer",
        }
    }
}

/// The plan must have passed [`crate::invariants::check`] against `base`.
pub(super) fn check(
    prepare: &Prepare,
    base: &Plan,
    shape: &UnitShape,
    ranks: &[Rank],
) -> Result<(), MovesError> {
    let mut asked = arrivals(&prepare.plan, base, shape, ranks);
    for NodeMove { slot: Move { layer, destination, expert, source }, peer } in prepare.moves.iter().copied()
    {
        if !asked.remove(&(layer, destination as usize, expert)) {
            let again =
                prepare.moves.iter().filter(|m| same_arrival(&m.slot, layer, destination, expert)).count();
            let slot = destination;
            return Err(if again > 1 {
                MovesError::NotOnce { layer, slot: slot as usize, expert, count: again }
            } else {
                MovesError::NotAsked { layer, slot, expert }
            });
        }
        let held = base.layers[layer.index()].physical_to_logical.get(source as usize);
        if held != Some(&Some(expert)) {
            return Err(MovesError::WrongSource { layer, slot: destination, origin: source, expert });
        }
        let here = ranks.contains(&shape.rank_of_slot(source as usize));
        let peers = prepare.peers.len();
        if here != peer.is_none() || peer.is_some_and(|peer| peer >= peers) {
            return Err(MovesError::WrongPeer { layer, slot: destination, origin: source, peer, peers });
        }
    }
    match asked.first() {
        Some(&(layer, slot, expert)) => Err(MovesError::NotOnce { layer, slot, expert, count: 0 }),
        None => Ok(()),
    }
}

fn same_arrival(slot: &Move, layer: LayerId, destination: u32, expert: ExpertId) -> bool {
    (slot.layer, slot.destination, slot.expert) == (layer, destination, expert)
}

/// Slots of `ranks` that hold an expert in `plan` which they do not hold in `base`.
fn arrivals(
    plan: &Plan,
    base: &Plan,
    shape: &UnitShape,
    ranks: &[Rank],
) -> BTreeSet<(LayerId, usize, ExpertId)> {
    let mut found = BTreeSet::new();
    for (layer, (new, old)) in (0u16..).zip(plan.layers.iter().zip(&base.layers)) {
        for slot in ranks.iter().flat_map(|&rank| shape.slots_of_rank(rank)) {
            let (after, before) = (new.physical_to_logical[slot], old.physical_to_logical[slot]);
            if let Some(expert) = after
                && after != before
            {
                found.insert((LayerId(layer), slot, expert));
            }
        }
    }
    found
}
