//! Groups and nodes: what balance costs in load that leaves the node of its group.

use crate::cases::{Case, Inputs, PREFILL_GROUPS, SEEDS};
use crate::figures::{Figures, Spread};
use crate::layout::{new_table, percent, ratio, right};
use comfy_table::{Cell, Table};
use evenkeel_simulate::planner::{Evenkeel, Peer, Planner, Problem};
use evenkeel_simulate::score;

const CASES: [Case; 3] = [
    Case::new(PREFILL_GROUPS, "ln0.3"),
    Case::new(PREFILL_GROUPS, "ln0.5"),
    Case::new(PREFILL_GROUPS, "ln1.0"),
];

/// Experts, mean over layers, without a replica where their group is at home.
pub(crate) const AWAY: &str = "experts away from their group's node, mean";

pub(crate) fn run(inputs: &Inputs, figures: &mut Figures) -> Table {
    let mut table = new_table(&[
        "loads",
        "planner",
        "imbalance: mean",
        "worst",
        "experts away from their node",
        "load crossing",
    ]);
    let planners: [Box<dyn Planner>; 5] = [
        Box::new(Evenkeel::weighted()),
        Box::new(Evenkeel::even()),
        Box::new(Peer::Eplb),
        Box::new(Peer::SglangZigzag),
        Box::new(Peer::TensorRtLlm),
    ];
    for case in &CASES {
        let (deployment, name) = (case.unit.deployment(), format!("{}, by node", case.name()));
        for planner in &planners {
            let (mut used, mut away, mut crossing) =
                (Spread::default(), Spread::default(), Spread::default());
            for seed in SEEDS {
                let loads = inputs.base(case, seed);
                let problem = Problem { deployment: &deployment, loads: &loads, running: None };
                let plan = planner.plan(&problem, 1).expect("every planner takes the tables' units");
                for (layer, placed) in plan.iter().enumerate() {
                    let (slots, loads) = (&placed.slots, loads.layer(layer));
                    let share = placed.share.as_deref();
                    used.add(match share {
                        Some(share) => score::split_imbalance(&deployment, slots, share, loads),
                        None => score::even_imbalance(&deployment, slots, loads),
                    });
                    let locality = score::locality(&deployment, slots, share, loads);
                    away.add(locality.away as f64);
                    crossing.add(locality.crossing);
                }
            }
            figures.record(&name, planner.name(), "imbalance as used, mean", used.mean());
            figures.record(&name, planner.name(), AWAY, away.mean());
            figures.record(&name, planner.name(), "load crossing, part", crossing.mean());
            table.add_row([
                Cell::new(&name),
                Cell::new(planner.name()),
                ratio(used.mean()),
                ratio(used.worst()),
                right(format!("{:.1}", away.mean())),
                percent(crossing.mean()),
            ]);
        }
    }
    table
}
