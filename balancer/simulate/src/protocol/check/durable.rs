//! I6: the last good plan is readable after any crash point: an agent's disk never reads damaged, nor older than what the
//! agent said it applied; and whatever is the head in the store has its whole content beside it.

use super::{Check, Seen, name};
use crate::protocol::world::World;
use evenkeel_core::ids::Epoch;
use evenkeel_core::protocol::agent::Outcome;
use evenkeel_core::records::{Changed, Key, Record};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Durable {
    applied: BTreeMap<usize, Epoch>,
    looked: BTreeMap<usize, u64>,
}

impl Check for Durable {
    fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::AgentOpened { agent, found: None } => {
                Err(format!("the ledger of agent {agent} is damaged"))
            }
            Seen::Replied { agent, reply } if matches!(reply.outcome, Outcome::Applied { .. }) => {
                self.applied.insert(*agent, reply.id.0);
                self.look(world, *agent)
            }
            Seen::Wiped { agent } => {
                self.applied.remove(agent);
                Ok(())
            }
            Seen::Changed { changes, .. } => {
                changes.iter().try_for_each(|change| head_is_whole(world, change))
            }
            _ => Ok(()),
        }
    }

    fn after_step(&mut self, world: &World) -> Result<(), String> {
        for (a, agent) in world.agents.iter().enumerate() {
            if self.looked.insert(a, agent.disk.changes) != Some(agent.disk.changes) {
                self.look(world, a)?;
            }
        }
        Ok(())
    }
}

impl Durable {
    fn look(&self, world: &World, a: usize) -> Result<(), String> {
        for reading in world.agents[a].disk.readings() {
            let Ok(record) = reading else {
                return Err(format!("a crash now leaves a damaged ledger on agent {a}"));
            };
            let found = record.plan.as_ref().map(|plan| plan.epoch);
            if let Some(applied) = self.applied.get(&a)
                && found.is_none_or(|found| found < *applied)
            {
                return Err(format!("agent {a} said it applied {applied}; a crash now leaves {found:?}"));
            }
        }
        Ok(())
    }
}

fn head_is_whole(world: &World, change: &Changed) -> Result<(), String> {
    let (Key::Head(unit), Some(now)) = (&change.key, &change.now) else { return Ok(()) };
    let Record::Plan(plan) = &now.record else { return Ok(()) };
    let id = (plan.epoch, plan.digest);
    let record = |key: &Key| world.store.memory.get(key).map(|found| &found.record);
    let Some(Record::Manifest(manifest)) = record(&Key::Manifest(unit.clone(), plan.epoch)) else {
        return Err(format!("head {} has no manifest", name(id)));
    };
    for i in 0..manifest.chunks {
        let part = match record(&Key::Chunk(unit.clone(), plan.epoch, i)) {
            Some(Record::Chunk(bytes)) => world.plan_of_chunk(bytes),
            _ => None,
        };
        if part.is_none_or(|part| part.digest != plan.digest) {
            return Err(format!("chunk {i} of head {} is missing or another plan's", name(id)));
        }
    }
    Ok(())
}
