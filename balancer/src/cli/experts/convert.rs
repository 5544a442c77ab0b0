//! `evenkeel experts convert`.

use super::{Failure, layers, refused};
use crate::expert_files::{
    Format, PlanTable, Ranks, expand, read_plan, read_tables, shares_of_tables, wants_npy, write_plan,
    write_tables, write_whole,
};
use clap::Args;
use std::path::PathBuf;

/// Translate plans between Evenkeel and the engines.
///
/// What the wanted format cannot hold is said on stderr. Engines that know no split can have one all the same, if
/// their dispatch goes by a table: --expand fills up to so many entries per replicated expert in proportion to the
/// split. Such tables go to a file of their own, as the engines' loaders take the placement alone; whoever starts the
/// engine sets them in place of its own.
#[derive(Args)]
#[command(after_help = "Examples:
  For SGLang's --init-expert-location, DeepSeek-V3: 61 layers, of which 3 to 60 have experts
    evenkeel experts convert --from evenkeel --to sglang --moe-layers 3-60 plan.json location.json
  The same with the weighted split as tables of up to 64 entries
    evenkeel experts convert --from evenkeel --to sglang --moe-layers 3-60 --expand 64 --tables-out tables.json plan.json location.json
  For TensorRT-LLM's moe_config.load_balancer
    evenkeel experts convert --from evenkeel --to tensorrt-llm --moe-layers 3-60 plan.json moe_load_balancer.yaml
  From an EPLB array, with the GPUs, which it does not tell
    evenkeel experts convert --from eplb --to evenkeel --gpus 32 phy2log.npy plan.json")]
pub(super) struct Convert {
    /// Format of IN [default: as the file tells]
    #[arg(long, value_enum)]
    from: Option<Format>,
    /// Format of OUT
    #[arg(long, value_enum)]
    to: Format,
    /// GPUs that the slots belong to, in equal blocks [default: as IN tells]
    #[arg(long, value_name = "G")]
    gpus: Option<usize>,
    /// Layers of the model that have experts, such as 3-60: which rows of IN are meant, and where they go in OUT
    #[arg(long, value_name = "LAYERS")]
    moe_layers: Option<String>,
    /// Layers of the model in all, for sglang [default: up to the last that has experts]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=4096))]
    model_layers: Option<u64>,
    /// Expanded tables (vllm, sglang) to take the split of IN from
    #[arg(long, value_name = "FILE")]
    tables: Option<PathBuf>,
    /// Most entries for an expert in expanded tables (vllm, sglang), about 64; the engine must have as many columns
    #[arg(long, value_name = "N", requires = "tables_out", value_parser = clap::value_parser!(u64).range(2..=4096))]
    expand: Option<u64>,
    /// Where to write the expanded tables
    #[arg(long, value_name = "FILE", requires = "expand")]
    tables_out: Option<PathBuf>,
    /// The plan to translate
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Where to write it; - is stdout, and .npy is a bare array (eplb, vllm)
    #[arg(value_name = "OUT")]
    output: PathBuf,
}

impl Convert {
    pub(super) fn run(self) -> Result<(), Failure> {
        let plan = self.read()?;
        let model_layers = self.model_layers.map(|layers| layers as usize);
        let content = write_plan(&plan, self.to, wants_npy(&self.output), model_layers)?;
        // Both are made before either is written.
        let tables = match (self.expand, &self.tables_out) {
            (Some(entries), Some(path)) => {
                let name = self.input.display().to_string();
                if let Some((layer, expert)) = plan.missing(plan.experts()) {
                    let problem = format!("{name}: expert {expert} of layer {layer} is in no slot");
                    return Err(refused("experts_plan_incomplete", problem));
                }
                let expanded = expand(&plan, entries as usize);
                let content = write_tables(&plan, &expanded, self.to, model_layers)?;
                Some((path, content, expanded.error_max, expanded.error_mean))
            }
            _ => None,
        };
        self.warn(&plan, tables.is_some());
        if let Some((path, content, error_max, error_mean)) = tables {
            write_whole(path, &content)?;
            let entries = self.expand.unwrap_or(0);
            eprintln!(
                "tables of up to {entries} entries: shares are off by {error_max:.4} at most, {error_mean:.4} in the mean"
            );
        }
        Ok(write_whole(&self.output, &content)?)
    }

    fn read(&self) -> Result<PlanTable, Failure> {
        let name = self.input.display().to_string();
        let mut plan = read_plan(&self.input, self.from)?;
        let mut rows: Vec<usize> = (0..plan.layers()).collect();
        if let Some(list) = &self.moe_layers {
            let ids = layers::parse(list)?;
            rows = layers::rows_of(&ids, plan.layers(), &name)?;
            plan.keep_rows(&rows);
            plan.layer_ids = Some(ids);
        }
        if let Some(gpus) = self.gpus {
            let slots = plan.slots();
            let fits = plan.ranks.as_ref().is_none_or(|ranks| ranks.slots.len() == gpus);
            if gpus == 0 || !fits || (plan.ranks.is_none() && !slots.is_multiple_of(gpus)) {
                let problem = format!("{name}: --gpus {gpus} does not fit the plan's {slots} slots");
                return Err(refused("experts_plan_shape", problem));
            }
            plan.ranks.get_or_insert_with(|| Ranks::equal(gpus, slots));
        }
        if let Some(path) = &self.tables {
            let tables = read_tables(path)?;
            let name = path.display().to_string();
            // Tables of the MoE layers alone are in the plan's order.
            let rows = if tables.len() == plan.layers() { (0..plan.layers()).collect() } else { rows };
            let share = shares_of_tables(&name, &plan, &tables, &rows)?;
            plan.set_share(&name, share)?;
        }
        Ok(plan)
    }

    /// Says what OUT will not tell any more.
    fn warn(&self, plan: &PlanTable, expanded: bool) {
        let format = self.to.name();
        if plan.is_weighted() && !self.to.holds_split() && !expanded {
            let remedy = match self.to {
                Format::Vllm | Format::Sglang => "; --expand 64 --tables-out FILE writes it as tables",
                _ => "",
            };
            eprintln!("warning: {format} holds no split, and its replicas share evenly{remedy}");
        }
        if plan.layer_ids.is_some() && !self.to.holds_layer_ids() {
            eprintln!("warning: {format} does not tell which layers of the model its rows are");
        }
        let needs_ids = matches!(self.to, Format::Sglang | Format::TensorrtLlm);
        if needs_ids && plan.layer_ids.is_none() {
            eprintln!(
                "warning: rows are taken for layers 0 to {} of the model; if dense layers come first, add --moe-layers",
                plan.layers() - 1
            );
        }
        if plan.ranks.as_ref().is_some_and(|ranks| ranks.speeds.iter().any(|speed| *speed != ranks.speeds[0]))
            && self.to != Format::Evenkeel
        {
            eprintln!("warning: {format} does not tell the speeds of the GPUs");
        }
    }
}
