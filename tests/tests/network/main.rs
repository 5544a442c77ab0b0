//! Balancers and agents over a simulated network: the gRPC stack as it is in production, TLS and HTTP/2 included, with the
//! election, the control loop, sessions, reconciler and worker, in simulated time, through partitions, delays and restarts.
//!
//! Every scenario runs once for each of a few seeds, from which turmoil draws how long messages are under way and in which
//! order hosts run, and the test when faults strike. A scenario that fails says its seed: `EVENKEEL_NETWORK_SEED=7` runs
//! that one alone, `EVENKEEL_NETWORK_SEEDS=100` the first hundred. What is drawn is the same again, but not the whole run:
//! in which order a host's own tasks run is drawn by tokio, and threads that block (disk, solver, TLS) end when they do.
//! Two runs of one seed differ by tens of milliseconds.
//!
//! A host's clock stands still while such a thread works, so a busy machine makes a run long, and changes little in it. Not
//! simulated: expert bytes between nodes (see [`agent`]), and the store's own protocol (see [`store`]).

mod agent;
mod balancer;
mod cluster;
mod engine;
mod fault;
mod store;
mod wire;

use cluster::{Cluster, LEASE, SILENCE, Setup};
use evenkeel_proto::v1::UnitState;
use fault::Fault;
use std::time::Duration;

/// Seeds of a scenario.
const SEEDS: u64 = 5;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Runs a scenario over its seeds.
fn with_seeds(setup: Setup, scenario: impl Fn(&mut Cluster)) {
    let seeds = match variable("EVENKEEL_NETWORK_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("EVENKEEL_NETWORK_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let mut cluster = Cluster::start(seed, setup);
        scenario(&mut cluster);
        cluster.settle();
        println!("seed {seed}: at rest after {:?} of simulated time", cluster.elapsed());
    }
}

#[test]
fn an_agent_that_is_cut_off_serves_on_and_is_welcome_again() {
    with_seeds(Setup::default(), |cluster| {
        let node = cluster.draw_agent();
        let (host, balancers) = (cluster.agent_hosts()[node].clone(), cluster.balancer_hosts());
        cluster.partition(&host, &balancers);
        // What was under way to the worker is done by then.
        cluster.run(ms(100));
        let (served, steps) = (cluster.active(node), cluster.steps(node));
        assert!(served.is_some());
        let cut = cluster.draw(ms(500), 3 * SILENCE);
        cluster.run(cut);
        assert_eq!(cluster.active(node), served);
        assert!(cluster.steps(node) > steps);
        cluster.repair(&host, &balancers);
        let before = cluster.head_epoch();
        cluster.until("a plan after the repair", |cluster| cluster.head_epoch() > before);
    });
}

#[test]
fn an_agent_that_hears_and_is_not_heard_is_welcome_again() {
    with_seeds(Setup::default(), |cluster| {
        let node = cluster.draw_agent();
        let (host, balancers) = (cluster.agent_hosts()[node].clone(), cluster.balancer_hosts());
        match cluster.draw_of(2) {
            0 => cluster.mute(&host, &balancers),
            _ => cluster.deafen(&host, &balancers),
        }
        let cut = cluster.draw(ms(500), 3 * SILENCE);
        cluster.run(cut);
        assert!(cluster.active(node).is_some());
        cluster.repair(&host, &balancers);
        let before = cluster.head_epoch();
        cluster.until("a plan after the repair", |cluster| cluster.head_epoch() > before);
    });
}

#[test]
fn a_leader_that_is_cut_off_from_everybody_is_followed_and_stands_by() {
    with_seeds(Setup::default(), |cluster| {
        let old = cluster.leader().expect("one leads");
        let (term, before) = (cluster.term(), cluster.head_epoch());
        let host = cluster.balancer_hosts()[old].clone();
        let others = cluster.all_but(&host);
        cluster.partition(&host, &others);
        cluster.until("another leader", |cluster| cluster.leader().is_some_and(|leader| leader != old));
        assert!(cluster.term() > term);
        cluster.until("a plan of the next leader", |cluster| cluster.head_epoch() > before);
        let cut = cluster.draw(Duration::ZERO, 2 * SILENCE);
        cluster.run(cut);
        cluster.repair(&host, &others);
        cluster.until("agents to be back", |cluster| cluster.welcomes_all(old));
        assert_ne!(cluster.leader(), Some(old));
    });
}

