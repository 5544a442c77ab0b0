//! Time of a solve of all layers, everyone in turn: the machine's moods then meet all of them alike.

use crate::cases::{Case, DECODE, Inputs, KIMI, LARGE, PREFILL, PREFILL_GROUPS, QWEN3};
use crate::figures::Figures;
use crate::layout::{ms, new_table, right};
use comfy_table::{Cell, Table};
use evenkeel_core::experts::{Deployment, ExpertLoads, PlanOptions, resplit_layers};
use evenkeel_core::ids::ExpertId;
use evenkeel_simulate::planner::{Evenkeel, Peer, PlacedLayer, Planner, Problem, Running};
use evenkeel_simulate::score;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Everyone's turns.
const ROUNDS: usize = 9;
/// Solves of a turn, of which the fastest counts: as many as the yardstick takes.
const SOLVES_PER_TURN: usize = 20;
/// A turn ends early after this time, so that the slowest planners have one solve a turn.
const TURN_MAX: Duration = Duration::from_millis(250);
/// Slower solves are not repeated a hundred times.
const HUNDRED_MAX: f64 = 60.0;

/// The peers' table.
const CASES: [Case; 6] = [
    Case::new(PREFILL, "ln1.0"),
    Case::new(PREFILL_GROUPS, "ln1.0"),
    Case::new(DECODE, "ln1.0"),
    Case::new(QWEN3, "ln1.0"),
    Case::new(KIMI, "ln1.0"),
    Case::new(LARGE, "ln1.0"),
];

/// Drift before a plan from the running one, percent.
const DRIFT: u32 = 20;

/// As the figures name the yardstick.
pub(crate) const GREEDY: &str = "greedy.c";
/// As the figures name a plan from the running one.
const REPAIR: &str = "Evenkeel, 8 moves after drift 20 %";
/// As the figures name the weights-only plan.
pub(crate) const RESPLIT: &str = "Evenkeel, split alone";

type Solve<'a> = Box<dyn Fn(usize) + 'a>;

/// One column: name, and a solve on so many threads.
struct Contestant<'a> {
    name: &'static str,
    solve: Solve<'a>,
    /// Best of every turn, ms, on one thread and on two.
    turns: [Vec<f64>; 2],
}

fn contestants<'a>(
    deployment: &'a Deployment,
    loads: &'a ExpertLoads,
    drifted: &'a ExpertLoads,
    slots: &'a [Vec<Option<ExpertId>>],
) -> Vec<Contestant<'a>> {
    let problem = Problem { deployment, loads, running: None };
    let contestant = |name, solve| Contestant { name, solve, turns: Default::default() };
    let own = [Evenkeel::weighted(), Evenkeel::even()];
    let peers = Peer::ALL.into_iter().filter(|peer| !matches!(peer, Peer::EplbGlobal | Peer::SwiftAlways));
    let planners = own.map(|own| Box::new(own) as Box<dyn Planner>).into_iter();
    let planners = planners.chain(peers.map(|peer| Box::new(peer) as Box<dyn Planner>));
    let mut all: Vec<Contestant> = planners
        .map(|planner| {
            let name = planner.name();
            let solve = move |threads| {
                std::hint::black_box(planner.plan(&problem, threads))
                    .expect("every planner takes the tables' units");
            };
            contestant(name, Box::new(solve) as Solve)
        })
        .collect();
    let resplit = move |threads| {
        let options = PlanOptions { threads, ..PlanOptions::default() };
        std::hint::black_box(resplit_layers(deployment, drifted, slots, &options)).expect("a complete plan");
    };
    all.push(contestant(RESPLIT, Box::new(resplit)));
    let repair = Evenkeel {
        options: PlanOptions { moves_max: Some(8), ..PlanOptions::default() },
        ..Evenkeel::weighted()
    };
    let after = Problem { loads: drifted, running: Some(Running { slots, solved_for: loads }), ..problem };
    let repair = move |threads| {
        std::hint::black_box(repair.plan(&after, threads)).expect("a complete plan");
    };
    all.push(contestant(REPAIR, Box::new(repair)));
    all
}

impl Contestant<'_> {
    fn take_turn(&mut self) {
        for (threads, turns) in (1..).zip(&mut self.turns) {
            let begin = Instant::now();
            let mut best = f64::INFINITY;
            for _ in 0..SOLVES_PER_TURN {
                let start = Instant::now();
                (self.solve)(threads);
                best = best.min(start.elapsed().as_secs_f64() * 1e3);
                if begin.elapsed() > TURN_MAX {
                    break;
                }
            }
            turns.push(best);
        }
    }

    /// Wall time of a hundred solves on one thread, ms; `None` when one takes too long for that.
    fn hundred(&self) -> Option<f64> {
        (least(&self.turns[0]) <= HUNDRED_MAX).then(|| {
            let start = Instant::now();
            (0..100).for_each(|_| (self.solve)(1));
            start.elapsed().as_secs_f64() * 1e3
        })
    }
}

fn least(turns: &[f64]) -> f64 {
    turns.iter().copied().fold(f64::INFINITY, f64::min)
}

