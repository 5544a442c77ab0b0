//! Balance in the window that was planned for, and in the next one.

use crate::cases::{
    Case, DECODE, HELD_OUT, Inputs, KIMI, LARGE, PREFILL, PREFILL_GROUPS, QWEN3, SEEDS, TWO_REDUNDANT, WIDE,
};
use crate::figures::{Figures, Spread};
use crate::layout::{new_table, ratio, right};
use comfy_table::{Cell, Table};
use evenkeel_core::experts::{Deployment, ExpertLoads, PlanOptions, resplit_layers};
use evenkeel_simulate::planner::{Evenkeel, Peer, PlacedLayer, Planner, Problem};
use evenkeel_simulate::score;

/// The rows of "Figures to reach" and of the peers' table.
pub(crate) const CASES: [Case; 19] = [
    Case::new(PREFILL, "ln0.5"),
    Case::new(PREFILL, "ln1.0"),
    Case::new(PREFILL, "zipf0.8"),
    Case::new(PREFILL, "zipf1.2"),
    Case::new(PREFILL_GROUPS, "ln0.3"),
    Case::new(PREFILL_GROUPS, "ln0.5"),
    Case::new(PREFILL_GROUPS, "ln1.0"),
    Case::new(DECODE, "ln0.3"),
    Case::new(DECODE, "ln0.5"),
    Case::new(DECODE, "ln1.0"),
    Case::new(DECODE, "zipf0.4"),
    Case::new(DECODE, "zipf0.6"),
    Case::new(TWO_REDUNDANT, "ln0.5"),
    Case::new(WIDE, "ln0.5"),
    Case::new(QWEN3, "ln1.0"),
    Case::new(KIMI, "ln1.0"),
    Case::new(KIMI, "zipf1.2"),
    Case::new(LARGE, "ln1.0"),
    Case::new(LARGE, "zipf1.2"),
];

/// Drift of the next window, percent.
const NEXT: u32 = 10;

/// Imbalance of one plan, layer after layer.
#[derive(Default)]
pub(crate) struct Windows {
    pub(crate) even: Spread,
    pub(crate) split: Spread,
    pub(crate) bound: Spread,
    pub(crate) next_fixed: Spread,
    pub(crate) next_resolved: Spread,
    pub(crate) next_even: Spread,
    /// Slots whose expert is already on the same GPU.
    pub(crate) doubles: usize,
}

impl Windows {
    /// Adds a plan. For peers, who have no shares, the split is the best one of their placement.
    pub(crate) fn add(
        &mut self,
        deployment: &Deployment,
        plan: &[PlacedLayer],
        now: &ExpertLoads,
        next: &ExpertLoads,
    ) {
        let resolved =
            plan.iter().all(|layer| layer.share.is_some()).then(|| resolve(deployment, plan, next));
        for (layer, placed) in plan.iter().enumerate() {
            let (slots, now, next) = (&placed.slots, now.layer(layer), next.layer(layer));
            if let Err(flaw) = score::check(deployment, slots, now.len()) {
                panic!("layer {layer}: {flaw}");
            }
            let best = score::best_split_imbalance(deployment, slots, now);
            let split = |loads: &[f64]| {
                let share = placed.share.as_ref()?;
                Some(score::split_imbalance(deployment, slots, share, loads))
            };
            let in_sample = split(now).unwrap_or(best);
            let bound = score::replica_bound(deployment, now);
            let own = placed.bound.unwrap_or(1.0);
            assert!(
                own <= in_sample * (1.0 + 1e-9),
                "layer {layer}: {in_sample} is below its own bound {own}"
            );
            self.even.add(score::even_imbalance(deployment, slots, now));
            self.split.add(in_sample);
            self.bound.add(bound.max(own));
            let even = score::even_imbalance(deployment, slots, next);
            self.next_even.add(even);
            self.next_fixed.add(split(next).unwrap_or(even));
            self.next_resolved.add(match &resolved {
                Some(share) => score::split_imbalance(deployment, slots, &share[layer], next),
                None => score::best_split_imbalance(deployment, slots, next),
            });
            self.doubles += score::doubles(deployment, slots);
        }
    }

