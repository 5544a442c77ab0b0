//! The program itself: flags, ports, locks, signals.

mod stand_in;

use evenkeel_proto::v1;
use evenkeel_proto::v1::PlanOutcome::{Applied, Prepared};
use prost::Message as _;
use rustix::process::{Pid, Signal, kill_process};
use stand_in::{Balancer, Unit};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

fn agent(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel-agent"));
    command.args(arguments.split_whitespace());
    command
}

/// Starts an agent and waits for the line in which it says where it listens.
fn spawn(arguments: &str) -> (Child, serde_json::Value) {
    let mut child = agent(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, serde_json::from_str(&line).expect("a line of JSON"))
}

/// Expects an exit code, nothing on standard output, and one line with the code on standard error.
#[track_caller]
fn check_fails(output: &Output, exit: i32, code: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{errors}");
    let last = errors.lines().last().unwrap_or_default();
    assert!(last.starts_with(&format!("error: {code}: ")), "{errors}");
    assert!(output.stdout.is_empty());
}

#[test]
fn bad_flags_exit_with_2_and_leave_nothing_behind() {
    let unit = Unit::new();
    let flags = unit.arguments(0, "127.0.0.1:1".parse().unwrap());
    let run = |flags: &str| agent(flags).output().unwrap();
    check_fails(&run(&format!("{flags} --expertbytes 5")), 2, "usage");
    check_fails(&run(&flags.replace("--ranks-total 4", "--ranks-total 2")), 2, "topology_too_few_slots");
    check_fails(&run(&flags.replace("--ranks 0-1", "--ranks 4")), 2, "config_invalid");
    let environment = ("EVENKEEL_AGENT_EXPERT_BYTES", "0");
    let flags = flags.replace("--expert-bytes 100", "");
    let output = agent(&flags).envs([environment]).output().unwrap();
    check_fails(&output, 2, "topology_out_of_range");
    let output = agent(&format!("{flags} --expert-bytes x")).envs([environment]).output().unwrap();
    check_fails(&output, 2, "usage");
    let directory = unit.directories[0].path();
    assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
    let help = run("--help");
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).contains("--transfer-bytes-per-second"));
}

