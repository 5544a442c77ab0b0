use super::*;
use crate::baselines::requests::{PEERS, Phase, by_name};
use crate::dispatch::{Arrival, DispatchPolicy, Dispatched, RankView};
use evenkeel_core::decode::MigrationPolicy;
use std::cell::RefCell;
use std::rc::Rc;

/// A case of the comparison with fewer ranks and steps.
fn small() -> DecodeCase {
    DecodeCase { ranks: 16, steps: 300, dropped: 100, ..DecodeCase::at("small", 0.75) }
}

/// Requests of these (prompt, output) lengths that all arrive before the first step.
fn at_once(ranks: u16, slots: u32, requests: &[(u32, u32)]) -> Workload {
    let case = DecodeCase { ranks, slots, steps: 8, dropped: 0, ..DecodeCase::at("few", 1.0) };
    let requests: Vec<Request> =
        requests.iter().map(|&(prompt, output)| Request { prompt, output, age: 0 }).collect();
    let mut arrivals = vec![0; 8];
    arrivals[0] = requests.len() as u32;
    Workload { case, requests, started: 0, arrivals }
}

/// Puts requests where the test says.
struct Fixed(Vec<usize>, Vec<Move>);

impl StepPolicy for Fixed {
    fn place(&mut self, _unit: &Unit<'_>, arrived: &[u32], _now_s: f64) -> Vec<(u32, usize)> {
        arrived.iter().map(|&request| (request, self.0[request as usize])).collect()
    }

    fn migrate(&mut self, _unit: &Unit<'_>) -> Vec<Move> {
        std::mem::take(&mut self.1)
    }
}

#[track_caller]
fn check(figure: f64, expected: f64) {
    assert!((figure - expected).abs() < 1e-9, "{figure} instead of {expected}");
}

#[test]
fn a_step_is_as_long_as_its_fullest_rank_makes_it() {
    let workload = at_once(2, 128, &[(3000, 1), (1000, 1), (2000, 1)]);
    let figures = run(&workload, &mut Fixed(vec![0, 1, 1], vec![]));
    // Both ranks have 3000 tokens, and 1 and 2 requests; the steps after that are empty and not counted.
    check(figures.kv, 1.0);
    check(figures.requests, 2.0 / 1.5);
    check(figures.step, (12.0 + 0.1 + 2.0 / 12.0) / (12.0 + 0.1 + 1.5 / 12.0));
}

#[test]
fn kv_grows_by_a_token_a_step_and_goes_with_its_request() {
    // Rank 0: 100 then 101; rank 1: 100 and then nothing.
    let workload = at_once(2, 128, &[(100, 2), (100, 1)]);
    let figures = run(&workload, &mut Fixed(vec![0, 1], vec![]));
    check(figures.kv, (1.0 + 2.0) / 2.0);
    check(figures.running, (1.0 + 0.5) / 2.0);
}

#[test]
fn a_request_without_a_slot_waits_in_its_engine() {
    let workload = at_once(2, 1, &[(100, 2), (100, 1), (100, 1)]);
    let figures = run(&workload, &mut Fixed(vec![0, 0, 1], vec![]));
    // The second runs in the third step, after the first's two.
    check(figures.waiting, 2.0 / 3.0);
    check(figures.running, (1.0 + 0.5 + 0.5) / 3.0);
}

#[test]
fn a_move_takes_the_kv_along() {
    let workload = at_once(2, 128, &[(100, 4), (100, 4)]);
    let figures = run(&workload, &mut Fixed(vec![0, 0], vec![Move { request: 1, from: 0, to: 1 }]));
    check(figures.kv, 1.0);
    check(figures.moves, 0.25);
    check(figures.moved_bytes, (100 * KV_TOKEN_BYTES) as f64 / 4.0);
}

/// Sends everything to rank 0 and writes down when it was told what.
struct Told(f64, Rc<RefCell<Vec<(f64, u32)>>>, u32);

impl DispatchPolicy for Told {
    fn name(&self) -> &'static str {
        "told"
    }

    fn report_interval_s(&self) -> f64 {
        self.0
    }

    fn on_reports(&mut self, ranks: &[RankView]) {
        self.2 = ranks[0].running;
    }

    fn assign(&mut self, arrivals: &[Arrival], now_s: f64) -> Vec<Dispatched> {
        self.1.borrow_mut().push((now_s, self.2));
        arrivals.iter().map(|arrival| Dispatched { id: arrival.id, rank: 0 }).collect()
    }

    fn on_first_token(&mut self, _id: u64, _rank: u16) {}

    fn on_finish(&mut self, _id: u64, _rank: u16) {}
}

#[test]
fn a_peer_sees_the_engines_only_when_its_reports_come() {
    // Steps of 12.2 ms: the second is the first after the start that sees the request.
    let told = |interval| {
        let workload = at_once(2, 128, &[(100, 20)]);
        let seen = Rc::new(RefCell::new(Vec::new()));
        run(&workload, &mut Peer::new(Box::new(Told(interval, seen.clone(), 0)), &workload.requests));
        let seen: Vec<u32> = seen.borrow().iter().map(|&(_, running)| running).collect();
        seen
    };
    assert_eq!(told(0.0), [0, 1, 1, 1, 1, 1, 1, 1]);
    assert_eq!(told(0.04), [0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(told(10.0), [0; 8]);
}

#[test]
fn every_peer_serves_the_unit_and_the_same_run_gives_the_same_figures() {
    let workload = Workload::draw(small(), 1);
    for peer in PEERS.iter().filter(|peer| peer.phase != Phase::Prefill) {
        let figures = || run(&workload, &mut Peer::new(peer.build(16, 1), &workload.requests));
        let first = figures();
        assert!(first.running + first.waiting / 16.0 > 80.0, "{}: {first:?}", peer.key);
        assert_eq!(first, figures(), "{}", peer.key);
    }
}

#[test]
fn ours_is_more_even_than_the_rule_to_beat_and_migrations_make_it_more_so() {
    let workload = Workload::draw(small(), 1);
    let policy = by_name("tensorrt-llm-default-adp", 16, 1).expect("it is a peer");
    let peer = run(&workload, &mut Peer::new(policy, &workload.requests)).step;
    let admission = run(&workload, &mut Ours::admission()).step;
    let policy = MigrationPolicy { per_step: 1, ..MigrationPolicy::default() };
    let migrations = run(&workload, &mut Ours::migrating(policy));
    assert!(admission < peer && migrations.step < admission, "{peer} {admission} {}", migrations.step);
    assert!(migrations.moves > 0.0 && migrations.moves <= 1.0);
}

#[test]
fn a_unit_in_balance_stays_as_full_as_it_starts() {
    let case = DecodeCase { steps: 1500, ..small() };
    let workload = Workload::draw(case, 2);
    assert_eq!(workload.started, 16 * 96);
    let running = run(&workload, &mut Ours::admission()).running;
    assert!((running - 96.0).abs() < 6.0, "{running}");
}
