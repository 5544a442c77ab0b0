//! The decision: keep, reweight, or move, and the plan that does it.

use super::deployment::Deployment;
use super::fresh::{bound, fresh, replan};
use super::problem::{LayerProblem, Placement, Replicas, to_layer_plan};
use super::regularise::regularised_split;
use super::repair::Budget;
use super::schedule::{next_step, plans_needed};
use super::split::{ExactSplit, exact_split};
use crate::ids::{ExpertId, LayerId, Rank};
use crate::invariants;
use crate::plan::{LayerPlan, Plan};
use crate::policy::{ExpertPolicy, SplitFor};
use crate::report::{Binding, Decision, KeepReason, LayerReport, SolveReport};
use crate::snapshot::{LoadTable, Snapshot};
use crate::topology::{UnitShape, UnitTopology};
use std::sync::Arc;

/// A placement that a unit is on its way to, plan by plan. The control loop keeps it and hands it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `[layers]`; `None`: the layer stays as it is.
    layers: Vec<Option<Placement>>,
}

impl Target {
    /// Slots that still have to receive an expert, over all layers.
    pub fn moves_left(&self, topology: &UnitTopology, running: &Plan) -> usize {
        let deployment = deployment_of(topology);
        let shape = topology.shape();
        let left = |(wanted, layer): (&Option<Placement>, &LayerPlan)| {
            wanted.as_ref().map_or(0, |wanted| Placement::of_plan(&deployment, shape, layer).moves_to(wanted))
        };
        self.layers.iter().zip(&running.layers).map(left).sum()
    }

    fn fits(&self, shape: &UnitShape) -> bool {
        self.layers.len() == usize::from(shape.layers)
            && self.layers.iter().flatten().all(|placement| placement.ranks() == usize::from(shape.ranks))
    }
}

/// The outcome of one solve.
#[derive(Debug, Clone, PartialEq)]
pub struct Solved {
    /// The child of the running plan to commit; `None` keeps the running one.
    pub plan: Option<Plan>,
    /// What was decided and why.
    pub decision: Decision,
    /// The account, layer by layer.
    pub report: SolveReport,
    /// The placement the unit is on its way to; `None` when it is on none or has arrived.
    pub target: Option<Target>,
}

/// Where experts move at all, they move to a placement of this height above the mean: below the target, so that the next
/// drift does not call for moves at once.
const AIM: f64 = 0.001;

/// The ranks of a unit as the phases see them.
pub(super) fn deployment_of(topology: &UnitTopology) -> Arc<Deployment> {
    let node_of_rank: Vec<u16> =
        (0..topology.shape().ranks).map(|rank| topology.node_of(Rank(rank)) as u16).collect();
    Arc::new(Deployment::of_unit(topology.shape(), &node_of_rank))
}

/// What the solver would do without a past: for every layer a fresh placement with its regularised split.
/// For engines that start, for comparisons and for "what if"; a running unit goes through [`solve`].
pub fn place(snapshot: &Snapshot, policy: &ExpertPolicy) -> Vec<LayerPlan> {
    let shape = snapshot.topology.shape();
    let empty = LayerPlan {
        physical_to_logical: vec![None; shape.physical_per_layer()],
        share: vec![0; shape.physical_per_layer()],
    };
    let deployment = deployment_of(&snapshot.topology);
    (0..usize::from(shape.layers))
        .map(|layer| {
            let problem = layer_problem(snapshot, &deployment, layer, policy);
            let expected = expected_problem(snapshot, &deployment, layer, policy);
            let placement = fresh(expected.as_ref().unwrap_or(&problem));
            Draft::new(&problem, placement).write(&problem, shape, &empty, policy)
        })
        .collect()
}

fn layer_problem(
    snapshot: &Snapshot,
    deployment: &Arc<Deployment>,
    layer: usize,
    policy: &ExpertPolicy,
) -> LayerProblem {
    let forecast = snapshot.forecast.as_ref().filter(|_| policy.split_for == SplitFor::Forecast);
    let loads = forecast.map_or(&snapshot.loads, |forecast| &forecast.loads);
    problem_of(snapshot, deployment, loads, layer, policy)
}

/// The layer as it is forecast: what a placement is made for.
fn expected_problem(
    snapshot: &Snapshot,
    deployment: &Arc<Deployment>,
    layer: usize,
    policy: &ExpertPolicy,
) -> Option<LayerProblem> {
    let forecast = snapshot.forecast.as_ref()?;
    Some(problem_of(snapshot, deployment, &forecast.loads, layer, policy))
}

