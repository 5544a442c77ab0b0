//! Expert balance in the solved window and in the next one, against DeepSeek's EPLB, on one thread.
//!
//!     cargo run --release -p evenkeel-simulate --example expert_windows
//!
//! The 256-expert loads are synthetic (log-normal); the V2-Lite loads are recorded routing.

use evenkeel_core::ids::{NodeId, Rank, UnitId};
use evenkeel_core::plan::{LayerPlan, Plan};
use evenkeel_core::policy::ExpertPolicy;
use evenkeel_core::snapshot::{LoadTable, Snapshot, Window};
use evenkeel_core::topology::{Role, UnitShape, UnitTopology};
use evenkeel_core::{experts, invariants};
use evenkeel_simulate::baselines::eplb::{Deployment, rebalance_experts};
use evenkeel_simulate::expert_loads::{RecordedRouting, Synthetic, SyntheticWindows};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Runs of which the fastest counts as a solve's time.
const TIMED_RUNS: usize = 5;

/// Tokens of one part of a recorded window, as an agent would report them.
const PART_TOKENS: usize = 512;

struct Case {
    name: String,
    topology: Arc<UnitTopology>,
    groups: usize,
    solved: LoadTable,
    next: LoadTable,
    /// The solved window in parts; empty when it has none.
    parts: Vec<LoadTable>,
}

fn topology(layers: u16, experts: u16, ranks: u16, slots: u16, spare: u16) -> Arc<UnitTopology> {
    let shape = UnitShape {
        role: Role::Mixed,
        layers,
        experts,
        top_k: 6,
        ranks,
        slots_per_rank: slots,
        spare_per_rank: spare,
        expert_bytes: 4096,
    };
    let mut claims = BTreeMap::new();
    for rank in 0..ranks {
        let node = NodeId::new(format!("node-{:03}", rank / 8)).expect("a valid name");
        claims.entry(node).or_insert_with(Vec::new).push(Rank(rank));
    }
    Arc::new(
        UnitTopology::new(UnitId::new("unit").expect("a valid name"), shape, &claims).expect("a valid unit"),
    )
}

fn snapshot(topology: &Arc<UnitTopology>, loads: &LoadTable, parts: &[LoadTable]) -> Snapshot {
    let window = Window { from_step: 0, to_step: 1 };
    Snapshot::new(topology.clone(), window, loads.clone(), topology.shape().ranks, 0)
        .and_then(|snapshot| snapshot.with_parts(parts.to_vec()))
        .expect("loads of the shape")
}

/// Mean and worst over layers.
fn figures(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let all: Vec<f64> = values.collect();
    (all.iter().sum::<f64>() / all.len() as f64, all.iter().copied().fold(0.0, f64::max))
}

fn of_plan(plan: &[LayerPlan], shape: &UnitShape, loads: &LoadTable) -> (f64, f64) {
    figures(plan.iter().enumerate().map(|(layer, plan)| plan.imbalance(shape, loads.layer(layer))))
}

fn timed<T>(run: impl Fn() -> T) -> (T, f64) {
    let mut least = f64::INFINITY;
    let mut result = None;
    for _ in 0..TIMED_RUNS {
        let start = Instant::now();
        result = Some(run());
        least = least.min(start.elapsed().as_secs_f64() * 1e3);
    }
    (result.expect("at least one run"), least)
}

fn row(label: &str, (mean, worst): (f64, f64), note: &str) {
    println!("  {label:<50} {mean:>8.5} {worst:>8.5}  {note}");
}

/// One placement in both windows: as planned, with the even split, and with the split re-solved.
fn windows(case: &Case, label: &str, layers: &[LayerPlan], policy: &ExpertPolicy) {
    let shape = case.topology.shape();
    let even: Vec<LayerPlan> = layers
        .iter()
        .map(|layer| LayerPlan::even(layer.physical_to_logical.clone(), shape.experts.into()))
        .collect();
    row(&format!("{label}, solved window"), of_plan(layers, shape, &case.solved), "");
    row(&format!("{label}, next window, split fixed"), of_plan(layers, shape, &case.next), "");
    row(&format!("{label}, next window, even split"), of_plan(&even, shape, &case.next), "");
    let boot = Plan::boot(case.topology.unit().clone(), shape);
    let base = Plan { layers: layers.to_vec(), ..boot };
    // No layer is ever bad enough to move: what is left is the split.
    let weights_only =
        ExpertPolicy { imbalance_target: f64::INFINITY, weights_gain_min: 0.0, ..policy.clone() };
    let next = snapshot(&case.topology, &case.next, &[]);
    let (resolved, ms) = timed(|| experts::solve(&next, &base, None, &weights_only));
    let resolved = resolved.plan.map_or(base.layers.clone(), |plan| plan.layers);
    let note = format!("{ms:.2} ms");
    row(&format!("{label}, next window, split re-solved"), of_plan(&resolved, shape, &case.next), &note);
}

