//! Agents in this process, against a stand-in for the balancer.

mod stand_in;

use evenkeel_core::plan::Plan;
use evenkeel_proto::plan_content::Encoded;
use evenkeel_proto::v1::BalancerRole::{Leader, Standby};
use evenkeel_proto::v1::EventKind;
use evenkeel_proto::v1::PlanOutcome::{Aborted, Applied, Prepared, Refused};
use evenkeel_proto::{PROTOCOL_VERSION, v1};
use stand_in::{Balancer, Stream, Unit, disturb, id, step};
use std::os::unix::fs::FileExt as _;

/// Starts both agents and boots them; returns them with their streams, by node.
async fn boot(unit: &mut Unit, balancer: &mut Balancer) -> ([evenkeel_agent::run::Running; 2], [Stream; 2]) {
    let a = unit.start(0, balancer.address).await;
    let (mut first, hello) = balancer.accept().await;
    assert_eq!((hello.node.as_str(), hello.applied, hello.ranks), ("n0", None, vec![0, 1]));
    let b = unit.start(1, balancer.address).await;
    let (mut second, _) = balancer.accept().await;
    for stream in [&mut first, &mut second] {
        stream.welcome(1, None).await;
        let booted = stream.expect(Applied).await;
        assert_eq!(booted.applied, Some(id(&unit.boot())));
    }
    ([a, b], [first, second])
}

