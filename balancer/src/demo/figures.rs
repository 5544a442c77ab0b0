//! What the demo found, as numbers: planners compared on the windows that were really fed, policies on the
//! arrivals that were really routed.

use super::requests::PolicyFigures;
use super::units::DemoUnit;
use super::verify::Verified;
use evenkeel_core::experts;
use evenkeel_core::ids::{NodeId, Rank, UnitId};
use evenkeel_core::plan::{LayerPlan, Plan};
use evenkeel_core::policy::ExpertPolicy;
use evenkeel_core::snapshot::{LoadTable, Snapshot, Window};
use evenkeel_core::topology::UnitTopology;
use evenkeel_simulate::baselines::eplb::{self, Deployment, EplbPlacement};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Everything that the table shows.
#[derive(Debug, Clone)]
pub(super) struct Figures {
    /// Experts: one row per unit and domain.
    pub experts: Vec<ExpertFigures>,
    /// The shift from intent to law.
    pub shift: ShiftFigures,
    /// Requests by policy: round robin, least requests, Evenkeel.
    pub round_robin: PolicyFigures,
    /// See `round_robin`.
    pub least_requests: PolicyFigures,
    /// See `round_robin`.
    pub evenkeel: PolicyFigures,
    /// The request workload, in words.
    pub workload: WorkloadFigures,
    /// Plans and bytes.
    pub totals: Totals,
    /// The independent check of all slots.
    pub verified: Verified,
    /// Highest resident memory of the balancer, bytes.
    pub balancer_peak_memory: u64,
    /// Processes that ran.
    pub processes: usize,
    /// Wall time of the replay, seconds.
    pub replay_seconds: f64,
}

/// Planners on one pair of windows: max over mean of the rank loads, mean over layers.
#[derive(Debug, Clone)]
pub(super) struct ExpertFigures {
    /// The unit.
    pub unit: String,
    /// Its size, in words.
    pub size: String,
    /// What was routed, in words.
    pub routing: String,
    /// Epoch of the committed plan that is compared.
    pub epoch: u64,
    /// In the window that the planners solved.
    pub solved: Planners,
    /// In the next one.
    pub next: Planners,
    /// In the next one, the committed placement with its replicas sharing evenly.
    pub next_even_split: f64,
    /// In the next one, the committed placement with the split re-solved on it: no weight moved.
    pub next_resolved: f64,
}

/// Three planners on one window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planners {
    /// The placement that the engine boots with.
    pub boot: f64,
    /// DeepSeek's EPLB, global policy, even split.
    pub eplb: f64,
    /// The committed plan.
    pub evenkeel: f64,
}

/// What a change of domain did.
#[derive(Debug, Clone, Copy)]
pub(super) struct ShiftFigures {
    /// First window of the new domain under the plan for the old one.
    pub before: f64,
    /// The same window under the plan made on it.
    pub after: f64,
    /// Plans that led there.
    pub plans: u64,
    /// Slots that they changed.
    pub moves: u64,
}

/// The request workload.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkloadFigures {
    /// Virtual minutes.
    pub minutes: u64,
    /// Requests in the recorded trace.
    pub recorded: usize,
    /// Copies that feed the decode unit.
    pub decode_copies: u32,
    /// Copies that feed the prefill unit.
    pub prefill_copies: u32,
    /// Decisions that the balancer made over gRPC.
    pub decisions: u64,
}

/// Plans and bytes over all units.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    /// Plans that changed shares only.
    pub weights_plans: u64,
    /// Plans that moved weights.
    pub moves_plans: u64,
    /// Slots that received another expert.
    pub slots_moved: u64,
    /// Bytes copied within a node.
    pub bytes_local: u64,
    /// Bytes fetched from other nodes' agents.
    pub bytes_peer: u64,
    /// Slots whose fingerprint was compared before they were used.
    pub slots_fingerprinted: u64,
}

