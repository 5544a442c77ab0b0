//! `evenkeel experts score`.

use super::evaluate::{Balance, balance};
use super::gpus::{PlanGpus, deployment};
use super::plan_input::{in_file, loads, plan_for};
use super::table::{add_row, show, table};
use super::{Failure, Output, layers, refused};
use clap::Args;
use evenkeel_core::experts::{ExpertLoads, PlanOptions, resplit_layers};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Show how evenly plans balance given loads.
///
/// Imbalance is the fullest GPU's load over the mean, by speed; 1 is balanced. It is computed from the plan's tables
/// alone: with the plan's own split, with replicas that share evenly, and with the best split of the same placement
/// for these loads (no weight moved). The bound is what no placement in these slots can better.
#[derive(Args)]
#[command(after_help = "Examples:
  The plan in service under the next window's loads
    evenkeel experts score --loads next.npy --plan plan.json
  Side by side with the plan of another planner, whose file does not tell the GPUs
    evenkeel experts score --loads next.npy --plan plan.json eplb.npy --gpus 32")]
pub(super) struct Score {
    /// Loads (.npy, .csv or .json)
    #[arg(long, value_name = "FILE")]
    loads: PathBuf,
    /// Plans, in any format
    #[arg(long, value_name = "PLAN", required = true, num_args = 1..=32)]
    plan: Vec<PathBuf>,
    #[command(flatten)]
    gpus: PlanGpus,
    /// Layers of the model that have experts, such as 3-60, where a file has a row for every layer
    #[arg(long, value_name = "LAYERS")]
    moe_layers: Option<String>,
    /// Show every layer
    #[arg(long)]
    per_layer: bool,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

impl Score {
    pub(super) fn run(self) -> Result<(), Failure> {
        let moe_layers = self.moe_layers.as_deref().map(layers::parse).transpose()?;
        let loads = loads(&self.loads, moe_layers.as_deref())?;
        let score = |path: &PathBuf| score(path, &loads, moe_layers.as_deref(), &self.gpus);
        let scores = self.plan.iter().map(score).collect::<Result<Vec<_>, _>>()?;
        match self.output {
            Output::Json => show(&format!("{:#}", Value::from_iter(scores.iter().map(Scored::json)))),
            Output::Table if self.per_layer => show(&layers_table(&scores)),
            Output::Table => show(&plans_table(&scores)),
        }
    }
}

/// One plan under the loads.
struct Scored {
    name: String,
    /// With the plan's split; `None`: the file holds none.
    own: Option<Balance>,
    even: Balance,
    resolved: Balance,
    bound: Balance,
}

fn score(
    path: &Path,
    loads: &ExpertLoads,
    moe_layers: Option<&[usize]>,
    gpus: &PlanGpus,
) -> Result<Scored, Failure> {
    let name = path.display().to_string();
    let plan = plan_for(path, loads, moe_layers)?;
    if let Some((layer, expert)) = plan.missing(loads.experts()) {
        let problem = format!(
            "{name}: expert {expert} of layer {layer} is in no slot, and the loads have {} experts",
            loads.experts()
        );
        return Err(refused("experts_plan_incomplete", problem));
    }
    let deployment = deployment(&gpus.ranks(&name, &plan)?, 1)?;
    let placement = &plan.physical_to_logical;
    let resolved = resplit_layers(&deployment, loads, placement, &PlanOptions::default())
        .map_err(|error| in_file(&name, error.into()))?;
    let held: Vec<_> = resolved.iter().map(|layer| layer.physical_to_logical.clone()).collect();
    let share: Vec<_> = resolved.iter().map(|layer| layer.share.clone()).collect();
    Ok(Scored {
        own: plan.share.as_ref().map(|share| balance(&deployment, loads, placement, share)),
        even: balance(&deployment, loads, placement, &plan.even_share()),
        resolved: balance(&deployment, loads, &held, &share),
        bound: Balance { layers: resolved.iter().map(|layer| layer.bound).collect() },
        name,
    })
}

impl Scored {
    fn columns(&self) -> [Option<&Balance>; 4] {
        [self.own.as_ref(), Some(&self.even), Some(&self.resolved), Some(&self.bound)]
    }

    fn json(&self) -> Value {
        let figures = |balance: &Balance| {
            let (worst_layer, worst) = balance.worst();
            json!({"mean": balance.mean(), "worst": worst, "worst_layer": worst_layer, "layers": balance.layers})
        };
        json!({
            "plan": self.name,
            "own_split": self.own.as_ref().map(figures),
            "even_split": figures(&self.even),
            "resolved_split": figures(&self.resolved),
            "bound": figures(&self.bound),
        })
    }
}

fn ratio(value: f64) -> String {
    format!("{value:.4}")
}

fn plans_table(scores: &[Scored]) -> String {
    let header =
        ["PLAN", "OWN SPLIT", "worst", "EVEN SPLIT", "worst", "RE-SOLVED", "worst", "BOUND", "worst"];
    let mut table = table(&header);
    for score in scores {
        let pair = |balance: Option<&Balance>| match balance {
            Some(balance) => [ratio(balance.mean()), ratio(balance.worst().1)],
            None => ["-".to_owned(), "-".to_owned()],
        };
        let cells = score.columns().into_iter().flat_map(pair);
        add_row(&mut table, std::iter::once(score.name.clone()).chain(cells));
    }
    table.to_string()
}

fn layers_table(scores: &[Scored]) -> String {
    let mut table = table(&["PLAN", "LAYER", "OWN SPLIT", "EVEN SPLIT", "RE-SOLVED", "BOUND"]);
    for score in scores {
        for layer in 0..score.even.layers.len() {
            let cell = |balance: Option<&Balance>| balance.map_or("-".to_owned(), |b| ratio(b.layers[layer]));
            let cells = score.columns().into_iter().map(cell);
            add_row(&mut table, [score.name.clone(), layer.to_string()].into_iter().chain(cells));
        }
    }
    table.to_string()
}
