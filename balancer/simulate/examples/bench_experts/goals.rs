//! The goals, each beside what this run measured.

use crate::cases::{Case, DECODE, KIMI, LARGE, PREFILL, PREFILL_GROUPS, QWEN3, TWO_REDUNDANT, Unit, WIDE};
use crate::drift::{case_name, noise_name};
use crate::figures::Figures;
use crate::groups::AWAY;
use crate::layout::{new_table, right};
use crate::recorded::Pair;
use crate::timing::GREEDY;
use comfy_table::{Cell, Table};
use serde_json::{Value, json};

/// A figure that may be at most so large.
pub(crate) struct Goal {
    what: String,
    ours: Option<f64>,
    at_most: f64,
    /// The least that a peer has of the same in this run.
    peers: Option<(String, f64)>,
}

impl Goal {
    /// Whether this run has the figure; every goal has it when all parts ran.
    pub(crate) fn is_measured(&self) -> bool {
        self.ours.is_some() && !self.at_most.is_nan()
    }

    fn verdict(&self) -> &'static str {
        match self.ours {
            None => "not measured",
            Some(ours) if ours <= self.at_most => "met",
            Some(_) => "MISSED",
        }
    }
}

const WEIGHTED: &str = "Evenkeel";
const EVEN: &str = "Evenkeel --even";

fn is_peer(planner: &str) -> bool {
    !planner.starts_with("Evenkeel") && planner != GREEDY
}

struct Goals<'a> {
    figures: &'a Figures,
    all: Vec<Goal>,
}