    pub(crate) fn record(&self, figures: &mut Figures, case: &str, planner: &str) {
        for (quantity, spread) in [
            ("in sample, even split", &self.even),
            ("in sample, split", &self.split),
            ("bound", &self.bound),
            ("next window, split fixed", &self.next_fixed),
            ("next window, split re-solved", &self.next_resolved),
            ("next window, even split", &self.next_even),
        ] {
            figures.record(case, planner, &format!("{quantity}, mean"), spread.mean());
            figures.record(case, planner, &format!("{quantity}, worst layer"), spread.worst());
        }
        figures.record(case, planner, "experts twice on a GPU", self.doubles as f64);
    }

    pub(crate) fn cells(&self) -> Vec<Cell> {
        let windows = [&self.next_fixed, &self.next_resolved, &self.next_even];
        let in_sample = [&self.even, &self.split].into_iter().flat_map(|of| [of.mean(), of.worst()]);
        let values = in_sample.chain([self.bound.mean()]).chain(windows.map(Spread::mean));
        values.map(ratio).chain([right(self.doubles.to_string())]).collect()
    }
}

/// The core's new split on the same slots.
fn resolve(deployment: &Deployment, plan: &[PlacedLayer], loads: &ExpertLoads) -> Vec<Vec<f64>> {
    let slots: Vec<_> = plan.iter().map(|layer| layer.slots.clone()).collect();
    let layers = resplit_layers(deployment, loads, &slots, &PlanOptions::default());
    layers.expect("a plan of the core is complete").into_iter().map(|layer| layer.share).collect()
}

pub(crate) const WINDOWS_HEADER: [&str; 9] = [
    "in sample even: mean",
    "worst",
    "in sample split: mean",
    "worst",
    "bound",
    "next: fixed",
    "next: re-solved",
    "next: even",
    "twice",
];

/// Everyone, as from nothing; the global EPLB only where it differs.
pub(crate) fn planners(grouped: bool) -> Vec<Box<dyn Planner>> {
    let mut all: Vec<Box<dyn Planner>> = vec![Box::new(Evenkeel::weighted()), Box::new(Evenkeel::even())];
    for peer in Peer::ALL {
        match peer {
            Peer::EplbGlobal if !grouped => {}
            // From nothing its verdict is always for the change.
            Peer::SwiftAlways => {}
            _ => all.push(Box::new(peer)),
        }
    }
    all
}

pub(crate) fn run(inputs: &Inputs, figures: &mut Figures) -> Table {
    let header: Vec<&str> =
        ["loads", "planner"].into_iter().chain(WINDOWS_HEADER).chain(["held-out seed"]).collect();
    let mut table = new_table(&header);
    for case in &CASES {
        let deployment = case.unit.deployment();
        let name = case.name();
        for planner in planners(case.unit.groups > 1) {
            let windows = |seeds: std::ops::Range<u32>| {
                let mut windows = Windows::default();
                for seed in seeds {
                    let (now, next) = (inputs.base(case, seed), inputs.drifted(case, seed, NEXT));
                    let problem = Problem { deployment: &deployment, loads: &now, running: None };
                    let plan = planner.plan(&problem, 1).expect("every planner takes the tables' units");
                    windows.add(&deployment, &plan, &now, &next);
                }
                windows
            };
            let (tuned, held_out) = (windows(SEEDS), windows(HELD_OUT..HELD_OUT + 1));
            tuned.record(figures, &name, planner.name());
            held_out.record(figures, &format!("{name}, held-out seed"), planner.name());
            let as_used = if planner.name() == "Evenkeel" { &held_out.split } else { &held_out.even };
            let mut row = vec![Cell::new(&name), Cell::new(planner.name())];
            row.extend(tuned.cells());
            row.push(ratio(as_used.mean()));
            table.add_row(row);
        }
    }
    table
}