#[test]
fn a_port_in_use_is_one_clear_error() {
    let unit = Unit::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let flags = unit.arguments(0, "127.0.0.1:1".parse().unwrap());
    let flags = flags.replace("--engine 127.0.0.1:0", &format!("--engine {}", taken.local_addr().unwrap()));
    check_fails(&agent(&flags).output().unwrap(), 1, "port_unavailable");
    assert_eq!(std::fs::read_dir(unit.directories[0].path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_serves_metrics_keeps_others_out_and_stops_when_asked() {
    let (unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let flags = unit.arguments(0, balancer.address);
    let (mut child, ports) = spawn(&flags);
    let (mut stream, hello) = balancer.accept().await;
    assert_eq!(Some(hello.transfer_address.as_str()), ports["transfer"].as_str());
    let file = std::fs::read(unit.directories[0].path().join("ports.json")).unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&file).unwrap(), ports);
    assert_eq!(ports["pid"].as_u64(), Some(child.id().into()));

    stream.welcome(1, None).await;
    stream.expect(Applied).await;
    check_fails(&agent(&flags).output().unwrap(), 1, "state_locked");
    let metrics = get(ports["metrics"].as_str().unwrap(), "/metrics");
    assert!(metrics.contains("\nevenkeel_agent_connected 1\n"), "{metrics}");
    assert!(metrics.contains("\nevenkeel_agent_applied_epoch 0\n"), "{metrics}");
    assert!(metrics.contains("\nevenkeel_agent_spare_slots 4\n"), "{metrics}");
    assert!(get(ports["metrics"].as_str().unwrap(), "/healthz").ends_with("ok\n"));

    kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!unit.directories[0].path().join("ports.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_comes_back_with_its_plan() {
    let (unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let flags = unit.arguments(0, balancer.address);
    let (mut child, _) = spawn(&flags);
    let (mut stream, _) = balancer.accept().await;
    stream.welcome(3, None).await;
    stream.expect(Applied).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let (mut child, _) = spawn(&flags);
    let (_, hello) = balancer.accept().await;
    assert_eq!(hello.applied, Some(stand_in::id(&unit.boot())));
    assert_eq!(hello.term, Some(stand_in::term(3)));
    child.kill().unwrap();
    child.wait().unwrap();

    for file in ["ledger.bin", "ledger.copy"] {
        std::fs::write(unit.directories[0].path().join(file), b"EVKLEDG1").unwrap();
    }
    check_fails(&agent(&flags).output().unwrap(), 1, "ledger_corrupt");
    let states = format!("--state {}", unit.directories[0].path().display());
    check_fails(
        &agent(&format!("verify --plan /nonexistent {states}")).output().unwrap(),
        1,
        "plan_unreadable",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_of_a_plan_can_be_rolled_forward() {
    let (unit, mut balancer) = (Unit::new(), Balancer::start().await);
    let flags = unit.arguments(0, balancer.address);
    let mut base = unit.boot();
    for round in 0..16u32 {
        // Expert 1 goes to the spare slot of rank 0, and back again.
        let first = if round % 2 == 0 { "0 - 1 2 3 - 4 5 - 0 1 -" } else { "0 1 - 2 3 - 4 5 - 0 1 -" };
        let plan = unit.child(&base, first);
        let (mut child, _) = spawn(&flags);
        let (mut stream, hello) = balancer.accept().await;
        stream.welcome(1, Some(&base)).await;
        if hello.applied.is_none() {
            stream.expect(Applied).await;
        }
        stream.prepare(1, &unit, 0, &base, &plan).await;
        if round >= 4 {
            stream.expect(Prepared).await;
            stream.commit(1, &plan).await;
        }
        // Somewhere within staging, flip or the writing of the ledger.
        tokio::time::sleep(Duration::from_micros(u64::from(round % 4) * 400)).await;
        child.kill().unwrap();
        child.wait().unwrap();

        let (mut child, _) = spawn(&flags);
        let (mut stream, hello) = balancer.accept().await;
        stream.welcome(1, None).await;
        if hello.applied == Some(stand_in::id(&base)) {
            stream.prepare(1, &unit, 0, &base, &plan).await;
            stream.expect(Prepared).await;
        }
        stream.commit(1, &plan).await;
        assert_eq!(stream.expect(Applied).await.applied, Some(stand_in::id(&plan)));
        child.kill().unwrap();
        child.wait().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), v1::Plan::from(&plan).encode_to_vec()).unwrap();
        let report = stand_in::verify(file.path(), &[unit.directories[0].path()]).await;
        assert_eq!((report.slots_compared, report.slots_wrong), (8, 0), "round {round}");
        base = plan;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_asks_the_balancer_for_the_plan_and_finds_a_planted_byte() {
    let mut unit = Unit::new();
    let mut balancer = Balancer::start().await;
    let agent_0 = unit.start(0, balancer.address).await;
    let (mut stream, _) = balancer.accept().await;
    stream.welcome(1, None).await;
    stream.expect(Applied).await;
    let admin = stand_in::serve_plan(unit.boot()).await;
    let directory = unit.directories[0].path();
    let flags = format!("verify --admin {admin} --state {} --output json", directory.display());
    let run = || {
        let output = agent(&flags).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a line of JSON");
        (output.status.code(), report)
    };
    let run = async || tokio::task::block_in_place(run);
    let (code, report) = run().await;
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(report["slots_compared"], 8);
    assert_eq!(report["slots_empty"], 4);
    assert_eq!(report["bytes_compared"], 800);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(directory.join("slots.bin")).unwrap();
    // Byte 7 of the last layer's slot 4, which holds expert 3: two slots lie behind it.
    let at = file.metadata().unwrap().len() - 200 + 7;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
    let (code, report) = run().await;
    assert_eq!(code, Some(1));
    let place = serde_json::json!({"node": "n0", "rank": 1, "layer": 1, "slot": 4, "expert": 3, "byte": 7});
    assert_eq!((&report["slots_wrong"], &report["mismatches"][0]), (&1.into(), &place));
    agent_0.stop().await;
    let unreachable = flags.replace(&admin.to_string(), "127.0.0.1:1");
    check_fails(&agent(&unreachable).output().unwrap(), 1, "balancer_unreachable");
}

/// A GET request's whole answer.
fn get(address: &str, path: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
