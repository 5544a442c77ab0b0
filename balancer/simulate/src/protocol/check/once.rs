//! I7: an admin request acts at most once, however often it is asked and whatever answers are lost; and what an operator
//! was told is done is in the store.

use super::{Check, Seen};
use crate::protocol::world::World;
use evenkeel_core::records::{Key, Record, Scope};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Once {
    acted: BTreeMap<String, u32>,
}

impl Check for Once {
    fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Changed { changes, .. } => changes.iter().try_for_each(|change| {
                let who = match change.now.as_ref().map(|now| &now.record) {
                    // A rollback takes as many plans as it needs, each with an entry of its own.
                    Some(Record::Audit(audit)) if audit.verb != "rollback" => &audit.who,
                    _ => return Ok(()),
                };
                if !who.starts_with("order-") {
                    return Ok(());
                }
                let times = self.acted.entry(who.clone()).or_default();
                *times += 1;
                if *times > 1 { Err(format!("{who} acted twice")) } else { Ok(()) }
            }),
            Seen::Restored => {
                self.acted.clear();
                let audit = world.store.memory.list(&Scope::Audit);
                self.acted.extend(audit.filter_map(|(_, found)| match &found.record {
                    Record::Audit(audit) => Some((audit.who.clone(), 1)),
                    _ => None,
                }));
                Ok(())
            }
            Seen::AnsweredTwice { balancer } => Err(format!("b{balancer} answers an order twice")),
            Seen::Answered { request, accepted: true } => {
                let stored = world.store.memory.get(&Key::Request((*request).clone())).is_some();
                // An answer from before the store was put back may still be on its way.
                if stored || world.restored_at + 5_000 > world.now && world.restores > 0 {
                    Ok(())
                } else {
                    Err(format!("{} was said to be done, and is not stored", request.as_str()))
                }
            }
            _ => Ok(()),
        }
    }
}
