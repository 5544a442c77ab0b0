//! SGLang's `--init-expert-location`: `{"physical_to_logical_map": [[...]]}` with a row for every layer of the model,
//! dense ones too (61 for DeepSeek-V3, of which 3 to 60 have experts). No empty slots: -1 would be taken for the last
//! expert. The file's keys become arguments of SGLang's loader, so it may hold no others.
//!
//! Dispatch goes by `logical_to_all_physical_map [L, E, X]` and `logical_to_all_physical_map_num_valid [L, E]`.

use super::error::{FileError, Place};
use super::expand::Expanded;
use super::format::JsonPlan;
use super::json;
use super::plan_table::PlanTable;

pub(super) const TABLE: &str = "logical_to_all_physical_map";
pub(super) const COUNT: &str = "logical_to_all_physical_map_num_valid";

pub(super) fn read(path: &str, plan: JsonPlan) -> Result<PlanTable, FileError> {
    let table = PlanTable::from_rows(path, &plan.physical_to_logical_map.unwrap_or_default())?;
    match table.empty_slot() {
        None => Ok(table),
        Some((layer, slot)) => {
            let problem =
                "the slot is empty (-1), and SGLang fills every slot: if the file is vLLM's, say --from vllm";
            Err(FileError::plan(path, Place::LayerSlot(layer, slot), problem))
        }
    }
}

pub(super) fn write(table: &PlanTable, model_layers: Option<usize>) -> Result<Vec<u8>, FileError> {
    table.refuse_empty_slots("SGLang")?;
    table.refuse_uneven_ranks("SGLang")?;
    let experts = table.experts() as i64;
    let dense: Vec<i64> = (0..table.slots() as i64).map(|slot| slot % experts).collect();
    let rows = spread(table, table.rows(), &dense, model_layers)?;
    Ok(json::object(&[("physical_to_logical_map", json::rows(&rows))]))
}

/// Puts a row per MoE layer where the layer stands in the model; dense layers, which never look, get `dense`.
fn spread<T: Clone>(
    table: &PlanTable,
    rows: Vec<T>,
    dense: &T,
    model_layers: Option<usize>,
) -> Result<Vec<T>, FileError> {
    let Some(ids) = &table.layer_ids else {
        return match model_layers {
            Some(layers) if layers != rows.len() => Err(FileError::not_representable(
                Place::Whole,
                format!(
                    "{} rows do not say which of the model's {layers} layers they are: add --moe-layers",
                    rows.len()
                ),
            )),
            _ => Ok(rows),
        };
    };
    let needed = ids.last().map_or(0, |last| last + 1);
    let layers = model_layers.unwrap_or(needed);
    if layers < needed {
        let problem =
            format!("--model-layers {layers}: the plan has layer {}: use at least {needed}", needed - 1);
        return Err(FileError::not_representable(Place::Whole, problem));
    }
    let mut all = vec![dense.clone(); layers];
    for (&id, row) in ids.iter().zip(rows) {
        all[id] = row;
    }
    Ok(all)
}

/// The padded tables, a row for every layer of the model.
pub(super) fn spread_tables(
    table: &PlanTable,
    tables: &Expanded,
    model_layers: Option<usize>,
) -> Result<Vec<Vec<Vec<i64>>>, FileError> {
    let experts = table.experts();
    let padded = tables.padded();
    let length = padded[0][0].len();
    let one = |expert: usize| {
        let mut row = vec![-1; length];
        row[0] = expert as i64;
        row
    };
    spread(table, padded, &(0..experts).map(one).collect(), model_layers)
}