fn problem_of(
    snapshot: &Snapshot,
    deployment: &Arc<Deployment>,
    loads: &LoadTable,
    layer: usize,
    policy: &ExpertPolicy,
) -> LayerProblem {
    let parts: Vec<&[u64]> = snapshot.parts.iter().map(|part| part.layer(layer)).collect();
    let measured = snapshot.forecast.as_ref().and_then(|forecast| forecast.drift[layer]);
    let drift = measured.unwrap_or(policy.load_drift);
    LayerProblem::measured(deployment, loads.layer(layer), &parts, drift)
}

fn previous_problem(
    snapshot: &Snapshot,
    deployment: &Arc<Deployment>,
    layer: usize,
    policy: &ExpertPolicy,
) -> Option<LayerProblem> {
    let loads = snapshot.previous.as_ref()?.layer(layer);
    let is_loaded = loads.iter().any(|&load| load > 0);
    is_loaded.then(|| LayerProblem::measured(deployment, loads, &[], policy.load_drift))
}

/// A placement with what its best split reaches.
#[derive(Debug, Clone)]
struct Draft {
    placement: Placement,
    replicas: Replicas,
    exact: ExactSplit,
}

impl Draft {
    fn new(problem: &LayerProblem, placement: Placement) -> Self {
        let replicas = Replicas::of(&placement, problem.experts());
        let exact = exact_split(problem, &replicas);
        Self { placement, replicas, exact }
    }

    fn write(
        &self,
        problem: &LayerProblem,
        shape: &UnitShape,
        running: &LayerPlan,
        policy: &ExpertPolicy,
    ) -> LayerPlan {
        let split = regularised_split(problem, &self.replicas, &self.exact, policy.split_tolerance);
        to_layer_plan(shape, running, &self.placement, &self.replicas, &split)
    }
}

/// One layer on its way through the solve.
struct Layer<'a> {
    problem: LayerProblem,
    /// The same layer in the window before, if that is known.
    previous: Option<LayerProblem>,
    counts: &'a [u64],
    running: &'a LayerPlan,
    now: Draft,
    /// Where the layer is going, when it is going anywhere.
    aim: Option<Draft>,
}

impl Layer<'_> {
    fn imbalance(&self, draft: &Draft) -> f64 {
        self.problem.imbalance_of(draft.exact.level)
    }

    /// Relative gain of another placement over what the best split of this one reaches.
    fn gain_of(&self, other: &Draft) -> f64 {
        let now = self.imbalance(&self.now);
        (now - self.imbalance(other)) / now
    }

    /// The same gain in the window before.
    fn previous_gain_of(&self, other: &Draft) -> Option<f64> {
        let previous = self.previous.as_ref()?;
        let level = |draft: &Draft| previous.imbalance_of(exact_split(previous, &draft.replicas).level);
        let now = level(&self.now);
        Some((now - level(other)) / now)
    }
}

/// Solves one unit. Total and deterministic; `running` must have passed [`invariants::check`], and the
/// returned plan does, as its child. Solving again with the same loads, the plan applied and the target handed
/// back, ends in `plan: None`.
pub fn solve(snapshot: &Snapshot, running: &Plan, target: Option<&Target>, policy: &ExpertPolicy) -> Solved {
    let topology = &snapshot.topology;
    let shape = topology.shape();
    debug_assert_eq!(invariants::check(running, None, topology), Ok(()));
    let deployment = deployment_of(topology);
    let mut layers: Vec<Layer> =
        (0..).zip(&running.layers).map(|(at, plan)| enter(snapshot, &deployment, plan, at, policy)).collect();
    if !snapshot.is_complete() {
        return keep(&layers, shape, policy, KeepReason::IncompleteSnapshot, target.cloned());
    }
    if snapshot.loads.counts().iter().all(|&count| count == 0) {
        return keep(&layers, shape, policy, KeepReason::NoLoad, target.cloned());
    }
    let target = target.filter(|target| target.fits(shape));
    let expected = expected_layers(&layers, snapshot, policy);
    let outlook = expected.as_deref().unwrap_or(&layers);
    let aims: Vec<Aims> = outlook
        .iter()
        .enumerate()
        .map(|(at, layer)| aims(layer, target.and_then(|t| t.layers[at].as_ref()), shape, policy))
        .collect();
    let fresh_is_real = confirms(outlook, &aims, policy);
    let forecast = expected.is_some();
    for (layer, aims) in layers.iter_mut().zip(aims) {
        let aim = aims.fresh.filter(|_| fresh_is_real).or(aims.under_way);
        // Where to go is decided on the forecast; shares may be those of the window.
        layer.aim = if forecast { aim.map(|aim| Draft::new(&layer.problem, aim.placement)) } else { aim };
    }
    if layers.iter().any(|layer| layer.aim.is_some()) {
        return move_weights(&layers, running, shape, policy);
    }
    reweight(&layers, running, shape, policy)
}