/// Compares the planners on the window that `plan` was solved on and on the one after it.
pub(super) fn compare(
    unit: &DemoUnit,
    routing: &str,
    plan: &Plan,
    solved: &LoadTable,
    next: &LoadTable,
) -> ExpertFigures {
    let shape = &unit.shape;
    let topology = topology(unit);
    let boot = Plan::boot(topology.unit().clone(), shape);
    let eplb = solve_eplb(unit, solved);
    let layers: Vec<usize> = (0..solved.layers()).collect();
    let planners = |window: &LoadTable| Planners {
        boot: mean(&boot.layers, |l, layer| layer.imbalance(shape, window.layer(l))),
        eplb: mean(&layers, |l, _| eplb.imbalance(l, window.layer(l))),
        evenkeel: mean(&plan.layers, |l, layer| layer.imbalance(shape, window.layer(l))),
    };
    let even = |layer: &LayerPlan| LayerPlan::even(layer.physical_to_logical.clone(), shape.experts.into());
    let resolved = resolve(plan, next, &topology);
    ExpertFigures {
        unit: unit.name.to_owned(),
        size: format!("{} ranks x {} slots", shape.ranks, shape.slots_per_rank),
        routing: routing.to_owned(),
        epoch: plan.epoch.0,
        solved: planners(solved),
        next: planners(next),
        next_even_split: mean(&plan.layers, |l, layer| even(layer).imbalance(shape, next.layer(l))),
        next_resolved: mean(&resolved, |l, layer| layer.imbalance(shape, next.layer(l))),
    }
}

/// Imbalance of a plan in a window, mean over layers.
pub(super) fn imbalance(unit: &DemoUnit, plan: &Plan, window: &LoadTable) -> f64 {
    mean(&plan.layers, |l, layer| layer.imbalance(&unit.shape, window.layer(l)))
}

/// The same placement with its split solved anew on `loads`.
fn resolve(plan: &Plan, loads: &LoadTable, topology: &Arc<UnitTopology>) -> Vec<LayerPlan> {
    let ranks = topology.shape().ranks;
    let window = Window { from_step: 0, to_step: 1 };
    let snapshot = Snapshot::new(Arc::clone(topology), window, loads.clone(), ranks, 0)
        .expect("the window has the unit's shape");
    // Gains of more than the whole cannot be predicted, so nothing moves.
    let policy = ExpertPolicy { moves_gain_min: f64::INFINITY, weights_gain_min: 0.0, ..Default::default() };
    let solved = experts::solve(&snapshot, plan, None, &policy);
    let layers = solved.plan.map_or_else(|| plan.layers.clone(), |p| p.layers);
    let same = layers.iter().zip(&plan.layers).all(|(a, b)| a.physical_to_logical == b.physical_to_logical);
    assert!(same, "a new split moves nothing");
    layers
}

fn topology(unit: &DemoUnit) -> Arc<UnitTopology> {
    let per_node = unit.shape.ranks / unit.nodes;
    let ranks = |node: u16| (node * per_node..(node + 1) * per_node).map(Rank).collect();
    let name = |node: u16| NodeId::new(unit.node_name(node)).expect("the demo's names are valid");
    let claims: BTreeMap<_, _> = (0..unit.nodes).map(|n| (name(n), ranks(n))).collect();
    let id = UnitId::new(unit.name).expect("the demo's names are valid");
    Arc::new(UnitTopology::new(id, unit.shape.clone(), &claims).expect("the demo's units are complete"))
}

/// EPLB's placement of a unit, by its global policy: the better balanced one, and the only one for units whose
/// nodes do not divide the groups.
fn solve_eplb(unit: &DemoUnit, loads: &LoadTable) -> EplbPlacement {
    let shape = &unit.shape;
    let (gpus, slots) = (usize::from(shape.ranks), usize::from(shape.slots_per_rank));
    let deployment = Deployment { replicas: gpus * slots, groups: 1, nodes: 1, gpus };
    let rows: Vec<Vec<u64>> = (0..loads.layers()).map(|l| loads.layer(l).to_vec()).collect();
    eplb::rebalance_experts(&rows, deployment).expect("the demo's units have a slot for every expert")
}

fn mean<T>(layers: &[T], value: impl Fn(usize, &T) -> f64) -> f64 {
    layers.iter().enumerate().map(|(l, layer)| value(l, layer)).sum::<f64>() / layers.len() as f64
}
