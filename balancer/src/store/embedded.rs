//! The default store: one redb file on the local disk, opened by one process at a time.
//!
//! Tables: `meta` (schema, term), `units` (name -> `StoredUnit`), `plans` ((unit, epoch) -> `StoredPlan`)
//! and `summaries` ((unit, epoch) -> `PlanSummary`). The head of a unit is its highest epoch: plan and head
//! are one record, so no crash can part them.

use super::{PLANS_KEPT, Store, StoreError, Stored, follows};
use evenkeel_core::ids::{Digest, Epoch, Term, UnitId};
use evenkeel_core::plan::Plan;
use evenkeel_proto::v1;
use prost::Message as _;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use std::path::{Path, PathBuf};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const UNITS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("units");
const PLANS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("plans");
const SUMMARIES: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("summaries");

/// Version of the tables. A store of another version is refused, never converted silently.
const SCHEMA: u64 = 1;
/// redb caches up to 1 GiB unless told otherwise; plans are read once, at a start or by an operator.
const CACHE_BYTES: usize = 8 << 20;

/// See the module.
pub struct EmbeddedStore {
    database: Database,
    path: PathBuf,
}

impl EmbeddedStore {
    /// Opens `state_dir/evenkeel.redb`, making it when it is not there.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join("evenkeel.redb");
        let broken = |reason: String| StoreError::Broken { path: path.display().to_string(), reason };
        std::fs::create_dir_all(state_dir)
            .map_err(|e| broken(format!("cannot make the directory {}: {e}", state_dir.display())))?;
        let database =
            Database::builder().set_cache_size(CACHE_BYTES).create(&path).map_err(|e| match e {
                DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.display().to_string() },
                other => broken(other.to_string()),
            })?;
        let store = Self { database, path };
        store.check_schema()?;
        Ok(store)
    }

    fn broken(&self, reason: impl std::fmt::Display) -> StoreError {
        StoreError::Broken { path: self.path.display().to_string(), reason: reason.to_string() }
    }

    fn check_schema(&self) -> Result<(), StoreError> {
        self.write(|tx| {
            // All tables exist from the first day, so that reading never has to tell missing from broken.
            tx.open_table(UNITS)?;
            tx.open_table(PLANS)?;
            tx.open_table(SUMMARIES)?;
            let mut meta = tx.open_table(META)?;
            let found = meta.get("schema")?.map(|v| v.value());
            if found.is_none() {
                meta.insert("schema", SCHEMA)?;
            }
            Ok(found.unwrap_or(SCHEMA))
        })
        .and_then(|found| {
            if found == SCHEMA {
                Ok(())
            } else {
                Err(self.broken(format!("has schema {found}, this program knows schema {SCHEMA}")))
            }
        })
    }

    /// One durable transaction: committed when `body` succeeds, without effect otherwise.
    fn write<T>(
        &self,
        body: impl FnOnce(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let tx = self.database.begin_write().map_err(|e| self.broken(e))?;
        let value = body(&tx).map_err(|e| self.broken(e))?;
        tx.commit().map_err(|e| self.broken(e))?;
        Ok(value)
    }

    fn read<T>(
        &self,
        body: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let tx = self.database.begin_read().map_err(|e| self.broken(e))?;
        body(&tx).map_err(|e| self.broken(e))
    }

    fn decode(&self, bytes: &[u8]) -> Result<Stored, StoreError> {
        let record = v1::StoredPlan::decode(bytes).map_err(|e| self.broken(e))?;
        let plan = record.plan.as_ref().ok_or_else(|| self.broken("a record has no plan"))?;
        Ok(Stored {
            plan: Plan::try_from(plan).map_err(|e| self.broken(e))?,
            summary: record.summary.unwrap_or_default(),
            loads: record.loads,
        })
    }
}

fn encode(stored: &Stored) -> Vec<u8> {
    let plan = Some((&stored.plan).into());
    v1::StoredPlan { plan, summary: Some(stored.summary.clone()), loads: stored.loads.clone() }
        .encode_to_vec()
}

fn id_of(summary: &[u8]) -> Option<(Epoch, Digest)> {
    let summary = v1::PlanSummary::decode(summary).ok()?;
    <(Epoch, Digest)>::try_from(summary.id.as_ref()?).ok()
}

