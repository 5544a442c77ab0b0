//! How well the next window is forecast, and what placements made for the forecast are worth, on one thread.
//!
//!     cargo run --release -p evenkeel-simulate --example load_history
//!
//! The 256-expert loads are synthetic (log-normal); the V2-Lite loads are recorded routing, its clock is not.

use evenkeel_core::experts;
use evenkeel_core::ids::{NodeId, Rank, UnitId};
use evenkeel_core::load_history::LoadHistory;
use evenkeel_core::plan::{LayerPlan, Plan};
use evenkeel_core::policy::{ExpertPolicy, HistoryPolicy, SplitFor};
use evenkeel_core::snapshot::{Forecast, LoadTable, Predictor, Snapshot, Window};
use evenkeel_core::topology::{Role, UnitShape, UnitTopology};
use evenkeel_simulate::expert_loads::{RecordedRouting, SplitMix64};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Windows at the start that count for nothing: every planner settles first.
const WARM_UP: usize = 8;
/// Choices per layer of a synthetic window.
const ROUTED: f64 = 2_097_152.0;
const SIGMA: f64 = 0.5;
/// An expert of DeepSeek-V3 in FP8.
const EXPERT_BYTES: u64 = 44_000_000;
const HOUR_MS: u64 = 3_600_000;

/// A window with its parts, which may be none.
struct Measured {
    loads: LoadTable,
    parts: Vec<LoadTable>,
}

/// Loads over time.
struct Course {
    name: String,
    window_ms: u64,
    windows: Vec<Measured>,
    /// The windows that count.
    counted: std::ops::Range<usize>,
}

/// Base loads of a synthetic domain, `[layers * experts]`.
fn domain(layers: usize, experts: usize, seed: u64) -> Vec<f64> {
    let mut draw = SplitMix64::new(seed);
    (0..layers * experts).map(|_| draw.log_normal(SIGMA)).collect()
}

/// The loads scattered by `noise`, every layer scaled to [`ROUTED`].
fn scattered(base: &[f64], layers: usize, noise: f64, draw: &mut SplitMix64) -> LoadTable {
    let experts = base.len() / layers;
    let mut counts = Vec::with_capacity(base.len());
    for layer in base.chunks(experts) {
        let loads: Vec<f64> = layer.iter().map(|load| load * draw.log_normal(noise)).collect();
        let scale = ROUTED / loads.iter().sum::<f64>();
        counts.extend(loads.iter().map(|load| (load * scale).round() as u64));
    }
    LoadTable::new(layers, experts, counts).expect("counts of the shape")
}

/// `count` windows, each made by `base` from its number and then scattered.
fn synthetic(
    name: &str,
    layers: usize,
    window_ms: u64,
    count: usize,
    noise: f64,
    mut base: impl FnMut(usize, &mut SplitMix64) -> Vec<f64>,
) -> Course {
    let mut draw = SplitMix64::new(11);
    let windows = (0..count).map(|at| {
        let base = base(at, &mut draw);
        Measured { loads: scattered(&base, layers, noise, &mut draw), parts: Vec::new() }
    });
    let windows = windows.collect();
    Course { name: format!("synthetic, {name}"), window_ms, windows, counted: WARM_UP..count - 1 }
}

fn steady(layers: usize, noise: f64) -> Course {
    let base = domain(layers, 256, 1);
    let name = format!("every window scattered by {:.0} %", noise * 100.0);
    synthetic(&name, layers, 30_000, 48, noise, move |_, _| base.clone())
}

fn wandering(layers: usize) -> Course {
    let mut base = domain(layers, 256, 2);
    synthetic("wandering by 3 % a window, scattered by 1 %", layers, 30_000, 48, 0.01, move |_, draw| {
        base.iter_mut().for_each(|load| *load *= draw.log_normal(0.03));
        base.clone()
    })
}

fn shifting(layers: usize) -> Course {
    let domains = [domain(layers, 256, 3), domain(layers, 256, 4)];
    synthetic("another domain after 24 windows, scattered by 5 %", layers, 30_000, 48, 0.05, move |at, _| {
        domains[at / 24].clone()
    })
}

/// Windows of ten minutes; only the third day counts.
fn daily(layers: usize) -> Course {
    let (night, noon) = (domain(layers, 256, 5), domain(layers, 256, 6));
    let name = "two domains mixed by a daily cosine, scattered by 3 %, third day";
    let mut course = synthetic(name, layers, HOUR_MS / 6, 433, 0.03, move |at, _| {
        let part = 0.5 - 0.5 * (at as f64 / 144.0 * std::f64::consts::TAU).cos();
        night.iter().zip(&noon).map(|(night, noon)| night * (1.0 - part) + noon * part).collect()
    });
    course.counted = 288..432;
    course
}

