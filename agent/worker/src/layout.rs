//! Which physical slots a node owns, and in which order it stores and reports them.

use evenkeel_core::ids::{LayerId, Rank};
use evenkeel_core::topology::UnitShape;
use std::fmt;

/// A physical slot of one layer, numbered over all ranks of the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotAddress {
    /// The layer.
    pub layer: LayerId,
    /// Physical slot of the layer.
    pub slot: u32,
}

impl fmt::Display for SlotAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {}, slot {}", self.layer, self.slot)
    }
}

/// A node's part of a unit. Local slots are numbered `[layers][ranks ascending][slots of the rank]`,
/// row-major: the order of a load segment on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLayout {
    shape: UnitShape,
    ranks: Vec<Rank>,
}

impl NodeLayout {
    /// A node that runs `ranks` of a unit whose shape is valid.
    pub fn new(shape: UnitShape, mut ranks: Vec<Rank>) -> Self {
        ranks.sort_unstable();
        ranks.dedup();
        assert!(ranks.last().is_some_and(|last| last.0 < shape.ranks), "a node runs ranks of its unit");
        Self { shape, ranks }
    }

    /// The unit's shape.
    pub fn shape(&self) -> &UnitShape {
        &self.shape
    }

    /// The node's ranks, ascending.
    pub fn ranks(&self) -> &[Rank] {
        &self.ranks
    }

    /// Local slots of one layer.
    pub fn slots_per_layer(&self) -> usize {
        self.ranks.len() * self.shape.physical_per_rank()
    }

    /// Local slots of all layers.
    pub fn slots(&self) -> usize {
        usize::from(self.shape.layers) * self.slots_per_layer()
    }

    /// The local number of a slot; `None` when another node owns it or the unit does not have it.
    pub fn local(&self, address: SlotAddress) -> Option<usize> {
        let per_rank = self.shape.physical_per_rank();
        let slot = address.slot as usize;
        if address.layer.0 >= self.shape.layers || slot >= self.shape.physical_per_layer() {
            return None;
        }
        let ordinal = self.ranks.binary_search(&self.shape.rank_of_slot(slot)).ok()?;
        Some(address.layer.index() * self.slots_per_layer() + ordinal * per_rank + slot % per_rank)
    }

    /// The address of a local slot.
    pub fn address(&self, local: usize) -> SlotAddress {
        let (per_layer, per_rank) = (self.slots_per_layer(), self.shape.physical_per_rank());
        let (layer, within) = (local / per_layer, local % per_layer);
        let slot = self.ranks[within / per_rank].index() * per_rank + within % per_rank;
        SlotAddress {
            layer: LayerId(u16::try_from(layer).expect("layers fit 16 bits")),
            slot: u32::try_from(slot).expect("slots of a layer fit 32 bits"),
        }
    }

    /// Addresses of all local slots, in order.
    pub fn addresses(&self) -> impl Iterator<Item = SlotAddress> + '_ {
        (0..self.slots()).map(|local| self.address(local))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_core::topology::Role;

    #[test]
    fn local_numbers_and_addresses_agree() {
        let shape = UnitShape {
            role: Role::Mixed,
            layers: 3,
            experts: 4,
            top_k: 1,
            ranks: 6,
            slots_per_rank: 2,
            spare_per_rank: 1,
            expert_bytes: 8,
        };
        let layout = NodeLayout::new(shape, vec![Rank(4), Rank(1)]);
        assert_eq!(layout.slots(), 18);
        let first: Vec<_> = layout.addresses().take(7).map(|a| (a.layer.0, a.slot)).collect();
        assert_eq!(first, [(0, 3), (0, 4), (0, 5), (0, 12), (0, 13), (0, 14), (1, 3)]);
        for (local, address) in layout.addresses().enumerate() {
            assert_eq!(layout.local(address), Some(local));
        }
        let none = [(0, 0), (0, 18), (3, 3)];
        assert!(
            none.iter().all(|&(l, slot)| layout.local(SlotAddress { layer: LayerId(l), slot }).is_none())
        );
    }
}
