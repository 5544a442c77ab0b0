use super::*;
use crate::cluster::RouterSeat;
use crate::cluster::{
    DecodePool, HandOff, Incident, News, Objectives, PeerSeat, Pool, PrefillPool, RunError, Units,
};
use crate::dispatch::{Arrival, DispatchPolicy, Dispatched, RankView};
use evenkeel_core::policy::RoutingPolicy;
use evenkeel_core::prefill::Work;
use evenkeel_core::topology::Role;
use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// A token takes a millisecond to prefill; a decode step 10 ms and one more for each request.
struct Plain;

impl StepTime for Plain {
    fn prefill_us(&self, work: Work) -> f64 {
        work.tokens as f64 * 1e3
    }

    fn decode_us(&self, _kv_tokens: u64, requests: u32) -> f64 {
        10_000.0 + f64::from(requests) * 1e3
    }
}

/// Round robin that writes down what it hears.
struct Probe {
    interval_s: f64,
    ranks: u16,
    next: u16,
    heard: Rc<RefCell<Heard>>,
}

#[derive(Default)]
struct Heard {
    reports: u64,
    last: Vec<RankView>,
    assigned: Vec<(f64, usize)>,
    open: i64,
}

impl DispatchPolicy for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }

    fn report_interval_s(&self) -> f64 {
        self.interval_s
    }

    fn on_reports(&mut self, ranks: &[RankView]) {
        let mut heard = self.heard.borrow_mut();
        heard.reports += 1;
        heard.last = ranks.to_vec();
    }

    fn assign(&mut self, arrivals: &[Arrival], now_s: f64) -> Vec<Dispatched> {
        let mut heard = self.heard.borrow_mut();
        heard.assigned.push((now_s, arrivals.len()));
        heard.open += arrivals.len() as i64;
        let dispatch = |arrival: &Arrival| {
            self.next = (self.next + 1) % self.ranks;
            Dispatched { id: arrival.id, rank: self.next }
        };
        arrivals.iter().map(dispatch).collect()
    }

    fn on_first_token(&mut self, _id: u64, _rank: u16) {}

    fn on_finish(&mut self, _id: u64, _rank: u16) {
        self.heard.borrow_mut().open -= 1;
    }
}

fn request(at_us: u64, prompt_tokens: u64, output_tokens: u64) -> Request {
    Request { at_us, prompt_tokens, output_tokens, blocks: Arc::from([]), turn: 0, tenant: 0 }
}

fn prefill_pool(ranks: u16) -> PrefillPool {
    let pool = Pool { units: 1, ranks, kv_tokens: 6400 };
    PrefillPool { pool, step_tokens: 1000, shared_cache_tokens: 0 }
}

fn decode_pool(ranks: u16) -> DecodePool {
    DecodePool { pool: Pool { units: 1, ranks, kv_tokens: 6400 }, slots: 4, reserve_tokens: 10 }
}

/// 10 bytes of KV a token at 1 byte a microsecond, after 100 us; orders take no time.
fn setup(units: Units) -> Setup {
    Setup {
        units,
        news: News { order_delay_us: 0, ..News::default() },
        objectives: Objectives::default(),
        incidents: Vec::new(),
        fill_us: 0,
        warm_up_us: 0,
        end_us: 60_000_000,
        grace_us: 600_000_000,
        seed: 1,
    }
}

fn both(prefill: u16, decode: u16) -> Units {
    let hand_off = HandOff { bytes_per_token: 10, bytes_per_us: 1.0, latency_us: 100 };
    Units::Disaggregated(prefill_pool(prefill), decode_pool(decode), hand_off)
}

fn run_with(
    setup: &Setup,
    requests: &[Request],
    interval_s: f64,
) -> (Result<Figures, RunError>, Rc<RefCell<Heard>>) {
    let heard = Rc::new(RefCell::new(Heard::default()));
    let mut seat = |_kind, _unit, ranks| -> Box<dyn Seat> {
        let policy = Probe { interval_s, ranks, next: ranks - 1, heard: heard.clone() };
        Box::new(PeerSeat::new(Box::new(policy), ranks, &setup.news))
    };
    let figures = simulate(setup, requests, &Plain, &mut seat, &mut |_| {});
    (figures, heard)
}

fn run(setup: &Setup, requests: &[Request]) -> Figures {
    run_with(setup, requests, 0.1).0.unwrap()
}