/// The recorded domains one after the other, in windows of `tokens` with four parts each.
fn recorded(stems: &[&str], tokens: usize) -> Result<Course, Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
    let mut windows = Vec::new();
    for stem in stems {
        let routing = RecordedRouting::read(&folder, stem)?;
        let counts = |range| {
            LoadTable::new(routing.layers(), routing.experts(), routing.counts(range)).expect("small counts")
        };
        for from in (0..routing.tokens() + 1 - tokens).step_by(tokens) {
            let part = tokens / 4;
            let parts = (0..4).map(|at| counts(from + at * part..from + (at + 1) * part)).collect();
            windows.push(Measured { loads: counts(from..from + tokens), parts });
        }
    }
    let counted = 3..windows.len() - 1;
    let name = format!("V2-Lite, recorded, {}, {tokens} tokens a window", stems.join(" then "));
    Ok(Course { name, window_ms: 30_000, windows, counted })
}

/// Root mean square error, relative to the window forecast, mean over layers.
fn error(forecast: &LoadTable, window: &LoadTable) -> f64 {
    let layer = |layer: usize| {
        let (of, to) = (forecast.layer(layer), window.layer(layer));
        let scale = to.iter().sum::<u64>() as f64 / of.iter().sum::<u64>().max(1) as f64;
        let off: f64 = of.iter().zip(to).map(|(&f, &w)| (f as f64 * scale - w as f64).powi(2)).sum();
        (off / to.iter().map(|&w| (w as f64).powi(2)).sum::<f64>()).sqrt()
    };
    (0..window.layers()).map(layer).sum::<f64>() / window.layers() as f64
}

fn policy(course: &Course) -> HistoryPolicy {
    // The recording has no clock, and two ten-minute windows a half-life would be none.
    HistoryPolicy { half_life_ms: (10 * course.window_ms).min(HOUR_MS), ..HistoryPolicy::default() }
}

fn errors(course: &Course) {
    let mut history = LoadHistory::new(policy(course));
    let mut sums = [0.0; 4];
    let (mut used, mut drift, mut slowest) = ([0usize; 3], None, 0.0f64);
    for at in 0..course.counted.end {
        let now = at as u64 * course.window_ms;
        let start = Instant::now();
        history.observe(now, &course.windows[at].loads, &course.windows[at].parts);
        let next = now + course.window_ms;
        let forecast = history.forecast(next).expect("a window was seen");
        slowest = slowest.max(start.elapsed().as_secs_f64() * 1e3);
        if !course.counted.contains(&at) {
            continue;
        }
        let window = &course.windows[at + 1].loads;
        for (sum, predictor) in sums.iter_mut().zip(Predictor::ALL) {
            *sum += error(&history.forecast_of(predictor, next).expect("as above").loads, window);
        }
        sums[3] += error(&forecast.loads, window);
        forecast.predictor.iter().for_each(|&p| used[p as usize] += 1);
        drift = forecast.drift_mean();
    }
    let [last, average, season, ours] = sums.map(|sum| sum / course.counted.len() as f64 * 100.0);
    let all: usize = used.iter().sum();
    let [_, by_average, by_season] = used.map(|count| count as f64 / all as f64 * 100.0);
    println!(
        "  {:<78} {last:>6.2} {average:>8.2} {season:>9.2} {ours:>9.2}   {by_average:>3.0} {by_season:>3.0} {:>9.2} {slowest:>6.1}",
        course.name,
        drift.unwrap_or(f64::NAN) * 100.0
    );
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// Everything on the last window.
    Window,
    /// Placements for the forecast, shares for the window.
    Forecast,
    /// Placements and shares for the forecast.
    All,
}

fn topology(layers: usize, experts: usize, ranks: u16, slots: u16) -> Arc<UnitTopology> {
    let shape = UnitShape {
        role: Role::Mixed,
        layers: u16::try_from(layers).expect("few layers"),
        experts: u16::try_from(experts).expect("few experts"),
        top_k: 6,
        ranks,
        slots_per_rank: slots,
        spare_per_rank: 1,
        expert_bytes: EXPERT_BYTES,
    };
    let claims = BTreeMap::from([(NodeId::new("node").expect("a name"), (0..ranks).map(Rank).collect())]);
    Arc::new(UnitTopology::new(UnitId::new("unit").expect("a name"), shape, &claims).expect("a valid unit"))
}

fn imbalance(layers: &[LayerPlan], shape: &UnitShape, loads: &LoadTable) -> f64 {
    let sum: f64 = layers.iter().enumerate().map(|(l, plan)| plan.imbalance(shape, loads.layer(l))).sum();
    sum / layers.len() as f64
}

/// The best split of a placement, in a window.
fn resolved(topology: &Arc<UnitTopology>, running: &Plan, loads: &LoadTable, policy: &ExpertPolicy) -> f64 {
    let policy = ExpertPolicy { imbalance_target: f64::INFINITY, weights_gain_min: 0.0, ..policy.clone() };
    let solved = experts::solve(&snapshot(topology, loads, &[]), running, None, &policy);
    imbalance(solved.plan.as_ref().map_or(&running.layers, |plan| &plan.layers), topology.shape(), loads)
}

fn snapshot(topology: &Arc<UnitTopology>, loads: &LoadTable, parts: &[LoadTable]) -> Snapshot {
    let window = Window { from_step: 0, to_step: 1 };
    Snapshot::new(topology.clone(), window, loads.clone(), topology.shape().ranks, 0)
        .and_then(|snapshot| snapshot.with_parts(parts.to_vec()))
        .expect("loads of the shape")
}

