//! TensorRT-LLM's YAML for `moe_config.load_balancer`: `num_slots`, `initial_global_assignments` (layer of the model
//! -> expert of each slot) and `layer_updates_per_iter`, here 0: a static placement. It is a file of its own, or stands
//! within the options of the LLM API. No empty slots.

use super::error::{FileError, Place};
use super::plan_table::PlanTable;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Balancer {
    num_slots: Option<usize>,
    initial_global_assignments: Option<BTreeMap<usize, Vec<i64>>>,
    moe_config: Option<MoeConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MoeConfig {
    load_balancer: Option<Box<Balancer>>,
}

/// Most scalars of a file: 128 layers of 16,384 slots. The largest deployment known has 94 layers of 512.
const NODES_MAX: usize = 128 * 16_384;

pub(super) fn read(path: &str, bytes: &[u8]) -> Result<PlanTable, FileError> {
    let bad = |place, problem: String| FileError::malformed(path, place, problem);
    let text =
        std::str::from_utf8(bytes).map_err(|_| bad(Place::Whole, "this is not UTF-8 text".to_owned()))?;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_nodes: NODES_MAX, max_events: 2 * NODES_MAX, max_depth: 16 },
        with_snippet: false,
    };
    let mut balancer: Balancer = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let place = error
            .location()
            .map_or(Place::Whole, |at| Place::LineColumn(at.line() as usize, at.column() as usize));
        bad(place, format!("{}; expected TensorRT-LLM's load balancer", one_line(&error.to_string())))
    })?;
    if let Some(inner) = balancer.moe_config.take().and_then(|config| config.load_balancer) {
        balancer = *inner;
    }
    let Some(assignments) = balancer.initial_global_assignments else {
        return Err(bad(
            Place::Whole,
            "there is no initial_global_assignments: {layer: [expert of each slot]}".to_owned(),
        ));
    };
    let (ids, rows): (Vec<usize>, Vec<Vec<i64>>) = assignments.into_iter().unzip();
    let mut table = PlanTable::from_rows(path, &rows)?;
    if let Some((row, slot)) = table.empty_slot() {
        let problem = "the slot is empty (-1), and TensorRT-LLM fills every slot";
        return Err(FileError::plan(path, Place::LayerSlot(ids[row], slot), problem));
    }
    if let Some(slots) = balancer.num_slots.filter(|slots| *slots != table.slots()) {
        let problem = format!("num_slots is {slots}, and the layers have {}", table.slots());
        return Err(FileError::plan(path, Place::Whole, problem));
    }
    table.set_layer_ids(path, ids)?;
    Ok(table)
}

/// The parser's messages may draw the place on more lines.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The keys in the order of TensorRT-LLM's own generator.
pub(super) fn write(table: &PlanTable) -> Result<Vec<u8>, FileError> {
    table.refuse_empty_slots("TensorRT-LLM")?;
    table.refuse_uneven_ranks("TensorRT-LLM")?;
    let mut text = "initial_global_assignments:\n".to_owned();
    for (row, slots) in table.rows().iter().enumerate() {
        let id = table.layer_ids.as_ref().map_or(row, |ids| ids[row]);
        let slots: Vec<String> = slots.iter().map(i64::to_string).collect();
        let _ = writeln!(text, "  {id}: [{}]", slots.join(", "));
    }
    let _ = writeln!(text, "num_slots: {}\nlayer_updates_per_iter: 0", table.slots());
    Ok(text.into_bytes())
}
