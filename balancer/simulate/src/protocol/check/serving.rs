//! I10: the worker never waits for the control plane: while its weights are there, steps go on; and a node that has a
//! last good plan serves it without asking anybody.

use super::Check;
use crate::protocol::world::World;

#[derive(Debug)]
pub(super) struct Serving;

impl Check for Serving {
    fn after_step(&mut self, world: &World) -> Result<(), String> {
        for (a, agent) in world.agents.iter().enumerate() {
            let serves = agent.worker.tables().is_some();
            let late = world.now > agent.worker.stepped_at + 2 * agent.step_ms;
            if serves && late && !agent.worker.hung_lately(world.now, agent.step_ms) {
                return Err(format!(
                    "the workers of agent {a} made no step since {}",
                    agent.worker.stepped_at
                ));
            }
            if !serves && agent.machine.is_some() && agent.disk.has_plan() {
                return Err(format!("agent {a} has a last good plan, and its workers serve nothing"));
            }
        }
        Ok(())
    }
}
