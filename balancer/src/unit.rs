//! What the balancer knows of one unit, and the pure steps from its telemetry to its next plan.

use crate::draft::{self, Drafted};
use crate::push::PreparedCache;
use crate::rank_instruments::RankInstruments;
use crate::telemetry::{CleanWindow, WindowAssembler};
use evenkeel_core::experts::{self, Solved, Target, Without};
use evenkeel_core::ids::{Epoch, Rank, UnitId};
use evenkeel_core::load_history::LoadHistory;
use evenkeel_core::plan::{LayerPlan, Plan, max_over_mean};
use evenkeel_core::policy::{ExpertPolicy, HistoryPolicy};
use evenkeel_core::protocol::unit::PlanRef;
use evenkeel_core::records::Pin;
use evenkeel_core::report::{Decision, KeepReason};
use evenkeel_core::snapshot::{Forecast, LoadTable, Snapshot, Window};
use evenkeel_core::topology::{UnitShape, UnitTopology};
use evenkeel_core::units::Millis;
use evenkeel_proto::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What the balancer knows of a unit beside what [`evenkeel_core::protocol::reign`] decides: what its ranks report, and what
/// has been made of it. Kept by a standby too, so that it leads from warm windows.
pub struct Unit {
    /// Its name.
    pub id: UnitId,
    /// What each rank last said of itself.
    pub gauges: BTreeMap<Rank, v1::RankGauges>,
    shown: BTreeMap<Rank, RankInstruments>,
    /// What the last window led to, for people.
    pub last_decision: String,
    /// Present once the first plan is committed.
    pub formed: Option<Formed>,
}

/// The last committed plan of a unit and the one before.
#[derive(Debug, Clone)]
pub struct Plans {
    /// The last committed plan.
    pub head: Arc<Plan>,
    /// Its epoch and digest.
    pub head_id: PlanRef,
    /// The plan before, as far as it is known.
    pub parent: Option<Arc<Plan>>,
}

impl Plans {
    /// `parent` is the plan before `head`.
    pub fn new(head: Arc<Plan>, parent: Option<Arc<Plan>>) -> Self {
        Self { head_id: (head.epoch, head.digest()), head, parent }
    }

    /// The one of the two with this epoch.
    pub fn of(&self, epoch: Epoch) -> Option<&Arc<Plan>> {
        [Some(&self.head), self.parent.as_ref()].into_iter().flatten().find(|plan| plan.epoch == epoch)
    }
}

/// What operators hold of a unit, as far as a solve has to keep it.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// Ranks that are empty and stay so.
    pub drained: BTreeSet<Rank>,
    /// Experts that stay where they are.
    pub pins: BTreeSet<Pin>,
}

/// The moving parts of a formed unit.
pub struct Formed {
    /// Ranks and nodes.
    pub topology: Arc<UnitTopology>,
    /// Its plans.
    pub plans: Plans,
    /// Open load windows.
    pub windows: WindowAssembler,
    /// The last window that can be solved on.
    pub last_clean: Option<Arc<CleanWindow>>,
    /// The clean window before it.
    pub previous_clean: Option<Arc<CleanWindow>>,
    /// All clean windows since the balancer started, averaged.
    pub history: LoadHistory,
    /// Clean windows since the balancer started.
    pub clean_windows: u64,
    /// The placement the unit is on its way to.
    pub migration: Option<Migration>,
    /// The window of the last decision: the next one waits for new counts, unless a target is under way.
    pub decided: Option<Window>,
    /// A solve is running.
    pub solving: bool,
    /// No plan is tried before this time, after one was aborted.
    pub resume_at: Millis,
    /// The plan under way: its account.
    pub pending: Option<Pending>,
    /// Plans as they go over the wire.
    pub prepared: PreparedCache,
}

/// A migration of several plans. All of them are solved on the window that the target was made from, so that the
/// last one is what was decided on; new weights follow by themselves.
#[derive(Debug, Clone)]
pub struct Migration {
    /// The placement on the way.
    pub target: Target,
    /// What it was made from.
    pub window: Arc<CleanWindow>,
    /// What it was made for.
    pub forecast: Option<Arc<Forecast>>,
    /// Clean windows closed since.
    pub age_windows: u64,
}

