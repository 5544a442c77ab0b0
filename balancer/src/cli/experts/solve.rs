//! `evenkeel experts solve`.

use super::current::on_gpus;
use super::evaluate::Balance;
use super::gpus::Gpus;
use super::moves::{Change, change};
use super::plan_input::{in_file, loads, plan_for};
use super::table::show;
use super::verify::{Allowed, verify};
use super::{Failure, Output, layers, refused};
use crate::expert_files::{Account, Format, PlanTable, Ranks, SolvedLayer, write_plan, write_whole};
use clap::Args;
use evenkeel_core::experts::{
    Deployment, ExpertLoads, PlanOptions, PlannedLayer, SplitKind, plan_layers, resplit_layers,
};
use evenkeel_core::ids::ExpertId;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Most threads: far more than layers can use.
const THREADS_MAX: u64 = 1024;

/// Plan the placement and the split of all layers.
///
/// Loads are [layers][experts] as .npy, .csv or .json (SGLang's {"logical_count": ...} too). The plan is JSON:
/// physical_to_logical (-1 is an empty slot), split (the part of its expert's load that a slot gets), layers with
/// imbalance, bound and moves, and solve_ms, the wall time of the solve alone. It is checked before it is written,
/// and written whole or not at all. A summary goes to stderr.
#[derive(Args)]
#[command(after_help = "Examples:
  DeepSeek-V3 prefill on 32 GPUs, one redundant expert on each
    evenkeel experts solve --loads loads.npy --gpus 32 --slots 288 --plan-out plan.json
  The same after a drift: at most 8 fetched experts a layer
    evenkeel experts solve --loads now.npy --gpus 32 --slots 288 --current plan.json --max-moves 8 --plan-out next.json
  Only a new split, no weight moved
    evenkeel experts solve --loads now.npy --gpus 32 --slots 288 --current plan.json --max-moves 0 --plan-out -
  The last of the 32 GPUs is dead: its experts go to the others
    evenkeel experts solve --loads now.npy --rank-slots 9x31,0 --current plan.json --plan-out next.json")]
pub(super) struct Solve {
    /// Loads (.npy, .csv or .json)
    #[arg(long, value_name = "FILE")]
    loads: PathBuf,
    #[command(flatten)]
    gpus: Gpus,
    /// The plan in service, in any format. If it is for GPUs of other slots, each is taken to hold what fits, and new
    /// ones are empty [default: plan from nothing]
    #[arg(long, value_name = "PLAN")]
    current: Option<PathBuf>,
    /// Most experts of a layer that GPUs may fetch because they do not hold them [default: no bound]
    #[arg(long, value_name = "M", requires = "current")]
    max_moves: Option<usize>,
    /// Of those, most that may come from another node [default: no bound]
    #[arg(long, value_name = "M", requires = "current")]
    max_node_moves: Option<usize>,
    /// Optimise for replicas that share evenly, as unmodified engines do
    #[arg(long)]
    even: bool,
    /// Threads; the plan does not depend on them
    #[arg(long, value_name = "T", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    threads: u64,
    /// How far above its optimum the split may stay to be nearer to the even one, as a ratio [default: 0.00005]
    #[arg(long, value_name = "RATIO", conflicts_with = "even")]
    tolerance: Option<f64>,
    /// Layers of the model that have experts, such as 3-60, where the loads have a row for every layer
    #[arg(long, value_name = "LAYERS")]
    moe_layers: Option<String>,
    /// Where to write the plan; - is stdout
    #[arg(long, value_name = "PLAN")]
    plan_out: PathBuf,
    /// Form of the summary: a table on stderr, or JSON on stdout
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

impl Solve {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.plan_out.as_os_str() == "-" && self.output == Output::Json {
            let problem = "--output json and --plan-out - both want stdout: name a file for the plan";
            return Err(refused("experts_flags", problem));
        }
        let options = self.options()?;
        let moe_layers = self.moe_layers.as_deref().map(layers::parse).transpose()?;
        let ranks = self.gpus.ranks(0)?;
        let deployment = self.gpus.deployment(&ranks)?;
        let loads = loads(&self.loads, moe_layers.as_deref())?;
        let current = match &self.current {
            Some(path) => Some(current(path, &plan_for(path, &loads, moe_layers.as_deref())?, &ranks)),
            None => None,
        };
        let begin = Instant::now();
        let planned = match (&current, options.moves_max) {
            // With no move allowed the placement stands, and only the split is new.
            (Some(current), Some(0)) => resplit_layers(&deployment, &loads, current, &options),
            _ => plan_layers(&deployment, &loads, current.as_deref(), &options),
        };
        let solve_ms = begin.elapsed().as_secs_f64() * 1e3;
        let planned = planned.map_err(|error| self.blame(error))?;
        let allowed = Allowed {
            deployment: &deployment,
            loads: &loads,
            current: current.as_deref(),
            moves_max: options.moves_max,
            node_moves_max: options.node_moves_max,
        };
        verify(&planned, &allowed)?;
        let changes: Option<Vec<Change>> = current.map(|current| {
            let pairs = current.iter().zip(&planned);
            pairs.map(|(from, layer)| change(&deployment, from, &layer.physical_to_logical)).collect()
        });
        let summary = Summary::new(&planned, &loads, &deployment, solve_ms, changes.as_deref());
        let table = plan_table(planned, changes.as_deref(), solve_ms, ranks, moe_layers);
        write_whole(&self.plan_out, &write_plan(&table, Format::Evenkeel, false, None)?)?;
        match self.output {
            Output::Json => show(&format!("{:#}", summary.json())),
            Output::Table => {
                eprintln!("{}", summary.text(options.threads));
                Ok(())
            }
        }
    }

