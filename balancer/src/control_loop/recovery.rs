//! What the store holds, read as a whole: for a new leader, and for a standby that keeps itself warm.

use crate::records::plan_content::{self, PlanContent};
use crate::records::{Store, StoreError};
use evenkeel_core::ids::{Digest, Epoch, UnitId};
use evenkeel_core::invariants;
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::reign::{Head, Holds, Recovered, RecoveredUnit};
use evenkeel_core::records::{Key, Manifest, PlanName, Record, Scope, Transaction, UnitRecord, Versioned};
use evenkeel_core::topology::UnitTopology;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Plans that need not be read: their digest says that they are what the store has.
pub(super) type Known = BTreeMap<(UnitId, Epoch, Digest), Arc<Plan>>;

/// Everything, in a few round trips. A unit whose records are damaged is left out and said so: its agents go on serving, and
/// nothing is committed over what is there.
pub(super) async fn read(store: &dyn Store, known: &Known) -> Result<Recovered, StoreError> {
    let mut units = Vec::new();
    let listed = store.list(&Scope::Units).await?.records;
    let records = listed.into_iter().filter_map(|(key, found)| match (key, found.record) {
        (Key::Unit(id), Record::Unit(record)) => Some((id, record)),
        _ => None,
    });
    let records: Vec<(UnitId, UnitRecord)> = records.collect();
    let keys = |id: &UnitId| {
        [Key::Head(id.clone()), Key::Pins(id.clone()), Key::Drains(id.clone()), Key::Pause(id.clone())]
    };
    let wanted: Vec<Key> = records.iter().flat_map(|(id, _)| keys(id)).collect();
    let mut found = read_keys(store, &wanted).await?;
    for (id, record) in records {
        let mut next = |key: Key| found.remove(&key);
        let [head, pins, drains, pause] = keys(&id).map(&mut next);
        let Some(head) = head else { continue };
        let holds = holds_of([pins, drains, pause]);
        match read_unit(store, known, id.clone(), record, head, holds).await {
            Ok(unit) => units.push(unit),
            Err(error @ StoreError::Broken { .. }) => {
                tracing::error!(unit = %id, code = error.code(), %error, "a unit's records are damaged");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Recovered { units })
}

async fn read_keys(store: &dyn Store, keys: &[Key]) -> Result<BTreeMap<Key, Versioned>, StoreError> {
    let mut all = BTreeMap::new();
    for some in keys.chunks(Transaction::CHANGES_MAX) {
        let found = store.read(some).await?.records;
        all.extend(some.iter().cloned().zip(found).filter_map(|(key, found)| Some((key, found?))));
    }
    Ok(all)
}

fn holds_of(found: [Option<Versioned>; 3]) -> Holds {
    let mut holds = Holds::default();
    for record in found.into_iter().flatten().map(|found| found.record) {
        match record {
            Record::Pins(pins) => holds.pins = pins,
            Record::Drains(drains) => holds.drains = drains,
            Record::Pause(pause) => holds.pause = Some(pause),
            _ => {}
        }
    }
    holds
}

async fn read_unit(
    store: &dyn Store,
    known: &Known,
    id: UnitId,
    record: UnitRecord,
    head: Versioned,
    mut holds: Holds,
) -> Result<RecoveredUnit, StoreError> {
    let broken =
        |reason: String| StoreError::Broken { place: format!("{} unit {id}", store.place()), reason };
    let Record::Plan(name) = head.record else { return Err(broken("its head names no plan".to_owned())) };
    let topology = UnitTopology::new(id.clone(), record.shape.clone(), &record.nodes);
    let topology = topology.map_err(|e| broken(e.to_string()))?;
    if record.lost.0.saturating_sub(name.epoch.0) > UnitRecord::LOST_MAX {
        return Err(broken(format!("it has lost plan {}, far above its head {}", record.lost, name.epoch)));
    }
    let plan = read_plan(store, known, &id, name).await?;
    invariants::check(&plan, None, &topology).map_err(|e| broken(format!("plan {}: {e}", plan.epoch)))?;
    let parent = match plan.parent {
        None => None,
        // Without it nodes that serve it are refused and say why; the rest goes on.
        Some((epoch, digest)) => match known.get(&(id.clone(), epoch, digest)) {
            Some(known) => Some(Arc::clone(known)),
            None => content(store, &id, epoch).await.ok().flatten().map(|content| Arc::new(content.plan)),
        },
    };
    let parent = parent.filter(|found| plan.parent == Some((found.epoch, found.digest())));
    // A node that was replaced is not there to be emptied any more.
    holds.drains.retain(|node| record.nodes.contains_key(node));
    Ok(RecoveredUnit {
        unit: id.clone(),
        record,
        head: Head { plan, modified: head.modified },
        parent,
        holds,
    })
}

async fn read_plan(
    store: &dyn Store,
    known: &Known,
    id: &UnitId,
    name: PlanName,
) -> Result<Arc<Plan>, StoreError> {
    if let Some(plan) = known.get(&(id.clone(), name.epoch, name.digest)) {
        return Ok(Arc::clone(plan));
    }
    let missing = || StoreError::Broken {
        place: format!("{} unit {id}", store.place()),
        reason: format!("plan {}, the head, is not there", name.epoch),
    };
    let content = content(store, id, name.epoch).await?.ok_or_else(missing)?;
    if (content.plan.epoch, content.plan.digest()) != (name.epoch, name.digest) {
        return Err(missing());
    }
    Ok(Arc::new(content.plan))
}

/// A committed plan, if it is still kept.
pub(crate) async fn content(
    store: &dyn Store,
    id: &UnitId,
    epoch: Epoch,
) -> Result<Option<PlanContent>, StoreError> {
    let key = Key::Manifest(id.clone(), epoch);
    let found = store.read(std::slice::from_ref(&key)).await?.records.pop().flatten();
    let Some(Record::Manifest(manifest)) = found.map(|found| found.record) else { return Ok(None) };
    let chunks = chunks(store, id, &manifest).await?;
    plan_content::decode(id, &manifest, &chunks).map(Some)
}

async fn chunks(
    store: &dyn Store,
    id: &UnitId,
    manifest: &Manifest,
) -> Result<Vec<evenkeel_core::records::Opaque>, StoreError> {
    let mut chunks = Vec::new();
    for (_, found) in store.list(&Scope::Chunks(id.clone(), manifest.name.epoch)).await?.records {
        if let Record::Chunk(chunk) = found.record {
            chunks.push(chunk);
        }
    }
    Ok(chunks)
}
