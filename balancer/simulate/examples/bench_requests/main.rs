//! Request balancing: every policy on the same requests in one run.
//!
//!     make bench-requests [BENCH_ARGS="--only decode,whole --seeds 4,5 --json"]
//!
//! Step times are modelled; arrivals are synthetic or recorded, as each table says.

mod chunked;
mod contenders;
mod decisions;
mod decode;
mod figures;
mod goals;
mod layout;
mod pooled;
mod staleness;
mod traces;
mod whole;
mod workload;

use clap::{Parser, ValueEnum};
use comfy_table::Table;
use figures::Figures;
use goals::Goal;
use serde_json::json;

/// Compares request policies.
#[derive(Parser)]
struct Arguments {
    /// Print every figure as JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Only these parts, and the goals that they measure.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Seeds of the workloads. 1 to 3 were tuned on. Recorded traces count on from the first as far as they need.
    #[arg(long, value_delimiter = ',', default_values_t = [4, 5])]
    seeds: Vec<u64>,
}

/// A part of the bench: one file, one table, its own goals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Whole,
    Chunked,
    Traces,
    Decode,
    Decisions,
    Staleness,
}

impl Part {
    fn title(self) -> &'static str {
        match self {
            Part::Whole => whole::TITLE,
            Part::Chunked => chunked::TITLE,
            Part::Traces => traces::TITLE,
            Part::Decode => decode::TITLE,
            Part::Decisions => decisions::TITLE,
            Part::Staleness => staleness::TITLE,
        }
    }

    fn run(self, arguments: &Arguments, figures: &mut Figures) -> Table {
        let seeds = &arguments.seeds[..];
        match self {
            Part::Whole => whole::run(seeds, figures),
            Part::Chunked => chunked::run(seeds, figures),
            Part::Traces => traces::run(seeds, figures),
            Part::Decode => decode::run(seeds, figures),
            Part::Decisions => decisions::run(seeds, figures),
            Part::Staleness => staleness::run(seeds, figures),
        }
    }

    fn goals(self, figures: &Figures) -> Vec<Goal> {
        match self {
            Part::Whole => whole::goals(figures),
            Part::Chunked => chunked::goals(figures),
            Part::Traces => traces::goals(figures),
            Part::Decode => decode::goals(figures),
            Part::Decisions => decisions::goals(figures),
            Part::Staleness => staleness::goals(figures),
        }
    }
}

fn main() {
    let arguments = Arguments::parse();
    let mut figures = Figures::default();
    let chosen = |part: &&Part| arguments.only.is_empty() || arguments.only.contains(part);
    let parts: Vec<Part> = Part::value_variants().iter().filter(chosen).copied().collect();
    let mut goals = Vec::new();
    for part in parts {
        let table = part.run(&arguments, &mut figures);
        goals.extend(part.goals(&figures));
        if !arguments.json {
            println!("{}\n{table}\n", part.title());
        }
    }
    if arguments.json {
        println!(
            "{:#}",
            json!({"seeds": arguments.seeds, "figures": figures.json(), "goals": goals::json(&goals)})
        );
        return;
    }
    println!("GOALS\n{}", goals::table(&goals));
}
