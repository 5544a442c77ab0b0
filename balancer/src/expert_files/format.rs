//! Which format a plan's file has, and the way to its reader and writer.

use super::ascend::AscendLayer;
use super::error::{FileError, Place};
use super::evenkeel::SolvedLayer;
use super::expand::Expanded;
use super::loads::ending;
use super::plan_table::PlanTable;
use super::{ascend, disk, eplb, evenkeel, json, npy, sglang, tensorrt_llm, vllm};
use clap::ValueEnum;
use serde::Deserialize;
use std::path::Path;

/// A format of plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// JSON with placement, split and account
    Evenkeel,
    /// DeepSeek's EPLB: phy2log, log2phy and logcnt as JSON, or phy2log as .npy
    Eplb,
    /// vLLM's physical_to_logical_map as JSON or .npy; empty slots are -1
    Vllm,
    /// SGLang's --init-expert-location JSON; a row for every layer of the model
    Sglang,
    /// TensorRT-LLM's YAML for moe_config.load_balancer
    TensorrtLlm,
    /// vLLM-Ascend's expert map file (JSON)
    VllmAscend,
}

impl Format {
    /// As it is written on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Evenkeel => "evenkeel",
            Self::Eplb => "eplb",
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::TensorrtLlm => "tensorrt-llm",
            Self::VllmAscend => "vllm-ascend",
        }
    }

    /// The key that a JSON file of this format is known by.
    fn key(self) -> &'static str {
        match self {
            Self::Evenkeel => "physical_to_logical",
            Self::Eplb => "phy2log",
            Self::Vllm | Self::Sglang => "physical_to_logical_map",
            Self::TensorrtLlm => "initial_global_assignments",
            Self::VllmAscend => "layer_list",
        }
    }

    /// Whether the format says how the load is split.
    pub(crate) fn holds_split(self) -> bool {
        self == Self::Evenkeel
    }

    /// Whether the format says which layers of the model its rows are.
    pub(crate) fn holds_layer_ids(self) -> bool {
        matches!(self, Self::Evenkeel | Self::Sglang | Self::TensorrtLlm)
    }
}

/// The keys of all JSON formats; other keys are passed over.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct JsonPlan {
    pub(super) physical_to_logical: Option<Vec<Vec<i64>>>,
    pub(super) split: Option<Vec<Vec<f64>>>,
    pub(super) layers: Option<Vec<SolvedLayer>>,
    pub(super) solve_ms: Option<f64>,
    pub(super) gpus: Option<usize>,
    pub(super) nodes: Option<usize>,
    pub(super) rank_slots: Option<Vec<u16>>,
    pub(super) rank_speeds: Option<Vec<f64>>,
    pub(super) layer_ids: Option<Vec<usize>>,
    pub(super) physical_to_logical_map: Option<Vec<Vec<i64>>>,
    pub(super) phy2log: Option<Vec<Vec<i64>>>,
    pub(super) log2phy: Option<Vec<Vec<Vec<i64>>>>,
    pub(super) logcnt: Option<Vec<Vec<i64>>>,
    pub(super) moe_layer_count: Option<usize>,
    pub(super) layer_list: Option<Vec<AscendLayer>>,
}

impl JsonPlan {
    /// The formats whose key is there.
    fn formats(&self) -> Vec<Format> {
        let there = [
            (self.physical_to_logical.is_some(), Format::Evenkeel),
            (self.phy2log.is_some(), Format::Eplb),
            (self.physical_to_logical_map.is_some(), Format::Vllm),
            (self.layer_list.is_some(), Format::VllmAscend),
        ];
        there.into_iter().filter_map(|(there, format)| there.then_some(format)).collect()
    }
}

/// Reads a plan. Without a format, the ending and the keys of the file tell it.
pub(crate) fn read_plan(path: &Path, format: Option<Format>) -> Result<PlanTable, FileError> {
    let name = path.display().to_string();
    let bytes = disk::read(path)?;
    match ending(path).as_str() {
        "npy" => read_npy(&name, &bytes, format),
        "yaml" | "yml" => match format {
            None | Some(Format::TensorrtLlm) => tensorrt_llm::read(&name, &bytes),
            Some(other) => Err(wrong_format(&name, other, "a .yaml file is of tensorrt-llm")),
        },
        "json" => read_json(&name, &bytes, format),
        // A file without one of these endings is what the format has by default.
        _ => match format {
            Some(Format::TensorrtLlm) => tensorrt_llm::read(&name, &bytes),
            _ => read_json(&name, &bytes, format),
        },
    }
}

fn wrong_format(path: &str, wanted: Format, found: &str) -> FileError {
    FileError::malformed(path, Place::Whole, format!("{found}, and --from says {}", wanted.name()))
}

fn read_npy(path: &str, bytes: &[u8], format: Option<Format>) -> Result<PlanTable, FileError> {
    if let Some(other @ (Format::Evenkeel | Format::Sglang | Format::TensorrtLlm | Format::VllmAscend)) =
        format
    {
        return Err(wrong_format(path, other, "a .npy file is of eplb or vllm"));
    }
    let array = npy::parse(path, bytes)?;
    if !array.integer {
        return Err(FileError::plan(
            path,
            Place::Whole,
            "expert ids must be integers, and the array has floats",
        ));
    }
    let rows: Vec<Vec<i64>> =
        array.rows.iter().map(|row| row.iter().map(|value| *value as i64).collect()).collect();
    let table = PlanTable::from_rows(path, &rows)?;
    match (format, table.empty_slot()) {
        (Some(Format::Eplb), Some((layer, slot))) => Err(eplb::empty_slot(path, layer, slot)),
        _ => Ok(table),
    }
}