#[test]
fn a_lone_request_takes_what_can_be_added_up_by_hand() {
    // 1500 tokens in steps of 1000 and 500; 15 ms and 0.1 ms of transfer; 20 further tokens of 11 ms.
    let figures = run(&setup(both(2, 2)), &[request(5, 1500, 21)]);
    assert_eq!(figures.ttft_ms.max, 1500.0);
    assert!((figures.tpot_ms.max - (15.1 + 20.0 * 11.0) / 20.0).abs() < 1e-4, "{:?}", figures.tpot_ms);
    let figures = run(&setup(Units::Prefill(prefill_pool(3))), &[request(5, 300, 21)]);
    assert_eq!((figures.ttft_ms.max, figures.tpot_ms.count), (300.0, 0));
    // Without prefill the first token is that of the first step.
    let figures = run(&setup(Units::Decode(decode_pool(2))), &[request(0, 300, 21)]);
    assert_eq!((figures.ttft_ms.max, figures.tpot_ms.max), (11.0, 11.0));
}

#[test]
fn a_step_lasts_as_long_as_its_slowest_rank() {
    // Round robin: 900 and 100 tokens side by side, then nothing.
    let figures = run(&setup(Units::Prefill(prefill_pool(2))), &[request(0, 900, 1), request(0, 100, 1)]);
    let prefill = figures.prefill.unwrap();
    assert_eq!((prefill.steps, prefill.step_ms.max), (1, 900.0));
    assert!((prefill.idle_at_barrier - 400.0 / 900.0).abs() < 1e-9);
    assert!((prefill.tokens_imbalance.max - 1.8).abs() < 1e-6);
    assert_eq!((figures.ttft_ms.p50, figures.ttft_ms.max), (900.0, 900.0));
}

#[test]
fn orders_take_their_time_unless_the_policy_runs_inside_the_engine() {
    let check = |interval_s, ttft_ms| {
        let mut setup = setup(Units::Prefill(prefill_pool(1)));
        setup.news.order_delay_us = 7_000;
        let (figures, _) = run_with(&setup, &[request(0, 100, 1)], interval_s);
        assert_eq!(figures.unwrap().ttft_ms.max, ttft_ms);
    };
    check(0.1, 107.0);
    check(0.0, 100.0);
}

#[test]
fn while_caches_fill_orders_take_a_fiftieth_as_steps_do() {
    let check = |fill_us, finished| {
        let mut setup = setup(Units::Prefill(prefill_pool(1)));
        setup.news.order_delay_us = 7_000_000;
        (setup.fill_us, setup.warm_up_us, setup.end_us, setup.grace_us) = (fill_us, 1_000_000, 1_500_000, 0);
        let figures = run(&setup, &[request(0, 100, 1)]);
        assert_eq!(figures.fates.finished, finished);
    };
    check(1_000_000, 1);
    check(0, 0);
}

#[test]
fn a_step_goes_on_at_its_own_pace_when_the_fill_ends() {
    // 100 ms of work, until then half done or done.
    let check = |fill_us, ends_us| {
        let finished = |stop_us| {
            let mut setup = setup(Units::Prefill(prefill_pool(1)));
            (setup.fill_us, setup.warm_up_us, setup.end_us) = (fill_us, fill_us, fill_us + 1);
            setup.grace_us = stop_us - setup.end_us;
            run(&setup, &[request(0, 100, 1)]).fates.finished
        };
        assert_eq!((finished(ends_us - 1), finished(ends_us)), (0, 1));
    };
    check(0, 100_000);
    check(1_000, 1_000 + 50_000);
    check(1_998, 1_998 + 100);
}

#[test]
fn reports_come_at_the_policy_s_own_interval_and_not_while_they_are_lost() {
    let check = |interval_s: f64, lost: &[(u64, u64)], reports: u64| {
        let mut setup = setup(Units::Decode(decode_pool(1)));
        setup.news.lost_us = lost.to_vec();
        // One request of 1000 steps of 11 ms.
        let (figures, heard) = run_with(&setup, &[request(0, 100, 1000)], interval_s);
        assert_eq!(figures.unwrap().fates.finished, 1);
        assert_eq!(heard.borrow().reports, reports);
    };
    check(0.5, &[], 22 + 1);
    check(2.0, &[], 5 + 1);
    check(2.0, &[(1_000_000, 5_000_000)], 4);
    // Inside the engine: before each assignment.
    check(0.0, &[], 1);
}