    fn options(&self) -> Result<PlanOptions, Failure> {
        let mut options = PlanOptions {
            split: if self.even { SplitKind::Even } else { SplitKind::Weighted },
            moves_max: self.max_moves,
            node_moves_max: self.max_node_moves,
            threads: self.threads as usize,
            ..PlanOptions::default()
        };
        if let Some(tolerance) = self.tolerance {
            if !(0.0..=1.0).contains(&tolerance) {
                let problem =
                    format!("--tolerance {tolerance}: it must be 0 to 1; 0.001 is a tenth of a percent");
                return Err(refused("experts_flags", problem));
            }
            options.split_tolerance = tolerance;
        }
        Ok(options)
    }

    /// Errors about the current plan name its file.
    fn blame(&self, error: evenkeel_core::experts::InputError) -> Failure {
        let about_current = error.code().starts_with("experts_current");
        match &self.current {
            Some(path) if about_current => in_file(&path.display().to_string(), error.into()),
            _ => error.into(),
        }
    }
}

/// What the GPUs hold now.
fn current(path: &Path, plan: &PlanTable, ranks: &Ranks) -> Vec<Vec<Option<ExpertId>>> {
    if let Some(then) = plan.ranks.as_ref().filter(|then| then.slots != ranks.slots) {
        let (name, gpus) = (path.display(), then.slots.len());
        eprintln!("note: {name} is for {gpus} GPUs of other slots: each is taken to hold what fits");
    }
    on_gpus(plan, ranks)
}

/// The solved plan as it goes into the file.
fn plan_table(
    planned: Vec<PlannedLayer>,
    changes: Option<&[Change]>,
    solve_ms: f64,
    ranks: Ranks,
    layer_ids: Option<Vec<usize>>,
) -> PlanTable {
    let account = |(at, layer): (usize, &PlannedLayer)| SolvedLayer {
        imbalance: layer.imbalance,
        bound: layer.bound,
        moves: layer.moves,
        node_moves: (ranks.nodes > 1).then(|| changes.map_or(0, |changes| changes[at].between_nodes)),
    };
    let account = Account { layers: planned.iter().enumerate().map(account).collect(), solve_ms };
    let (placement, share) =
        planned.into_iter().map(|layer| (layer.physical_to_logical, layer.share)).unzip();
    PlanTable {
        physical_to_logical: placement,
        share: Some(share),
        layer_ids,
        ranks: Some(ranks),
        account: Some(account),
    }
}

/// What a person wants to know of a solve.
struct Summary {
    layers: usize,
    experts: usize,
    gpus: usize,
    slots: usize,
    imbalance: Balance,
    bound: Balance,
    /// Per layer: moves, and those between nodes; `None` without a current plan.
    moves: Option<Vec<(usize, usize)>>,
    solve_ms: f64,
}

impl Summary {
    fn new(
        planned: &[PlannedLayer],
        loads: &ExpertLoads,
        deployment: &Deployment,
        solve_ms: f64,
        changes: Option<&[Change]>,
    ) -> Self {
        Self {
            layers: loads.layers(),
            experts: loads.experts(),
            gpus: deployment.ranks().len(),
            slots: deployment.slots(),
            imbalance: Balance { layers: planned.iter().map(|layer| layer.imbalance).collect() },
            bound: Balance { layers: planned.iter().map(|layer| layer.bound).collect() },
            moves: changes.map(|changes| changes.iter().map(|c| (c.moves(), c.between_nodes)).collect()),
            solve_ms,
        }
    }

    fn text(&self, threads: usize) -> String {
        let Self { layers, experts, gpus, slots, .. } = self;
        let (worst, highest) = self.imbalance.worst();
        let (mean, bound) = (self.imbalance.mean(), self.bound.mean());
        let moves = match &self.moves {
            None => "none counted: planned from nothing".to_owned(),
            Some(moves) => {
                let total: usize = moves.iter().map(|(all, _)| all).sum();
                let between: usize = moves.iter().map(|(_, node)| node).sum();
                let most = moves.iter().map(|(all, _)| *all).max().unwrap_or(0);
                format!(
                    "{total} of {} slots, {between} between nodes, at most {most} in a layer",
                    layers * slots
                )
            }
        };
        format!(
            "{layers} layers x {experts} experts in {slots} slots on {gpus} GPUs\n\
             imbalance  mean {mean:.4}, worst {highest:.4} (layer {worst})\n\
             bound      mean {bound:.4}, worst {:.4}\n\
             moves      {moves}\n\
             solved in  {:.2} ms on {threads} thread{}",
            self.bound.worst().1,
            self.solve_ms,
            if threads == 1 { "" } else { "s" },
        )
    }

    fn json(&self) -> serde_json::Value {
        let (worst_layer, worst) = self.imbalance.worst();
        let moves = self.moves.as_deref().unwrap_or_default();
        json!({
            "layers": self.layers,
            "experts": self.experts,
            "gpus": self.gpus,
            "slots": self.slots,
            "imbalance": {"mean": self.imbalance.mean(), "worst": worst, "worst_layer": worst_layer},
            "bound": {"mean": self.bound.mean(), "worst": self.bound.worst().1},
            "moves": {
                "total": moves.iter().map(|(all, _)| all).sum::<usize>(),
                "between_nodes": moves.iter().map(|(_, node)| node).sum::<usize>(),
                "most_in_a_layer": moves.iter().map(|(all, _)| *all).max().unwrap_or(0),
            },
            "solve_ms": self.solve_ms,
        })
    }
}
