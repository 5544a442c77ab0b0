//! I3: epochs of a unit strictly increase, each committed once: every new head is the child of the one before, and what
//! was once committed under an epoch stays what it is, also where a restored store has forgotten it. A plan is committed in
//! the term that reigns.

use super::{Check, Seen, name};
use crate::protocol::world::World;
use evenkeel_core::ids::{Epoch, Term, UnitId};
use evenkeel_core::protocol::agent::PlanId;
use evenkeel_core::records::{Changed, Key, PlanName, Record, Versioned};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Epochs {
    heads: BTreeMap<UnitId, PlanId>,
    committed: BTreeMap<(UnitId, Epoch), PlanId>,
    /// What restored stores have forgotten, with the generation that committed it.
    lost: BTreeMap<(UnitId, Epoch), u64>,
    generations: BTreeMap<(UnitId, Epoch), u64>,
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
        self.check_number(world, unit, plan, before)?;
        let content = world.plan_of(id.1).ok_or_else(|| format!("plan {} was never made", name(id)))?;
        if content.epoch != id.0 || content.parent != before {
            return Err(format!("plan {} does not follow {:?}", name(id), before.map(name)));
        }
        self.generations.insert((unit.clone(), id.0), plan.term.generation);
        match self.committed.insert((unit.clone(), id.0), id) {
            Some(other) if other != id => Err(format!("{} and {} have one epoch", name(other), name(id))),
            _ => Ok(()),
        }
    }

    /// One more than before, but where a restored store has forgotten plans: those numbers are passed over. All of them once
    /// the store was adopted; without an adoption those that the store was told of by a node.
    fn check_number(
        &self,
        world: &World,
        unit: &UnitId,
        plan: &PlanName,
        before: Option<PlanId>,
    ) -> Result<(), String> {
        let Some(before) = before else {
            return if plan.epoch == Epoch::BOOT {
                Ok(())
            } else {
                Err(format!("the first plan of {unit} is {}", plan.epoch))
            };
        };
        let told = match world.store.memory.get(&Key::Unit(unit.clone())).map(|found| &found.record) {
            Some(Record::Unit(record)) => record.lost,
            _ => Epoch::BOOT,
        };
        let least = before.0.max(told).next().max(Epoch::first_of(plan.term.generation));
        if plan.epoch < least || self.lost.is_empty() && plan.epoch != least {
            return Err(format!(
                "the head of {unit} goes from {} to {}, not to {least}: the store has lost plans to {told}",
                name(before),
                plan.epoch
            ));
        }
        match self.lost.get(&(unit.clone(), plan.epoch)) {
            Some(generation) if *generation < plan.term.generation => Err(format!(
                "plan {} of {unit} has the number of one that a restored store has lost",
                plan.epoch
            )),
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
            let stays = |of: &UnitId, epoch: &Epoch| *of != unit.id || head.is_some_and(|h| *epoch <= h.0);
            for (of, epoch) in self.committed.keys().filter(|(of, epoch)| !stays(of, epoch)) {
                let generation = self.generations[&(of.clone(), *epoch)];
                if *epoch > Epoch::BOOT {
                    self.lost.insert((of.clone(), *epoch), generation);
                }
            }
            self.committed.retain(|(of, epoch), _| stays(of, epoch));
        }
    }
}
