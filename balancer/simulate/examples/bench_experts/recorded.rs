//! Recorded routing: V2-Lite by halves and by domains, Mixtral by subjects.

use crate::balance::{WINDOWS_HEADER, Windows, planners};
use crate::cases::{Unit, loads_of};
use crate::figures::Figures;
use crate::layout::new_table;
use comfy_table::{Cell, Table};
use evenkeel_core::experts::ExpertLoads;
use evenkeel_simulate::expert_loads::RecordedRouting;
use evenkeel_simulate::planner::Problem;
use serde::Deserialize;
use std::path::{Path, PathBuf};

const V2_LITE: Unit = Unit { name: "", layers: 26, experts: 64, ranks: 8, slots: 72, nodes: 1, groups: 1 };
/// Slots and ranks of the V2-Lite rows.
const V2_LITE_UNITS: [Unit; 3] = [
    Unit { name: "72/8", ..V2_LITE },
    Unit { name: "80/16", slots: 80, ranks: 16, nodes: 2, ..V2_LITE },
    Unit { name: "96/32", slots: 96, ranks: 32, nodes: 4, ..V2_LITE },
];
const MIXTRAL: Unit = Unit { name: "12/4", layers: 32, experts: 8, ranks: 4, slots: 12, nodes: 1, groups: 1 };
const MIXTRAL_UNITS: [Unit; 2] = [MIXTRAL, Unit { name: "16/8", slots: 16, ranks: 8, ..MIXTRAL }];
const SUBJECTS: [&str; 4] =
    ["college_computer_science", "college_medicine", "high_school_biology", "high_school_mathematics"];

/// A window, and the one that follows it.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) now: ExpertLoads,
    pub(crate) next: ExpertLoads,
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data")
}

/// Halves of a domain, in both orders: the second half of one is as much "next" as the first.
pub(crate) fn halves() -> Vec<Pair> {
    let mut pairs = Vec::new();
    for domain in ["intent", "law"] {
        let routing = v2_lite(domain);
        let half = routing.tokens() / 2;
        let counts = |range| counts(&routing, range);
        let (first, second) = (counts(0..half), counts(half..routing.tokens()));
        for unit in V2_LITE_UNITS {
            let name = |order| format!("V2-Lite {}, {domain}, {order}", unit.name);
            let pair = |name, now: &ExpertLoads, next: &ExpertLoads| Pair {
                name,
                unit,
                now: now.clone(),
                next: next.clone(),
            };
            pairs.push(pair(name("half 1 -> 2"), &first, &second));
            pairs.push(pair(name("half 2 -> 1"), &second, &first));
        }
    }
    pairs
}

/// From one domain to another: a natural drift.
pub(crate) fn domains() -> Vec<Pair> {
    let [intent, law] = ["intent", "law"].map(|domain| {
        let routing = v2_lite(domain);
        counts(&routing, 0..routing.tokens())
    });
    let pair = |unit: Unit| Pair {
        name: format!("V2-Lite {}, intent -> law", unit.name),
        unit,
        now: intent.clone(),
        next: law.clone(),
    };
    V2_LITE_UNITS.map(pair).into()
}

/// From each subject to the next.
pub(crate) fn subjects() -> Vec<Pair> {
    let loads = SUBJECTS.map(mixtral);
    let mut pairs = Vec::new();
    for unit in MIXTRAL_UNITS {
        for at in 0..SUBJECTS.len() {
            let to = (at + 1) % SUBJECTS.len();
            let name = format!("Mixtral {}, {} -> {}", unit.name, SUBJECTS[at], SUBJECTS[to]);
            pairs.push(Pair { name, unit, now: loads[at].clone(), next: loads[to].clone() });
        }
    }
    pairs
}

fn v2_lite(domain: &str) -> RecordedRouting {
    RecordedRouting::read(&data(), &format!("dsv2lite_{domain}")).unwrap_or_else(|error| panic!("{error}"))
}

fn counts(routing: &RecordedRouting, tokens: std::ops::Range<usize>) -> ExpertLoads {
    loads_of(routing.counts(tokens).into_iter().map(|count| count as f64), routing.experts())
}

#[derive(Deserialize)]
struct Popularity {
    /// `[layers][experts]`.
    expert_popularity: Vec<Vec<f64>>,
}

fn mixtral(subject: &str) -> ExpertLoads {
    let path = data().join(format!("mixtral/instruct_{subject}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let read: Popularity =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    ExpertLoads::new(&read.expert_popularity).expect("counts are finite and not negative")
}

pub(crate) fn run(pairs: &[Pair], figures: &mut Figures) -> Table {
    let header: Vec<&str> = ["recorded", "planner"].into_iter().chain(WINDOWS_HEADER).collect();
    let mut table = new_table(&header);
    for Pair { name, unit, now, next } in pairs {
        let deployment = unit.deployment();
        for planner in planners(false) {
            let mut windows = Windows::default();
            let problem = Problem { deployment: &deployment, loads: now, running: None };
            let plan = planner.plan(&problem, 1).expect("every planner takes the tables' units");
            windows.add(&deployment, &plan, now, next);
            windows.record(figures, name, planner.name());
            table.add_row([Cell::new(name), Cell::new(planner.name())].into_iter().chain(windows.cells()));
        }
    }
    table
}
