//! Expert placement: every planner on the same loads in one run.
//!
//!     make bench-experts [BENCH_ARGS="--json"]
//!
//! Imbalance is max over mean of the GPU loads, over all layers and seeds, as `score` judges it from the slots alone.
//! The 256-, 128- and 384-expert loads are synthetic; V2-Lite and Mixtral are recorded.

mod balance;
mod cases;
mod drift;
mod figures;
mod goals;
mod groups;
mod layout;
mod migration;
mod recorded;
mod timing;

use cases::Inputs;
use clap::{Parser, ValueEnum};
use comfy_table::Table;
use figures::Figures;
use serde_json::json;
use std::path::PathBuf;

/// Compares planners of expert placements.
#[derive(Parser)]
struct Arguments {
    /// Folder of generated loads; the yardstick is compiled into its folder `greedy`.
    #[arg(long)]
    loads: PathBuf,
    /// Print every figure as JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Only these parts, and the goals that they measure.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Balance,
    Groups,
    Drift,
    Noise,
    Recorded,
    Migration,
    Time,
}

impl Part {
    fn title(self) -> &'static str {
        match self {
            Part::Balance => {
                "BALANCE  max over mean of the GPU loads, over layers and seeds 0-2; in sample, and in the next window (drift 10 %). Synthetic loads.\nSplit: Evenkeel's shares; for peers, who split evenly, the best split of their map. Fixed: as planned (peers: even). Held-out seed: mean as used."
            }
            Part::Groups => {
                "GROUPS AND NODES  8 groups on 4 nodes: imbalance as used, and what leaves the node that holds most of a group"
            }
            Part::Migration => {
                "MIGRATION  a running unit from its first placement, by plans that fill only spare slots; each plan checked"
            }
            Part::Drift => {
                "RE-PLANNING  after a drift: imbalance as used (peers: even split), what GPUs must fetch per layer, bytes over all layers (44 MB an expert)"
            }
            Part::Noise => "BATCHES  plan for the mean, split re-solved for every batch; 8 batches a seed",
            Part::Recorded => "RECORDED ROUTING  in sample, and in the next window",
            Part::Time => {
                "TIME  ms for all layers, everyone in turn; least and median over turns of 20 solves, of which the best counts, as greedy.c counts"
            }
        }
    }
}

fn main() {
    let arguments = Arguments::parse();
    let inputs = Inputs::new(&arguments.loads);
    let mut figures = Figures::default();
    let halves = recorded::halves();
    let mut tables: Vec<(Part, Table)> = Vec::new();
    for part in Part::value_variants() {
        if !arguments.only.is_empty() && !arguments.only.contains(part) {
            continue;
        }
        let table = match part {
            Part::Balance => balance::run(&inputs, &mut figures),
            Part::Groups => groups::run(&inputs, &mut figures),
            Part::Migration => migration::run(&inputs, &halves, &mut figures),
            Part::Drift => drift::run(&inputs, &recorded::domains(), &mut figures),
            Part::Noise => drift::noise(&inputs, &mut figures),
            Part::Recorded => {
                let pairs = [halves.clone(), recorded::domains(), recorded::subjects()].concat();
                recorded::run(&pairs, &mut figures)
            }
            Part::Time => timing::run(&inputs, &arguments.loads.join("greedy"), &mut figures),
        };
        tables.push((*part, table));
    }
    let goals = goals::all(&figures, &halves);
    let whole = arguments.only.is_empty();
    assert!(
        !whole || goals.iter().all(goals::Goal::is_measured),
        "a goal names a figure that no part measures"
    );
    if arguments.json {
        println!(
            "{:#}",
            json!({"machine": machine(), "figures": figures.json(), "goals": goals::json(&goals)})
        );
        return;
    }
    println!("{}\n", machine());
    for (part, table) in tables {
        println!("{}\n{table}\n", part.title());
    }
    println!("GOALS\n{}", goals::table(goals.iter().filter(|goal| goal.is_measured())));
}

/// What the times were taken on, as far as the system says.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = about.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    format!("{cores} cores, {}", model.map_or("unknown processor", |(_, model)| model))
}
