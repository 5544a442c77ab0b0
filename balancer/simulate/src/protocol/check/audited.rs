//! I11: every epoch has an audit entry, written by the transaction that commits it.

use super::{Check, Seen, name};
use crate::protocol::world::World;
use evenkeel_core::records::{Key, Record};

#[derive(Debug)]
pub(super) struct Audited;

impl Check for Audited {
    fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Changed { changes, .. } = seen else { return Ok(()) };
        for change in *changes {
            let (Key::Head(_), Some(now)) = (&change.key, &change.now) else { continue };
            let Record::Plan(plan) = &now.record else { continue };
            // A head that is only written again is no new epoch.
            let manifest = change.key.unit().map(|unit| Key::Manifest(unit.clone(), plan.epoch));
            let new = manifest
                .and_then(|key| world.store.memory.get(&key))
                .is_some_and(|found| found.modified == change.revision);
            let tells = |audit: &evenkeel_core::records::Changed| {
                audit.revision == change.revision
                    && matches!(&audit.now.as_ref().map(|n| &n.record), Some(Record::Audit(a)) if a.plan == Some(*plan))
            };
            if new && !changes.iter().any(tells) {
                return Err(format!(
                    "plan {} is committed without an audit entry",
                    name((plan.epoch, plan.digest))
                ));
            }
        }
        Ok(())
    }
}