fn enter<'a>(
    snapshot: &'a Snapshot,
    deployment: &Arc<Deployment>,
    running: &'a LayerPlan,
    at: usize,
    policy: &ExpertPolicy,
) -> Layer<'a> {
    let shape = snapshot.topology.shape();
    let counts = snapshot.loads.layer(at);
    let problem = layer_problem(snapshot, deployment, at, policy);
    let previous = previous_problem(snapshot, deployment, at, policy);
    let now = Draft::new(&problem, Placement::of_plan(deployment, shape, running));
    Layer { problem, previous, counts, running, now, aim: None }
}

/// The layers with the forecast in place of the window; `None` without a forecast.
fn expected_layers<'a>(
    layers: &[Layer<'a>],
    snapshot: &Snapshot,
    policy: &ExpertPolicy,
) -> Option<Vec<Layer<'a>>> {
    let expect = |(at, layer): (usize, &Layer<'a>)| {
        let problem = expected_problem(snapshot, &layer.problem.deployment, at, policy)?;
        let now = Draft::new(&problem, layer.now.placement.clone());
        Some(Layer { problem, now, previous: layer.previous.clone(), aim: None, ..*layer })
    };
    layers.iter().enumerate().map(expect).collect()
}

/// Where a layer could go.
struct Aims {
    /// The placement it is on its way to, while that still gains something.
    under_way: Option<Draft>,
    /// A placement made anew for this window that is worth its transfers.
    fresh: Option<Draft>,
}

/// A target under way is kept as long as it still gains something, and is replaced only when a fresh placement
/// would gain at least twice as much: a migration that is remade in every window never arrives.
fn aims(layer: &Layer<'_>, wanted: Option<&Placement>, shape: &UnitShape, policy: &ExpertPolicy) -> Aims {
    let stay = Aims { under_way: None, fresh: None };
    if shape.spare_per_rank == 0 || layer.problem.total() <= 0.0 {
        return stay;
    }
    let wanted = wanted.filter(|wanted| **wanted != layer.now.placement);
    let under_way = wanted.map(|wanted| Draft::new(&layer.problem, wanted.clone()));
    let gain_under_way = under_way.as_ref().map_or(0.0, |draft| layer.gain_of(draft));
    let good_enough = |draft: &Draft| layer.imbalance(draft) <= policy.imbalance_target;
    if under_way.as_ref().is_some_and(|draft| good_enough(draft) && gain_under_way >= 0.0) {
        return Aims { under_way, fresh: None };
    }
    if under_way.is_none() && good_enough(&layer.now) {
        return stay;
    }
    let fresh = Draft::new(&layer.problem, replan(&layer.problem, &layer.now.placement, Budget::NONE, AIM));
    let better = layer.gain_of(&fresh) >= 2.0 * gain_under_way && worth_moving(layer, &fresh, shape, policy);
    let under_way = under_way.filter(|_| gain_under_way > 0.0);
    Aims { under_way, fresh: better.then_some(fresh) }
}