impl Store for EmbeddedStore {
    fn begin_term(&self) -> Result<Term, StoreError> {
        self.write(|tx| {
            let mut meta = tx.open_table(META)?;
            let revision = meta.get("term")?.map_or(0, |v| v.value()) + 1;
            meta.insert("term", revision)?;
            Ok(Term { generation: 0, revision })
        })
    }

    fn units(&self) -> Result<Vec<v1::StoredUnit>, StoreError> {
        let records: Vec<Vec<u8>> = self.read(|tx| {
            let table = tx.open_table(UNITS)?;
            table.iter()?.map(|entry| Ok(entry?.1.value().to_vec())).collect()
        })?;
        let decode = |bytes: &Vec<u8>| v1::StoredUnit::decode(bytes.as_slice()).map_err(|e| self.broken(e));
        records.iter().map(decode).collect()
    }

    fn put_unit(&self, term: Term, unit: &v1::StoredUnit) -> Result<(), StoreError> {
        let reigns = self.write(|tx| {
            let reigns = tx.open_table(META)?.get("term")?.map(|v| v.value()) == Some(term.revision);
            if reigns {
                tx.open_table(UNITS)?.insert(unit.unit.as_str(), unit.encode_to_vec().as_slice())?;
            }
            Ok(reigns)
        })?;
        if reigns { Ok(()) } else { Err(term_over(&unit.unit)) }
    }

    fn commit(&self, term: Term, stored: &Stored) -> Result<(), StoreError> {
        let (unit, epoch) = (stored.plan.unit.as_str(), stored.plan.epoch.0);
        let record = encode(stored);
        let refusal = self.write(|tx| {
            if tx.open_table(META)?.get("term")?.map(|v| v.value()) != Some(term.revision) {
                return Ok(Some(term_over(unit)));
            }
            let mut summaries = tx.open_table(SUMMARIES)?;
            let head = match summaries.range((unit, 0)..=(unit, u64::MAX))?.next_back() {
                Some(entry) => id_of(entry?.1.value()),
                None => None,
            };
            if !follows(head, &stored.plan) {
                let head = head.map_or("none".to_owned(), |(e, d)| format!("{e} ({})", d.short()));
                return Ok(Some(StoreError::Conflict { unit: unit.to_owned(), head }));
            }
            let mut plans = tx.open_table(PLANS)?;
            plans.insert((unit, epoch), record.as_slice())?;
            summaries.insert((unit, epoch), stored.summary.encode_to_vec().as_slice())?;
            let oldest_kept = (epoch + 1).saturating_sub(PLANS_KEPT);
            plans.retain_in((unit, 0)..(unit, oldest_kept), |_, _| false)?;
            summaries.retain_in((unit, 0)..(unit, oldest_kept), |_, _| false)?;
            Ok(None)
        })?;
        refusal.map_or(Ok(()), Err)
    }

    fn head(&self, unit: &UnitId) -> Result<Option<Stored>, StoreError> {
        let unit = unit.as_str();
        let record = self.read(|tx| {
            let plans = tx.open_table(PLANS)?;
            let last = plans.range((unit, 0)..=(unit, u64::MAX))?.next_back();
            last.map(|entry| Ok(entry?.1.value().to_vec())).transpose()
        })?;
        record.map(|bytes| self.decode(&bytes)).transpose()
    }

    fn plan(&self, unit: &UnitId, epoch: Epoch) -> Result<Option<Stored>, StoreError> {
        let record = self.read(|tx| {
            Ok(tx.open_table(PLANS)?.get((unit.as_str(), epoch.0))?.map(|v| v.value().to_vec()))
        })?;
        record.map(|bytes| self.decode(&bytes)).transpose()
    }

    fn summaries(&self, unit: &UnitId, limit: usize) -> Result<Vec<v1::PlanSummary>, StoreError> {
        let unit = unit.as_str();
        let records: Vec<Vec<u8>> = self.read(|tx| {
            let table = tx.open_table(SUMMARIES)?;
            let newest = table.range((unit, 0)..=(unit, u64::MAX))?.rev().take(limit);
            newest.map(|entry| Ok(entry?.1.value().to_vec())).collect()
        })?;
        let decode = |bytes: &Vec<u8>| v1::PlanSummary::decode(bytes.as_slice()).map_err(|e| self.broken(e));
        records.iter().map(decode).collect()
    }
}

fn term_over(unit: &str) -> StoreError {
    StoreError::Conflict { unit: unit.to_owned(), head: "under a later term".to_owned() }
}