/// After this many newer windows a migration goes on with the newest counts: what it was made for may be over.
const MIGRATION_WINDOWS_MAX: u64 = 8;

/// A plan between its proposal and its settling.
#[derive(Debug, Clone)]
pub struct Pending {
    /// The plan.
    pub plan: PlanRef,
    /// Its account.
    pub summary: v1::PlanSummary,
    /// When its current phase began.
    pub phase_began: Millis,
}

impl Unit {
    /// A unit of which nothing is known.
    pub fn new(id: UnitId) -> Self {
        let last_decision = "waiting for every rank's agent".to_owned();
        Self { id, gauges: BTreeMap::new(), shown: BTreeMap::new(), last_decision, formed: None }
    }

    /// Takes what a rank says of itself, and shows it.
    pub fn take_gauges(&mut self, rank: Rank, said: v1::RankGauges) {
        let shown = self.shown.entry(rank).or_insert_with(|| RankInstruments::new(&self.id, rank));
        shown.show(&said);
        self.gauges.insert(rank, said);
    }

    /// Max over mean of the measured rank loads in the last clean window, mean over layers.
    pub fn expert_imbalance(&self) -> Option<f64> {
        let formed = self.formed.as_ref()?;
        let window = formed.last_clean.as_ref()?;
        Some(window.imbalance(formed.topology.shape().ranks.into()))
    }

    /// Takes over what is committed, and keeps what was measured if the unit has the same shape still.
    pub fn take_up(&mut self, topology: &Arc<UnitTopology>, plans: Plans, history: HistoryPolicy) {
        match &mut self.formed {
            Some(formed) if formed.topology.shape() == topology.shape() => {
                formed.set_topology(topology);
                formed.plans = plans;
            }
            _ => self.formed = Some(Formed::new(Arc::clone(topology), plans, history)),
        }
    }
}

impl Formed {
    /// A unit of which nothing was measured yet.
    pub fn new(topology: Arc<UnitTopology>, plans: Plans, history: HistoryPolicy) -> Self {
        Self {
            topology,
            plans,
            windows: WindowAssembler::default(),
            last_clean: None,
            previous_clean: None,
            history: LoadHistory::new(history),
            clean_windows: 0,
            migration: None,
            decided: None,
            solving: false,
            resume_at: Millis(0),
            pending: None,
            prepared: PreparedCache::default(),
        }
    }

    /// Other nodes have the ranks. What was prepared names the old ones.
    pub fn set_topology(&mut self, topology: &Arc<UnitTopology>) {
        if self.topology != *topology {
            self.topology = Arc::clone(topology);
            self.prepared = PreparedCache::default();
        }
    }

    /// The last window whose decision has been carried out; `None` while anything is under way. `steady`: every node
    /// serves the head, and no plan is under way.
    pub fn settled(&self, steady: bool) -> Option<Window> {
        let quiet = !self.solving && self.migration.is_none() && steady;
        self.decided.filter(|_| quiet)
    }

    /// Takes a window that can be solved on, at the time its last counts arrived.
    pub fn take_clean(&mut self, window: CleanWindow, now: Millis) {
        self.clean_windows += 1;
        self.history.observe(now.0, &window.loads, &window.parts);
        self.previous_clean = self.last_clean.replace(Arc::new(window));
        if let Some(migration) = &mut self.migration {
            migration.age_windows += 1;
        }
    }

    /// Whether there is anything to solve on. Asked with each report of each agent, so it looks at no node.
    pub fn wants_solve(&self, now: Millis) -> bool {
        let decided =
            |newest: &Arc<CleanWindow>| self.decided == Some(newest.window) && self.migration.is_none();
        !self.solving
            && now >= self.resume_at
            && self.last_clean.as_ref().is_some_and(|newest| !decided(newest))
    }

