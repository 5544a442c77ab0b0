//! Decode: lockstep steps under synthetic arrivals, every peer told as late as it is told in production.

use crate::figures::Figures;
use crate::goals::{Bound, Goal};
use crate::layout::{new_table, right};
use comfy_table::Table;
use evenkeel_core::decode::{
    Admission, MigrationPolicy, RankLoad, Running, RunningRequests, plan_migrations,
};
use evenkeel_simulate::baselines::requests::{PEERS, Phase};
use evenkeel_simulate::decode_steps::{
    DecodeCase, LookAhead, Ours, Peer, StepFigures, Workload, run as simulate,
};
use evenkeel_simulate::expert_loads::SplitMix64;
use std::hint::black_box;
use std::time::Instant;

pub(crate) const TITLE: &str = "DECODE  144 ranks in lockstep, synthetic requests, step times modelled; mean over the seeds\nA cell: step time over that with means in place of maxima; max over mean of KV; of requests. Reports: how old a peer's view of the engines may be.";

const ADMISSION: &str = "Evenkeel, admission";
const ONE: &str = "Evenkeel, 1 migration a step";
const FOUR: &str = "Evenkeel, 4 migrations a step";
const LOOK_AHEAD: &str = "look-ahead of 40 steps";
const LEAST_WORSE: &str = "least of the worse dimension";
/// What is not a peer's: ours, the plain rule on which ours falls back, and what knows the true ends.
const NOT_PEERS: [&str; 5] = [ADMISSION, ONE, FOUR, LOOK_AHEAD, LEAST_WORSE];
/// Steps whose ends the look-ahead sees.
const SEEN_STEPS: u32 = 40;

/// Goals for the step time by case: admission alone, and with one migration.
const STEP_GOALS: [(f64, f64); 4] = [(1.035, 1.012), (1.030, 1.010), (1.030, 1.010), (1.07, 1.025)];
/// Goal for KV and for requests with one migration.
const IMBALANCE_GOAL: f64 = 1.025;

/// The timed solves: ranks, requests of each, and how many solves one turn makes; the best of the turns counts, since
/// everything else on the machine only adds.
const TIMED_RANKS: usize = 144;
const TIMED_REQUESTS: usize = 100;
const TIMED_SOLVES: usize = 20_000;
const TURNS: usize = 7;
const SOLVER: &str = "decode solvers";

pub(crate) fn run(seeds: &[u64], figures: &mut Figures) -> Table {
    let header = ["policy", "reports"].into_iter().chain(DecodeCase::ALL.map(|case| case.name));
    let mut table = new_table(&header.chain(["moves a step, MB by case"]).collect::<Vec<_>>());
    let contestants: Vec<(String, String)> = contestants();
    for case in DecodeCase::ALL {
        let workloads: Vec<Workload> = seeds.iter().map(|&seed| Workload::draw(case, seed)).collect();
        for (name, _) in &contestants {
            let of_seeds: Vec<StepFigures> =
                workloads.iter().zip(seeds).map(|(workload, &seed)| one(name, workload, seed)).collect();
            let mean =
                |of: fn(&StepFigures) -> f64| of_seeds.iter().map(of).sum::<f64>() / of_seeds.len() as f64;
            for (quantity, of) in QUANTITIES {
                figures.record(case.name, name, quantity, mean(of));
            }
        }
    }
    for (name, reports) in &contestants {
        let figure = |case: &str, quantity| figures.get(case, name, quantity).expect("just recorded");
        let cell = |case: DecodeCase| {
            let [step, kv, requests] = ["step", "KV", "requests"].map(|quantity| figure(case.name, quantity));
            right(format!("{step:.4} {kv:.3} {requests:.3}"))
        };
        let moves = figure(DecodeCase::ALL[0].name, "moves");
        let bytes =
            DecodeCase::ALL.map(|case| format!("{:.0}", figure(case.name, "moved bytes") / 1e6)).join(" ");
        let moves = if moves > 0.0 { format!("{moves:.2}, {bytes}") } else { String::new() };
        let mut row = vec![right(name.as_str()), right(reports.as_str())];
        row.extend(DecodeCase::ALL.map(cell));
        row.push(right(moves));
        table.add_row(row);
    }
    for ours in [ADMISSION, ONE] {
        let mut row = vec![right(format!("best peer over {ours}")), right("")];
        row.extend(DecodeCase::ALL.map(|case| right(lead(figures, case.name, ours))));
        row.push(right(""));
        table.add_row(row);
    }
    time_solvers(figures);
    table
}

