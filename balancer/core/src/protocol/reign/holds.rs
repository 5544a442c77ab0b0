//! What operators order for a unit: whether it can be done, and what it changes.

use super::draft::Rollback;
use super::{Admin, Now, Order, OrderError, Reign, Unit};
use crate::experts::{is_arranged, step_towards};
use crate::ids::{Epoch, ExpertId, NodeId, Rank, UnitId};
use crate::invariants;
use crate::plan::{LayerPlan, Plan};
use crate::records::{Change, Key, Pause, Pin, Record, Revision};
use crate::topology::UnitShape;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Pins of a unit at most: one record of the store holds them all, and 4096 take about 100 KB there.
pub(super) const PINS_MAX: usize = 4096;

/// An order that can be carried out.
#[derive(Debug, Clone)]
pub(super) struct Feasible {
    pub(super) unit: UnitId,
    pub(super) text: String,
    pub(super) effect: Effect,
}

/// What is different once the order is carried out.
#[derive(Debug, Clone)]
pub(super) enum Effect {
    Pause(Pause),
    Resume,
    Drains(BTreeSet<NodeId>),
    Pins(BTreeSet<Pin>),
    Abort(Epoch),
    /// Carried out by a plan of its own.
    Rollback(Arc<Plan>),
}

impl Feasible {
    /// The changes of the unit's own records.
    pub(super) fn changes(&self) -> Vec<Change> {
        let unit = self.unit.clone();
        let set = |key: Key, record: Record, empty: bool| {
            if empty { Change::Delete(key) } else { Change::Put(key, record, None) }
        };
        match self.effect.clone() {
            Effect::Pause(pause) => vec![Change::Put(Key::Pause(unit), Record::Pause(pause), None)],
            Effect::Resume => vec![Change::Delete(Key::Pause(unit))],
            Effect::Drains(drains) => {
                let empty = drains.is_empty();
                vec![set(Key::Drains(unit), Record::Drains(drains), empty)]
            }
            Effect::Pins(pins) => {
                let empty = pins.is_empty();
                vec![set(Key::Pins(unit), Record::Pins(pins), empty)]
            }
            Effect::Abort(_) | Effect::Rollback(_) => Vec::new(),
        }
    }
}

impl Reign {
    /// What an order would do, or why it cannot be done. Changes nothing.
    pub(super) fn feasible(&self, now: Now, admin: &Admin) -> Result<Feasible, OrderError> {
        match &admin.order {
            Order::Pause { unit, for_ms } => {
                self.formed(unit)?;
                let until_ms = for_ms.map(|ms| now.unix_ms.saturating_add(ms));
                let text = match for_ms {
                    Some(ms) => format!("unit {unit} makes no new plan for {} s", ms.div_ceil(1000)),
                    None => format!("unit {unit} makes no new plan until it is resumed"),
                };
                let pause = Pause { by: admin.who.clone(), until_ms };
                Ok(Feasible { unit: unit.clone(), text, effect: Effect::Pause(pause) })
            }
            Order::Resume(unit) => {
                self.formed(unit)?;
                let text = format!("unit {unit} makes plans again");
                Ok(Feasible { unit: unit.clone(), text, effect: Effect::Resume })
            }
            Order::Drain(node) => self.drain(now, node),
            Order::Undrain(node) => {
                let (id, unit) = self.unit_of(node)?;
                let mut drains = unit.holds.drains.clone();
                if !drains.remove(node) {
                    return Err(OrderError::NotHeld(format!("node {node} is not drained")));
                }
                let text = format!("node {node} of unit {id} takes experts again");
                Ok(Feasible { unit: id.clone(), text, effect: Effect::Drains(drains) })
            }
            Order::Pin(id, pin) => self.pin(now, id, *pin),
            Order::Unpin(id, pin) => {
                let mut pins = self.formed(id)?.holds.pins.clone();
                if !pins.remove(pin) {
                    return Err(OrderError::NotHeld(format!(
                        "layer {}, expert {} of unit {id} is not pinned to rank {}",
                        pin.layer, pin.expert, pin.rank
                    )));
                }
                let text = format!("layer {}, expert {} may leave rank {}", pin.layer, pin.expert, pin.rank);
                Ok(Feasible { unit: id.clone(), text, effect: Effect::Pins(pins) })
            }
            Order::Rollback { to } => self.rollback(to),
            Order::Abort { unit, epoch } => {
                let formed = self.formed(unit)?.formed().expect("asked for a formed unit");
                let preparing = formed.control().preparing().map(|(epoch, _)| epoch);
                let wanted = preparing.filter(|found| epoch.is_none_or(|epoch| epoch == *found));
                let Some(found) = wanted else {
                    let which = epoch.map(|epoch| format!(" {epoch}")).unwrap_or_default();
                    return Err(OrderError::NothingToAbort(unit.clone(), which));
                };
                let text =
                    format!("plan {found} of unit {unit} is given up unless it is committed meanwhile");
                Ok(Feasible { unit: unit.clone(), text, effect: Effect::Abort(found) })
            }
        }
    }

