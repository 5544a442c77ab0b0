//! DeepSeek's EPLB (`rebalance_experts`): `phy2log [L, P]`, `log2phy [L, E, X]` padded by -1, `logcnt [L, E]`. The
//! slots of rank `r` are the block `r * P / G .. (r + 1) * P / G`; there are no empty slots.

use super::error::{FileError, Place};
use super::format::JsonPlan;
use super::plan_table::PlanTable;
use super::{json, npy};

pub(super) fn empty_slot(path: &str, layer: usize, slot: usize) -> FileError {
    let problem = "the slot is empty (-1), and EPLB fills every slot: if the file is vLLM's, say --from vllm";
    FileError::plan(path, Place::LayerSlot(layer, slot), problem)
}

pub(super) fn read(path: &str, plan: JsonPlan) -> Result<PlanTable, FileError> {
    let table = PlanTable::from_rows(path, &plan.phy2log.unwrap_or_default())?;
    if let Some((layer, slot)) = table.empty_slot() {
        return Err(empty_slot(path, layer, slot));
    }
    let slots = log2phy(&table);
    // The other two say the same again; a file whose parts disagree was damaged or patched by hand.
    if plan.log2phy.is_some_and(|given| without_padding(given) != slots) {
        return Err(FileError::plan(
            path,
            Place::Whole,
            "log2phy does not agree with phy2log: leave it out, or write the file again",
        ));
    }
    let counts: Vec<Vec<i64>> = logcnt(&slots);
    if plan.logcnt.is_some_and(|given| given != counts) {
        return Err(FileError::plan(
            path,
            Place::Whole,
            "logcnt does not agree with phy2log: leave it out, or write the file again",
        ));
    }
    Ok(table)
}

pub(super) fn write(table: &PlanTable) -> Result<Vec<u8>, FileError> {
    check(table)?;
    let slots = log2phy(table);
    let counts = logcnt(&slots);
    let longest = slots.iter().flatten().map(Vec::len).max().unwrap_or(0);
    let padded: Vec<Vec<Vec<i64>>> =
        slots.into_iter().map(|layer| layer.into_iter().map(|row| pad(row, longest)).collect()).collect();
    let members = [
        ("phy2log", json::rows(&table.rows())),
        ("log2phy", json::rows(&padded)),
        ("logcnt", json::rows(&counts)),
    ];
    Ok(json::object(&members))
}

pub(super) fn write_npy(table: &PlanTable) -> Result<Vec<u8>, FileError> {
    check(table)?;
    Ok(npy::write(&table.rows()))
}

fn check(table: &PlanTable) -> Result<(), FileError> {
    table.refuse_empty_slots("EPLB")?;
    table.refuse_uneven_ranks("EPLB")
}

/// `[layers][experts][replicas]`.
fn log2phy(table: &PlanTable) -> Vec<Vec<Vec<i64>>> {
    let experts = table.experts();
    let of_layer = |row: &Vec<Option<evenkeel_core::ids::ExpertId>>| {
        let mut slots = vec![Vec::new(); experts];
        for (slot, held) in (0..).zip(row) {
            if let Some(expert) = held {
                slots[expert.index()].push(slot);
            }
        }
        slots
    };
    table.physical_to_logical.iter().map(of_layer).collect()
}

fn logcnt(slots: &[Vec<Vec<i64>>]) -> Vec<Vec<i64>> {
    slots.iter().map(|layer| layer.iter().map(|row| row.len() as i64).collect()).collect()
}

/// The order of an expert's replicas says nothing.
fn without_padding(tables: Vec<Vec<Vec<i64>>>) -> Vec<Vec<Vec<i64>>> {
    let clean = |mut row: Vec<i64>| {
        row.retain(|slot| *slot != -1);
        row.sort_unstable();
        row
    };
    tables.into_iter().map(|layer| layer.into_iter().map(clean).collect()).collect()
}

fn pad(mut row: Vec<i64>, length: usize) -> Vec<i64> {
    row.resize(length, -1);
    row
}