fn read_json(path: &str, bytes: &[u8], format: Option<Format>) -> Result<PlanTable, FileError> {
    let plan: JsonPlan = json::parse(path, bytes, "a plan as one JSON object")?;
    let found = plan.formats();
    let same_key = |a: Format, b: Format| a.key() == b.key();
    let format = match (format, &found[..]) {
        (Some(wanted), _) if found.iter().any(|format| same_key(*format, wanted)) => wanted,
        (Some(wanted), _) => {
            let problem = format!("there is no {:?}, which a file of {} has", wanted.key(), wanted.name());
            return Err(FileError::malformed(path, Place::Whole, problem));
        }
        (None, [one]) => *one,
        (None, []) => {
            let problem = "no plan is recognised: it needs physical_to_logical (evenkeel), physical_to_logical_map (vllm, sglang), phy2log (eplb) or layer_list (vllm-ascend)";
            return Err(FileError::malformed(path, Place::Whole, problem));
        }
        (None, [first, second, ..]) => {
            let problem =
                format!("both {:?} and {:?} are there: say which by --from", first.key(), second.key());
            return Err(FileError::malformed(path, Place::Whole, problem));
        }
    };
    match format {
        Format::Evenkeel => evenkeel::read(path, plan),
        Format::Eplb => eplb::read(path, plan),
        Format::Vllm => vllm::read(path, plan),
        Format::Sglang => sglang::read(path, plan),
        Format::VllmAscend => ascend::read(path, plan),
        // No JSON has its key.
        Format::TensorrtLlm => tensorrt_llm::read(path, bytes),
    }
}

/// Whether a plan's file is to be a bare array, by its name.
pub(crate) fn wants_npy(path: &Path) -> bool {
    ending(path) == "npy"
}

/// The content of a plan's file, as a bare array or as text. `model_layers`: rows of an SGLang file, if more than the
/// last layer needs.
pub(crate) fn write_plan(
    table: &PlanTable,
    format: Format,
    npy: bool,
    model_layers: Option<usize>,
) -> Result<Vec<u8>, FileError> {
    match format {
        Format::Eplb if npy => eplb::write_npy(table),
        Format::Vllm if npy => vllm::write_npy(table),
        _ if npy => {
            let problem = format!("a .npy file is of eplb or vllm, and not of {}", format.name());
            Err(FileError::not_representable(Place::Whole, problem))
        }
        Format::Evenkeel => Ok(evenkeel::write(table)),
        Format::Eplb => eplb::write(table),
        Format::Vllm => vllm::write(table),
        Format::Sglang => sglang::write(table, model_layers),
        Format::TensorrtLlm => tensorrt_llm::write(table),
        Format::VllmAscend => ascend::write(table),
    }
}

/// The engine's own names for the two tables that dispatch goes by.
fn table_keys(format: Format) -> Option<(&'static str, &'static str)> {
    match format {
        Format::Vllm => Some((vllm::TABLE, vllm::COUNT)),
        Format::Sglang => Some((sglang::TABLE, sglang::COUNT)),
        _ => None,
    }
}

/// The content of a file of expanded tables, by the engine's names.
pub(crate) fn write_tables(
    table: &PlanTable,
    tables: &Expanded,
    format: Format,
    model_layers: Option<usize>,
) -> Result<Vec<u8>, FileError> {
    let Some((rows, counts)) = table_keys(format) else {
        return Err(FileError::not_representable(
            Place::Whole,
            format!("{} has no table to expand: --expand is for vllm and sglang", format.name()),
        ));
    };
    let padded = match format {
        Format::Sglang => sglang::spread_tables(table, tables, model_layers)?,
        _ => tables.padded(),
    };
    let counted: Vec<Vec<usize>> = padded
        .iter()
        .map(|layer| layer.iter().map(|row| row.iter().filter(|s| **s >= 0).count()).collect())
        .collect();
    Ok(json::object(&[(rows, json::rows(&padded)), (counts, json::rows(&counted))]))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JsonTables {
    logical_to_physical_map: Option<Vec<Vec<Vec<i64>>>>,
    logical_to_all_physical_map: Option<Vec<Vec<Vec<i64>>>>,
}

/// `[layers][experts][entries]`, -1 where a row is padded.
pub(crate) fn read_tables(path: &Path) -> Result<Vec<Vec<Vec<i64>>>, FileError> {
    let name = path.display().to_string();
    let tables: JsonTables = json::parse(&name, &disk::read(path)?, "expanded tables as one JSON object")?;
    tables.logical_to_physical_map.or(tables.logical_to_all_physical_map).ok_or_else(|| {
        let problem = format!("neither {:?} (vllm) nor {:?} (sglang) is there", vllm::TABLE, sglang::TABLE);
        FileError::malformed(&name, Place::Whole, problem)
    })
}
