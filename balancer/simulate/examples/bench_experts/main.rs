//! Expert placement: every planner on the same loads in one run.
//!
//!     make bench-experts [BENCH_ARGS="--json"]
//!
//! Imbalance is max over mean of the GPU loads, over all layers and seeds, as `score` judges it from the slots alone.
//! The 256-, 128- and 384-expert loads are synthetic; V2-Lite and Mixtral are recorded.

mod balance;
mod cases;
mod figures;
mod layout;

use cases::Inputs;
use clap::{Parser, ValueEnum};
use figures::Figures;
use std::path::PathBuf;

/// Compares planners of expert placements.
#[derive(Parser)]
struct Arguments {
    /// Folder of generated loads.
    #[arg(long)]
    loads: PathBuf,
    /// Print every figure as JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Only these parts; the goals need all of them.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Balance,
}

fn main() {
    let arguments = Arguments::parse();
    let inputs = Inputs::new(&arguments.loads);
    let mut figures = Figures::default();
    let table = balance::run(&inputs, &mut figures);
    if arguments.json {
        println!("{:#}", figures.json());
    } else {
        println!("{table}");
    }
    let _ = Part::Balance;
}
