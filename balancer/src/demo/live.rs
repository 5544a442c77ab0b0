//! The replay itself: three units are fed with routing and the request engines are driven, all at once,
//! while the balancer plans and the agents move weights.

use super::DemoError;
use super::cluster::Cluster;
use super::experts::{Admin, Feed, channel};
use super::figures::{ExpertFigures, ShiftFigures, compare, imbalance};
use super::progress::Progress;
use super::requests::{Counter, Gauges, LiveRouter, PolicyFigures, Workload};
use super::units::{DECODE, DemoUnit, PREFILL, V2_LITE};
use super::windows::{RecordedWindows, SyntheticWindows};
use evenkeel_core::plan::Plan;
use evenkeel_proto::v1;
use evenkeel_simulate::policy::SimulationError;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// Pause between two engine steps. The clock is compressed: a real load window is minutes of steps.
const PACE: Duration = Duration::from_millis(250);
/// Windows that each synthetic unit is fed at least.
const WINDOWS_MIN: u64 = 24;
/// Windows that each synthetic unit is fed at most: the request engines are done long before.
const WINDOWS_MAX: u64 = 2_000;
/// A unit that is not at rest this long after a window is fed another one.
const REST: Duration = Duration::from_millis(500);
/// A unit that is fed one window at a time comes to rest within this time after each.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);
/// Routing decisions may take this long on a busy machine of two cores.
const CALL_DEADLINE: Duration = Duration::from_secs(600);

/// The parts of a replay.
pub(super) struct Stage<'a> {
    /// The processes.
    pub cluster: &'a Cluster,
    /// The balancer's admin service.
    pub admin: Admin,
    /// The units.
    pub units: &'a [DemoUnit],
    /// The requests.
    pub workload: &'a Workload,
    /// The recorded routing.
    pub recorded: &'a RecordedWindows,
    /// The bar.
    pub progress: &'a Progress,
    /// Seed of the synthetic loads.
    pub seed: u64,
}

/// What a replay found.
pub(super) struct Outcome {
    /// One row per unit and domain.
    pub experts: Vec<ExpertFigures>,
    /// From intent to law.
    pub shift: ShiftFigures,
    /// By policy.
    pub round_robin: PolicyFigures,
    /// By policy.
    pub least_requests: PolicyFigures,
    /// By policy.
    pub evenkeel: PolicyFigures,
    /// Decisions of the live balancer.
    pub decisions: u64,
}

/// Work of a replay in virtual milliseconds: six engine runs, and the windows together as much as three.
pub(super) fn work(workload: &Workload) -> u64 {
    6 * workload.end_ms() + (2 * WINDOWS_MIN + 4) * window_work(workload)
}

fn window_work(workload: &Workload) -> u64 {
    workload.end_ms() / WINDOWS_MIN
}

