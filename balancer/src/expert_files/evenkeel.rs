//! Evenkeel's own plan: JSON with the placement, the split, the account of every layer, and the GPUs it is for.

use super::error::{FileError, Place};
use super::format::JsonPlan;
use super::json;
use super::plan_table::{Account, PlanTable, Ranks};
use serde::{Deserialize, Serialize};

/// The account of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SolvedLayer {
    /// Max over mean of the GPUs' loads by speed.
    pub(crate) imbalance: f64,
    /// What no placement in these slots can better.
    pub(crate) bound: f64,
    /// Experts that a GPU must fetch.
    pub(crate) moves: usize,
    /// Of those, from another node; where there are nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node_moves: Option<usize>,
}

pub(super) fn read(path: &str, plan: JsonPlan) -> Result<PlanTable, FileError> {
    let rows = plan.physical_to_logical.unwrap_or_default();
    let mut table = PlanTable::from_rows(path, &rows)?;
    table.ranks = ranks(path, table.slots(), plan.gpus, plan.nodes, plan.rank_slots, plan.rank_speeds)?;
    if let Some(share) = plan.split {
        table.set_share(path, share)?;
    }
    if let Some(ids) = plan.layer_ids {
        table.set_layer_ids(path, ids)?;
    }
    if let (Some(layers), Some(solve_ms)) = (plan.layers, plan.solve_ms) {
        if layers.len() != table.layers() {
            let problem =
                format!("\"layers\" has {} entries, and the placement {}", layers.len(), table.layers());
            return Err(FileError::plan(path, Place::Whole, problem));
        }
        table.account = Some(Account { layers, solve_ms });
    }
    Ok(table)
}

fn ranks(
    path: &str,
    slots: usize,
    gpus: Option<usize>,
    nodes: Option<usize>,
    rank_slots: Option<Vec<u16>>,
    rank_speeds: Option<Vec<f64>>,
) -> Result<Option<Ranks>, FileError> {
    let bad = |problem: String| Err(FileError::plan(path, Place::Whole, problem));
    let mut ranks = match (gpus, rank_slots) {
        (None, None) => return Ok(None),
        (_, Some(each)) if each.iter().map(|slots| usize::from(*slots)).sum::<usize>() != slots => {
            return bad(format!("rank_slots must sum to the {slots} slots of the placement"));
        }
        (_, Some(each)) => Ranks { speeds: vec![1.0; each.len()], slots: each, nodes: 1 },
        (Some(gpus), None) if gpus == 0 || !slots.is_multiple_of(gpus) => {
            return bad(format!("{slots} slots do not divide over {gpus} GPUs, and there are no rank_slots"));
        }
        (Some(gpus), None) => Ranks::equal(gpus, slots),
    };
    let count = ranks.slots.len();
    if gpus.is_some_and(|gpus| gpus != count) {
        return bad(format!("rank_slots has {count} entries, and gpus says otherwise"));
    }
    if let Some(speeds) = rank_speeds {
        if speeds.len() != count || !speeds.iter().all(|speed| speed.is_finite() && *speed > 0.0) {
            return bad(format!("rank_speeds must be {count} numbers above 0"));
        }
        ranks.speeds = speeds;
    }
    ranks.nodes = nodes.unwrap_or(1);
    if ranks.nodes == 0 || !count.is_multiple_of(ranks.nodes) {
        return bad(format!("{count} GPUs do not divide over {} nodes", ranks.nodes));
    }
    Ok(Some(ranks))
}

pub(super) fn write(table: &PlanTable) -> Vec<u8> {
    let mut members = Vec::new();
    if let Some(ranks) = &table.ranks {
        members.push(("gpus", ranks.slots.len().to_string()));
        if ranks.nodes > 1 {
            members.push(("nodes", ranks.nodes.to_string()));
        }
        if ranks.slots_each().is_none() {
            members.push(("rank_slots", json::text(&ranks.slots)));
        }
        if ranks.speeds.iter().any(|speed| *speed != 1.0) {
            members.push(("rank_speeds", json::text(&ranks.speeds)));
        }
    }
    if let Some(ids) = &table.layer_ids {
        members.push(("layer_ids", json::text(ids)));
    }
    members.push(("physical_to_logical", json::rows(&table.rows())));
    // Without a split the replicas share evenly, and a reader should not have to know that.
    members.push(("split", json::rows(&table.effective_share())));
    if let Some(account) = &table.account {
        members.push(("layers", json::rows(&account.layers)));
        members.push(("solve_ms", json::text(&account.solve_ms)));
    }
    json::object(&members)
}
