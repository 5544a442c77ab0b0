//! I8: once trouble stops, everything converges in bounded time: one leader, every agent welcome at every balancer, every
//! unit settled on its head; and then another plan gets through.

use crate::protocol::world::{QUIET_MS, World};
use evenkeel_core::ids::Epoch;

#[derive(Debug, Default)]
pub(super) struct Converges {
    /// Head of each unit when it was first seen settled after trouble.
    settled: Vec<Option<Epoch>>,
}

impl Converges {
    /// Whether it has; an error once it is too late.
    pub(super) fn survey(&mut self, world: &World) -> Result<bool, String> {
        if world.quiet_since == u64::MAX {
            return Ok(false);
        }
        let missing = self.missing(world);
        match missing {
            None => Ok(true),
            Some(what) if world.now > world.quiet_since + QUIET_MS => {
                Err(format!("{} s after trouble: {what}", QUIET_MS / 1000))
            }
            Some(_) => Ok(false),
        }
    }

    fn missing(&mut self, world: &World) -> Option<String> {
        let leaders: Vec<usize> = (0..world.balancers.len()).filter(|b| world.may_command(*b)).collect();
        let &[leader] = leaders.as_slice() else {
            return Some(format!("leaders are {leaders:?} of {:?}", world.elections()));
        };
        let outside = world.agents.iter().position(|agent| !agent.is_welcome_everywhere());
        if let Some(agent) = outside {
            return Some(format!("agent {agent} is not welcome everywhere; refusals {:?}", world.refusals));
        }
        self.settled.resize(world.units.len(), None);
        for (u, unit) in world.units.iter().enumerate() {
            let (settled, head) = world.unit_at(leader, u);
            let Some(head) = head.filter(|_| settled) else {
                return Some(format!("unit {u} is not settled: {}", world.unit_shown(leader, u)));
            };
            let serve = |a: &usize| {
                let tables = world.agents[*a].worker.tables();
                tables.is_some_and(|plan| (plan.epoch, plan.digest()) == head)
            };
            if !unit.agents.iter().all(serve) {
                return Some(format!("unit {u} does not serve plan {} everywhere", head.0));
            }
            let first = *self.settled[u].get_or_insert(head.0);
            if head.0 <= first {
                return Some(format!("no plan of unit {u} gets through after plan {first}"));
            }
        }
        None
    }
}
