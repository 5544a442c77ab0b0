//! Real processes over TLS: a unit at work, strangers at the door, roles, and certificates that change.

use evenkeel_proto::PROTOCOL_VERSION;
use evenkeel_proto::v1::agent_service_client::AgentServiceClient;
use evenkeel_proto::v1::{self, PlanKind, UnitState, sync_request, sync_response};
use evenkeel_tests::certificates::Certificates;
use evenkeel_tests::http::get_secured;
use evenkeel_tests::process::{DEADLINE, program, wait_for};
use evenkeel_tests::{Rig, Shape};
use evenkeel_transport::credentials::Server;
use evenkeel_transport::dial;
use std::process::{Command, Output};

const HOT_FIRST: [u64; 16] = [900, 800, 700, 600, 90, 80, 70, 60, 50, 40, 30, 20, 10, 10, 10, 10];

fn two_nodes() -> Shape {
    Shape { nodes: 2, slots_per_rank: 6, ..Shape::default() }
}

/// A metrics page, as a viewer reads it.
fn metrics(rig: &Rig, server: Server, address: &str) -> String {
    let (code, text) = get_secured(&rig.security("viewer-rig"), server, address, "/metrics");
    assert_eq!(code, 200, "{text}");
    text
}

/// Waits until the balancer's metrics have this line.
#[track_caller]
fn wait_for_metric(rig: &Rig, line: &str) {
    wait_for(line, || {
        let text = metrics(rig, Server::Balancer, &rig.ports.metrics);
        text.lines().any(|found| found.starts_with(line)).then_some(())
    });
}

/// Runs a command against the balancer with certificates of the rig.
fn evenkeel(rig: &Rig, words: &[&str], who: &str) -> Output {
    let mut command = Command::new(program("evenkeel"));
    command.args(words).args(["--server", &rig.ports.admin]);
    for (flag, file) in rig.certificates().flags(who) {
        command.arg(flag).arg(file);
    }
    command.output().expect("runs")
}

#[track_caller]
fn check_exit(output: &Output, exit: i32, mention: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{errors}");
    assert!(errors.contains(mention), "{mention} is missing in: {errors}");
}

#[test]
fn a_unit_balances_its_experts_over_tls() {
    let mut rig = Rig::start_secured(two_nodes());
    rig.feed_until_settled(&HOT_FIRST);
    assert!(rig.plans().iter().any(|p| p.kind() == PlanKind::Moves));
    rig.assert_all_slots_hold_what_the_plan_says();
    let fetched = (0..2).any(|node| {
        let text = metrics(&rig, Server::Agent, rig.agent_metrics(node));
        let line =
            text.lines().find_map(|l| l.strip_prefix("evenkeel_agent_bytes_moved_total{path=\"peer\"} "));
        line.is_some_and(|bytes| bytes != "0")
    });
    assert!(fetched, "expert bytes went from agent to agent");
    rig.stop();
}

#[test]
fn strangers_are_refused_with_a_code_counted_and_change_nothing() {
    let rig = Rig::start_secured(two_nodes());
    let before = rig.status().expect("answers");
    let directory = tempfile::tempdir().expect("a directory");
    let check = |certificates: &Certificates, name: &str, changes: &[(&str, &str)], code: &str| {
        let flags = certificates.flags(name);
        let flags: Vec<(&str, &str)> = flags.iter().map(|(flag, file)| (*flag, file.as_str())).collect();
        rig.start_stranger(&[&flags[..], changes].concat(), code);
        assert_eq!(rig.status().expect("answers"), before, "{code}");
    };
    let other = Certificates::init(&directory.path().join("other"), "test");
    other.issue(&["agent", "stranger"]);
    check(&other, "agent-stranger", &[], "certificate_unknown_authority");
    wait_for_metric(&rig, "evenkeel_auth_failures_total{code=\"certificate_unknown_authority\"}");
    // Its own certificate is refused by the agent itself, before it dials.
    check(rig.certificates(), "agent-n-0", &[], "node_identity_mismatch");
    check(rig.certificates(), "gateway-rig", &[], "node_identity_mismatch");
    check(rig.certificates(), "agent-stranger", &[("--cluster", "else")], "certificate_wrong_cluster");
    rig.stop();
}