    fn formed(&self, id: &UnitId) -> Result<&Unit, OrderError> {
        let unit = self.units.get(id).filter(|unit| unit.formed().is_some());
        unit.ok_or_else(|| OrderError::UnknownUnit(id.clone()))
    }

    fn unit_of(&self, node: &NodeId) -> Result<(&UnitId, &Unit), OrderError> {
        let mut formed = self.units.iter().filter(|(_, unit)| unit.formed().is_some());
        let found = formed.find(|(_, unit)| unit.membership.claims().contains_key(node));
        found.ok_or_else(|| OrderError::UnknownNode(node.clone()))
    }

    fn drain(&self, now: Now, node: &NodeId) -> Result<Feasible, OrderError> {
        let (id, unit) = self.unit_of(node)?;
        if unit.is_paused(now.unix_ms) {
            return Err(OrderError::UnitPaused(id.clone()));
        }
        let mut holds = unit.holds.clone();
        holds.drains.insert(node.clone());
        let drained: BTreeSet<Rank> =
            holds.drains.iter().flat_map(|node| &unit.membership.claims()[node]).copied().collect();
        check_room(unit.membership.shape(), &drained, &holds.pins)
            .map_err(|reason| OrderError::DrainInfeasible { node: node.clone(), reason: reason.text() })?;
        let text = format!("node {node} of unit {id} is emptied; see `evenkeel status` for when it is empty");
        Ok(Feasible { unit: id.clone(), text, effect: Effect::Drains(holds.drains) })
    }

    fn pin(&self, now: Now, id: &UnitId, pin: Pin) -> Result<Feasible, OrderError> {
        let unit = self.formed(id)?;
        if unit.is_paused(now.unix_ms) {
            return Err(OrderError::UnitPaused(id.clone()));
        }
        let shape = unit.membership.shape();
        let infeasible = |reason: String| OrderError::PinInfeasible { pin, reason };
        for (what, value, count) in [
            ("layer", pin.layer.0, shape.layers),
            ("expert", pin.expert.0, shape.experts),
            ("rank", pin.rank.0, shape.ranks),
        ] {
            if value >= count {
                return Err(infeasible(format!("{what} is {value}: must be 0 to {}", count - 1)));
            }
        }
        let mut pins = unit.holds.pins.clone();
        pins.insert(pin);
        if pins.len() > PINS_MAX {
            return Err(infeasible(format!(
                "unit {id} has {PINS_MAX} pins, the most there can be: unpin some"
            )));
        }
        check_room(shape, &unit.drained_ranks(), &pins).map_err(|reason| infeasible(reason.text()))?;
        let text = format!("layer {}, expert {} keeps a replica on rank {}", pin.layer, pin.expert, pin.rank);
        Ok(Feasible { unit: id.clone(), text, effect: Effect::Pins(pins) })
    }