#[test]
fn a_policy_inside_the_engine_decides_before_each_step_on_all_that_came() {
    let requests = [request(0, 100, 3), request(1_000, 100, 3), request(2_000, 100, 3)];
    let (_, heard) = run_with(&setup(Units::Decode(decode_pool(1))), &requests, 0.0);
    assert_eq!(heard.borrow().assigned, [(0.0, 1), (0.011, 2)]);
    let (_, heard) = run_with(&setup(Units::Decode(decode_pool(1))), &requests, 0.1);
    assert_eq!(heard.borrow().assigned, [(0.0, 1), (0.001, 1), (0.002, 1)]);
}

fn blocks(family: u64, count: u64) -> Arc<[u64]> {
    (0..count).map(|depth| family << 32 | depth).collect()
}

#[test]
fn prompts_hit_what_their_rank_has_and_nothing_else() {
    let turn = |at_us, family, count: u64| Request {
        blocks: blocks(family, count),
        ..request(at_us, count * 64, 1)
    };
    let check = |ranks: u16, shared_cache_tokens, requests: &[Request], hit_tokens| {
        let pool = PrefillPool { shared_cache_tokens, ..prefill_pool(ranks) };
        assert_eq!(run(&setup(Units::Prefill(pool)), requests).hit_tokens, hit_tokens);
    };
    let second = 1_000_000;
    check(1, 0, &[turn(0, 7, 5), turn(5 * second, 7, 8)], 5 * 64);
    check(1, 0, &[turn(0, 7, 5), turn(5 * second, 7, 5)], 5 * 64 - 1);
    check(1, 0, &[turn(0, 7, 5), turn(5 * second, 8, 8)], 0);
    // Round robin sends the second turn to another rank; the shared cache has it there, too.
    check(2, 0, &[turn(0, 7, 5), turn(5 * second, 7, 8)], 0);
    check(2, 64_000, &[turn(0, 7, 5), turn(5 * second, 7, 8)], 5 * 64);
    // In one step both compute the same; what comes during the step begins after it.
    check(1, 0, &[turn(0, 7, 5), turn(0, 7, 5)], 0);
    check(1, 0, &[turn(0, 7, 5), turn(10, 7, 5)], 5 * 64 - 1);
    // 100 blocks fit: the first prompt's end goes.
    check(1, 0, &[turn(0, 7, 60), turn(9 * second, 8, 60), turn(18 * second, 7, 60)], 40 * 64);
}

#[test]
fn requests_that_no_rank_has_room_for_are_refused() {
    let figures = run(&setup(both(1, 1)), &[request(0, 6401, 3), request(0, 6390, 30), request(0, 100, 3)]);
    let fates = figures.fates;
    assert_eq!((fates.arrived, fates.refused, fates.finished), (3, 2, 1));
}

#[test]
fn a_full_rank_lets_requests_wait_and_none_is_lost() {
    let requests: Vec<Request> = (0..40).map(|i| request(i * 1000, 700, 1200)).collect();
    let (figures, heard) = run_with(&setup(both(1, 2)), &requests, 0.1);
    let figures = figures.unwrap();
    assert_eq!((figures.fates.finished, heard.borrow().open), (40, 0));
    assert!(figures.decode.unwrap().preemptions > 0, "KV never overflowed: the test shows nothing");
}

#[test]
fn what_a_dead_rank_had_is_lost_and_policies_hear_of_the_end() {
    let mut setup = setup(both(1, 2));
    let incident = |at_us, kind, rank, change| Incident { at_us, kind, unit: 0, rank, change };
    setup.incidents = vec![
        incident(250_000, Kind::Decode, 0, Change::Dies),
        incident(500_000, Kind::Decode, 0, Change::Joins),
        incident(950_000, Kind::Prefill, 0, Change::Dies),
    ];
    let requests = [0, 1, 300_000, 600_000, 900_000].map(|at| request(at, 100, 1000));
    let (figures, heard) = run_with(&setup, &requests, 0.1);
    let fates = figures.unwrap().fates;
    // The first dies on decode rank 0; the second runs; the third is refused by the dead rank; the fourth runs;
    // the fifth dies with the prefill rank.
    assert_eq!((fates.lost, fates.refused, fates.finished), (2, 1, 2));
    assert_eq!(heard.borrow().open, 0);
}

#[test]
fn what_is_not_done_in_time_is_unfinished() {
    let setup = Setup { end_us: 1_000_000, grace_us: 0, ..setup(Units::Decode(decode_pool(1))) };
    let figures = run(&setup, &[request(0, 10, 5), request(0, 10, 5000), request(1_000_000, 10, 1)]);
    let fates = figures.fates;
    assert_eq!((fates.arrived, fates.finished, fates.unfinished, figures.goodput_part), (2, 1, 1, 0.5));
}