/// What the balancer answers to a Hello for `node` under a certificate.
async fn hello(rig: &Rig, certificate: &str, node: &str) -> Result<sync_response::Message, tonic::Status> {
    let security = rig.security(certificate);
    let dialled =
        dial::connect(&security, Server::Balancer, &rig.ports.agents, DEADLINE, |endpoint| endpoint).await;
    let mut client = AgentServiceClient::new(dialled.expect("connects").0);
    let hello = v1::Hello {
        cluster: "test".into(),
        node: node.into(),
        protocol_min: PROTOCOL_VERSION,
        protocol_max: PROTOCOL_VERSION,
        ..v1::Hello::default()
    };
    let hello = v1::SyncRequest { message: Some(sync_request::Message::Hello(hello)) };
    let (sender, outgoing) = tokio::sync::mpsc::channel(1);
    sender.send(hello).await.expect("there is room");
    let mut stream = client.sync(tokio_stream::wrappers::ReceiverStream::new(outgoing)).await?.into_inner();
    Ok(stream.message().await?.and_then(|first| first.message).expect("an answer"))
}

#[test]
fn an_agent_speaks_for_its_own_node_only() {
    let rig = Rig::start_secured(two_nodes());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let code = |certificate: &str, node: &str| match runtime.block_on(hello(&rig, certificate, node)) {
        Ok(sync_response::Message::Refusal(refusal)) => refusal.code,
        Ok(other) => panic!("{other:?}"),
        Err(status) => status.message().split(':').next().unwrap_or_default().to_owned(),
    };
    assert_eq!(code("agent-n-1", "n-0"), "node_identity_mismatch");
    wait_for_metric(&rig, "evenkeel_auth_failures_total{code=\"node_identity_mismatch\"} 1");
    // Its own name goes on to the next question.
    assert_eq!(code("agent-n-1", "n-1"), "invalid_hello");
    for other in ["operator-rig", "admin-rig", "gateway-rig"] {
        assert_eq!(code(other, "n-0"), "forbidden", "{other}");
    }
    assert_eq!(rig.status().expect("answers").state(), UnitState::Steady);
}

#[test]
fn each_role_may_do_its_own_and_no_more() {
    let rig = Rig::start_secured(two_nodes());
    check_exit(&evenkeel(&rig, &["status"], "viewer-rig"), 0, "");
    check_exit(
        &evenkeel(&rig, &["pause", "u"], "viewer-rig"),
        5,
        "forbidden: /evenkeel.v1.AdminService/Pause needs",
    );
    assert_eq!(rig.status().expect("answers").state(), UnitState::Steady, "nothing was paused");
    check_exit(&evenkeel(&rig, &["pause", "u"], "operator-rig"), 0, "");
    check_exit(&evenkeel(&rig, &["resume", "u"], "admin-rig"), 0, "");
    check_exit(&evenkeel(&rig, &["status"], "gateway-rig"), 5, "forbidden");
    check_exit(&evenkeel(&rig, &["status"], "agent-n-0"), 5, "forbidden");
    let batch = v1::RouteRequest { sequence: 1, unit: "u".into(), now_ms: 1, ..v1::RouteRequest::default() };
    assert_eq!(rig.route(vec![batch]).len(), 1, "a gateway asks for routes");
    wait_for_metric(&rig, "evenkeel_auth_failures_total{code=\"forbidden\"} 3");
    let plain = Command::new(program("evenkeel")).args(["status", "--server", &rig.ports.admin]).output();
    check_exit(&plain.expect("runs"), 4, "not_tls");
    let page =
        |who: &str, path| get_secured(&rig.security(who), Server::Balancer, &rig.ports.metrics, path).0;
    assert_eq!((page("viewer-rig", "/"), page("gateway-rig", "/")), (200, 403));
    assert_eq!((page("gateway-rig", "/api/v1/status"), page("gateway-rig", "/healthz")), (403, 200));
}

