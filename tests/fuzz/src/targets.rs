//! The decoders, with valid inputs of each.

use evenkeel::config::{self, Overrides};
use evenkeel::probes::{is_decision_log, is_loads_file, is_plan_file};
use evenkeel::records::{codec, path};
use evenkeel_agent::ledger::{self, Ledger};
use evenkeel_agent::transfer::Request;
use evenkeel_agent::wire::Orders;
use evenkeel_core::ids::{Digest, Epoch, ExpertId, LayerId, NodeId, Rank, Term, UnitId};
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::agent::Command;
use evenkeel_core::records::{
    AuditId, AuditRecord, Key, Pause, Pin, PlanName, Record, RequestId, RequestRecord,
};
use evenkeel_core::routing::RoutingEvent;
use evenkeel_core::snapshot::LoadTable;
use evenkeel_core::topology::{Role, UnitShape};
use evenkeel_proto::plan_content::{Assembler, Encoded};
use evenkeel_proto::v1;
use evenkeel_simulate::trace::{TraceOptions, load};
use evenkeel_worker::SlotAddress;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

/// One decoder.
pub(crate) struct Target {
    /// Its name.
    pub(crate) name: &'static str,
    /// Inputs that it must accept.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// Decodes, and says whether the input was valid.
    pub(crate) accepts: fn(&[u8]) -> bool,
}

/// Every target.
pub(crate) fn all() -> Vec<Target> {
    vec![
        Target { name: "hello", seeds: || vec![hello().encode_to_vec()], accepts: accepts_hello },
        Target {
            name: "sync-request",
            seeds: sync_requests,
            accepts: |b| v1::SyncRequest::decode(b).is_ok(),
        },
        Target {
            name: "sync-response",
            seeds: sync_responses,
            accepts: |b| v1::SyncResponse::decode(b).is_ok(),
        },
        Target {
            name: "plan",
            seeds: || vec![v1::Plan::from(&plan()).encode_to_vec()],
            accepts: accepts_plan,
        },
        Target { name: "plan-command", seeds: plan_commands, accepts: accepts_plan_command },
        Target { name: "load-table", seeds: load_tables, accepts: accepts_load_table },
        Target { name: "route-event", seeds: route_events, accepts: accepts_route_event },
        Target { name: "transfer-request", seeds: transfer_requests, accepts: accepts_transfer_request },
        Target { name: "plan-chunk-content", seeds: chunk_contents, accepts: accepts_chunk_content },
        Target { name: "stored-record", seeds: records, accepts: accepts_record },
        Target {
            name: "stored-path",
            seeds: || keys().iter().map(|k| path::of_key(k).into()).collect(),
            accepts: accepts_path,
        },
        Target { name: "agent-ledger", seeds: ledgers, accepts: accepts_ledger },
        Target { name: "balancer-config", seeds: configs, accepts: accepts_config },
        Target {
            name: "trace-mooncake",
            seeds: || vec![MOONCAKE.into()],
            accepts: |b| accepts_trace("t.jsonl", b),
        },
        Target {
            name: "expert-plan-json",
            seeds: plan_files,
            accepts: |b| in_file("p.json", b, is_plan_file),
        },
        Target {
            name: "expert-plan-yaml",
            seeds: || vec![TENSORRT_LLM.into()],
            accepts: |b| in_file("p.yaml", b, is_plan_file),
        },
        Target {
            name: "expert-loads-csv",
            seeds: || vec!["1,2,3,4\n4,3,2.5,1\n".into()],
            accepts: |b| in_file("l.csv", b, is_loads_file),
        },
        Target { name: "expert-loads-npy", seeds: npy, accepts: |b| in_file("l.npy", b, is_loads_file) },
        Target { name: "decision-log", seeds: || vec![DECISIONS.into()], accepts: is_decision_log },
        Target { name: "trace-azure", seeds: || vec![AZURE.into()], accepts: |b| accepts_trace("t.csv", b) },
    ]
}

fn shape() -> UnitShape {
    UnitShape {
        role: Role::Decode,
        layers: 2,
        experts: 8,
        top_k: 2,
        ranks: 4,
        slots_per_rank: 3,
        spare_per_rank: 1,
        expert_bytes: 64,
    }
}

fn plan() -> Plan {
    let boot = Plan::boot(UnitId::new("u").expect("valid"), &shape());
    boot.child(boot.layers.clone())
}

