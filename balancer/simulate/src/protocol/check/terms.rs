//! I1: one effective leader per term. A term names one balancer; whoever commands does so in its own term, before its
//! deadline and not while frozen; and at no time do two balancers take themselves for leaders that may command.

use super::{Check, Seen};
use crate::protocol::world::World;
use evenkeel_core::ids::Term;
use evenkeel_core::protocol::election::State;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct OneLeader {
    /// By how often the store was put back: a term of another history is another term until the store is adopted.
    begun: BTreeMap<(u64, Term), (usize, u64)>,
}

impl Check for OneLeader {
    fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Began { balancer, term } => {
                let me = (*balancer, world.balancers[*balancer].life);
                match self.begun.insert((world.restores, *term), me) {
                    Some(other) => {
                        Err(format!("term {term} begins for b{balancer}, and was begun by {other:?}"))
                    }
                    None => Ok(()),
                }
            }
            Seen::Commands { balancer, term, state, now, .. } => match state {
                // What was decided before a pause is carried out after it; then the fence holds.
                _ if world.balancers[*balancer].catches_up => Ok(()),
                Some(State::Leading { term: own, until }) if own == term && now < until => Ok(()),
                state => Err(format!("b{balancer} commands in term {term} at {}, but is {state:?}", now.0)),
            },
            _ => Ok(()),
        }
    }

    fn after_step(&mut self, world: &World) -> Result<(), String> {
        // A store that was put back forgets who leads; the one who led finds out within its lease.
        if world.restored_at + 5_000 > world.now && world.restores > 0 {
            return Ok(());
        }
        let mut leaders = (0..world.balancers.len()).filter(|b| world.may_command(*b));
        match (leaders.next(), leaders.next()) {
            (Some(a), Some(b)) => Err(format!("b{a} and b{b} may command at the same time")),
            _ => Ok(()),
        }
    }
}
