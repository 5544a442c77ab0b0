//! What old and lost reports do to decode.

use crate::figures::Figures;
use crate::goals::{Bound, Goal};
use crate::layout::{new_table, ratio, right};
use comfy_table::{Cell, Table};
use evenkeel_core::policy::RoutingPolicy;
use evenkeel_core::topology::Role;
use evenkeel_simulate::baselines::requests::by_name;
use evenkeel_simulate::cluster::{
    Assumed, DecodePool, News, Objectives, PeerSeat, Pool, Request, RouterSeat, Seat, Setup, StepTime, Units,
    simulate,
};
use evenkeel_simulate::decode_steps::{DecodeCase, Workload};
use std::sync::Arc;

pub(crate) const TITLE: &str = "STALE REPORTS, synthetic decode at 75 % of 144 ranks (the workload of the decode part, 84 s of it): max over mean \
    of the ranks' requests, step by step after 20 s. Everybody hears from the ranks at the stated interval, whatever its own is. \
    Lost: reports every 20 ms, none of 40 to 70 s. Throughout: the worst mean of one second";

const OURS: &str = "evenkeel";
/// Those that look at reports at all; what the others know is their own book-keeping.
const PEERS: [&str; 6] = [
    "sglang-total-requests",
    "sglang-total-tokens",
    "vllm-0.33",
    "smg-power-of-two",
    "smg-least-load",
    "staggered-decode",
];
const WARM_UP_US: u64 = 20_000_000;
const STEPS: u32 = 3000;

struct Staleness {
    name: &'static str,
    interval_us: u64,
    lost_us: &'static [(u64, u64)],
}

const CASES: [Staleness; 4] = [
    Staleness { name: "reports every 20 ms", interval_us: 20_000, lost_us: &[] },
    Staleness { name: "reports every 1 s", interval_us: 1_000_000, lost_us: &[] },
    Staleness { name: "reports every 10 s", interval_us: 10_000_000, lost_us: &[] },
    Staleness { name: "reports lost for 30 s", interval_us: 20_000, lost_us: &[(40_000_000, 70_000_000)] },
];

/// The drawn workload in time: the requests of a step arrive evenly over the time that a balanced step takes.
fn requests(workload: &Workload) -> (Vec<Request>, u64) {
    let case = &workload.case;
    let running = workload.started as f64 / f64::from(case.ranks);
    let kv: u64 = workload.requests[..workload.started].iter().map(|request| request.kv_at_start()).sum();
    let step_us = Assumed::default().decode_us(kv / u64::from(case.ranks), running.round() as u32);
    let request = |at_us: f64, of: &evenkeel_simulate::decode_steps::Request| Request {
        at_us: at_us as u64,
        prompt_tokens: of.kv_at_start(),
        output_tokens: u64::from(of.output - of.age),
        blocks: Arc::from([]),
        turn: 0,
        tenant: 0,
    };
    let (started, later) = workload.requests.split_at(workload.started);
    let mut requests: Vec<Request> = started.iter().map(|of| request(0.0, of)).collect();
    let mut later = later.iter();
    for (step, &count) in workload.arrivals.iter().enumerate() {
        for (place, of) in later.by_ref().take(count as usize).enumerate() {
            requests.push(request((step as f64 + place as f64 / f64::from(count)) * step_us, of));
        }
    }
    (requests, (workload.arrivals.len() as f64 * step_us) as u64)
}

fn setup(case: &DecodeCase, end_us: u64, staleness: &Staleness) -> Setup {
    let pool = Pool { units: 1, ranks: case.ranks, kv_tokens: case.kv_capacity };
    let lost_us = staleness.lost_us.to_vec();
    Setup {
        units: Units::Decode(DecodePool {
            pool,
            slots: case.slots,
            reserve_tokens: DecodePool::RESERVE_TOKENS,
        }),
        news: News { report_interval_us: staleness.interval_us, lost_us, ..News::default() },
        objectives: Objectives::default(),
        incidents: Vec::new(),
        fill_us: 0,
        warm_up_us: WARM_UP_US,
        end_us,
        grace_us: 0,
        seed: 1,
    }
}

pub(crate) fn run(seeds: &[u64], figures: &mut Figures) -> Table {
    let header = [
        "case",
        "policy",
        "requests mean",
        "p99",
        "max",
        "throughout",
        "KV mean",
        "TPOT p99 ms",
        "step / ideal",
    ];
    let mut table = new_table(&header);
    let case = DecodeCase { steps: STEPS, ..DecodeCase::at("decode, 75 %", 0.75) };
    let (requests, end_us) = requests(&Workload::draw(case, seeds[0]));
    for staleness in &CASES {
        let setup = setup(&case, end_us, staleness);
        for name in PEERS.into_iter().chain([OURS]) {
            let mut seat = |_, _, ranks| -> Box<dyn Seat> {
                let peer = by_name(name, ranks, seeds[0]);
                let peer = peer.map(|policy| {
                    PeerSeat::new(policy, ranks, &setup.news).hearing_every(staleness.interval_us)
                });
                if let Some(seat) = peer {
                    return Box::new(seat);
                }
                let policy = RoutingPolicy::default();
                let seat = RouterSeat::new(OURS, (Role::Decode, ranks), policy, &setup.news);
                Box::new(seat.expect("the policy is within its ranges"))
            };
            let shown = simulate(&setup, &requests, &Assumed::default(), &mut seat, &mut |_| {});
            let shown = shown.unwrap_or_else(|error| panic!("{}, {name}: {error}", staleness.name));
            let decode = shown.decode.expect("a decode unit is simulated");
            let throughout = decode.second_imbalance_worst_s;
            figures.record(staleness.name, name, "max/mean requests, throughout", throughout);
            table.add_row([
                Cell::new(staleness.name),
                Cell::new(name),
                ratio(decode.second_imbalance.mean),
                ratio(decode.second_imbalance.p99),
                ratio(decode.second_imbalance.max),
                ratio(throughout),
                ratio(decode.tokens_imbalance.mean),
                right(format!("{:.1}", shown.tpot_ms.p99)),
                ratio(decode.step_over_ideal),
            ]);
        }
    }
    table
}

pub(crate) fn goals(figures: &Figures) -> Vec<Goal> {
    let goal = |case: &Staleness| {
        let figure = (case.name, OURS, "max/mean requests, throughout");
        Goal::of(figures, figure, Bound::AtMost, 1.10, |name| name != OURS)
    };
    CASES.iter().map(goal).collect()
}