#[test]
fn new_certificates_are_used_without_a_restart_and_broken_ones_are_not() {
    let mut rig = Rig::start_secured(two_nodes());
    let file = rig.certificates().files("balancer").certificate;
    let good = std::fs::read(&file).expect("read");
    std::fs::write(&file, &good[..good.len() / 2]).expect("written");
    wait_for_metric(&rig, "evenkeel_certificate_reloads_total{outcome=\"broken\"} 1");
    rig.certificates().issue(&["balancer", "--days", "7", "--force"]);
    wait_for_metric(&rig, "evenkeel_certificate_reloads_total{outcome=\"reloaded\"} 1");
    rig.feed_until_settled(&HOT_FIRST);
    for node in 0..2 {
        let text = metrics(&rig, Server::Agent, rig.agent_metrics(node));
        assert!(text.contains("evenkeel_agent_reconnects_total 0"), "streams stay up: {text}");
    }
    let week = std::time::SystemTime::now() + std::time::Duration::from_secs(8 * 86_400);
    let week = week.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let text = metrics(&rig, Server::Balancer, &rig.ports.metrics);
    let line = text.lines().find_map(|l| l.strip_prefix("evenkeel_certificate_expiry_timestamp_seconds "));
    let ends: u64 = line.and_then(|l| l.parse().ok()).expect("a time");
    assert!(ends < week, "{ends}");
}

#[test]
fn plaintext_beyond_loopback_is_refused_with_its_remedy() {
    let directory = tempfile::tempdir().expect("a directory");
    let state = directory.path().display().to_string();
    let evenkeel = |words: &[&str]| Command::new(program("evenkeel")).args(words).output().expect("runs");
    let any = "127.0.0.1:0";
    for flag in ["--agents-listen", "--admin-listen", "--metrics-listen"] {
        let listen = ["--agents-listen", any, "--admin-listen", any, "--metrics-listen", any];
        let mut words = ["serve", "--state-dir", &state].to_vec();
        words.extend(listen.chunks(2).filter(|pair| pair[0] != flag).flatten());
        words.extend([flag, "0.0.0.0:0"]);
        check_exit(&evenkeel(&words), 1, "tls_required");
        check_exit(&evenkeel(&words), 1, "--insecure-plaintext");
    }
    check_exit(&evenkeel(&["status", "--server", "192.0.2.1:1"]), 2, "tls_required");
    check_exit(&evenkeel(&["status", "--server", "balancer:1"]), 2, "tls_required");
    let required =
        "--node n --unit u --layers 2 --experts 6 --top-k 2 --ranks-total 4 --ranks 0-1 --slots-per-rank 2";
    for flag in
        ["--balancer 192.0.2.1:1", "--metrics 0.0.0.0:0", "--engine 0.0.0.0:0", "--transfer 192.0.2.1:0"]
    {
        let mut agent = Command::new(program("evenkeel-agent"));
        agent.args(required.split(' ')).args(flag.split(' ')).args(["--state-dir", &state]);
        check_exit(&agent.output().expect("runs"), 2, "tls_required");
    }
    assert_eq!(std::fs::read_dir(directory.path()).expect("listed").count(), 0, "nothing was made");
}

#[test]
fn certificates_are_not_replaced_unasked_and_keys_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().expect("a directory");
    let certificates = Certificates::init(directory.path(), "c");
    certificates.issue(&["agent", "n"]);
    let files = certificates.files("agent-n");
    let key = std::fs::read(&files.key).expect("read");
    for path in [&files.key, &directory.path().join("ca.key")] {
        assert_eq!(path.metadata().expect("a file").permissions().mode() & 0o777, 0o600);
    }
    check_exit(&certificates.command(&["issue", "agent", "n"]), 2, "certificate_exists");
    check_exit(&certificates.command(&["init", "--cluster", "c"]), 2, "certificate_exists");
    assert_eq!(std::fs::read(&files.key).expect("read"), key);
    certificates.issue(&["agent", "n", "--force"]);
    assert_ne!(std::fs::read(&files.key).expect("read"), key);
    check_exit(&certificates.command(&["issue", "agent", "N"]), 2, "certificate_invalid_name");
    check_exit(&certificates.command(&["issue", "agent", "m", "--days", "0"]), 2, "certificate_days");
    let none = directory.path().join("none");
    let output = Command::new(program("evenkeel"))
        .args(["certs", "issue", "balancer", "--dir"])
        .arg(none)
        .output()
        .expect("runs");
    check_exit(&output, 2, "authority_missing");
    let shown = Command::new(program("evenkeel")).args(["certs", "show"]).arg(&files.certificate).output();
    let shown = String::from_utf8(shown.expect("runs").stdout).expect("text");
    assert!(shown.contains("n.agent.c.evenkeel") && shown.contains("agent/n, cluster c"), "{shown}");
}