/// Node 0 takes expert 5 from node 1; node 1 makes two local copies of expert 0, and gives up expert 5.
fn exchange(unit: &Unit, base: &Plan) -> Plan {
    unit.child(base, "0 - 5 2 3 - 4 - 0 - 1 0")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_boot_step_prepare_commit_and_hold_what_the_plan_says() {
    let (mut unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let (agents, mut streams) = boot(&mut unit, &mut balancer).await;
    let boot_plan = unit.boot();
    assert_eq!(unit.verify(&boot_plan).await, (16, 0));
    // Windows of four steps: the sum over both nodes is what was routed.
    for at in 0..4 {
        for agent in &agents {
            assert_eq!(step(agent, at).await, 0);
        }
    }
    let mut sums = [0; 12];
    for (node, stream) in streams.iter_mut().enumerate() {
        let mut segments = Vec::new();
        while !segments.last().is_some_and(|s: &v1::LoadSegment| s.window_complete) {
            segments.extend(stream.segments().await);
        }
        assert_eq!(segments.iter().map(|s| s.part).collect::<Vec<_>>(), [0, 1, 2, 3]);
        for (local, &count) in segments.iter().flat_map(|s| s.counts.iter().enumerate()) {
            let (layer, slot) = (local / 6, node * 6 + local % 6);
            match boot_plan.layers[layer].physical_to_logical[slot] {
                Some(expert) => sums[layer * 6 + expert.index()] += count,
                None => assert_eq!(count, 0),
            }
        }
    }
    assert_eq!(sums, [40; 12]);

    let plan = exchange(&unit, &boot_plan);
    let mut bytes = (0, 0);
    for (node, stream) in streams.iter_mut().enumerate() {
        stream.prepare(1, &unit, node, &boot_plan, &plan).await;
        let prepared = stream.expect(Prepared).await;
        assert_eq!(prepared.applied, Some(id(&boot_plan)));
        bytes = (bytes.0 + prepared.bytes_local, bytes.1 + prepared.bytes_from_peers);
    }
    assert_eq!(bytes, (200, 100));
    assert_eq!(step(&agents[0], 4).await, 0, "staging changes nothing that is served");
    for stream in &mut streams {
        stream.commit(1, &plan).await;
        assert_eq!(stream.expect(Applied).await.applied, Some(id(&plan)));
    }
    assert_eq!(step(&agents[0], 5).await, 1);
    assert_eq!(unit.verify(&plan).await, (16, 0));

    // A byte of the first slot of node 1, planted behind the agent's back.
    let slots = unit.directories[1].path().join("slots.bin");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(slots).unwrap();
    let at = file.metadata().unwrap().len() - 12 * 100 + 42;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    assert_eq!(unit.verify(&plan).await, (16, 1));
    for agent in agents {
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_between_prepare_and_commit_is_rolled_forward() {
    let (mut unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let ([a, b], [mut first, mut second]) = boot(&mut unit, &mut balancer).await;
    let (boot_plan, plan) = (unit.boot(), exchange(&unit, &unit.boot()));
    first.prepare(1, &unit, 0, &boot_plan, &plan).await;
    second.prepare(1, &unit, 1, &boot_plan, &plan).await;
    first.expect(Prepared).await;
    second.expect(Prepared).await;
    drop(a);
    second.commit(1, &plan).await;
    second.expect(Applied).await;

    let a = unit.start(0, balancer.address).await;
    let (mut first, hello) = balancer.accept().await;
    assert_eq!(hello.applied, Some(id(&boot_plan)), "it serves what it served");
    assert_eq!(hello.term, Some(stand_in::term(1)));
    first.welcome(1, None).await;
    first.commit(1, &plan).await;
    assert_eq!(first.expect(Refused).await.code, "not_prepared");
    // Node 1 has released expert 5 by now, but still has its bytes.
    first.prepare(1, &unit, 0, &boot_plan, &plan).await;
    let prepared = first.expect(Prepared).await;
    assert_eq!((prepared.bytes_local, prepared.bytes_from_peers), (0, 0), "what was staged is still there");
    first.commit(1, &plan).await;
    first.expect(Applied).await;
    assert_eq!(unit.verify(&plan).await, (16, 0));

    drop((a, b));
    for node in [0, 1] {
        let agent = unit.start(node, balancer.address).await;
        assert_eq!(balancer.accept().await.1.applied, Some(id(&plan)));
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_stream_is_opened_again_and_what_was_prepared_is_still_there() {
    let (mut unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let ([_a, _b], [mut first, _second]) = boot(&mut unit, &mut balancer).await;
    let (boot_plan, plan) = (unit.boot(), exchange(&unit, &unit.boot()));
    first.prepare(1, &unit, 0, &boot_plan, &plan).await;
    first.expect(Prepared).await;
    drop(first);
    let (mut first, hello) = balancer.accept().await;
    assert_eq!(hello.applied, Some(id(&boot_plan)));
    first.welcome(2, None).await;
    first.commit(2, &plan).await;
    let applied = first.expect(Applied).await;
    assert_eq!((applied.applied, applied.term), (Some(id(&plan)), Some(stand_in::term(2))));

    first.abort(1, &plan).await;
    assert_eq!(first.expect(Refused).await.code, "stale_term");
    drop(first);
    let (mut first, _) = balancer.accept().await;
    first.welcome(1, None).await;
    first.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_leaves_what_is_served_and_frees_the_slots_for_another_plan() {
    let (mut unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let ([_a, _b], [mut first, _second]) = boot(&mut unit, &mut balancer).await;
    let (boot_plan, plan) = (unit.boot(), exchange(&unit, &unit.boot()));
    first.prepare(1, &unit, 0, &boot_plan, &plan).await;
    first.expect(Prepared).await;
    first.abort(1, &plan).await;
    first.expect(Aborted).await;
    let other = unit.child(&boot_plan, "0 - 4 2 3 - 4 5 - 0 1 -");
    first.prepare(1, &unit, 0, &boot_plan, &other).await;
    first.expect(Prepared).await;
    first.commit(1, &other).await;
    first.expect(Applied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_gone_fails_the_plan_and_nothing_else() {
    let (mut unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let ([a, b], [mut first, second]) = boot(&mut unit, &mut balancer).await;
    let (boot_plan, plan) = (unit.boot(), exchange(&unit, &unit.boot()));
    drop((b, second));
    first.prepare(1, &unit, 0, &boot_plan, &plan).await;
    let refused = first.expect(Refused).await;
    assert_eq!((refused.code.as_str(), refused.applied), ("source_unreachable", Some(id(&boot_plan))));
    assert_eq!(step(&a, 0).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_state_is_gone_boots_from_the_last_good_plan() {
    let (mut unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let ([a, _b], [mut first, _second]) = boot(&mut unit, &mut balancer).await;
    let (boot_plan, plan) = (unit.boot(), exchange(&unit, &unit.boot()));
    first.prepare(1, &unit, 0, &boot_plan, &plan).await;
    first.expect(Prepared).await;
    first.commit(1, &plan).await;
    first.expect(Applied).await;
    a.stop().await;
    for file in ["slots.bin", "control.bin"] {
        std::fs::remove_file(unit.directories[0].path().join(file)).unwrap();
    }
    let _a = unit.start(0, balancer.address).await;
    assert_eq!(balancer.accept().await.1.applied, Some(id(&plan)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_plan_of_the_welcome_is_what_the_worker_boots_with() {
    let (mut unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let plan = exchange(&unit, &unit.boot());
    let _a = unit.start(0, balancer.address).await;
    let (mut stream, _) = balancer.accept().await;
    stream.welcome(1, Some(&plan)).await;
    assert_eq!(stream.expect(Applied).await.applied, Some(id(&plan)));
}

#[tokio::test(flavor = "multi_thread")]
async fn staging_that_outlasts_its_deadline_is_given_up() {
    let (mut unit, mut balancer) = (Unit::new(), Balancer::start().await);
    // At one byte a second the move of 100 bytes outlasts everything here.
    let _a = unit.start_paced(0, balancer.address, 1).await;
    let (mut stream, _) = balancer.accept().await;
    stream.welcome(1, None).await;
    stream.expect(Applied).await;
    let (boot_plan, plan) = (unit.boot(), unit.child(&unit.boot(), "0 - 2 2 3 - 4 5 - 0 1 -"));
    stream.prepare_within(1, &unit, 0, &boot_plan, &plan).await;
    let refused = stream.expect(Refused).await;
    assert_eq!((refused.code.as_str(), refused.applied), ("deadline_exceeded", Some(id(&boot_plan))));
    stream.commit(1, &plan).await;
    assert_eq!(stream.expect(Refused).await.code, "not_prepared");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_term_that_cannot_be_made_durable_is_refused_until_it_can() {
    let (mut unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let ([_a, _b], [mut first, _second]) = boot(&mut unit, &mut balancer).await;
    let (boot_plan, plan) = (unit.boot(), exchange(&unit, &unit.boot()));
    // The ledger is written aside first: a directory in that place is in its way.
    let obstacle = unit.directories[0].path().join("ledger.bin.tmp");
    std::fs::create_dir(&obstacle).unwrap();
    first.prepare(2, &unit, 0, &boot_plan, &plan).await;
    let refused = first.expect(Refused).await;
    assert_eq!((refused.code.as_str(), refused.term), ("state_unwritable", Some(stand_in::term(1))));
    assert_eq!(refused.applied, Some(id(&boot_plan)));
    std::fs::remove_dir(&obstacle).unwrap();
    first.prepare(2, &unit, 0, &boot_plan, &plan).await;
    first.expect(Prepared).await;

    // The flip is done, its record is not: it is served, but not said to be applied.
    std::fs::create_dir(&obstacle).unwrap();
    first.commit(2, &plan).await;
    let refused = first.expect(Refused).await;
    assert_eq!((refused.code.as_str(), refused.applied), ("state_unwritable", Some(id(&plan))));
    std::fs::remove_dir(&obstacle).unwrap();
    first.expect(Applied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_weights_boots_once_the_term_can_be_made_durable() {
    let (mut unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let _agent = unit.start(0, balancer.address).await;
    let obstacle = unit.directories[0].path().join("ledger.copy.tmp");
    std::fs::create_dir(&obstacle).unwrap();
    let (mut stream, _) = balancer.accept().await;
    stream.welcome(1, None).await;
    stream.closed().await;
    assert!(!unit.directories[0].path().join("control.bin").exists(), "nothing is done in the term's name");
    std::fs::remove_dir(&obstacle).unwrap();
    drop(stream);
    let (mut stream, _) = balancer.accept().await;
    stream.welcome(1, None).await;
    stream.expect(Applied).await;
}

/// One agent with a stream to each of two balancers.
async fn with_two_balancers(unit: &mut Unit) -> (evenkeel_agent::run::Running, [Balancer; 2], [Stream; 2]) {
    let mut balancers = [Balancer::start().await, Balancer::start().await];
    let agent = unit.start_with(0, &[balancers[0].address, balancers[1].address]).await;
    let [first, second] = &mut balancers;
    let streams = [first.accept().await.0, second.accept().await.0];
    (agent, balancers, streams)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_changes_without_a_new_stream() {
    let mut unit = Unit::new();
    let (_agent, _balancers, [mut first, mut second]) = with_two_balancers(&mut unit).await;
    first.welcome(1, None).await;
    first.expect(Applied).await;
    let (boot_plan, plan) = (unit.boot(), unit.child(&unit.boot(), "0 - 2 2 3 - 4 5 - 0 1 -"));
    // Its Hello was said before the boot, so it is told again, once, what is served.
    second.welcome_as(Standby, 0).await;
    let hello = second.hello().await;
    assert_eq!((hello.applied, hello.term), (Some(id(&boot_plan)), Some(stand_in::term(1))));
    first.prepare(1, &unit, 0, &boot_plan, &plan).await;
    first.expect(Prepared).await;

    second.welcome_as(Leader, 2).await;
    let hello = second.hello().await;
    assert_eq!((hello.applied, hello.term), (Some(id(&boot_plan)), Some(stand_in::term(2))));
    first.commit(1, &plan).await;
    assert_eq!(first.expect(Refused).await.code, "stale_term");
    // What was prepared for the old leader is committed by the new one.
    second.commit(2, &plan).await;
    assert_eq!(second.expect(Applied).await.applied, Some(id(&plan)));
    first.welcome_as(Standby, 2).await;
    assert_eq!(first.hello().await.applied, Some(id(&plan)));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_balancer_gets_the_loads() {
    let mut unit = Unit::new();
    let (agent, _balancers, mut streams) = with_two_balancers(&mut unit).await;
    streams[1].welcome_as(Standby, 1).await;
    streams[0].welcome(1, None).await;
    streams[0].expect(Applied).await;
    for at in 0..4 {
        step(&agent, at).await;
    }
    for stream in &mut streams {
        let mut segments = Vec::new();
        while !segments.last().is_some_and(|s: &v1::LoadSegment| s.window_complete) {
            segments.extend(stream.segments().await);
        }
        assert_eq!(segments.iter().map(|s| s.part).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_comes_whole_or_as_a_difference() {
    let (mut unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let ([_a, _b], [mut first, _second]) = boot(&mut unit, &mut balancer).await;
    let (boot_plan, plan) = (unit.boot(), unit.child(&unit.boot(), "0 - 2 2 3 - 4 5 - 0 1 -"));
    let delta = |plan: &Plan, base: &Plan| Encoded::delta(plan, base).unwrap().unwrap();
    // A difference that leads to another plan than the command names.
    let other = unit.child(&boot_plan, "0 1 2 - 3 - 4 5 - 0 1 -");
    let chunks = delta(&other, &boot_plan);
    first.prepare_chunked(1, &unit, 0, &boot_plan, &plan, chunks.chunks()).await;
    assert_eq!(first.expect(Refused).await.code, "delta_mismatch");
    let full = Encoded::full(&plan).unwrap();
    first.prepare_chunked(1, &unit, 0, &boot_plan, &plan, full.chunks()).await;
    first.expect(Prepared).await;
    first.commit(1, &plan).await;
    first.expect(Applied).await;
    let next = unit.child(&plan, "0 1 2 2 3 - 4 5 - 0 1 -");
    first.prepare_chunked(1, &unit, 0, &plan, &next, delta(&next, &plan).chunks()).await;
    assert_eq!(first.expect(Refused).await.code, "invalid_plan", "three experts where two may be");
    let next = unit.child(&plan, "0 1 - 2 3 - 4 5 - 0 1 -");
    first.prepare_chunked(1, &unit, 0, &plan, &next, delta(&next, &plan).chunks()).await;
    first.expect(Prepared).await;
    first.commit(1, &next).await;
    assert_eq!(first.expect(Applied).await.applied, Some(id(&next)));
    // The difference to what was served before cannot be read any more, and need not be.
    first.prepare_chunked(1, &unit, 0, &plan, &next, delta(&next, &plan).chunks()).await;
    first.expect(Applied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_is_reported_and_flips_when_it_goes_on() {
    let (mut unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let ([a, _b], [mut first, _second]) = boot(&mut unit, &mut balancer).await;
    let (boot_plan, plan) = (unit.boot(), unit.child(&unit.boot(), "0 - 2 2 3 - 4 5 - 0 1 -"));
    first.prepare(1, &unit, 0, &boot_plan, &plan).await;
    first.expect(Prepared).await;
    disturb(&a, Some(true), None).await;
    first.commit(1, &plan).await;
    let fault = first.expect(Refused).await;
    assert_eq!((fault.code.as_str(), fault.applied), ("worker_fault", Some(id(&boot_plan))));
    assert!(fault.message.starts_with("worker_hung: "), "{}", fault.message);
    assert_eq!(first.event().await.kind(), EventKind::WorkerHung);
    // The agent goes on meanwhile: it answers, and keeps what is prepared.
    first.prepare(1, &unit, 0, &boot_plan, &plan).await;
    first.expect(Prepared).await;
    disturb(&a, Some(false), None).await;
    first.commit(1, &plan).await;
    assert_eq!(first.expect(Applied).await.applied, Some(id(&plan)));
    assert_eq!(step(&a, 0).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_takes_no_expert_is_reported_and_takes_it_when_it_goes_on() {
    let (mut unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let ([a, _b], [mut first, _second]) = boot(&mut unit, &mut balancer).await;
    let (boot_plan, plan) = (unit.boot(), unit.child(&unit.boot(), "0 - 2 2 3 - 4 5 - 0 1 -"));
    disturb(&a, Some(true), None).await;
    first.prepare(1, &unit, 0, &boot_plan, &plan).await;
    let fault = first.expect(Refused).await;
    assert_eq!((fault.code.as_str(), fault.applied), ("worker_fault", Some(id(&boot_plan))));
    assert_eq!(first.event().await.kind(), EventKind::WorkerHung);
    // The next attempt waits for the call that hangs, without making another.
    first.prepare(1, &unit, 0, &boot_plan, &plan).await;
    disturb(&a, Some(false), None).await;
    first.expect(Prepared).await;
    first.commit(1, &plan).await;
    first.expect(Applied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_is_found_by_its_name() {
    let (mut unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let _agent = unit.start_named(0, &format!("localhost:{}", balancer.address.port())).await;
    assert_eq!(balancer.accept().await.1.node, "n0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_tells_reaches_every_balancer_at_once() {
    let mut unit = Unit::new();
    let (agent, _balancers, mut streams) = with_two_balancers(&mut unit).await;
    streams[1].welcome_as(Standby, 1).await;
    streams[0].welcome(1, None).await;
    streams[0].expect(Applied).await;
    let event = v1::Event { kind: EventKind::RankDown.into(), rank: Some(1), message: "killed".into() };
    disturb(&agent, None, Some(event.clone())).await;
    for stream in &mut streams {
        assert_eq!(stream.event().await, event);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_of_the_version_before_is_talked_to() {
    let (mut unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let _agent = unit.start(0, balancer.address).await;
    let (mut stream, hello) = balancer.accept().await;
    assert_eq!((hello.protocol_min, hello.protocol_max), (PROTOCOL_VERSION - 1, PROTOCOL_VERSION));
    stream.welcome_in(PROTOCOL_VERSION - 1).await;
    stream.expect(Applied).await;
    let (boot_plan, plan) = (unit.boot(), unit.child(&unit.boot(), "0 - 2 2 3 - 4 5 - 0 1 -"));
    stream.prepare(1, &unit, 0, &boot_plan, &plan).await;
    stream.expect(Prepared).await;
    drop(stream);
    let (mut stream, _) = balancer.accept().await;
    stream.welcome_in(PROTOCOL_VERSION + 1).await;
    stream.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_refuses_steps_it_cannot_run() {
    use evenkeel_proto::v1::{self, simulated_engine_service_client::SimulatedEngineServiceClient};
    use v1::step_request::Routing::{Counts, TopKIds};
    let (mut unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let agent = unit.start(0, balancer.address).await;
    let (mut stream, _) = balancer.accept().await;
    let url = format!("http://{}", agent.ports().engine);
    let mut engine = SimulatedEngineServiceClient::connect(url).await.unwrap();
    let counts =
        |experts: u32| Counts(v1::LoadTable { layers: 2, experts, counts: vec![1; 2 * experts as usize] });
    let mut check = async |routing, rank, code, mention: &str| {
        let gauges = vec![v1::RankGauges { rank, ..v1::RankGauges::default() }];
        let status = engine.step(v1::StepRequest { step: 7, routing, gauges }).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().starts_with(mention), "{status}");
    };
    check(Some(counts(6)), 0, tonic::Code::FailedPrecondition, "worker_not_booted: ").await;
    stream.welcome(1, None).await;
    stream.expect(Applied).await;
    let bad = tonic::Code::InvalidArgument;
    check(None, 0, bad, "step_no_routing: ").await;
    check(Some(counts(5)), 0, bad, "step_wrong_shape: ").await;
    check(Some(counts(6)), 2, bad, "step_unknown_rank: ").await;
    check(Some(counts(6)), 70_000, bad, "step_unknown_rank: ").await;
    let short = Counts(v1::LoadTable { layers: 2, experts: 6, counts: vec![1] });
    check(Some(short), 0, bad, "malformed_message: counts: ").await;
    let ids = |layers, ids: &[u8]| TopKIds(v1::TopK { layers, tokens: 1, top_k: 2, ids: ids.to_vec() });
    check(Some(ids(3, &[0; 6])), 0, bad, "step_wrong_shape: ").await;
    check(Some(ids(2, &[0; 3])), 0, bad, "step_wrong_shape: ").await;
    check(Some(ids(2, &[0, 1, 2, 6])), 0, bad, "step_bad_ids: ").await;
    let gauges =
        vec![v1::RankGauges { rank: 1, kv_used_tokens: 5, requests: 2, ..v1::RankGauges::default() }];
    let routing = Some(ids(2, &[0, 1, 2, 5]));
    let good = v1::StepRequest { step: 7, routing, gauges: gauges.clone() };
    assert_eq!(engine.step(good).await.unwrap().into_inner(), v1::StepResponse { step: 7, epoch: 0 });
    assert_eq!(stream.gauges().await, gauges);
}
