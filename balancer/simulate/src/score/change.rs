//! What one placement moves compared with another.

use super::Slots;
use evenkeel_core::experts::Deployment;

/// What a layer's change costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Slots that hold another expert afterwards.
    pub slots: usize,
    /// Experts that a rank must fetch because it did not hold them.
    pub received: usize,
    /// Of those, the ones that no rank of the same node held.
    pub from_other_node: usize,
}

impl std::ops::AddAssign for Change {
    fn add_assign(&mut self, more: Self) {
        self.slots += more.slots;
        self.received += more.received;
        self.from_other_node += more.from_other_node;
    }
}

/// What it takes to get from one placement of a layer to another.
pub fn change(deployment: &Deployment, from: &Slots, to: &Slots) -> Change {
    let mut change = Change::default();
    for (rank, spec) in deployment.ranks().iter().enumerate() {
        let (old, new) = (&from[deployment.slots_of(rank)], &to[deployment.slots_of(rank)]);
        change.slots += old.iter().zip(new).filter(|(old, new)| new.is_some() && old != new).count();
        for (at, expert) in new.iter().enumerate() {
            if expert.is_none() || old.contains(expert) || new[..at].contains(expert) {
                continue;
            }
            change.received += 1;
            let on_node = deployment.ranks().iter().enumerate().any(|(other, spec_of)| {
                spec_of.node == spec.node && from[deployment.slots_of(other)].contains(expert)
            });
            change.from_other_node += usize::from(!on_node);
        }
    }
    change
}
