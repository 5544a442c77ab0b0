//! I2: no agent acts on a term lower than it has seen, not even after a crash: whatever it has acted on is on its disk.

use super::{Check, Seen};
use crate::protocol::world::World;
use evenkeel_core::ids::Term;
use evenkeel_core::protocol::agent::Outcome;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Fenced {
    acted: BTreeMap<usize, Term>,
    looked: BTreeMap<usize, u64>,
}

impl Fenced {
    fn act(&mut self, agent: usize, term: Term) -> Result<(), String> {
        let highest = self.acted.entry(agent).or_default();
        if term < *highest {
            return Err(format!("agent {agent} acts on term {term} after term {highest}"));
        }
        *highest = term;
        Ok(())
    }
}

impl Check for Fenced {
    fn see(&mut self, _world: &World, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::AgentActed { agent, term } => self.act(*agent, *term),
            Seen::Replied { agent, reply } if !matches!(reply.outcome, Outcome::Refused { .. }) => {
                let highest = self.acted.get(agent).copied().unwrap_or_default();
                if reply.term < highest {
                    return Err(format!("agent {agent} answers in term {} after {highest}", reply.term));
                }
                Ok(())
            }
            Seen::AgentAdopted { agent, term } => self.act(*agent, *term),
            Seen::AgentOpened { agent, found: Some(record) } => {
                let highest = self.acted.get(agent).copied().unwrap_or_default();
                if record.term < highest {
                    return Err(format!("agent {agent} has acted on {highest} and finds {}", record.term));
                }
                Ok(())
            }
            Seen::Wiped { agent } => {
                self.acted.remove(agent);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn after_step(&mut self, world: &World) -> Result<(), String> {
        for (a, agent) in world.agents.iter().enumerate() {
            if self.looked.insert(a, agent.disk.changes) == Some(agent.disk.changes) {
                continue;
            }
            let highest = self.acted.get(&a).copied().unwrap_or_default();
            let lost = agent.disk.readings().flatten().find(|record| record.term < highest);
            if let Some(record) = lost {
                return Err(format!("agent {a} acted on {highest}; a crash now leaves {}", record.term));
            }
        }
        Ok(())
    }
}
