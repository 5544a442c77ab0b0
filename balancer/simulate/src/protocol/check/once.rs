//! I7: an admin request acts at most once, however often it is asked and whatever answers are lost; and what an operator
//! was told is done is in the store.

use super::{Check, Seen};
use crate::protocol::world::World;
use evenkeel_core::records::{Key, Record, RequestId, Scope};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(super) struct Once {
    acted: BTreeMap<String, u32>,
    /// Requests that were stored before the store was put back to a time without them: an answer to one may still be on its
    /// way, however long a balancer stood still with it.
    forgotten: BTreeSet<RequestId>,
    stored: BTreeSet<RequestId>,
}

impl Check for Once {
    fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Changed { changes, .. } => changes.iter().try_for_each(|change| {
                if let Key::Request(request) = &change.key {
                    self.stored.insert(request.clone());
                    self.forgotten.remove(request);
                }
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
                let kept =
                    |request: &RequestId| world.store.memory.get(&Key::Request(request.clone())).is_some();
                self.forgotten.extend(self.stored.iter().filter(|request| !kept(request)).cloned());
                self.stored.retain(kept);
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
                if stored || self.forgotten.contains(*request) {
                    Ok(())
                } else {
                    Err(format!("{} was said to be done, and is not stored", request.as_str()))
                }
            }
            _ => Ok(()),
        }
    }
}