#[track_caller]
fn check_refused(setup: &Setup, requests: &[Request], code: &str, words: &[&str]) {
    let error = run_with(setup, requests, 0.1).0.unwrap_err();
    assert_eq!(error.code(), code);
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn bad_input_is_refused_with_field_value_and_range() {
    let good = || setup(both(2, 2));
    let range = "simulation_setup_out_of_range";
    check_refused(&setup(Units::Decode(decode_pool(0))), &[], range, &["ranks is 0", "1 to 2048"]);
    check_refused(&Setup { end_us: 0, ..good() }, &[], range, &["end_us is 0"]);
    let incident = Incident { at_us: 0, kind: Kind::Decode, unit: 0, rank: 2, change: Change::Dies };
    check_refused(
        &Setup { incidents: vec![incident], ..good() },
        &[],
        range,
        &["incident rank is 3", "1 to 2"],
    );
    let unsorted = "simulation_requests_unsorted";
    check_refused(&good(), &[request(5, 1, 1), request(4, 1, 1)], unsorted, &["request 2", "4 us", "5 us"]);
    let of_request = "simulation_request_out_of_range";
    check_refused(&good(), &[request(5, 0, 1)], of_request, &["request 1", "prompt_tokens of 0"]);
    check_refused(&good(), &[request(5, 1, 0)], of_request, &["output_tokens of 0"]);
    let blocks = Request { blocks: blocks(1, 2), ..request(0, 127, 1) };
    check_refused(&good(), &[blocks], of_request, &["blocks of 2", "0 to 1"]);
}

/// Sends everything to a rank that is not there.
struct Astray;

impl Seat for Astray {
    fn name(&self) -> &str {
        "astray"
    }
    fn next_report_us(&self) -> Option<u64> {
        None
    }
    fn report(&mut self, _: u64, _: &mut crate::cluster::UnitView<'_>, _: bool) {}
    fn tell(
        &mut self,
        _: u64,
        told: &[Told<'_>],
        _: &mut crate::cluster::UnitView<'_>,
    ) -> Result<Vec<Order>, SimulationError> {
        let order = |told: &Told<'_>| match told {
            Told::Arrived(asking) => {
                Some(Order::Dispatch { id: asking.id, rank: 9, number: 0, tokens: None })
            }
            _ => None,
        };
        Ok(told.iter().filter_map(order).collect())
    }
    fn held(&self) -> usize {
        0
    }
}

#[test]
fn an_order_that_no_engine_can_follow_ends_the_simulation() {
    for units in [Units::Prefill(prefill_pool(2)), Units::Decode(decode_pool(2))] {
        let setup = setup(units);
        let figures =
            simulate(&setup, &[request(0, 9, 9)], &Plain, &mut |_, _, _| Box::new(Astray), &mut |_| {});
        let error = figures.unwrap_err();
        assert_eq!(error.code(), "simulation_wrong_decision");
        assert!(error.to_string().contains("no such rank"), "{error}");
    }
}

proptest! {
    #[test]
    fn every_request_ends_once_and_the_same_input_gives_the_same_figures(
        prefill in 1..4u16,
        decode in 1..4u16,
        requests in prop::collection::vec((0..300_000u64, 0..4u64, 1..70u64, 1..40u64), 1..50),
        deaths in prop::collection::vec((0..5_000_000u64, any::<bool>(), 0..3u16), 0..3),
    ) {
        let mut setup = setup(both(prefill, decode));
        setup.end_us = 60_000_000;
        for (at_us, of_decode, rank) in deaths {
            let (kind, ranks) = if of_decode { (Kind::Decode, decode) } else { (Kind::Prefill, prefill) };
            let incident = |at_us, change| Incident { at_us, kind, unit: 0, rank: rank % ranks, change };
            setup.incidents.push(incident(at_us, Change::Dies));
            setup.incidents.push(incident(at_us + 1_000_000, Change::Joins));
        }
        let mut at_us = 0;
        let requests: Vec<Request> = requests
            .into_iter()
            .map(|(gap, family, count, output)| {
                at_us += gap;
                Request { blocks: blocks(family, count), ..request(at_us, count * 64 + gap % 64, output) }
            })
            .collect();
        let (figures, heard) = run_with(&setup, &requests, 0.05);
        let figures = figures.unwrap();
        let fates = figures.fates;
        prop_assert_eq!(fates.arrived, requests.len() as u64);
        prop_assert_eq!(fates.finished + fates.refused + fates.lost, fates.arrived);
        prop_assert_eq!(heard.borrow().open, 0);
        let again = run_with(&setup, &requests, 0.05).0.unwrap();
        prop_assert_eq!(figures, again);
    }
}

// ---- Evenkeel's router ------------------------------------------------------------------------------

fn run_router(setup: &Setup, requests: &[Request], policy: &RoutingPolicy) -> Figures {
    let mut seat = |kind, _unit, ranks| -> Box<dyn Seat> {
        let role = if kind == Kind::Prefill { Role::Prefill } else { Role::Decode };
        Box::new(RouterSeat::new("router", (role, ranks), policy.clone(), &setup.news).unwrap())
    };
    simulate(setup, requests, &Plain, &mut seat, &mut |_| {}).unwrap()
}

#[test]
fn a_lone_request_goes_out_at_once_in_whole_and_in_chunks() {
    let check = |round_tokens| {
        let policy = RoutingPolicy { round_tokens, ..RoutingPolicy::default() };
        let figures = run_router(&setup(both(2, 2)), &[request(5_000, 1500, 21)], &policy);
        assert_eq!((figures.policy.as_str(), figures.fates.finished), ("router", 1));
        assert!((figures.ttft_ms.max - 1500.0).abs() < 1.0, "{round_tokens:?}: {:?}", figures.ttft_ms);
    };
    check(None);
    check(Some(1000));
}

/// A rank runs prompt 1, of which 100 of 300 tokens were planned; `others`: a token of another prompt comes with each step. Returns the
/// steps until it has run whole.
fn steps_of_short_plan(others: bool) -> u64 {
    let mut unit = PrefillUnit::new(&prefill_pool(1));
    unit.deliver((1, &request(0, 300, 1), 0), (0, 1), Some(100)).unwrap();
    for step in 1..30 {
        if others {
            let id = 10 + step;
            unit.deliver((id, &request(0, 1, 1), 0), (0, id), None).unwrap();
        }
        unit.begin_step(step, &Plain).expect("there is something to run");
        let done = unit.end_step(step);
        if done.iter().any(|done| done.id == 1) {
            return step;
        }
        done.iter().for_each(|done| unit.release(done.id));
    }
    panic!("it waits for ever");
}

#[test]
fn a_prompt_whose_planned_chunks_fall_short_is_run_to_its_end() {
    assert_eq!(steps_of_short_plan(false), 2);
    // While others keep the rank busy its next chunk may still come.
    assert_eq!(steps_of_short_plan(true), 11);
}

proptest! {
    #[test]
    fn what_the_router_is_given_ends_once(
        round_tokens in prop::option::of(50..2000u64),
        prefill in 1..4u16,
        decode in 1..4u16,
        delay_us in 0..30_000u64,
        requests in prop::collection::vec((0..300_000u64, 0..4u64, 1..70u64, 1..40u64), 1..40),
        deaths in prop::collection::vec((0..5_000_000u64, any::<bool>(), 0..3u16), 0..3),
    ) {
        let mut setup = setup(both(prefill, decode));
        setup.end_us = 60_000_000;
        setup.news.order_delay_us = delay_us;
        for (at_us, of_decode, rank) in deaths {
            let (kind, ranks) = if of_decode { (Kind::Decode, decode) } else { (Kind::Prefill, prefill) };
            let incident = |at_us, change| Incident { at_us, kind, unit: 0, rank: rank % ranks, change };
            setup.incidents.push(incident(at_us, Change::Dies));
            setup.incidents.push(incident(at_us + 1_000_000, Change::Joins));
        }
        let mut at_us = 0;
        let requests: Vec<Request> = requests
            .into_iter()
            .map(|(gap, family, count, output)| {
                at_us += gap;
                Request { blocks: blocks(family, count), ..request(at_us, count * 64 + gap % 64, output) }
            })
            .collect();
        let policy = RoutingPolicy { round_tokens, ..RoutingPolicy::default() };
        let figures = run_router(&setup, &requests, &policy);
        let fates = figures.fates;
        prop_assert_eq!(fates.arrived, requests.len() as u64);
        prop_assert_eq!(fates.finished + fates.refused + fates.lost, fates.arrived);
        prop_assert_eq!(figures, run_router(&setup, &requests, &policy));
    }
}