    fn rollback(&self, to: &Arc<Plan>) -> Result<Feasible, OrderError> {
        let id = &to.unit;
        let unit = self.formed(id)?;
        let formed = unit.formed().expect("asked for a formed unit");
        let control = formed.control();
        let infeasible =
            |reason: String| OrderError::RollbackInfeasible { unit: id.clone(), epoch: to.epoch, reason };
        if let Err(violation) = invariants::check(to, None, formed.topology()) {
            return Err(infeasible(format!("it does not fit the unit any more: {violation}")));
        }
        if !is_arranged(formed.topology().shape(), &to.layers, &unit.drained_ranks(), &unit.holds.pins) {
            return Err(infeasible(
                "it breaks a pin or uses a drained node: unpin or undrain first".to_owned(),
            ));
        }
        if unit.rollback.is_some() {
            return Err(OrderError::UnitBusy(id.clone(), "a rollback is under way"));
        }
        if !control.can_propose() || unit.storing.is_some() {
            return Err(OrderError::UnitBusy(id.clone(), "a plan is under way, or a node is away or behind"));
        }
        let Some(step) = step_towards(formed.topology(), control.head(), &to.layers) else {
            return Err(infeasible(format!(
                "plan {}, the running one, has the same content",
                control.head().epoch
            )));
        };
        let Some(plans_left) = step.plans_left else {
            let reason = "weights would have to move, and the unit has no spare slots to move them to";
            return Err(infeasible(reason.to_owned()));
        };
        let more = match plans_left {
            0 => String::new(),
            left => format!(" and {left} more"),
        };
        let (epoch, next) = (to.epoch, self.next_epoch(id).expect("a leader of a formed unit"));
        let text = format!(
            "unit {id} goes back to the content of plan {epoch} by plan {next}{more}, and is paused until `evenkeel resume {id}`"
        );
        Ok(Feasible { unit: id.clone(), text, effect: Effect::Rollback(Arc::clone(to)) })
    }

    /// The order stands in the store.
    pub(super) fn take_effect(&mut self, now: Now, feasible: Feasible, revision: Revision) {
        let Feasible { unit: id, effect, .. } = feasible;
        let Some(unit) = self.units.get_mut(&id) else { return };
        match effect {
            Effect::Pause(pause) => unit.paused_at(revision, Some(pause)),
            Effect::Resume => {
                unit.paused_at(revision, None);
                // An operator who resumes wants what the solver makes, not the older plan.
                unit.rollback = unit.rollback.take().filter(|rollback| rollback.order.is_some());
                self.forget_loss(&id);
            }
            Effect::Drains(drains) => unit.holds.drains = drains,
            Effect::Pins(pins) => unit.holds.pins = pins,
            Effect::Abort(epoch) => {
                let control = unit.formed().map(|formed| formed.control());
                let preparing = control.and_then(|control| control.preparing());
                if preparing.is_some_and(|(found, _)| found == epoch) {
                    self.drive(now, &id, crate::protocol::unit::Event::GiveUp("aborted_by_operator"));
                }
                return;
            }
            Effect::Rollback(_) => unreachable!("a rollback is carried out by its plan"),
        }
        self.notice(super::Notice::Held(id.clone()));
        self.draft(now, &id);
    }

    /// Sets out on a rollback; its first plan carries out the order.
    pub(super) fn begin_rollback(&mut self, now: Now, to: Arc<Plan>, admin: Admin, text: String) {
        let id = to.unit.clone();
        let unit = self.units.get_mut(&id).expect("a feasible order has its unit");
        unit.rollback = Some(Rollback::new(now, to, admin, text));
        unit.draft_at = now.at;
        self.draft(now, &id);
    }

    /// Whether its head is not yet what operators have ordered.
    pub(super) fn wants_rearranging(&self, unit: &Unit) -> bool {
        let holds = &unit.holds;
        if holds.drains.is_empty() && holds.pins.is_empty() {
            return false;
        }
        let head = unit.head().map(|head| &head.layers);
        head.is_some_and(|layers| {
            !is_arranged(unit.membership.shape(), layers, &unit.drained_ranks(), &holds.pins)
        })
    }
}

