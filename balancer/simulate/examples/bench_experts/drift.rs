//! What follows a drift: how balanced the unit stays, and what it moves for that.

use crate::cases::{
    Case, DECODE, Inputs, KIMI, LARGE, PREFILL, PREFILL_GROUPS, QWEN3, SEEDS, TWO_REDUNDANT, WIDE,
};
use crate::figures::{Figures, Spread};
use crate::layout::{new_table, percent, ratio, right};
use crate::recorded::Pair;
use comfy_table::{Cell, Table};
use evenkeel_core::experts::{Deployment, ExpertLoads, PlanOptions, resplit_layers};
use evenkeel_simulate::planner::{Evenkeel, Peer, PlacedLayer, Planner, Problem, Running};
use evenkeel_simulate::score::{self, Change};

/// Bytes of one expert of DeepSeek-V3 in FP8: three matrices of 7168 x 2048. All units are counted with it.
const EXPERT_BYTES: f64 = 3.0 * 7168.0 * 2048.0;

/// Units whose drift the tables show, in percent.
const CASES: [(Case, &[u32]); 9] = [
    (Case::new(PREFILL, "ln0.5"), &[10, 20]),
    (Case::new(WIDE, "ln0.5"), &[10, 20]),
    (Case::new(TWO_REDUNDANT, "ln0.5"), &[10, 20]),
    (Case::new(PREFILL, "ln1.0"), &[10, 20]),
    (Case::new(PREFILL_GROUPS, "ln1.0"), &[10]),
    (Case::new(DECODE, "ln1.0"), &[10, 20]),
    (Case::new(QWEN3, "ln1.0"), &[10]),
    (Case::new(KIMI, "ln1.0"), &[10]),
    (Case::new(LARGE, "ln1.0"), &[10]),
];

/// How a row of the table follows the drift.
enum Follow {
    /// The old plan stays, and its even split.
    Stale,
    /// Evenkeel's split on the old placement.
    Resplit,
    /// The planner runs again.
    Replan(Box<dyn Planner>),
}

/// One row's way: how its first plan was made, and what follows.
struct Way {
    name: String,
    first: Box<dyn Planner>,
    follow: Follow,
}

fn ways() -> Vec<Way> {
    let mut ways = vec![Way {
        name: "Evenkeel, split re-solved".into(),
        first: Box::new(Evenkeel::weighted()),
        follow: Follow::Resplit,
    }];
    for (kind, own) in [("Evenkeel", Evenkeel::weighted()), ("Evenkeel --even", Evenkeel::even())] {
        for (budget, moves_max) in [("0 moves", Some(0)), ("8 moves", Some(8)), ("no budget", None)] {
            let options = PlanOptions { moves_max, ..own.options.clone() };
            let planner = Evenkeel { options, ..own.clone() };
            ways.push(Way {
                name: format!("{kind}, {budget}"),
                first: Box::new(own.clone()),
                follow: Follow::Replan(Box::new(planner)),
            });
        }
    }
    ways.push(Way { name: "EPLB, stale".into(), first: Box::new(Peer::Eplb), follow: Follow::Stale });
    for peer in Peer::ALL {
        if peer == Peer::EplbGlobal {
            continue;
        }
        // Both ways of running Swift start from its one plan.
        let first = if peer == Peer::SwiftAlways { Peer::Swift } else { peer };
        let again = if peer.repairs() { "" } else { " again" };
        ways.push(Way {
            name: format!("{}{again}", peer.name()),
            first: Box::new(first),
            follow: Follow::Replan(Box::new(peer)),
        });
    }
    ways
}

/// What came of one way.
#[derive(Default)]
pub(crate) struct Outcome {
    /// As the plan is used: by its shares, or evenly where it has none.
    used: Spread,
    /// With the best split of its placement.
    best: Spread,
    changed: Change,
    /// Received per layer.
    received: Spread,
    layers: usize,
}

impl Outcome {
    fn add(
        &mut self,
        deployment: &Deployment,
        old: &[PlacedLayer],
        new: &[PlacedLayer],
        loads: &ExpertLoads,
    ) {
        for (layer, (old, new)) in old.iter().zip(new).enumerate() {
            let loads = loads.layer(layer);
            if let Err(flaw) = score::check(deployment, &new.slots, loads.len()) {
                panic!("layer {layer}: {flaw}");
            }
            self.used.add(match &new.share {
                Some(share) => score::split_imbalance(deployment, &new.slots, share, loads),
                None => score::even_imbalance(deployment, &new.slots, loads),
            });
            self.best.add(score::best_split_imbalance(deployment, &new.slots, loads));
            let change = score::change(deployment, &old.slots, &new.slots);
            self.changed += change;
            self.received.add(change.received as f64);
            self.layers += 1;
        }
    }

    fn gigabytes(&self, experts: usize, windows: usize) -> f64 {
        experts as f64 / windows as f64 * EXPERT_BYTES / 1e9
    }
}

fn follow(way: &Way, deployment: &Deployment, now: &ExpertLoads, next: &ExpertLoads, outcome: &mut Outcome) {
    let plan = |planner: &dyn Planner, loads, running| {
        planner
            .plan(&Problem { deployment, loads, running }, 1)
            .expect("every planner takes the tables' units")
    };
    let old = plan(way.first.as_ref(), now, None);
    let slots: Vec<_> = old.iter().map(|layer| layer.slots.clone()).collect();
    let new = match &way.follow {
        Follow::Stale => old.clone(),
        Follow::Resplit => {
            let layers = resplit_layers(deployment, next, &slots, &PlanOptions::default());
            let shares = layers.expect("a plan of the core is complete").into_iter().map(|layer| layer.share);
            let with = |(layer, share): (&PlacedLayer, Vec<f64>)| PlacedLayer {
                share: Some(share),
                ..layer.clone()
            };
            old.iter().zip(shares).map(with).collect()
        }
        Follow::Replan(planner) => {
            plan(planner.as_ref(), next, Some(Running { slots: &slots, solved_for: now }))
        }
    };
    outcome.add(deployment, &old, &new, next);
}