    /// The work of one solve, to be run off the control loop; `None` when there is none now. Its plan has the number
    /// `epoch`. To be asked only while a plan may be made.
    pub fn next_solve(
        &self,
        now: Millis,
        policy: &ExpertPolicy,
        kept: Kept,
        epoch: Epoch,
    ) -> Option<SolveJob> {
        if !self.wants_solve(now) {
            return None;
        }
        let newest = self.last_clean.as_ref()?;
        // A placement is made for the middle of its life.
        let forecast = || self.history.forecast(now.0 + policy.placement_life_ms / 2).map(Arc::new);
        let (window, forecast) = match &self.migration {
            Some(migration) if migration.age_windows <= MIGRATION_WINDOWS_MAX => {
                (&migration.window, migration.forecast.clone())
            }
            Some(_) => (newest, forecast()),
            None if self.decided == Some(newest.window) => return None,
            None => (newest, forecast()),
        };
        let previous = self.previous_clean.as_ref().filter(|p| p.window < window.window);
        Some(SolveJob {
            topology: Arc::clone(&self.topology),
            window: Arc::clone(window),
            previous: previous.map(|p| p.loads.clone()),
            forecast,
            running: Arc::clone(&self.plans.head),
            target: self.migration.as_ref().map(|m| m.target.clone()),
            policy: policy.clone(),
            kept,
            epoch,
        })
    }

    /// Keeps the target of a solve for the next one, with the window and the forecast it was made from.
    pub fn set_target(&mut self, result: &SolveResult) {
        let window = &result.window;
        self.migration = result.solved.target.clone().map(|target| match self.migration.take() {
            Some(migration) if migration.window.window == window.window => Migration { target, ..migration },
            _ => Migration {
                target,
                window: Arc::clone(window),
                forecast: result.forecast.clone(),
                age_windows: 0,
            },
        });
    }

    /// Imbalance that a plan would have had in the last clean window over the one measured in it: what the
    /// running plan has gained over its parent.
    pub fn realised_gain(&self) -> Option<f64> {
        let window = self.last_clean.as_ref()?;
        let head = &self.plans.head;
        let parent = self.plans.of(head.parent?.0)?;
        if window.epoch != head.epoch {
            return None;
        }
        let shape = self.topology.shape();
        let before = mean_imbalance(&parent.layers, |l, layer| layer.imbalance(shape, window.loads.layer(l)));
        Some(before / window.imbalance(shape.ranks.into()))
    }
}

impl CleanWindow {
    /// Max over mean of the rank loads, mean over layers.
    pub fn imbalance(&self, ranks: usize) -> f64 {
        let layers: Vec<&[u64]> = self.rank_loads.chunks_exact(ranks).collect();
        mean_imbalance(&layers, |_, loads| {
            max_over_mean(&loads.iter().map(|&l| l as f64).collect::<Vec<_>>())
        })
    }
}

fn mean_imbalance<T>(layers: &[T], imbalance: impl Fn(usize, &T) -> f64) -> f64 {
    let sum: f64 = layers.iter().enumerate().map(|(l, layer)| imbalance(l, layer)).sum();
    sum / layers.len() as f64
}

/// The input of one solve.
#[derive(Debug, Clone)]
pub struct SolveJob {
    topology: Arc<UnitTopology>,
    window: Arc<CleanWindow>,
    previous: Option<LoadTable>,
    forecast: Option<Arc<Forecast>>,
    running: Arc<Plan>,
    target: Option<Target>,
    policy: ExpertPolicy,
    kept: Kept,
    /// The number of the plan that it makes.
    epoch: Epoch,
}

/// A solve's result with the counts it was made on.
pub struct SolveResult {
    /// The plan and its account.
    pub solved: Solved,
    /// The window.
    pub window: Arc<CleanWindow>,
    /// What the windows after it were expected to ask for.
    pub forecast: Option<Arc<Forecast>>,
    /// The plan to propose, as it is stored.
    pub drafted: Option<Drafted>,
}

impl SolveJob {
    /// What the solve expects of the next windows.
    pub fn forecast(&self) -> Option<&Forecast> {
        self.forecast.as_deref()
    }