/// Plans window by window as a balancer does whose migrations arrive before the next window.
fn plan(course: &Course, topology: &Arc<UnitTopology>, mode: Mode) {
    let split_for = if mode == Mode::All { SplitFor::Forecast } else { SplitFor::Window };
    let (shape, policy) = (topology.shape(), ExpertPolicy { split_for, ..ExpertPolicy::default() });
    let mut history = LoadHistory::new(self::policy(course));
    let mut running = Plan::boot(topology.unit().clone(), shape);
    let (mut fixed, mut even, mut best) = (0.0, 0.0, 0.0);
    let (mut moves, mut plans, mut spent) = (0, 0, 0.0);
    for at in 0..course.counted.end {
        let now = at as u64 * course.window_ms;
        let Measured { loads, parts } = &course.windows[at];
        history.observe(now, loads, parts);
        let ahead = now + course.window_ms;
        let forecast: Arc<Forecast> = Arc::new(history.forecast(ahead).expect("a window was seen"));
        let mut snapshot = snapshot(topology, loads, parts);
        if at > 0 {
            let previous = course.windows[at - 1].loads.clone();
            snapshot = snapshot.with_previous(previous).expect("of the shape");
        }
        if mode != Mode::Window {
            snapshot = snapshot.with_forecast(forecast).expect("of the shape");
        }
        let mut target = None;
        let start = Instant::now();
        loop {
            let solved = experts::solve(&snapshot, &running, target.as_ref(), &policy);
            let Some(plan) = solved.plan else { break };
            if course.counted.contains(&at) {
                moves += solved.report.moves();
                plans += 1;
            }
            (running, target) = (plan, solved.target);
        }
        if course.counted.contains(&at) {
            spent += start.elapsed().as_secs_f64() * 1e3;
            let next = &course.windows[at + 1].loads;
            fixed += imbalance(&running.layers, shape, next);
            let evenly = |l: &LayerPlan| LayerPlan::even(l.physical_to_logical.clone(), shape.experts.into());
            even += imbalance(&running.layers.iter().map(evenly).collect::<Vec<_>>(), shape, next);
            best += resolved(topology, &running, next, &policy);
        }
    }
    let count = course.counted.len() as f64;
    let slots = f64::from(shape.ranks) * f64::from(shape.slots_per_rank) * f64::from(shape.layers);
    let name = match mode {
        Mode::Window => "on the last window",
        Mode::Forecast => "placed for the forecast",
        Mode::All => "split for the forecast too",
    };
    println!(
        "    {name:<28} {:>8.4} {:>8.4} {:>8.4} {:>9.2} {:>9.2} {:>9.1}",
        fixed / count,
        even / count,
        best / count,
        plans as f64 / count,
        moves as f64 / count / slots * 100.0,
        spent / count
    );
}

fn compare(course: &Course, ranks: u16, slots: u16) {
    let loads = &course.windows[0].loads;
    println!("  {}: {ranks} ranks x {slots} slots", course.name);
    let topology = topology(loads.layers(), loads.experts(), ranks, slots);
    for mode in [Mode::Window, Mode::Forecast, Mode::All] {
        plan(course, &topology, mode);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let both = ["dsv2lite_intent", "dsv2lite_law"];
    println!(
        "Error of the forecast of the next window, % of it (root mean square, mean over layers and windows);"
    );
    println!("how often average and seasonal were used, %; drift found, %; slowest window, ms");
    println!(
        "  {:<78} {:>6} {:>8} {:>9} {:>9}   avg sea {:>9} {:>6}",
        "", "last", "average", "seasonal", "in use", "drift", "ms"
    );
    for course in [
        steady(58, 0.02),
        steady(58, 0.1),
        wandering(58),
        shifting(58),
        daily(4),
        recorded(&both[..1], 512)?,
        recorded(&both[1..], 512)?,
        recorded(&both, 512)?,
        recorded(&both, 2048)?,
    ] {
        errors(&course);
    }
    println!(
        "\nPlans window by window: max over mean of rank loads in the next window, mean over layers and windows, with the"
    );
    println!("split fixed, even and re-solved; plans a window; slots moved a window, %; ms to plan a window");
    println!(
        "    {:<28} {:>8} {:>8} {:>8} {:>9} {:>9} {:>9}",
        "", "fixed", "even", "resolved", "plans", "moved", "ms"
    );
    let few = 12;
    for (ranks, slots) in [(32, 9), (144, 2)] {
        for course in [steady(few, 0.02), steady(few, 0.1), wandering(few), shifting(few)] {
            compare(&course, ranks, slots);
        }
        compare(&daily(2), ranks, slots);
    }
    for (stems, tokens) in [(&both[..1], 512), (&both[1..], 512), (&both[..], 2048)] {
        let course = recorded(stems, tokens)?;
        compare(&course, 8, 9);
        compare(&course, 8, 10);
    }
    Ok(())
}