fn compare(case: &Case, policy: &ExpertPolicy) {
    let shape = case.topology.shape();
    println!("\n{}", case.name);
    let settled = migrate(case, 1, policy);
    migrate(case, 2, policy);
    windows(case, "after the migration", &settled.layers, policy);
    let now = snapshot(&case.topology, &case.solved, &case.parts);
    let (placed, fresh_ms) = timed(|| experts::place(&now, policy));
    windows(case, "from nothing", &placed, policy);
    println!("  placement from nothing, all layers: {fresh_ms:.2} ms");

    let rows: Vec<Vec<u64>> =
        case.solved.counts().chunks(shape.experts.into()).map(<[u64]>::to_vec).collect();
    let gpus = usize::from(shape.ranks);
    let replicas = gpus * usize::from(shape.slots_per_rank);
    let nodes = case.topology.nodes().len();
    for (label, groups, nodes) in [("EPLB", case.groups, nodes), ("EPLB global", 1, 1)] {
        let deployment = Deployment { replicas, groups, nodes, gpus };
        let (peer, ms) = timed(|| rebalance_experts(&rows, deployment).expect("a valid deployment"));
        let on = |loads: &LoadTable| {
            figures((0..shape.layers.into()).map(|layer| peer.imbalance(layer, loads.layer(layer))))
        };
        row(&format!("{label}, solved window"), on(&case.solved), &format!("{ms:.2} ms"));
        row(&format!("{label}, next window"), on(&case.next), "");
    }
}

/// Follows the whole migration from the boot placement.
fn migrate(case: &Case, spare: u16, policy: &ExpertPolicy) -> Plan {
    let shape = case.topology.shape();
    let topology = topology(shape.layers, shape.experts, shape.ranks, shape.slots_per_rank, spare);
    let shape = topology.shape();
    let now = snapshot(&topology, &case.solved, &case.parts);
    let mut running = Plan::boot(topology.unit().clone(), shape);
    let (mut target, mut moves, mut line) = (None, 0, String::new());
    let mut most_ms: f64 = 0.0;
    let before = of_plan(&running.layers, shape, &case.solved).0;
    let mut plans = 0;
    loop {
        let start = Instant::now();
        let solved = experts::solve(&now, &running, target.as_ref(), policy);
        most_ms = most_ms.max(start.elapsed().as_secs_f64() * 1e3);
        target = solved.target;
        let Some(plan) = solved.plan else { break };
        invariants::check(&plan, Some(&running), &topology).expect("the solver's plans are valid");
        moves += solved.report.moves();
        plans += 1;
        line += &format!(" {:.4}", of_plan(&plan.layers, shape, &case.solved).0);
        running = plan;
    }
    println!(
        "  migration, spare {spare}: {plans} plans, {moves} slot moves of {}, slowest solve {most_ms:.1} ms; imbalance {before:.4} ->{line}",
        shape.ranks as usize * shape.slots_per_rank as usize * shape.layers as usize
    );
    running
}

fn table(layers: u16, experts: u16, counts: Vec<u64>) -> LoadTable {
    LoadTable::new(layers.into(), experts.into(), counts).expect("counts of the shape")
}

fn synthetic(name: &str, ranks: u16, slots: u16, groups: usize, sigma: f64, drift: f64) -> Case {
    let of = Synthetic { layers: 58, experts: 256, routed: 2_097_152, sigma, drift, seed: 7 };
    let windows = SyntheticWindows::new(of);
    Case {
        name: format!("{name}: {ranks} ranks x {slots} slots, synthetic log-normal {sigma}, drift {drift}"),
        topology: topology(58, 256, ranks, slots, 1),
        groups,
        solved: table(58, 256, windows.window(0)),
        next: table(58, 256, windows.window(1)),
        parts: Vec::new(),
    }
}

fn recorded(stem: &str) -> Result<[Case; 2], Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
    let routing = RecordedRouting::read(&folder, stem)?;
    let tokens = routing.tokens();
    let halves = [0..tokens / 2, tokens / 2..tokens];
    let counts = |range: std::ops::Range<usize>| table(26, 64, routing.counts(range));
    let case = |solved: usize, what: &str| {
        let range = halves[solved].clone();
        let steps = range.clone().step_by(PART_TOKENS);
        Case {
            name: format!("V2-Lite, recorded, {stem}, {what}: 8 ranks x 9 slots"),
            topology: topology(26, 64, 8, 9, 1),
            groups: 1,
            solved: counts(range.clone()),
            next: counts(halves[1 - solved].clone()),
            parts: steps.map(|from| counts(from..(from + PART_TOKENS).min(range.end))).collect(),
        }
    };
    Ok([case(0, "half 1 -> half 2"), case(1, "half 2 -> half 1")])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let policy = ExpertPolicy::default();
    let mut cases = vec![
        synthetic("prefill", 32, 9, 8, 0.5, 0.03),
        synthetic("prefill", 32, 9, 8, 1.0, 0.03),
        synthetic("decode", 144, 2, 8, 0.5, 0.03),
        synthetic("prefill", 32, 9, 8, 0.5, 0.1),
        synthetic("decode", 144, 2, 8, 0.5, 0.1),
    ];
    for stem in ["dsv2lite_intent", "dsv2lite_law"] {
        cases.extend(recorded(stem)?);
    }
    println!("max over mean of rank loads: mean over layers, worst layer");
    for case in &cases {
        compare(case, &policy);
    }
    Ok(())
}