    /// Runs the solver, and writes the plan down. Pure, but too long for the control loop.
    pub fn run(self) -> SolveResult {
        let without = Without::new(&self.topology, &self.kept.drained);
        let (topology, running) = (without.topology(), without.project(&self.running));
        let (ranks, shape) = (topology.shape().ranks, "a clean window has the unit's shape");
        let snapshot = Snapshot::new(topology, self.window.window, self.window.loads.clone(), ranks, 0)
            .and_then(|snapshot| snapshot.with_parts(self.window.parts.clone()))
            .expect(shape);
        let snapshot = match self.previous {
            Some(previous) => snapshot.with_previous(previous).expect(shape),
            None => snapshot,
        };
        let snapshot = match self.forecast.clone() {
            Some(forecast) => snapshot.with_forecast(forecast).expect(shape),
            None => snapshot,
        };
        let mut solved = experts::solve(&snapshot, &running, self.target.as_ref(), &self.policy);
        solved.plan = solved.plan.map(|plan| without.lift(&plan, &self.running));
        solved.plan = solved.plan.map(|plan| plan.numbered(self.epoch));
        keep_pins(&mut solved, &self.running, self.topology.shape(), &self.kept.pins);
        let drafted = solved.plan.as_ref().map(|plan| {
            let summary =
                draft::account(plan, &self.running, &self.topology, Some((&solved.report, &self.window)));
            Drafted::new(Arc::new(plan.clone()), summary, Some((&self.window.loads).into()))
        });
        SolveResult { solved, window: self.window, forecast: self.forecast, drafted }
    }
}

/// The solver knows no pins: a layer whose plan breaks one stays as it is, and its target is given up.
fn keep_pins(solved: &mut Solved, running: &Plan, shape: &UnitShape, pins: &BTreeSet<Pin>) {
    let Some(plan) = &mut solved.plan else { return };
    let holds = |layer: &LayerPlan, pin: &Pin| {
        layer.physical_to_logical[shape.slots_of_rank(pin.rank)].contains(&Some(pin.expert))
    };
    for pin in pins {
        let at = pin.layer.index();
        if holds(&running.layers[at], pin) && !holds(&plan.layers[at], pin) {
            plan.layers[at] = running.layers[at].clone();
            solved.target = None;
        }
    }
    if plan.layers == running.layers {
        (solved.plan, solved.decision) = (None, Decision::Keep(KeepReason::GainTooSmall));
    }
}

