//! What operators read from the store: plans and the audit.

use crate::control_loop::recovery;
use crate::records::plan_content::PlanContent;
use crate::records::{Store, StoreError};
use evenkeel_core::ids::{Epoch, UnitId};
use evenkeel_core::protocol::reign::audit_text;
use evenkeel_core::records::{Key, PLANS_KEPT, Record, Scope, Transaction};
use evenkeel_proto::v1;
use prost::Message as _;
use tonic::Status;

/// Default and highest number of plans or entries listed at once.
const LISTED_DEFAULT: u32 = 50;
const LISTED_MAX: u32 = 500;

fn limit_of(limit: u32) -> usize {
    (if limit == 0 { LISTED_DEFAULT } else { limit.min(LISTED_MAX) }) as usize
}

fn failed(error: &StoreError) -> Status {
    let message = format!("{}: {error}", error.code());
    match error {
        StoreError::Away { .. } | StoreError::Unknown { .. } | StoreError::Full { .. } => {
            Status::unavailable(message)
        }
        _ => Status::internal(message),
    }
}

fn unknown_unit(unit: &UnitId) -> Status {
    Status::not_found(format!(
        "unknown_unit: no unit {unit} has formed; see GetStatus for the units there are"
    ))
}

/// Accounts of a unit's plans, newest first.
pub(super) async fn plans(
    store: &dyn Store,
    unit: &UnitId,
    limit: u32,
) -> Result<Vec<v1::PlanSummary>, Status> {
    let head = head_of(store, unit).await?;
    let found = store.list(&Scope::Manifests(unit.clone())).await.map_err(|e| failed(&e))?.records;
    let committed = found.into_iter().filter_map(|(_, found)| match found.record {
        // What is above the head was not committed.
        Record::Manifest(manifest) if manifest.name.epoch <= head => Some(manifest),
        _ => None,
    });
    let mut plans: Vec<v1::PlanSummary> = Vec::new();
    for manifest in committed {
        let summary = v1::PlanSummary::decode(&*manifest.account).map_err(|e| {
            let place = format!("{} unit {unit} plan {}", store.place(), manifest.name.epoch);
            failed(&StoreError::Broken { place, reason: e.to_string() })
        })?;
        plans.push(summary);
    }
    plans.reverse();
    plans.truncate(limit_of(limit).min(PLANS_KEPT as usize));
    // A formed unit has its boot plan at least.
    if plans.is_empty() { Err(unknown_unit(unit)) } else { Ok(plans) }
}

async fn head_of(store: &dyn Store, unit: &UnitId) -> Result<Epoch, Status> {
    let found = store.read(&[Key::Head(unit.clone())]).await.map_err(|e| failed(&e))?.records.pop().flatten();
    match found.map(|found| found.record) {
        Some(Record::Plan(name)) => Ok(name.epoch),
        _ => Err(unknown_unit(unit)),
    }
}

/// A committed plan; `None` is the head.
pub(super) async fn content(
    store: &dyn Store,
    unit: &UnitId,
    epoch: Option<u64>,
) -> Result<PlanContent, Status> {
    let head = head_of(store, unit).await?;
    let epoch = epoch.map_or(head, Epoch);
    let found = match epoch <= head {
        true => recovery::content(store, unit, epoch).await.map_err(|e| failed(&e))?,
        false => None,
    };
    found.ok_or_else(|| {
        Status::not_found(format!(
            "unknown_plan: unit {unit} has no plan {epoch}, or it is no longer kept; see ListPlans"
        ))
    })
}

/// What was changed by whom, newest first. Only keys are read of what is not shown: a month has many entries.
pub(super) async fn audit(store: &dyn Store, unit: &str, limit: u32) -> Result<Vec<v1::AuditEntry>, Status> {
    let keys = store.keys(&Scope::Audit).await.map_err(|e| failed(&e))?.records;
    let keys: Vec<Key> = keys.into_iter().rev().map(|(key, _)| key).collect();
    let limit = limit_of(limit);
    let mut entries = Vec::new();
    for some in keys.chunks(Transaction::CHANGES_MAX) {
        let found = store.read(some).await.map_err(|e| failed(&e))?.records;
        for (key, found) in some.iter().zip(found) {
            let (Key::Audit(id), Some(Record::Audit(record))) = (key, found.map(|found| found.record)) else {
                continue;
            };
            let of = record.unit.as_ref().map(|unit| unit.to_string()).unwrap_or_default();
            if unit.is_empty() || of == unit {
                entries.push(v1::AuditEntry {
                    id: audit_text(*id),
                    at_ms: id.at_ms,
                    term: Some(id.term.into()),
                    who: record.who,
                    verb: record.verb,
                    unit: of,
                    plan: record.plan.map(|name| (name.epoch, name.digest).into()),
                    detail: record.detail,
                });
            }
        }
        if entries.len() >= limit {
            break;
        }
    }
    entries.truncate(limit);
    Ok(entries)
}