fn median(turns: &[f64]) -> f64 {
    let mut sorted = turns.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The compiled yardstick, and the folder for its inputs.
struct Greedy {
    folder: PathBuf,
}

impl Greedy {
    fn compile(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/greedy.c");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let status =
            Command::new(&compiler).args(["-O3", "-o"]).arg(folder.join("greedy")).arg(source).status();
        let status = status.unwrap_or_else(|error| panic!("{}: {error}", compiler.display()));
        assert!(status.success(), "greedy.c does not compile: {status}");
        Self { folder: folder.to_owned() }
    }

    fn write(&self, case: &Case, loads: &ExpertLoads) {
        let unit = case.unit;
        let mut bytes = Vec::new();
        for number in [unit.layers, unit.experts, unit.slots, unit.ranks] {
            bytes.extend_from_slice(&i32::try_from(number).expect("small numbers").to_ne_bytes());
        }
        for layer in 0..loads.layers() {
            loads.layer(layer).iter().for_each(|load| bytes.extend_from_slice(&load.to_ne_bytes()));
        }
        std::fs::write(self.folder.join("loads"), bytes).expect("the bench's folder is writable");
    }

    /// Its best time of a turn, ms, and its mean imbalance.
    fn take_turn(&self) -> (f64, f64) {
        let output = Command::new(self.folder.join("greedy")).arg(self.folder.join("loads")).output();
        let output = output.expect("greedy.c has been compiled");
        let text = String::from_utf8_lossy(&output.stdout);
        let mut numbers = text.split_whitespace().map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(ms)), Some(Ok(imbalance))) => (ms, imbalance),
            _ => panic!("greedy.c printed {text:?}"),
        }
    }
}

/// The yardstick does the same work as TensorRT-LLM's heaps, so both balance alike: else one of them is wrong.
fn check_yardstick(problem: &Problem<'_>, imbalance: f64) {
    let plan = Peer::TensorRtLlm.plan(problem, 1).expect("every planner takes the tables' units");
    let even = |(layer, placed): (usize, &PlacedLayer)| {
        score::even_imbalance(problem.deployment, &placed.slots, problem.loads.layer(layer))
    };
    let heaps = plan.iter().enumerate().map(even).sum::<f64>() / plan.len() as f64;
    // Equal loads may be taken in another order.
    assert!(
        (heaps - imbalance).abs() < 1e-4,
        "greedy.c balances to {imbalance}, TensorRT-LLM's heaps to {heaps}"
    );
}

/// Times everyone on every unit; the yardstick is compiled into `folder`.
pub(crate) fn run(inputs: &Inputs, folder: &Path, figures: &mut Figures) -> Table {
    let greedy = Greedy::compile(folder);
    let mut table = new_table(&[
        "all layers, ms",
        "planner",
        "1 thread: least",
        "median",
        "2 threads: least",
        "median",
        "100 solves",
        "1 thread / greedy.c",
        "2 threads / greedy.c",
    ]);
    for case in &CASES {
        let (deployment, loads, name) = (case.unit.deployment(), inputs.base(case, 0), case.name());
        greedy.write(case, &loads);
        let problem = Problem { deployment: &deployment, loads: &loads, running: None };
        let plan = Evenkeel::weighted().plan(&problem, 1).expect("a valid problem");
        let running: Vec<_> = plan.into_iter().map(|layer| layer.slots).collect();
        let drifted = inputs.drifted(case, 0, DRIFT);
        let mut all = contestants(&deployment, &loads, &drifted, &running);
        let (mut yardstick, mut imbalance) = (Vec::new(), 0.0);
        for _ in 0..ROUNDS {
            let turn = greedy.take_turn();
            yardstick.push(turn.0);
            imbalance = turn.1;
            all.iter_mut().for_each(Contestant::take_turn);
        }
        check_yardstick(&problem, imbalance);
        figures.record(&name, GREEDY, "in sample, even split, seed 0", imbalance);
        figures.record(&name, GREEDY, "ms, 1 thread, least", least(&yardstick));
        figures.record(&name, GREEDY, "ms, 1 thread, median", median(&yardstick));
        let own = [ms(least(&yardstick)), ms(median(&yardstick))];
        table.add_row([Cell::new(&name), Cell::new(GREEDY)].into_iter().chain(own));
        for contestant in &all {
            let mut row = vec![Cell::new(&name), Cell::new(contestant.name)];
            for (threads, turns) in (1..).zip(&contestant.turns) {
                let plural = if threads == 1 { "thread" } else { "threads" };
                figures.record(
                    &name,
                    contestant.name,
                    &format!("ms, {threads} {plural}, least"),
                    least(turns),
                );
                figures.record(
                    &name,
                    contestant.name,
                    &format!("ms, {threads} {plural}, median"),
                    median(turns),
                );
                row.extend([ms(least(turns)), ms(median(turns))]);
            }
            let hundred = contestant.hundred();
            if let Some(hundred) = hundred {
                figures.record(&name, contestant.name, "ms, 100 solves, 1 thread", hundred);
            }
            row.push(right(hundred.map_or("-".into(), |ms| format!("{ms:.0}"))));
            row.extend(
                contestant
                    .turns
                    .each_ref()
                    .map(|turns| right(format!("{:.2}", least(turns) / least(&yardstick)))),
            );
            table.add_row(row);
        }
    }
    table
}
