//! I4: no step mixes plans beyond what make before break allows. Every table in service is that of a committed plan;
//! two nodes of a unit serve the same plan or a plan and its parent; and a plan is committed only after every node has
//! said that it is staged. Tables are replaced at the end of a step. (A unit that serves
//! what a restored store does not know is for its operator to restart.)

use super::{Check, Seen, name};
use crate::protocol::world::World;
use evenkeel_core::ids::Epoch;
use evenkeel_core::protocol::agent::{Outcome, PlanId};
use evenkeel_core::records::{Key, Record};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(super) struct Committed {
    staged: BTreeMap<(usize, PlanId), BTreeSet<usize>>,
    /// In any history: what was committed before a restore may still be carried out.
    ever: BTreeSet<(usize, PlanId)>,
    /// In the store's present history.
    committed: BTreeSet<(usize, PlanId)>,
    looked: u64,
}

impl Check for Committed {
    fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Replied { agent, reply } if matches!(reply.outcome, Outcome::Prepared(_)) => {
                let unit = world.agents[*agent].unit;
                self.staged.entry((unit, reply.id)).or_default().insert(*agent);
                Ok(())
            }
            Seen::Changed { changes, .. } => changes.iter().try_for_each(|change| {
                match (&change.key, change.now.as_ref().map(|now| &now.record)) {
                    (Key::Head(unit), Some(Record::Plan(plan))) => {
                        self.commit(world, crate::protocol::unit_of(unit), (plan.epoch, plan.digest))
                    }
                    _ => Ok(()),
                }
            }),
            Seen::Stages { agent, plan } => {
                // Whatever was said before, it is not staged now.
                let unit = world.agents[*agent].unit;
                if let Some(staged) = self.staged.get_mut(&(unit, *plan)) {
                    staged.remove(agent);
                }
                Ok(())
            }
            Seen::Restored => {
                for (u, unit) in world.units.iter().enumerate() {
                    let head = world.head_in_store(&unit.id).map(|head| head.0);
                    self.committed.retain(|(of, id)| *of != u || head.is_some_and(|head| id.0 <= head));
                }
                Ok(())
            }
            Seen::Flips { agent, plan } => {
                let unit = world.agents[*agent].unit;
                if !self.ever.contains(&(unit, *plan)) {
                    return Err(format!(
                        "agent {agent} flips to plan {}, which is not committed",
                        name(*plan)
                    ));
                }
                Ok(())
            }
            Seen::Commands { balancer, plan, commit, abort, unit: Some(unit), .. } => {
                let committed = self.committed.contains(&(*unit, *plan));
                if *commit && !self.ever.contains(&(*unit, *plan)) {
                    return Err(format!("b{balancer} says COMMIT of plan {}, which is not", name(*plan)));
                }
                // What was decided before a pause comes too late, and its term is refused.
                if *abort && committed && !world.balancers[*balancer].catches_up {
                    return Err(format!("b{balancer} says ABORT of committed plan {}", name(*plan)));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn after_step(&mut self, world: &World) -> Result<(), String> {
        let changes = world.worker_changes();
        if std::mem::replace(&mut self.looked, changes) == changes {
            return Ok(());
        }
        let within = world.agents.iter().position(|agent| agent.worker.flipped_at > agent.worker.stepped_at);
        if let Some(agent) = within {
            return Err(format!("the tables of agent {agent} are replaced within a step"));
        }
        for (u, unit) in world.units.iter().enumerate() {
            let tables = unit.agents.iter().filter_map(|a| Some((*a, world.agents[*a].worker.tables()?)));
            let mut lowest = None;
            let mut highest = None;
            for (a, plan) in tables {
                let id = (plan.epoch, plan.digest());
                if plan.epoch != Epoch::BOOT && !self.ever.contains(&(u, id)) {
                    return Err(format!("agent {a} serves plan {}, which is not committed", name(id)));
                }
                if lowest.is_none_or(|(epoch, _)| id.0 < epoch) {
                    lowest = Some(id);
                }
                if highest.is_none_or(|(top, _): (PlanId, _)| id.0 >= top.0) {
                    highest = Some((id, plan.parent));
                }
            }
            if let (Some(lowest), Some((highest, parent))) = (lowest, highest)
                && lowest != highest
                && !world.is_ahead_of_store(u, highest.0)
                && !world.is_foreign_to_store(u, lowest)
                && parent != Some(lowest)
            {
                return Err(format!("unit {u} serves plans {} and {}", name(lowest), name(highest)));
            }
        }
        Ok(())
    }
}

impl Committed {
    fn commit(&mut self, world: &World, unit: usize, id: PlanId) -> Result<(), String> {
        self.ever.insert((unit, id));
        let again = !self.committed.insert((unit, id));
        let staged = self.staged.remove(&(unit, id)).unwrap_or_default();
        let all = world.units[unit].agents.iter().all(|agent| staged.contains(agent));
        if !all && !again && id.0 != Epoch::BOOT {
            return Err(format!("plan {} is committed, and only {staged:?} have staged it", name(id)));
        }
        Ok(())
    }
}
