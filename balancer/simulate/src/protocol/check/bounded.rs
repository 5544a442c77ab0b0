//! I9: memory is bounded: no table of any machine grows with the length of a run.

use super::Check;
use crate::protocol::world::World;

/// Calls of one balancer that wait for the store: one of each purpose, and a few of orders.
const CALLS_MAX: usize = 40;
/// Inputs that wait while an agent's disk is at work.
const INBOX_MAX: usize = 120;
/// Commands that wait for the lead to be confirmed, per stream.
const STREAM_COMMANDS_MAX: usize = 3;
/// Units of a run.
const UNITS_MAX: usize = 2;
/// Orders that wait at a leader: an operator gives one every few seconds, and each ends within some.
const ORDERS_MAX: usize = 12;

#[derive(Debug)]
pub(super) struct Bounded;

impl Check for Bounded {
    fn survey(&mut self, world: &World) -> Result<(), String> {
        let within = |what: &str, of: usize, have: usize, most: usize| {
            if have <= most { Ok(()) } else { Err(format!("{what} of {of}: {have}, at most {most}")) }
        };
        for (b, balancer) in world.balancers.iter().enumerate() {
            within("operators of balancer", b, balancer.operators.len(), ORDERS_MAX)?;
            within("calls of balancer", b, balancer.calls(), CALLS_MAX)?;
            for (what, have) in world.leader_sizes(b) {
                let most = match what {
                    // A node has one stream; one that is being displaced goes with the same step.
                    "streams" => world.agents.len(),
                    "units" => UNITS_MAX,
                    "calls" => 2 * UNITS_MAX + 1,
                    "orders" => ORDERS_MAX,
                    _ => STREAM_COMMANDS_MAX * world.agents.len(),
                };
                within(what, b, have, most)?;
            }
        }
        for (a, agent) in world.agents.iter().enumerate() {
            within("inputs of agent", a, agent.waiting(), INBOX_MAX)?;
            if let Some(machine) = &agent.machine {
                within("streams of agent", a, machine.streams_open(), world.balancers.len())?;
            }
        }
        Ok(())
    }
}