fn hello() -> v1::Hello {
    let plan = plan();
    v1::Hello {
        cluster: "c".into(),
        node: "n-0".into(),
        incarnation: 7,
        protocol_min: 1,
        protocol_max: 1,
        version: "0.1.0".into(),
        unit: "u".into(),
        shape: Some((&shape()).into()),
        ranks: vec![0, 1],
        weights_digest: vec![1; 32],
        applied: Some((plan.epoch, plan.digest()).into()),
        term: Some(Term { generation: 0, revision: 3 }.into()),
        transfer_address: "127.0.0.1:7411".into(),
    }
}

fn accepts_hello(bytes: &[u8]) -> bool {
    let Ok(hello) = v1::Hello::decode(bytes) else { return false };
    hello.shape.as_ref().is_some_and(|shape| UnitShape::try_from(shape).is_ok())
}

fn sync_requests() -> Vec<Vec<u8>> {
    use v1::sync_request::Message;
    let report = v1::Report {
        sequence: 9,
        segments: vec![v1::LoadSegment {
            window: Some(v1::Window { from_step: 0, to_step: 4 }),
            epoch: 1,
            counts: vec![1, 2, 300, 70_000],
            window_complete: true,
            part: 3,
        }],
        gauges: vec![v1::RankGauges { rank: 1, kv_used_tokens: 5, ..Default::default() }],
    };
    let messages =
        [Message::Hello(hello()), Message::Report(report), Message::Ping(v1::Ping { sequence: 1 })];
    messages.into_iter().map(|m| v1::SyncRequest { message: Some(m) }.encode_to_vec()).collect()
}

fn sync_responses() -> Vec<Vec<u8>> {
    use v1::sync_response::Message;
    let welcome = v1::Welcome { protocol: 1, window_steps: 256, ..Default::default() };
    let refusal = v1::Refusal { code: "rank_conflict".into(), message: "text".into() };
    let messages = [Message::Welcome(welcome), Message::Refusal(refusal)];
    messages.into_iter().map(|m| v1::SyncResponse { message: Some(m) }.encode_to_vec()).collect()
}

fn accepts_plan(bytes: &[u8]) -> bool {
    let Ok(plan) = v1::Plan::decode(bytes) else { return false };
    let Ok(plan) = Plan::try_from(&plan) else { return false };
    // What is accepted has one digest, whichever way it goes over the wire.
    assert_eq!(Plan::try_from(&v1::Plan::from(&plan)).expect("its own encoding").digest(), plan.digest());
    true
}

fn base() -> Plan {
    Plan::boot(UnitId::new("u").expect("valid"), &shape())
}

/// Whole, and as the difference to its parent if that is smaller.
fn encoded() -> Vec<Encoded> {
    let delta = Encoded::delta(&plan(), &base()).map(|delta| delta.expect("small"));
    [Encoded::full(&plan()).expect("small")].into_iter().chain(delta).collect()
}

fn plan_commands() -> Vec<Vec<u8>> {
    let (plan, base) = (plan(), base());
    let command = |phase: v1::PlanPhase, content: Option<v1::PlanChunk>| v1::PlanCommand {
        term: Some(Term { generation: 0, revision: 3 }.into()),
        phase: phase.into(),
        id: Some((plan.epoch, plan.digest()).into()),
        base: Some((base.epoch, base.digest()).into()),
        deadline_ms: 1000,
        content,
        ..Default::default()
    };
    let chunks: Vec<_> = encoded().iter().flat_map(|encoded| encoded.chunks().collect::<Vec<_>>()).collect();
    let prepares = chunks.into_iter().map(|chunk| command(v1::PlanPhase::Prepare, Some(chunk)));
    let short = [v1::PlanPhase::Commit, v1::PlanPhase::Abort].map(|phase| command(phase, None));
    short.into_iter().chain(prepares).map(|command| command.encode_to_vec()).collect()
}

fn accepts_plan_command(bytes: &[u8]) -> bool {
    let Ok(command) = v1::PlanCommand::decode(bytes) else { return false };
    let base = base();
    match Orders::default().read(command) {
        Ok(Some(order)) => {
            let in_service = ((base.epoch, base.digest()), &base);
            !matches!(order.command(Some(in_service)), Command::Unreadable { .. })
        }
        Ok(None) | Err(_) => false,
    }
}