/// Whether the fresh placements are better by more than what any placement gains in the window it was made for.
/// A gain too large for noise is believed at once. A smaller one must show in the window before as well, which is
/// neutral ground, or favours the running placement. Judged over all layers that want to move, never layer by layer:
/// of many layers some always look better in two windows by luck.
fn confirms(layers: &[Layer<'_>], aims: &[Aims], policy: &ExpertPolicy) -> bool {
    let fresh = || layers.iter().zip(aims).filter_map(|(layer, aims)| Some((layer, aims.fresh.as_ref()?)));
    let count = fresh().count().max(1) as f64;
    let gain = fresh().map(|(layer, draft)| layer.gain_of(draft)).sum::<f64>() / count;
    if gain >= policy.moves_gain_at_once {
        return true;
    }
    let previous: Option<f64> = fresh().map(|(layer, draft)| layer.previous_gain_of(draft)).sum();
    previous.is_some_and(|sum| sum / count >= policy.moves_gain_min)
}

/// Whether what a layer gains over the life of a placement exceeds what its transfers cost: the ranks receive
/// side by side, so the rank that receives most sets the time, during which the unit is slower.
fn worth_moving(layer: &Layer<'_>, to: &Draft, shape: &UnitShape, policy: &ExpertPolicy) -> bool {
    let gain = layer.gain_of(to);
    if gain < policy.moves_gain_min {
        return false;
    }
    let Some(received) = plans_needed(&layer.now.placement, &to.placement, 1) else { return false };
    let transfer_ms =
        received as f64 * shape.expert_bytes as f64 / policy.transfer_bytes_per_ms.max(1) as f64;
    // A layer has one part in `layers` of the unit's time.
    let gained_ms = gain * policy.placement_life_ms as f64 / f64::from(shape.layers);
    gained_ms > transfer_ms * policy.transfer_slowdown
}

fn move_weights(layers: &[Layer<'_>], running: &Plan, shape: &UnitShape, policy: &ExpertPolicy) -> Solved {
    let spare = usize::from(shape.spare_per_rank);
    let mut report = SolveReport::default();
    let (mut plans, mut wanted) = (Vec::new(), Vec::new());
    let mut plans_left = 0;
    for (ordinal, layer) in (0u16..).zip(layers) {
        let step = layer.aim.as_ref().map(|aim| {
            Draft::new(&layer.problem, next_step(&layer.problem, &layer.now.placement, &aim.placement, spare))
        });
        let draft = step.as_ref().unwrap_or(&layer.now);
        let plan = written(layer, draft, shape, policy);
        let rest = layer.aim.as_ref().filter(|aim| aim.placement != draft.placement);
        if let Some(aim) = rest {
            let needed = plans_needed(&draft.placement, &aim.placement, spare).unwrap_or(0);
            plans_left = plans_left.max(u32::try_from(needed).unwrap_or(u32::MAX));
            report
                .not_placed
                .extend(missing(&draft.placement, &aim.placement).map(|e| (LayerId(ordinal), e)));
        }
        report.layers.push(account(layer, draft, &plan, rest.is_some(), shape, policy));
        wanted.push(rest.map(|aim| aim.placement.clone()));
        plans.push(plan);
    }
    let target = wanted.iter().any(Option::is_some).then_some(Target { layers: wanted });
    let plan = Some(running.child(plans));
    Solved { plan, decision: Decision::Move { plans_left }, report, target }
}

fn reweight(layers: &[Layer<'_>], running: &Plan, shape: &UnitShape, policy: &ExpertPolicy) -> Solved {
    let plans: Vec<LayerPlan> =
        layers.iter().map(|layer| written(layer, &layer.now, shape, policy)).collect();
    let report = SolveReport {
        layers: layers
            .iter()
            .zip(&plans)
            .map(|(layer, plan)| account(layer, &layer.now, plan, false, shape, policy))
            .collect(),
        not_placed: Vec::new(),
    };
    let gain = (report.before_mean() - report.after_mean()) / report.before_mean();
    // Never without any gain, whatever the policy says: a plan would follow itself for ever.
    if gain < policy.weights_gain_min || gain <= 0.0 {
        return keep(layers, shape, policy, KeepReason::GainTooSmall, None);
    }
    let plan = Some(running.child(plans));
    Solved { plan, decision: Decision::Reweight { gain }, report, target: None }
}

fn keep(
    layers: &[Layer<'_>],
    shape: &UnitShape,
    policy: &ExpertPolicy,
    reason: KeepReason,
    target: Option<Target>,
) -> Solved {
    let account =
        |layer: &Layer<'_>| account(layer, &layer.now, layer.running, target.is_some(), shape, policy);
    let report = SolveReport { layers: layers.iter().map(account).collect(), not_placed: Vec::new() };
    Solved { plan: None, decision: Decision::Keep(reason), report, target }
}

/// The layer of the new plan. Without load nothing is known, so such a layer keeps its shares.
fn written(layer: &Layer<'_>, draft: &Draft, shape: &UnitShape, policy: &ExpertPolicy) -> LayerPlan {
    if layer.problem.total() <= 0.0 && draft.placement == layer.now.placement {
        return layer.running.clone();
    }
    draft.write(&layer.problem, shape, layer.running, policy)
}

fn account(
    layer: &Layer<'_>,
    draft: &Draft,
    plan: &LayerPlan,
    on_the_way: bool,
    shape: &UnitShape,
    policy: &ExpertPolicy,
) -> LayerReport {
    let bound = layer.problem.imbalance_of(bound(&layer.problem));
    let after = plan.imbalance(shape, layer.counts);
    let binding = if after <= policy.imbalance_target {
        Binding::Balanced
    } else if on_the_way {
        Binding::SpareSlots
    } else {
        Binding::CriticalRanks(draft.exact.critical.clone())
    };
    LayerReport {
        before: layer.running.imbalance(shape, layer.counts),
        after,
        weights_alone: layer.imbalance(&layer.now),
        aim: layer.imbalance(layer.aim.as_ref().unwrap_or(&layer.now)),
        bound,
        binding,
        moves: u32::try_from(layer.now.placement.moves_to(&draft.placement)).expect("moves fit 32 bits"),
    }
}

/// Replicas of `to` that `from` does not have.
fn missing<'a>(from: &'a Placement, to: &'a Placement) -> impl Iterator<Item = ExpertId> + 'a {
    from.rows()
        .zip(to.rows())
        .flat_map(|(have, want)| want.iter().filter(|e| !have.contains(e)).map(|&e| ExpertId(e)))
}
