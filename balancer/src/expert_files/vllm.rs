//! vLLM's `physical_to_logical_map [L, P]` (int64): MoE layers only, -1 in empty slots. Dispatch goes by
//! `logical_to_physical_map [L, E, X]` and `logical_replica_count [L, E]`: entry `n mod count` for the n-th token.

use super::error::FileError;
use super::format::JsonPlan;
use super::plan_table::PlanTable;
use super::{json, npy};

pub(super) const TABLE: &str = "logical_to_physical_map";
pub(super) const COUNT: &str = "logical_replica_count";

pub(super) fn read(path: &str, plan: JsonPlan) -> Result<PlanTable, FileError> {
    PlanTable::from_rows(path, &plan.physical_to_logical_map.unwrap_or_default())
}

pub(super) fn write(table: &PlanTable) -> Result<Vec<u8>, FileError> {
    table.refuse_uneven_ranks("vLLM")?;
    Ok(json::object(&[("physical_to_logical_map", json::rows(&table.rows()))]))
}

pub(super) fn write_npy(table: &PlanTable) -> Result<Vec<u8>, FileError> {
    table.refuse_uneven_ranks("vLLM")?;
    Ok(npy::write(&table.rows()))
}
