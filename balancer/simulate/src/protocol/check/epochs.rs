//! I3: epochs of a unit strictly increase, each committed once: every new head is the child of the one before, and what
//! was once committed under an epoch stays what it is. A plan is committed in the term that reigns.

use super::{Check, Seen, name};
use crate::protocol::world::World;
use evenkeel_core::ids::{Epoch, Term, UnitId};
use evenkeel_core::protocol::agent::PlanId;
use evenkeel_core::records::{Changed, Key, Record, Versioned};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Epochs {
    heads: BTreeMap<UnitId, PlanId>,
    committed: BTreeMap<(UnitId, Epoch), PlanId>,
}

impl Check for Epochs {
    fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Changed { changes, term } => {
                changes.iter().try_for_each(|change| self.change(world, change, *term))
            }
            Seen::Restored => {
                self.restored(world);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Epochs {
    fn change(&mut self, world: &World, change: &Changed, reigns: Option<Term>) -> Result<(), String> {
        let Key::Head(unit) = &change.key else { return Ok(()) };
        let Some(Versioned { record: Record::Plan(plan), .. }) = &change.now else {
            return Err(format!("the head of {unit} is gone"));
        };
        let id = (plan.epoch, plan.digest);
        let before = self.heads.insert(unit.clone(), id);
        if before == Some(id) {
            return Ok(());
        }
        if reigns != Some(plan.term) {
            return Err(format!(
                "plan {} is committed in term {}, but {reigns:?} reigns",
                name(id),
                plan.term
            ));
        }
        let follows = before.map_or(Epoch::BOOT, |before| before.0.next());
        if id.0 != follows {
            return Err(format!("the head of {unit} goes from {:?} to {}", before.map(name), name(id)));
        }
        let content = world.plan_of(id.1).ok_or_else(|| format!("plan {} was never made", name(id)))?;
        if content.epoch != id.0 || content.parent != before {
            return Err(format!("plan {} does not follow {:?}", name(id), before.map(name)));
        }
        match self.committed.insert((unit.clone(), id.0), id) {
            Some(other) if other != id => Err(format!("{} and {} have one epoch", name(other), name(id))),
            _ => Ok(()),
        }
    }

    /// What a backup does not know was never committed in the history that goes on.
    fn restored(&mut self, world: &World) {
        self.heads.clear();
        for unit in &world.units {
            let head = world.head_in_store(&unit.id);
            if let Some(head) = head {
                self.heads.insert(unit.id.clone(), head);
            }
            self.committed.retain(|(of, epoch), _| *of != unit.id || head.is_some_and(|h| *epoch <= h.0));
        }
    }
}