#[test]
fn a_balancer_that_is_cut_off_alone_goes_on_when_it_is_back() {
    let setup = Setup { balancers: 1, agents: 2, ..Setup::default() };
    with_seeds(setup, |cluster| {
        let host = cluster.balancer_hosts().remove(0);
        let others = cluster.all_but(&host);
        let before = cluster.head_epoch();
        cluster.partition(&host, &others);
        let served: Vec<_> = (0..cluster.agents()).map(|node| cluster.active(node)).collect();
        let cut = cluster.draw(ms(500), 3 * SILENCE);
        cluster.run(cut);
        for (node, served) in served.into_iter().enumerate() {
            assert!(cluster.active(node) >= served);
        }
        cluster.repair(&host, &others);
        // One may have been committed, and not applied, when it was cut off.
        let next = before.map(|epoch| epoch + 2);
        cluster.until("plans after the repair", |cluster| cluster.head_epoch() >= next);
    });
}

#[test]
fn plans_go_on_over_a_slow_and_uneven_network() {
    let setup = Setup { agents: 4, latency_ms: (20, 400), ..Setup::default() };
    with_seeds(setup, |cluster| {
        for _ in 0..3 {
            let before = cluster.head_epoch();
            cluster.until("a further plan", |cluster| cluster.head_epoch() > before);
        }
    });
}

#[test]
fn a_leader_that_crashes_in_the_middle_of_a_plan_is_followed_and_comes_back() {
    with_seeds(Setup { latency_ms: (10, 60), ..Setup::default() }, |cluster| {
        cluster.until_within_a_plan();
        let old = cluster.leader().expect("one leads");
        let host = cluster.balancer_hosts()[old].clone();
        let term = cluster.term();
        cluster.crash(&host);
        let down = cluster.draw(ms(50), 2 * LEASE);
        cluster.run(down);
        cluster.restart(&host);
        cluster.until("a leader", |cluster| cluster.term() > term);
        let before = cluster.head_epoch();
        cluster.until("a plan of the next leader", |cluster| cluster.head_epoch() > before);
    });
}

#[test]
fn an_agent_that_crashes_in_the_middle_of_a_plan_is_rolled_forward() {
    with_seeds(Setup { latency_ms: (10, 60), ..Setup::default() }, |cluster| {
        cluster.until_within_a_plan();
        let node = cluster.draw_agent();
        let host = cluster.agent_hosts()[node].clone();
        cluster.crash(&host);
        let down = cluster.draw(ms(50), 2 * SILENCE);
        cluster.run(down);
        cluster.restart(&host);
        let before = cluster.head_epoch();
        cluster.until("a plan after the restart", |cluster| cluster.head_epoch() > before);
    });
}

#[test]
fn an_order_that_arrives_after_the_next_term_began_is_refused() {
    with_seeds(Setup { latency_ms: (10, 60), ..Setup::default() }, |cluster| {
        let old = cluster.leader().expect("one leads");
        let host = cluster.balancer_hosts()[old].clone();
        let (agents, others) = (cluster.agent_hosts(), cluster.all_but(&host));
        let rest: Vec<String> = others.into_iter().filter(|other| !agents.contains(other)).collect();
        // What it orders is under way for longer than it takes to notice.
        cluster.delay(&host, &agents, ms(300));
        cluster.until("a plan to be prepared", |cluster| {
            cluster.unit().is_some_and(|unit| unit.state() == UnitState::Preparing)
        });
        cluster.hold(&host, &agents);
        cluster.partition(&host, &rest);
        cluster.until("another leader", |cluster| cluster.leader().is_some_and(|leader| leader != old));
        cluster.until("agents to know it", |cluster| cluster.all_know(cluster.term()));
        cluster.release(&host, &agents);
        cluster.run(secs(1));
        assert!((0..cluster.agents()).any(|node| cluster.refused(node, "stale_term") > 0));
        cluster.delay(&host, &agents, ms(20));
        cluster.repair(&host, &rest);
    });
}

#[test]
fn everything_settles_after_faults_of_all_kinds() {
    with_seeds(Setup { agents: 4, ..Setup::default() }, |cluster| {
        for _ in 0..4 {
            let pause = cluster.draw(ms(100), secs(4));
            cluster.run(pause);
            let fault = Fault::draw(cluster);
            let lasts = cluster.draw(ms(50), 2 * SILENCE);
            fault.strike(cluster);
            cluster.run(lasts);
            fault.mend(cluster);
        }
    });
}