impl Goals<'_> {
    /// One of our figures; `peers` names their quantity in the same case.
    fn figure(&mut self, case: &str, planner: &str, quantity: &str, at_most: f64, peers: &str) {
        let peers = self.figures.least(case, peers, is_peer).map(|(name, value)| (name.to_owned(), value));
        self.push(case, planner, quantity, at_most, peers);
    }

    fn push(
        &mut self,
        case: &str,
        planner: &str,
        quantity: &str,
        at_most: f64,
        peers: Option<(String, f64)>,
    ) {
        let ours = self.figures.get(case, planner, quantity);
        self.all.push(Goal { what: format!("{case}: {planner}, {quantity}"), ours, at_most, peers });
    }

    /// One of our figures over another figure of this run.
    fn ratio(&mut self, what: String, ours: Option<f64>, of: Option<f64>, at_most: f64) {
        let ours = ours.zip(of).map(|(ours, of)| ours / of);
        self.all.push(Goal { what, ours, at_most, peers: None });
    }

    fn in_sample(&mut self) {
        let case = |unit: Unit, loads| Case::new(unit, loads).name();
        let (split, even) = ("in sample, split", "in sample, even split, mean");
        let prefill = case(PREFILL, "ln0.5");
        let worst_even = "in sample, even split, worst layer";
        self.figure(&prefill, WEIGHTED, &format!("{split}, worst layer"), 1.0001, worst_even);
        self.figure(&prefill, EVEN, worst_even, 1.001, worst_even);
        let split = format!("{split}, mean");
        self.figure(&case(WIDE, "ln0.5"), WEIGHTED, &split, 1.0001, even);
        for (loads, goal) in [("ln0.3", 1.013), ("ln0.5", 1.024), ("zipf0.4", 1.095), ("zipf0.6", 1.307)] {
            self.figure(&case(DECODE, loads), WEIGHTED, &split, goal, even);
        }
        for (loads, goal) in [("ln0.3", 1.003), ("ln0.5", 1.004), ("ln1.0", 1.004)] {
            let by_node = format!("{}, by node", case(PREFILL_GROUPS, loads));
            self.figure(&by_node, WEIGHTED, "imbalance as used, mean", goal, "imbalance as used, mean");
            self.figure(&by_node, WEIGHTED, AWAY, 0.0, AWAY);
        }
        for (unit, goal) in [(PREFILL, 1.001), (DECODE, 1.336), (QWEN3, 1.003), (KIMI, 1.001), (LARGE, 1.056)]
        {
            self.figure(&case(unit, "ln1.0"), EVEN, even, goal, even);
        }
        self.figure(&case(DECODE, "ln1.0"), WEIGHTED, &split, 1.320, even);
        // The best known, found by a long search.
        for (unit, goal) in [(KIMI, 1.034), (LARGE, 1.063)] {
            self.figure(&case(unit, "zipf1.2"), EVEN, even, goal, even);
        }
    }

    fn drift(&mut self) {
        let case = |unit, percent| case_name(&Case::new(unit, "ln0.5"), percent);
        let (imbalance, received) = ("imbalance, mean", "received per layer, most");
        let goals = [
            (PREFILL, 10, "Evenkeel, 0 moves", 0.0, 1.004),
            (WIDE, 10, "Evenkeel, 0 moves", 0.0, 1.010),
            (TWO_REDUNDANT, 10, "Evenkeel, 0 moves", 0.0, 1.0005),
            (PREFILL, 20, "Evenkeel, 8 moves", 8.0, 1.002),
            (WIDE, 20, "Evenkeel, 8 moves", 8.0, 1.012),
        ];
        for (unit, percent, planner, budget, goal) in goals {
            let case = case(unit, percent);
            let within = |peer: &str| {
                is_peer(peer) && self.figures.get(&case, peer, received).is_some_and(|most| most <= budget)
            };
            let peers = self.figures.least(&case, imbalance, within);
            let peers = peers.map(|(name, value)| (format!("{name}, within the budget"), value));
            self.push(&case, planner, imbalance, goal, peers);
            self.push(&case, planner, received, budget, None);
        }
        for (percent, goal) in [(10, 1.004), (20, 1.030)] {
            let (ours, peers) = ("split re-solved, mean", "even split, mean");
            self.figure(&noise_name(percent), WEIGHTED, ours, goal, peers);
        }
    }

    fn time(&mut self) {
        let (one, two) = ("ms, 1 thread, least", "ms, 2 threads, least");
        let get =
            |unit, planner, quantity| self.figures.get(&Case::new(unit, "ln1.0").name(), planner, quantity);
        let mut ratios = Vec::new();
        for (unit, ratio) in [(PREFILL, 1.5), (DECODE, 2.0)] {
            let greedy = get(unit, GREEDY, one);
            ratios.push((
                format!("{}: {WEIGHTED} / {GREEDY}, 1 thread", unit.name),
                get(unit, WEIGHTED, one),
                greedy,
                ratio,
            ));
            let peer = "TensorRT-LLM";
            ratios.push((
                format!("{}: {peer} / {GREEDY}, 1 thread", unit.name),
                get(unit, peer, one),
                greedy,
                1.2,
            ));
        }
        let greedy = get(PREFILL, GREEDY, one);
        ratios.push((
            format!("{}: {WEIGHTED}, 2 threads / {GREEDY}", PREFILL.name),
            get(PREFILL, WEIGHTED, two),
            greedy,
            1.0,
        ));
        for (unit, at_most) in [(PREFILL, 2.0), (DECODE, 4.0)] {
            self.figure(&Case::new(unit, "ln1.0").name(), WEIGHTED, one, at_most, one);
        }
        for (what, ours, of, at_most) in ratios {
            self.ratio(what, ours, of, at_most);
        }
        // Against the peers as they are written anew here, on one thread, as they all plan.
        for unit in [PREFILL, DECODE, QWEN3, KIMI, LARGE] {
            let case = Case::new(unit, "ln1.0").name();
            let peer = self.figures.least(&case, one, is_peer);
            let at_most = peer.map_or(f64::NAN, |(_, ms)| ms);
            self.figure(&case, WEIGHTED, two, at_most, one);
        }
    }

    fn recorded(&mut self, halves: &[Pair]) {
        let (fixed, even) = ("next window, split fixed, mean", "next window, even split, mean");
        let resolved = "next window, split re-solved, mean";
        for Pair { name, .. } in halves {
            self.figure(name, WEIGHTED, resolved, 1.01, fixed);
            let at_most = self.figures.get(name, WEIGHTED, even).unwrap_or(f64::NAN);
            self.figure(name, WEIGHTED, fixed, at_most, fixed);
        }
        for percent in [10, 20] {
            let name = noise_name(percent);
            let at_most = self.figures.get(&name, WEIGHTED, "even split, mean").unwrap_or(f64::NAN);
            self.figure(&name, WEIGHTED, "split fixed, mean", at_most, "even split, mean");
        }
    }
}

pub(crate) fn all(figures: &Figures, halves: &[Pair]) -> Vec<Goal> {
    let mut goals = Goals { figures, all: Vec::new() };
    goals.in_sample();
    goals.drift();
    goals.time();
    goals.recorded(halves);
    goals.all
}

pub(crate) fn table<'a>(goals: impl Iterator<Item = &'a Goal>) -> Table {
    let mut table = new_table(&["figure", "at most", "this run", "", "best peer, as used"]);
    for goal in goals {
        let number = |value: f64| right(format!("{value:.6}"));
        table.add_row([
            Cell::new(&goal.what),
            number(goal.at_most),
            goal.ours.map_or(right("-"), number),
            Cell::new(goal.verdict()),
            Cell::new(
                goal.peers.as_ref().map_or(String::new(), |(name, value)| format!("{value:.6} {name}")),
            ),
        ]);
    }
    table
}

pub(crate) fn json(goals: &[Goal]) -> Value {
    let one = |goal: &Goal| json!({"what": goal.what, "at_most": goal.at_most, "value": goal.ours, "verdict": goal.verdict()});
    goals.iter().map(one).collect()
}
