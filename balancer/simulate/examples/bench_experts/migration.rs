//! The way of a running unit from its first placement to a balanced one: plans that fill only the spare slots, each
//! of them servable, as the balancer makes them from snapshots.

use crate::cases::{Case, DECODE, Inputs, PREFILL, Unit};
use crate::figures::{Figures, Spread};
use crate::layout::{ms, new_table, ratio, right};
use crate::recorded::Pair;
use comfy_table::{Cell, Table};
use evenkeel_core::experts::{self, ExpertLoads};
use evenkeel_core::ids::{NodeId, Rank, UnitId};
use evenkeel_core::invariants;
use evenkeel_core::plan::Plan;
use evenkeel_core::policy::ExpertPolicy;
use evenkeel_core::snapshot::{LoadTable, Snapshot, Window};
use evenkeel_core::topology::{Role, UnitShape, UnitTopology};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Drift of the next window, percent.
const NEXT: u32 = 10;
/// Far more plans than any way needs: a solver that never arrives is a bug.
const PLANS_MAX: usize = 1000;

fn topology(unit: &Unit, spare: u16) -> Arc<UnitTopology> {
    let narrow = |number: usize| u16::try_from(number).expect("the tables' units are small");
    let shape = UnitShape {
        role: Role::Mixed,
        layers: narrow(unit.layers),
        experts: narrow(unit.experts),
        top_k: 6,
        ranks: narrow(unit.ranks),
        slots_per_rank: narrow(unit.slots / unit.ranks),
        spare_per_rank: spare,
        expert_bytes: 4096,
    };
    let mut claims = BTreeMap::new();
    for rank in 0..unit.ranks {
        let node =
            NodeId::new(format!("node-{:03}", rank / (unit.ranks / unit.nodes))).expect("a valid name");
        claims.entry(node).or_insert_with(Vec::new).push(Rank(narrow(rank)));
    }
    let name = UnitId::new("unit").expect("a valid name");
    Arc::new(UnitTopology::new(name, shape, &claims).expect("a valid unit"))
}

fn table_of(loads: &ExpertLoads) -> LoadTable {
    let counts = (0..loads.layers()).flat_map(|layer| loads.layer(layer)).map(|&load| load as u64).collect();
    LoadTable::new(loads.layers(), loads.experts(), counts).expect("counts of the shape")
}

fn imbalance(plan: &Plan, topology: &UnitTopology, loads: &LoadTable) -> f64 {
    let mut spread = Spread::default();
    spread.extend(
        (0..).zip(&plan.layers).map(|(layer, plan)| plan.imbalance(topology.shape(), loads.layer(layer))),
    );
    spread.mean()
}

fn add_rows(table: &mut Table, figures: &mut Figures, pair: &Pair) {
    for spare in [1, 2] {
        let topology = topology(&pair.unit, spare);
        let (now, next) = (table_of(&pair.now), table_of(&pair.next));
        let window = Window { from_step: 0, to_step: 1 };
        let snapshot = Snapshot::new(topology.clone(), window, now.clone(), topology.shape().ranks, 0)
            .expect("loads of the shape");
        let policy = ExpertPolicy::default();
        let mut running = Plan::boot(topology.unit().clone(), topology.shape());
        let before = imbalance(&running, &topology, &now);
        let (mut target, mut moves, mut slowest_ms) = (None, 0, 0f64);
        let plans = (0..=PLANS_MAX).find(|_| {
            let start = Instant::now();
            let solved = experts::solve(&snapshot, &running, target.as_ref(), &policy);
            slowest_ms = slowest_ms.max(start.elapsed().as_secs_f64() * 1e3);
            target = solved.target;
            let Some(plan) = solved.plan else { return true };
            invariants::check(&plan, Some(&running), &topology).expect("the solver's plans are valid");
            moves += solved.report.moves();
            running = plan;
            false
        });
        let plans = plans.expect("a migration arrives");
        let (settled, in_next) =
            (imbalance(&running, &topology, &now), imbalance(&running, &topology, &next));
        let name = format!("{}, migration with {spare} spare", pair.name);
        for (quantity, value) in [
            ("plans", plans as f64),
            ("slot moves", moves as f64),
            ("imbalance before", before),
            ("imbalance after", settled),
            ("next window, split fixed, mean", in_next),
        ] {
            figures.record(&name, "Evenkeel", quantity, value);
        }
        table.add_row([
            Cell::new(&pair.name),
            right(spare.to_string()),
            right(plans.to_string()),
            right(format!("{:.1} %", moves as f64 * 100.0 / (pair.unit.slots * pair.unit.layers) as f64)),
            ratio(before),
            ratio(settled),
            ratio(in_next),
            ms(slowest_ms),
        ]);
    }
}

pub(crate) fn run(inputs: &Inputs, halves: &[Pair], figures: &mut Figures) -> Table {
    let mut table = new_table(&[
        "loads",
        "spare slots a GPU",
        "plans",
        "slots filled",
        "imbalance: first placement",
        "settled",
        "next: fixed",
        "slowest solve, ms",
    ]);
    let synthetic = [Case::new(PREFILL, "ln0.5"), Case::new(DECODE, "ln0.5")].map(|case| Pair {
        name: case.name(),
        unit: case.unit,
        now: inputs.base(&case, 0),
        next: inputs.drifted(&case, 0, NEXT),
    });
    let recorded = halves.iter().filter(|pair| pair.unit.ranks == 8);
    for pair in synthetic.iter().chain(recorded) {
        add_rows(&mut table, figures, pair);
    }
    table
}