fn table_rows(
    table: &mut Table,
    figures: &mut Figures,
    name: &str,
    deployment: &Deployment,
    windows: &[(ExpertLoads, ExpertLoads)],
) {
    for way in ways() {
        let mut outcome = Outcome::default();
        for (now, next) in windows {
            follow(&way, deployment, now, next, &mut outcome);
        }
        let slots = (outcome.layers * deployment.slots()) as f64;
        let gigabytes = outcome.gigabytes(outcome.changed.received, windows.len());
        let crossing = outcome.gigabytes(outcome.changed.from_other_node, windows.len());
        for (quantity, value) in [
            ("imbalance, mean", outcome.used.mean()),
            ("imbalance, worst layer", outcome.used.worst()),
            ("best split, mean", outcome.best.mean()),
            ("received per layer, mean", outcome.received.mean()),
            ("received per layer, most", outcome.received.worst()),
            ("slots changed, part", outcome.changed.slots as f64 / slots),
            ("received, GB", gigabytes),
            ("received from other nodes, GB", crossing),
        ] {
            figures.record(name, &way.name, quantity, value);
        }
        table.add_row([
            Cell::new(name),
            Cell::new(&way.name),
            ratio(outcome.used.mean()),
            ratio(outcome.used.worst()),
            ratio(outcome.best.mean()),
            right(format!("{:.1}", outcome.received.mean())),
            right(format!("{:.0}", outcome.received.worst())),
            percent(outcome.changed.slots as f64 / slots),
            right(format!("{gigabytes:.1}")),
            right(format!("{crossing:.1}")),
        ]);
    }
}

const HEADER: [&str; 10] = [
    "loads",
    "planner",
    "imbalance: mean",
    "worst",
    "best split: mean",
    "received a layer: mean",
    "most",
    "slots changed",
    "GB received",
    "from other nodes",
];

/// Name of a case after a drift.
pub(crate) fn case_name(case: &Case, percent: u32) -> String {
    format!("{}, drift {percent} %", case.name())
}

/// Re-planning after the synthetic drifts, and after the natural one from a domain to another.
pub(crate) fn run(inputs: &Inputs, natural: &[Pair], figures: &mut Figures) -> Table {
    let mut table = new_table(&HEADER);
    for (case, drifts) in &CASES {
        for &drift in *drifts {
            let windows: Vec<_> =
                SEEDS.map(|seed| (inputs.base(case, seed), inputs.drifted(case, seed, drift))).collect();
            table_rows(&mut table, figures, &case_name(case, drift), &case.unit.deployment(), &windows);
        }
    }
    for Pair { name, unit, now, next } in natural {
        let windows = [(now.clone(), next.clone())];
        table_rows(&mut table, figures, &format!("{name}, re-planned"), &unit.deployment(), &windows);
    }
    table
}

/// Noise of the batches that the tables show, percent.
const NOISE: [u32; 2] = [10, 20];
/// The unit of the noise rows.
pub(crate) const NOISY: Case = Case::new(PREFILL, "ln0.5");

/// Name of the noise rows.
pub(crate) fn noise_name(percent: u32) -> String {
    format!("{}, batches with noise {percent} %", NOISY.name())
}

/// A plan for the window's mean, used for batches that differ from it: the split is re-solved for each batch.
pub(crate) fn noise(inputs: &Inputs, figures: &mut Figures) -> Table {
    let mut table = new_table(&[
        "batches",
        "planner",
        "split re-solved: mean",
        "worst",
        "even split: mean",
        "worst",
        "split fixed: mean",
    ]);
    let deployment = NOISY.unit.deployment();
    let planners: [Box<dyn Planner>; 4] = [
        Box::new(Evenkeel::weighted()),
        Box::new(Peer::Eplb),
        Box::new(Peer::TensorRtLlm),
        Box::new(Peer::FlashLb),
    ];
    for percent in NOISE {
        for planner in &planners {
            let (mut best, mut even, mut fixed) = (Spread::default(), Spread::default(), Spread::default());
            for seed in SEEDS {
                let now = inputs.base(&NOISY, seed);
                let problem = Problem { deployment: &deployment, loads: &now, running: None };
                let plan = planner.plan(&problem, 1).expect("every planner takes the tables' units");
                for batch in inputs.batches(&NOISY, seed, percent) {
                    for (layer, placed) in plan.iter().enumerate() {
                        let loads = batch.layer(layer);
                        best.add(score::best_split_imbalance(&deployment, &placed.slots, loads));
                        let evenly = score::even_imbalance(&deployment, &placed.slots, loads);
                        even.add(evenly);
                        fixed.add(placed.share.as_ref().map_or(evenly, |share| {
                            score::split_imbalance(&deployment, &placed.slots, share, loads)
                        }));
                    }
                }
            }
            let name = noise_name(percent);
            figures.record(&name, planner.name(), "split re-solved, mean", best.mean());
            figures.record(&name, planner.name(), "even split, mean", even.mean());
            figures.record(&name, planner.name(), "split fixed, mean", fixed.mean());
            let values = [best.mean(), best.worst(), even.mean(), even.worst(), fixed.mean()];
            let names = [Cell::new(&name), Cell::new(planner.name())];
            table.add_row(names.into_iter().chain(values.map(ratio)));
        }
    }
    table
}
