//! The loss of many nodes at once, and the time after a term began: no plan is made then, since what looks like
//! dead nodes is more likely a network, or a crowd that is still coming back.

use super::{Notice, Now, Reign};
use crate::ids::{NodeId, UnitId};
use crate::planted;
use crate::units::Millis;
use std::collections::BTreeMap;

/// Losses within this time belong together.
const WINDOW_MS: u64 = 30_000;
/// Percent of a unit's nodes whose loss is a mass loss.
const UNIT_PERCENT: usize = 30;
/// Percent of all nodes whose loss is a mass loss.
const ALL_PERCENT: usize = 20;
/// One node alone is never a mass, however small its unit.
const NODES_MIN: usize = 2;
/// Percent of the nodes that must be connected for things to be as usual again.
const BACK_PERCENT: usize = 90;
/// A new leader waits no longer than this for nodes to come back.
const RETURN_MS: u64 = 60_000;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Loss {
    /// Nodes lost within the window, at most one entry each.
    lost: BTreeMap<NodeId, (Millis, UnitId)>,
    /// Too many of all nodes were lost at once.
    all: bool,
    /// Until then, or until most are back, after a term began.
    calm_until: Option<Millis>,
}

impl Loss {
    /// With this many nodes to come back.
    pub(super) fn after_begin(now: Millis, members: usize) -> Self {
        let calm_until = (members > 0).then(|| now.after(RETURN_MS));
        Self { calm_until, ..Self::default() }
    }

    /// A node is connected, or will not return.
    pub(super) fn returned(&mut self, node: &NodeId) {
        self.lost.remove(node);
    }

    pub(super) fn holds_all(&self) -> bool {
        self.all
    }

    pub(super) fn is_returning(&self) -> bool {
        self.calm_until.is_some()
    }

    fn forget_old(&mut self, now: Millis) {
        self.lost.retain(|_, (at, _)| now.since(*at) <= WINDOW_MS);
    }
}

fn above(part: usize, percent: usize, whole: usize) -> bool {
    part >= NODES_MIN && part * 100 > percent * whole
}

fn mostly(part: usize, whole: usize) -> bool {
    part * 100 >= BACK_PERCENT * whole
}

impl Reign {
    /// A node of a formed unit has lost its stream.
    pub(super) fn note_loss(&mut self, now: Now, unit: &UnitId, node: &NodeId) {
        self.loss.lost.insert(node.clone(), (now.at, unit.clone()));
        if self.loss.all && self.units[unit].lost {
            // Known already: of ten thousand that leave at once each would count all the others.
            return;
        }
        self.loss.forget_old(now.at);
        let of_unit = self.loss.lost.values().filter(|(_, of)| of == unit).count();
        let (of_all, members) = (self.loss.lost.len(), self.members());
        let known = self.units.get_mut(unit).expect("the unit of a stream that had joined");
        if above(of_unit, UNIT_PERCENT, known.membership.claims().len()) && !known.lost {
            known.lost = true;
            self.notice(Notice::MassLoss { unit: Some(unit.clone()), on: true });
        }
        if above(of_all, ALL_PERCENT, members) && !self.loss.all {
            self.loss.all = true;
            self.notice(Notice::MassLoss { unit: None, on: true });
        }
    }

    pub(super) fn tick_loss(&mut self, now: Now) {
        self.loss.forget_old(now.at);
        let (mut connected, mut members) = (0, 0);
        let mut back = Vec::new();
        for (id, unit) in self.units.iter_mut().filter(|(_, unit)| unit.formed().is_some()) {
            let (here, all) = (unit.present.len(), unit.membership.claims().len());
            connected += here;
            members += all;
            if unit.lost && mostly(here, all) {
                unit.lost = false;
                back.push(id.clone());
            }
        }
        for unit in back {
            self.notice(Notice::MassLoss { unit: Some(unit), on: false });
        }
        if self.loss.all && mostly(connected, members) {
            self.loss.all = false;
            self.notice(Notice::MassLoss { unit: None, on: false });
        }
        if planted!(ReturnWaitedForEver) {
            return;
        }
        if self.loss.calm_until.is_some_and(|until| now.at >= until || mostly(connected, members)) {
            self.loss.calm_until = None;
        }
    }

    /// An operator says that things are as they are to be.
    pub(super) fn forget_loss(&mut self, unit: &UnitId) {
        let known = self.units.get_mut(unit).filter(|known| known.lost);
        if known.map(|known| known.lost = false).is_some() {
            self.notice(Notice::MassLoss { unit: Some(unit.clone()), on: false });
        }
        if std::mem::take(&mut self.loss.all) {
            self.notice(Notice::MassLoss { unit: None, on: false });
        }
    }
}