impl Stage<'_> {
    /// Runs everything to its end.
    pub(super) async fn run(&self) -> Result<Outcome, DemoError> {
        let (to_prefill, prefill_gauges) = watch::channel(Gauges::new());
        let (to_decode, decode_gauges) = watch::channel(Gauges::new());
        let (_idle, no_gauges) = watch::channel(Gauges::new());
        let routed = Arc::new(AtomicBool::new(false));
        let requests = async {
            let outcome = self.requests(to_prefill, to_decode).await;
            routed.store(true, Ordering::Relaxed);
            outcome
        };
        let (prefill, decode, (law_and_intent, shift), requests) = tokio::try_join!(
            self.synthetic(PREFILL, prefill_gauges, &routed),
            self.synthetic(DECODE, decode_gauges, &routed),
            self.recorded(no_gauges),
            requests,
        )?;
        let mut experts = vec![prefill, decode];
        experts.extend(law_and_intent);
        let (evenkeel, round_robin, least_requests, decisions) = requests;
        Ok(Outcome { experts, shift, round_robin, least_requests, evenkeel, decisions })
    }

    /// Feeds a unit without pause, plans or not, until the requests are done and the unit has come to rest.
    async fn synthetic(
        &self,
        unit: usize,
        gauges: watch::Receiver<Gauges>,
        routed: &AtomicBool,
    ) -> Result<ExpertFigures, DemoError> {
        let mut admin = self.admin.clone();
        let agents = &self.cluster.agents[unit];
        let unit = &self.units[unit];
        let mut feed = Feed::connect(unit, agents, gauges).await?;
        let mut windows = SyntheticWindows::new(&unit.shape, self.seed, unit.weights_seed);
        for fed in 0.. {
            if fed == WINDOWS_MAX {
                return Err(not_at_rest(unit));
            }
            feed.window(&windows.next_window(), PACE).await?;
            if fed < WINDOWS_MIN {
                self.progress.counter().fetch_add(window_work(self.workload), Ordering::Relaxed);
            } else if routed.load(Ordering::Relaxed) && feed.settled(&mut admin, REST).await? {
                break;
            }
        }
        // The slots that are compared at the end must be those of the last plan: no further one.
        admin.pause(unit.name).await?;
        feed.window(&windows.next_window(), PACE).await?;
        let (plan, window) = last_placement(&mut admin, unit, &feed).await?;
        Ok(compare(unit, unit.routing, &plan, &feed.windows[window], &feed.windows[window + 1]))
    }

    /// Feeds the recorded windows one by one, and lets the unit come to rest after each.
    async fn recorded(
        &self,
        gauges: watch::Receiver<Gauges>,
    ) -> Result<(Vec<ExpertFigures>, ShiftFigures), DemoError> {
        let mut admin = self.admin.clone();
        let unit = &self.units[V2_LITE];
        let mut feed = Feed::connect(unit, &self.cluster.agents[V2_LITE], gauges).await?;
        let mut plans: Vec<Plan> = Vec::new();
        let mut epochs = Vec::new();
        for steps in self.recorded.windows() {
            feed.window(steps, PACE).await?;
            if !feed.settled(&mut admin, SETTLE_DEADLINE).await? {
                return Err(not_at_rest(unit));
            }
            plans.push(plan(&mut admin, unit, None).await?);
            epochs.push(plans.last().map_or(0, |p| p.epoch.0));
            self.progress.counter().fetch_add(window_work(self.workload), Ordering::Relaxed);
        }
        let [intent_1, intent_2, law_1, law_2] = feed.windows.as_slice() else {
            unreachable!("two windows of two domains are recorded")
        };
        let rows = vec![
            compare(unit, "recorded, intent: first half, then second", &plans[0], intent_1, intent_2),
            compare(unit, "recorded, law: first half, then second", &plans[2], law_1, law_2),
        ];
        let accounts = admin.plans(unit.name).await?;
        let of_shift = |p: &&v1::PlanSummary| {
            p.id.as_ref().is_some_and(|id| id.epoch > epochs[1] && id.epoch <= epochs[2])
        };
        let shift = ShiftFigures {
            before: imbalance(unit, &plans[1], law_1),
            after: imbalance(unit, &plans[2], law_1),
            plans: epochs[2] - epochs[1],
            moves: accounts.iter().filter(of_shift).map(|p| p.moves).sum(),
        };
        Ok((rows, shift))
    }

    /// The live engines over gRPC, then the baselines on the same arrivals.
    async fn requests(
        &self,
        prefill_gauges: watch::Sender<Gauges>,
        decode_gauges: watch::Sender<Gauges>,
    ) -> Result<(PolicyFigures, PolicyFigures, PolicyFigures, u64), DemoError> {
        let admin = self.cluster.balancer.admin.to_string();
        let mut decode_router = self.router(&admin, DECODE).await?;
        let mut prefill_router = self.router(&admin, PREFILL).await?;
        let decode = self.beside(move |workload, progress| {
            let figures = workload.decode_live(&mut decode_router, progress, &decode_gauges)?;
            Ok((figures, decode_router.decisions()))
        });
        let prefill = self.beside(move |workload, progress| {
            let figures = workload.prefill_live(&mut prefill_router, progress, &prefill_gauges)?;
            Ok((figures, prefill_router.decisions()))
        });
        let ((decode, decode_decisions), (prefill, prefill_decisions)) = tokio::try_join!(decode, prefill)?;
        let round_robin = self.beside(|workload, progress| workload.round_robin(progress)).await?;
        let least_requests = self.beside(|workload, progress| workload.least_requests(progress)).await?;
        let evenkeel = PolicyFigures { decode, prefill };
        Ok((evenkeel, round_robin, least_requests, decode_decisions + prefill_decisions))
    }

    /// Runs an engine on a thread of its own: it computes without pause.
    fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Workload, &Counter) -> Result<T, SimulationError> + Send + 'static,
    ) -> impl Future<Output = Result<T, DemoError>> {
        let (workload, counter) = (self.workload.clone(), self.progress.counter());
        let engine = tokio::task::spawn_blocking(move || work(&workload, &counter));
        async { Ok(engine.await.expect("the engines do not panic")?) }
    }

    async fn router(&self, admin: &str, unit: usize) -> Result<LiveRouter, DemoError> {
        LiveRouter::open(channel(admin, CALL_DEADLINE).await?, self.units[unit].name).await
    }
}

/// A committed plan of a unit; the last one when `epoch` is unset.
async fn plan(admin: &mut Admin, unit: &DemoUnit, epoch: Option<u64>) -> Result<Plan, DemoError> {
    let answer = admin.plan(unit.name, epoch).await?;
    let plan = answer.plan.as_ref().ok_or_else(|| wrong_answer("a plan is missing"))?;
    Plan::try_from(plan).map_err(|e| wrong_answer(&e.to_string()))
}

/// The last plan that moved weights, which is where a placement was decided on, and the window it was solved on.
async fn last_placement(admin: &mut Admin, unit: &DemoUnit, feed: &Feed) -> Result<(Plan, usize), DemoError> {
    let plans = admin.plans(unit.name).await?;
    let moved = plans.iter().find(|p| p.kind() == v1::PlanKind::Moves);
    let account = moved.ok_or_else(|| wrong_answer("no plan moved weights"))?;
    let epoch = account.id.as_ref().map(|id| id.epoch);
    let window = feed.window_at(&account.window.unwrap_or_default());
    let window = window.ok_or_else(|| wrong_answer("a plan was solved on a window never fed"))?;
    Ok((plan(admin, unit, epoch).await?, window))
}

fn not_at_rest(unit: &DemoUnit) -> DemoError {
    DemoError::Deadline { what: format!("unit {} to come to rest", unit.name), after: SETTLE_DEADLINE }
}

fn wrong_answer(what: &str) -> DemoError {
    DemoError::Admin(tonic::Status::internal(what))
}