/// `[layers][ranks]`, row-major: the load of every rank under `layers` in a window.
pub fn rank_loads_under(layers: &[LayerPlan], window: &CleanWindow, topology: &UnitTopology) -> Vec<f64> {
    let of = |(l, layer): (usize, &LayerPlan)| layer.rank_loads(topology.shape(), window.loads.layer(l));
    layers.iter().enumerate().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_core::ids::NodeId;
    use evenkeel_core::topology::Role;

    /// Hot experts first: the boot placement `0 1 2 3 - | 4 5 6 7 -` is far from level, and two experts must change
    /// sides, one spare slot at a time.
    const HOT: [u64; 8] = [400, 300, 200, 100, 4, 3, 2, 1];

    /// A unit of two ranks on one node that serves the boot plan.
    fn formed() -> Formed {
        let shape = UnitShape {
            role: Role::Decode,
            layers: 1,
            experts: 8,
            top_k: 1,
            ranks: 2,
            slots_per_rank: 4,
            spare_per_rank: 1,
            expert_bytes: 64,
        };
        let node = NodeId::new("a").expect("valid");
        let claims = BTreeMap::from([(node, vec![Rank(0), Rank(1)])]);
        let unit = UnitId::new("u").expect("valid");
        let topology = Arc::new(UnitTopology::new(unit.clone(), shape, &claims).expect("complete"));
        let boot = Arc::new(Plan::boot(unit, topology.shape()));
        Formed::new(topology, Plans::new(boot, None), HistoryPolicy::default())
    }

    fn window(number: u64, loads: [u64; 8]) -> CleanWindow {
        CleanWindow {
            window: Window { from_step: number * 4, to_step: number * 4 + 4 },
            epoch: evenkeel_core::ids::Epoch(0),
            loads: LoadTable::new(1, 8, loads.to_vec()).expect("valid"),
            parts: Vec::new(),
            rank_loads: vec![1, 1],
        }
    }

    fn solve(formed: &Formed) -> Option<SolveResult> {
        let (policy, epoch) = (ExpertPolicy::default(), formed.plans.head.epoch.next());
        formed.next_solve(Millis(0), &policy, Kept::default(), epoch).map(SolveJob::run)
    }

    /// First step of the window that the next solve is made on.
    fn solved_on(formed: &Formed) -> Option<u64> {
        solve(formed).map(|result| result.window.window.from_step)
    }

    #[test]
    fn a_window_is_decided_on_once() {
        let mut formed = formed();
        assert_eq!(solved_on(&formed), None, "no window yet");
        formed.take_clean(window(0, HOT), Millis(0));
        assert_eq!(solved_on(&formed), Some(0));
        formed.decided = Some(window(0, HOT).window);
        assert_eq!(solved_on(&formed), None);
        assert_eq!(formed.settled(true), formed.decided);
        formed.take_clean(window(1, HOT), Millis(0));
        assert_eq!(solved_on(&formed), Some(4));
    }

    #[test]
    fn nothing_is_solved_while_a_solve_runs_or_after_an_abort() {
        let mut formed = formed();
        formed.take_clean(window(0, HOT), Millis(0));
        formed.solving = true;
        assert_eq!(solved_on(&formed), None);
        (formed.solving, formed.resume_at) = (false, Millis(1));
        assert_eq!(solved_on(&formed), None);
        formed.resume_at = Millis(0);
        assert_eq!(solved_on(&formed), Some(0));
    }

    #[test]
    fn a_migration_goes_on_with_its_window_until_that_is_old() {
        let mut formed = formed();
        formed.take_clean(window(0, HOT), Millis(0));
        let result = solve(&formed).expect("a window");
        assert!(result.solved.target.is_some(), "the migration needs more than one plan");
        formed.set_target(&result);
        assert_eq!(formed.settled(true), None);
        for number in 1..=MIGRATION_WINDOWS_MAX {
            formed.take_clean(window(number, HOT), Millis(0));
            assert_eq!(solved_on(&formed), Some(0), "after window {number}");
            formed.set_target(&result);
        }
        let newest = MIGRATION_WINDOWS_MAX + 1;
        formed.take_clean(window(newest, HOT), Millis(0));
        assert_eq!(solved_on(&formed), Some(newest * 4));
    }
    /// The same experts in another order of heat: the boot placement is level on it.
    const LEVEL: [u64; 8] = [400, 4, 200, 100, 300, 3, 2, 400];

    #[test]
    fn a_migration_keeps_the_forecast_it_was_made_for() {
        let mut formed = formed();
        formed.take_clean(window(0, HOT), Millis(0));
        let first = solve(&formed).expect("a window");
        let made_for = first.forecast.clone().expect("a window was seen");
        assert_eq!(made_for.loads, window(0, HOT).loads);
        formed.set_target(&first);
        formed.take_clean(window(1, LEVEL), Millis(1));
        let second = solve(&formed).expect("the migration goes on");
        assert_eq!(second.forecast, Some(made_for));
    }

    #[test]
    fn weights_are_placed_for_what_the_windows_have_in_common() {
        let mut formed = formed();
        // A half-life is ten windows here, which scatter a little.
        for number in 0..20 {
            let scattered = HOT.map(|load| load + (number * 37) % 11);
            formed.take_clean(window(number, scattered), Millis(number * 30_000));
        }
        let result = solve(&formed).expect("a window");
        let forecast = result.forecast.expect("windows were seen");
        assert_ne!(forecast.loads, result.window.loads);
        assert!(forecast.drift[0].is_some());
        // Without a half-life there is none, and the last window counts alone.
        let off = HistoryPolicy { half_life_ms: 0, ..HistoryPolicy::default() };
        formed.history = LoadHistory::new(off);
        formed.take_clean(window(20, HOT), Millis(600_000));
        assert_eq!(solve(&formed).expect("a window").forecast, None);
    }
}