/// The first byte says which encoding; compression would hide the rest from damage, so it is done after it.
fn chunk_contents() -> Vec<Vec<u8>> {
    let content = |encoded: &Encoded| {
        let chunks: Vec<_> = encoded.chunks().collect();
        let data: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.data.to_vec()).collect();
        let kind = u8::try_from(chunks[0].encoding).expect("few encodings");
        [&[kind], zstd::decode_all(data.as_slice()).expect("its own frame").as_slice()].concat()
    };
    encoded().iter().map(content).collect()
}

fn accepts_chunk_content(bytes: &[u8]) -> bool {
    let Some((&kind, content)) = bytes.split_first() else { return false };
    let data = zstd::encode_all(content, 1).expect("memory").into();
    let chunk = v1::PlanChunk { encoding: kind.into(), index: 0, count: 1, data };
    let (plan, base) = (plan(), base());
    let content = Assembler::default().push((plan.epoch, plan.digest()), chunk);
    content.is_ok_and(|content| content.is_some_and(|content| content.plan(Some(&base)).is_ok()))
}

fn keys() -> Vec<Key> {
    let unit = || UnitId::new("u").expect("valid");
    let term = Term { generation: 1, revision: 9 };
    vec![
        Key::Schema,
        Key::Generation,
        Key::Head(unit()),
        Key::Pins(unit()),
        Key::Drains(unit()),
        Key::Pause(unit()),
        Key::Agent(NodeId::new("n").expect("valid")),
        Key::Request(RequestId::new("r-1").expect("valid")),
        Key::Audit(AuditId { at_ms: 5, term, sequence: 7 }),
        Key::Chunk(unit(), Epoch(3), 0),
    ]
}

/// The first byte says under which key; see [`keys`].
fn records() -> Vec<Vec<u8>> {
    let name =
        PlanName { term: Term { generation: 1, revision: 9 }, epoch: Epoch(3), digest: Digest([3; 32]) };
    let unit = UnitId::new("u").expect("valid");
    let pin = Pin { layer: LayerId(1), expert: ExpertId(2), rank: Rank(3) };
    let records = [
        Record::Schema(1),
        Record::Generation(4),
        Record::Plan(name),
        Record::Pins([pin].into()),
        Record::Drains([NodeId::new("n").expect("valid")].into()),
        Record::Pause(Pause { by: "local".into(), until_ms: Some(7) }),
        Record::Agent { at_ms: 3, connected: true },
        Record::Request(RequestRecord {
            at_ms: 1,
            content: Digest([1; 32]),
            answer: Arc::from([1, 2].as_slice()),
        }),
        Record::Audit(AuditRecord {
            who: "local".into(),
            verb: "commit".into(),
            unit: Some(unit),
            plan: Some(name),
            detail: "text".into(),
        }),
        Record::Chunk(Arc::from([1, 2, 3].as_slice())),
    ];
    let numbered = records.iter().zip(0u8..);
    numbered.map(|(record, key)| [&[key], codec::encode(record).as_slice()].concat()).collect()
}

fn accepts_record(bytes: &[u8]) -> bool {
    let Some((&key, record)) = bytes.split_first() else { return false };
    keys().get(usize::from(key)).is_some_and(|key| codec::decode(key, record).is_ok())
}

fn accepts_path(bytes: &[u8]) -> bool {
    let Some(key) = std::str::from_utf8(bytes).ok().and_then(path::to_key) else { return false };
    // A path has one key, and a key one path.
    assert_eq!(path::of_key(&key).as_bytes(), bytes);
    true
}

fn load_tables() -> Vec<Vec<u8>> {
    vec![v1::LoadTable { layers: 2, experts: 3, counts: vec![1, 2, 3, 4, 5, 1 << 40] }.encode_to_vec()]
}

fn accepts_load_table(bytes: &[u8]) -> bool {
    v1::LoadTable::decode(bytes).is_ok_and(|table| LoadTable::try_from(table).is_ok())
}

fn route_events() -> Vec<Vec<u8>> {
    use v1::route_event::Event;
    let arrive = v1::Arrive { request: 1, prompt_tokens: 1000, ..Default::default() };
    vec![v1::RouteEvent { event: Some(Event::Arrive(arrive)) }.encode_to_vec()]
}

fn accepts_route_event(bytes: &[u8]) -> bool {
    v1::RouteEvent::decode(bytes).is_ok_and(|event| RoutingEvent::try_from(&event).is_ok())
}

fn transfer_requests() -> Vec<Vec<u8>> {
    let slot = SlotAddress { layer: LayerId(1), slot: 2 };
    vec![Request { weights: [5; 32], slot, expert: ExpertId(3), length: 64 }.encode().to_vec()]
}

