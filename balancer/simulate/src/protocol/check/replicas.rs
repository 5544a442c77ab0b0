//! I5: every expert has a live replica at all times. Whatever tables a node serves, every slot that they name on any node
//! whose workers serve holds its expert. A node that lost its ledger with its weights boots as the leader says and holds
//! that plan alone, not what the one before had there: until the unit serves one plan again its ranks are as good as away.

use super::Check;
use crate::protocol::world::World;
use evenkeel_core::plan::Plan;

#[derive(Debug, Default)]
pub(super) struct Replicas {
    looked: u64,
}

impl Check for Replicas {
    fn after_step(&mut self, world: &World) -> Result<(), String> {
        let changes = world.worker_changes();
        if std::mem::replace(&mut self.looked, changes) == changes {
            return Ok(());
        }
        for (u, unit) in world.units.iter().enumerate() {
            for &node in &unit.agents {
                let Some(plan) = world.agents[node].worker.tables() else { continue };
                let highest =
                    unit.agents.iter().filter_map(|a| world.agents[*a].worker.tables()).map(|p| p.epoch);
                if world.is_ahead_of_store(u, highest.max().unwrap_or_default()) {
                    continue;
                }
                for &other in &unit.agents {
                    look(world, node, plan, other)?;
                }
            }
        }
        Ok(())
    }
}

/// The tables of `node` against what lies in the slots of `other`.
fn look(world: &World, node: usize, plan: &Plan, other: usize) -> Result<(), String> {
    let agent = &world.agents[other];
    let behind = agent.worker.tables().is_none_or(|own| own.epoch != plan.epoch && agent.worker.rejoins);
    if behind {
        return Ok(());
    }
    let shape = &world.units[agent.unit].shape;
    for (layer, content) in plan.layers.iter().enumerate() {
        for slot in agent.ranks.iter().flat_map(|&rank| shape.slots_of_rank(rank)) {
            let (wanted, found) = (content.physical_to_logical[slot], agent.worker.holds(layer, slot));
            if wanted.is_some() && wanted != found {
                return Err(format!(
                    "agent {node} serves plan {} that has {wanted:?} in layer {layer}, slot {slot}, where agent {other} holds {found:?}",
                    plan.epoch
                ));
            }
        }
    }
    Ok(())
}