type Quantity = (&'static str, fn(&StepFigures) -> f64);

/// What is measured of each, by the name of its figure.
const QUANTITIES: [Quantity; 5] = [
    ("step", |f| f.step),
    ("KV", |f| f.kv),
    ("requests", |f| f.requests),
    ("moves", |f| f.moves),
    ("moved bytes", |f| f.moved_bytes),
];

/// Names and report intervals, in the table's order.
fn contestants() -> Vec<(String, String)> {
    let peers = PEERS.iter().filter(|peer| peer.phase != Phase::Prefill).map(|peer| {
        let interval = peer.build(1, 0).report_interval_s();
        (peer.key.to_owned(), if interval > 0.0 { format!("{interval} s") } else { "each step".to_owned() })
    });
    let own = [
        (LOOK_AHEAD, "true ends"),
        (LEAST_WORSE, "own ledger"),
        (ADMISSION, "own ledger"),
        (ONE, "own ledger"),
        (FOUR, "own ledger"),
    ];
    peers.chain(own.map(|(name, reports)| (name.to_owned(), reports.to_owned()))).collect()
}

fn one(name: &str, workload: &Workload, seed: u64) -> StepFigures {
    let migrating = |per_step| Ours::migrating(MigrationPolicy { per_step, ..MigrationPolicy::default() });
    match name {
        LOOK_AHEAD => simulate(workload, &mut LookAhead::new(SEEN_STEPS)),
        LEAST_WORSE => simulate(workload, &mut LookAhead::new(0)),
        ADMISSION => simulate(workload, &mut Ours::admission()),
        ONE => simulate(workload, &mut migrating(1)),
        FOUR => simulate(workload, &mut migrating(4)),
        _ => {
            let peer = PEERS.iter().find(|peer| peer.key == name).expect("a peer's name");
            let policy = peer.build(workload.case.ranks, seed);
            simulate(workload, &mut Peer::new(policy, &workload.requests))
        }
    }
}

fn is_peer(name: &str) -> bool {
    !NOT_PEERS.contains(&name)
}

/// How much longer the best peer's steps take.
fn lead(figures: &Figures, case: &str, ours: &str) -> String {
    let own = figures.get(case, ours, "step").expect("measured");
    let mut peers = figures.all(case, "step").into_iter().filter(|(name, _)| is_peer(name));
    peers.next().map_or(String::new(), |(name, step)| format!("+{:.1} % {name}", (step / own - 1.0) * 100.0))
}

pub(crate) fn goals(figures: &Figures) -> Vec<Goal> {
    let mut goals = Vec::new();
    for (case, (admission, migration)) in DecodeCase::ALL.iter().zip(STEP_GOALS) {
        let goal = |policy, quantity, value| {
            Goal::of(figures, (case.name, policy, quantity), Bound::AtMost, value, is_peer)
        };
        goals.push(goal(ADMISSION, "step", admission));
        goals.push(Goal::best(figures, (case.name, ADMISSION, "step"), Bound::AtMost, is_peer));
        goals.push(goal(ONE, "step", migration));
        goals.push(goal(ONE, "KV", IMBALANCE_GOAL));
        goals.push(goal(ONE, "requests", IMBALANCE_GOAL));
        goals.push(goal(ONE, "moves", 1.0));
    }
    let solver =
        |quantity, bound, value| Goal::of(figures, (SOLVER, ADMISSION, quantity), bound, value, is_peer);
    goals.push(solver("admissions a second, one by one", Bound::AtLeast, 200_000.0));
    goals.push(solver("admissions a second, 16 at once", Bound::AtLeast, 200_000.0));
    goals.push(solver("us to plan 1 migration", Bound::AtMost, 100.0));
    goals
}

/// Running requests as lists.
struct Lists(Vec<Vec<Running<u32>>>);

impl RunningRequests for Lists {
    type Id = u32;

    fn ranks(&self) -> usize {
        self.0.len()
    }

    fn load(&self, rank: usize) -> RankLoad {
        let kv_tokens = self.0[rank].iter().map(|request| request.kv_tokens).sum();
        RankLoad { kv_tokens, requests: self.0[rank].len() as u64, up: true }
    }

    fn drains(&self, _rank: usize) -> bool {
        false
    }

    fn running(&self, rank: usize) -> impl Iterator<Item = Running<u32>> {
        self.0[rank].iter().copied()
    }
}

fn time_solvers(figures: &mut Figures) {
    let mut draw = SplitMix64::new(7);
    let mut kv = || (3000.0 * draw.log_normal(1.0)) as u64;
    let mut list = |rank: usize| -> Vec<Running<u32>> {
        let request = |index: usize| Running {
            id: (rank * TIMED_REQUESTS + index) as u32,
            kv_tokens: kv(),
            since_move: None,
        };
        (0..TIMED_REQUESTS).map(request).collect()
    };
    let lists = Lists((0..TIMED_RANKS).map(&mut list).collect());
    let loads: Vec<RankLoad> = (0..TIMED_RANKS).map(|rank| lists.load(rank)).collect();
    let arrivals: Vec<u64> = (0..TIMED_SOLVES).map(|_| kv()).collect();
    let best = |solve: &dyn Fn()| {
        let turn = |_| {
            let start = Instant::now();
            solve();
            start.elapsed().as_secs_f64()
        };
        (0..TURNS).map(turn).fold(f64::INFINITY, f64::min)
    };
    // From the ledger's loads anew for each arrival, and for each step's arrivals.
    let one_by_one = best(&|| {
        for &kv in &arrivals {
            black_box(Admission::new(loads.iter().copied()).admit(kv));
        }
    });
    let together = best(&|| {
        for batch in arrivals.chunks(16) {
            black_box(Admission::new(loads.iter().copied()).admit_all(batch));
        }
    });
    let policy = MigrationPolicy { per_step: 1, ..MigrationPolicy::default() };
    let plans = TIMED_SOLVES / 100;
    let plan = best(&|| (0..plans).for_each(|_| drop(black_box(plan_migrations(&lists, &policy)))));
    let solves = TIMED_SOLVES as f64;
    figures.record(SOLVER, ADMISSION, "admissions a second, one by one", solves / one_by_one);
    figures.record(SOLVER, ADMISSION, "admissions a second, 16 at once", solves / together);
    figures.record(SOLVER, ADMISSION, "us to plan 1 migration", plan * 1e6 / plans as f64);
}