fn accepts_transfer_request(bytes: &[u8]) -> bool {
    bytes.try_into().is_ok_and(|bytes| Request::decode(bytes).is_some())
}

/// See the ledger's format.
const LEDGER_HASH_BYTES: usize = 32;

/// Writes the bytes where a decoder reads files from.
fn in_file<T>(name: &str, bytes: &[u8], read: impl FnOnce(&Path) -> T) -> T {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join(name);
    let mut file = std::fs::File::create(&path).expect("can be made");
    file.write_all(bytes).expect("can be written");
    read(&path)
}

fn ledgers() -> Vec<Vec<u8>> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut ledger = Ledger::open(directory.path()).expect("empty");
    let (plan, beside) = (Some(Arc::new(plan())), Some(Arc::new(plan())));
    let record = ledger::Record { term: Term { generation: 1, revision: 2 }, plan, beside };
    ledger.write(record).expect("written");
    let mut bytes = std::fs::read(directory.path().join("ledger.bin")).expect("readable");
    bytes.truncate(bytes.len() - LEDGER_HASH_BYTES);
    vec![bytes]
}

/// The ledger ends with a hash, which would hide everything behind it: it is made anew for each damaged content.
fn accepts_ledger(content: &[u8]) -> bool {
    let bytes = [content, Sha256::digest(content).as_slice()].concat();
    in_file("ledger.bin", &bytes, |path| Ledger::open(path.parent().expect("in a directory")).is_ok())
}

fn configs() -> Vec<Vec<u8>> {
    let text = "cluster = \"c\"\nagents_listen = \"127.0.0.1:7400\"\n[control]\nwindow_steps = 4\n[routing]\nbatch_share = 0.5\n[routing.tenants]\n7 = 3\n";
    vec![text.into()]
}

fn accepts_config(bytes: &[u8]) -> bool {
    in_file("balancer.toml", bytes, |path| config::load(Some(path), Overrides::default()).is_ok())
}

const EVENKEEL: &str = include_str!("../../../balancer/src/expert_files/golden/evenkeel.json");
const SGLANG: &str = include_str!("../../../balancer/src/expert_files/golden/sglang.json");
const VLLM: &str = include_str!("../../../balancer/src/expert_files/golden/vllm.json");
const ASCEND: &str = include_str!("../../../balancer/src/expert_files/golden/vllm_ascend.json");
const TENSORRT_LLM: &str = include_str!("../../../balancer/src/expert_files/golden/tensorrt_llm.yaml");

fn plan_files() -> Vec<Vec<u8>> {
    [EVENKEEL, SGLANG, VLLM, ASCEND].map(Vec::from).to_vec()
}

/// Two layers of four experts, as numpy writes them.
fn npy() -> Vec<Vec<u8>> {
    let header = "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 4), }";
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    let padded = format!("{header:<117}\n");
    bytes.extend(u16::try_from(padded.len()).expect("short").to_le_bytes());
    bytes.extend(padded.as_bytes());
    bytes.extend((1..=8).flat_map(|load| f64::from(load).to_le_bytes()));
    vec![bytes]
}

const DECISIONS: &str = r#"{"evenkeel":"decisions","version":1}
{"at_ms":0,"unit":"d","event":"unit","role":"decode","ranks":2}
{"at_ms":1,"unit":"d","event":"rank_down","rank":1}
{"at_ms":5,"unit":"d","event":"arrive","request":1,"prompt_tokens":1500}
{"at_ms":40,"unit":"d","events":[{"event":"steps","count":1},{"event":"first_token","request":1}]}
{"at_ms":45,"unit":"d","event":"rank_report","rank":0,"sequence":1,"as_of":1,"kv_used_tokens":1501,"requests":1}
{"at_ms":50,"unit":"d","events":[{"event":"rank_up","rank":1},{"event":"drain","rank":0}]}
{"at_ms":60,"unit":"d","event":"arrive","request":2,"prompt_tokens":900,"tenant":7,"priority":"batch","expected_output":200}
"#;

const MOONCAKE: &str = r#"{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]}
{"timestamp": 3000, "input_length": 700, "output_length": 52, "hash_ids": [0, 14]}
"#;
const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n";

fn accepts_trace(name: &str, bytes: &[u8]) -> bool {
    in_file(name, bytes, |path| load(path, &TraceOptions::default()).is_ok())
}
