//! Files of expert loads and of expert plans: Evenkeel's own, and those of the engines. Every reader is bounded,
//! names file and place of what it refuses, and takes nothing by halves; a plan is written whole or not at all.

mod ascend;
mod csv;
mod disk;
mod eplb;
mod error;
mod evenkeel;
mod expand;
mod format;
mod json;
mod loads;
mod npy;
mod plan_table;
#[cfg(test)]
mod round_trips;
mod sglang;
mod tensorrt_llm;
mod vllm;

pub(crate) use disk::{read, write_whole};
pub(crate) use error::FileError;
pub(crate) use evenkeel::SolvedLayer;
pub(crate) use expand::{expand, shares_of_tables};
pub(crate) use format::{Format, read_plan, read_tables, wants_npy, write_plan, write_tables};
pub(crate) use loads::read_loads;
pub(crate) use plan_table::{Account, PlanTable, Ranks};