/// Why holds cannot all be met.
enum NoRoom {
    Slots { have: u64, need: u64 },
    PinnedToDrained(Pin),
    PinsOfRank { rank: Rank, pins: usize, slots: u16 },
    NoSpare,
}

impl NoRoom {
    fn text(&self) -> String {
        match self {
            NoRoom::Slots { have, need } => format!(
                "the ranks that stay have {have} slots a layer, and its experts with all pins need {need}: give the unit more nodes or slots, undrain another, or unpin"
            ),
            NoRoom::PinnedToDrained(pin) => format!(
                "layer {}, expert {} is pinned to rank {}, which is drained: unpin it or undrain the node",
                pin.layer, pin.expert, pin.rank
            ),
            NoRoom::PinsOfRank { rank, pins, slots } => {
                format!("rank {rank} would have {pins} pins in the layer but has {slots} slots: unpin some")
            }
            NoRoom::NoSpare => {
                "the unit has no spare slots, so no weights can be moved while it serves: start it with spare_per_rank of 1 or more".to_owned()
            }
        }
    }
}

/// Whether every expert has a place on the ranks that stay, with every pin kept.
fn check_room(shape: &UnitShape, drained: &BTreeSet<Rank>, pins: &BTreeSet<Pin>) -> Result<(), NoRoom> {
    if shape.spare_per_rank == 0 {
        return Err(NoRoom::NoSpare);
    }
    if let Some(pin) = pins.iter().find(|pin| drained.contains(&pin.rank)) {
        return Err(NoRoom::PinnedToDrained(*pin));
    }
    let have = (u64::from(shape.ranks) - drained.len() as u64) * u64::from(shape.slots_per_rank);
    let mut of_layer: BTreeMap<_, (usize, BTreeSet<ExpertId>)> = BTreeMap::new();
    let mut of_rank: BTreeMap<_, usize> = BTreeMap::new();
    for pin in pins {
        let (count, experts) = of_layer.entry(pin.layer).or_default();
        *count += 1;
        experts.insert(pin.expert);
        let count = of_rank.entry((pin.layer, pin.rank)).or_default();
        *count += 1;
        if *count > usize::from(shape.slots_per_rank) {
            let slots = shape.slots_per_rank;
            return Err(NoRoom::PinsOfRank { rank: pin.rank, pins: *count, slots });
        }
    }
    let extra = of_layer.values().map(|(count, experts)| count - experts.len()).max().unwrap_or(0);
    let need = u64::from(shape.experts) + extra as u64;
    if have < need { Err(NoRoom::Slots { have, need }) } else { Ok(()) }
}

/// A plan that moves away from what operators have ordered is a bug of who made it. One on the way there may not be there yet.
pub(super) fn check_plan(unit: &Unit, plan: &Plan, head: &Plan) -> Result<(), (&'static str, String)> {
    let shape = unit.membership.shape();
    let holds = |layer: &LayerPlan, pin: &Pin| {
        layer.physical_to_logical[shape.slots_of_rank(pin.rank)].contains(&Some(pin.expert))
    };
    for pin in &unit.holds.pins {
        let at = pin.layer.index();
        if holds(&head.layers[at], pin) && !holds(&plan.layers[at], pin) {
            let text = format!("layer {}, expert {} would leave rank {}", pin.layer, pin.expert, pin.rank);
            return Err(("plan_breaks_pin", text));
        }
    }
    for rank in unit.drained_ranks() {
        for (layer, (new, old)) in plan.layers.iter().zip(&head.layers).enumerate() {
            for slot in shape.slots_of_rank(rank) {
                let (new, old) = (new.physical_to_logical[slot], old.physical_to_logical[slot]);
                if new.is_some() && new != old {
                    let text = format!(
                        "layer {layer}, slot {slot}: rank {rank} is drained but would receive an expert"
                    );
                    return Err(("plan_fills_drained_rank", text));
                }
            }
        }
    }
    Ok(())
}
