//! `evenkeel-agent verify`: an independent reader. It takes the committed plan from the balancer (or a file),
//! reads the slots of simulated workers straight from their files, derives from the seed what each slot must
//! hold, and compares byte by byte. It asks no agent.

use crate::config::{Output, VerifyFlags};
use crate::failure::Failure;
use evenkeel_core::ids::ExpertId;
use evenkeel_core::plan::Plan;
use evenkeel_proto::v1::admin_service_client::AdminServiceClient;
use evenkeel_proto::{MESSAGE_BYTES_MAX, v1};
use evenkeel_transport::credentials::Server;
use evenkeel_transport::{Security, dial};
use evenkeel_worker::SlotAddress;
use evenkeel_worker::simulated::slots::SlotsFile;
use evenkeel_worker::simulated::{CHUNK_BYTES, SimulatedWorker, weights};
use prost::Message as _;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// How long the balancer may take to connect and to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Mismatches listed; all are counted.
const LISTED_MAX: usize = 10;

/// A slot that does not hold what the plan says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The node.
    pub node: String,
    /// The rank.
    pub rank: u16,
    /// The slot.
    pub slot: SlotAddress,
    /// The expert that the plan puts there.
    pub expert: ExpertId,
    /// First byte that differs.
    pub byte: u64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// State directories read.
    pub agents: u64,
    /// `unit` to epoch of the plan compared with.
    pub epochs: BTreeMap<String, u64>,
    /// Slots compared.
    pub slots_compared: u64,
    /// Slots that the plan leaves empty.
    pub slots_empty: u64,
    /// Bytes compared.
    pub bytes_compared: u64,
    /// Slots that do not hold what the plan says.
    pub slots_wrong: u64,
    /// The first of them.
    pub mismatches: Vec<Mismatch>,
}

/// Where plans come from.
enum Plans<'a> {
    File(Box<Plan>),
    Admin(&'a str, Security),
}

/// Reads and compares.
pub async fn run(flags: &VerifyFlags) -> Result<Report, Failure> {
    let plans = match &flags.plan {
        Some(path) => Plans::File(Box::new(read_plan(path)?)),
        None => {
            let security = flags.tls.settings().resolve(None)?;
            security.check_target("--admin", &flags.admin)?;
            Plans::Admin(&flags.admin, security)
        }
    };
    let mut fetched: BTreeMap<String, Plan> = BTreeMap::new();
    let mut report = Report::default();
    for state in &flags.states {
        let slots = SlotsFile::open_read_only(&SimulatedWorker::slots_path(state))
            .map_err(|error| Failure::other(error.code(), error))?;
        let unit = slots.header().unit.clone();
        if !fetched.contains_key(&unit) {
            let plan = match &plans {
                Plans::File(plan) => plan.as_ref().clone(),
                Plans::Admin(admin, security) => fetch_plan(admin, security, &unit).await?,
            };
            fetched.insert(unit.clone(), plan);
        }
        compare(&slots, &fetched[&unit], state, &mut report)?;
    }
    Ok(report)
}

fn read_plan(path: &Path) -> Result<Plan, Failure> {
    let failed = |reason: String| Failure::other("plan_unreadable", format!("{}: {reason}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let plan = v1::Plan::decode(bytes.as_slice()).map_err(|error| failed(error.to_string()))?;
    Plan::try_from(&plan).map_err(|error| failed(error.to_string()))
}

async fn fetch_plan(admin: &str, security: &Security, unit: &str) -> Result<Plan, Failure> {
    let failed = |reason: String| {
        let message = format!("the plan of unit {unit} could not be had from {admin}: {reason}");
        Failure::other("balancer_unreachable", message)
    };
    let limited = |endpoint: tonic::transport::Endpoint| endpoint.timeout(ANSWER_MAX);
    let (channel, fault) = dial::connect(security, Server::Balancer, admin, ANSWER_MAX, limited)
        .await
        .map_err(|fault| failed(fault.to_string()))?;
    let mut client = AdminServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let request = v1::GetPlanRequest { unit: unit.to_owned(), epoch: None };
    let answer = client.get_plan(request).await;
    let answer = answer.map_err(|status| {
        failed(fault.get().map_or_else(|| status.message().to_owned(), |fault| fault.to_string()))
    })?;
    let plan = answer.into_inner().plan.ok_or_else(|| failed("the answer has no plan".to_owned()))?;
    Plan::try_from(&plan).map_err(|error| failed(error.to_string()))
}

/// Compares every slot of one file with `plan`.
fn compare(slots: &SlotsFile, plan: &Plan, state: &Path, report: &mut Report) -> Result<(), Failure> {
    let header = slots.header();
    let shape = header.layout.shape();
    let fits = plan.unit.as_str() == header.unit
        && plan.layers.len() == usize::from(shape.layers)
        && plan.layers.iter().all(|layer| layer.physical_to_logical.len() == shape.physical_per_layer());
    if !fits {
        let message = format!(
            "the plan is for unit {}, with {} layers; {} holds slots of unit {}, with {} layers of {} slots",
            plan.unit,
            plan.layers.len(),
            state.display(),
            header.unit,
            shape.layers,
            shape.physical_per_layer()
        );
        return Err(Failure::other("plan_mismatch", message));
    }
    report.agents += 1;
    report.epochs.insert(header.unit.clone(), plan.epoch.0);
    for (local, slot) in header.layout.addresses().enumerate() {
        let Some(expert) = plan.layers[slot.layer.index()].physical_to_logical[slot.slot as usize] else {
            report.slots_empty += 1;
            continue;
        };
        report.slots_compared += 1;
        report.bytes_compared += shape.expert_bytes;
        let first = first_difference(slots, local, slot, expert).map_err(|e| Failure::other(e.code(), e))?;
        let Some(byte) = first else { continue };
        report.slots_wrong += 1;
        if report.mismatches.len() < LISTED_MAX {
            let (node, rank) = (header.node.clone(), shape.rank_of_slot(slot.slot as usize).0);
            report.mismatches.push(Mismatch { node, rank, slot, expert, byte });
        }
    }
    Ok(())
}

fn first_difference(
    slots: &SlotsFile,
    local: usize,
    slot: SlotAddress,
    expert: ExpertId,
) -> Result<Option<u64>, evenkeel_worker::WorkerError> {
    let header = slots.header();
    let size = header.layout.shape().expert_bytes;
    let mut offset = 0;
    while offset < size {
        let length = usize::try_from(size - offset).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let (mut found, mut expected) = (vec![0; length], vec![0; length]);
        slots.read(local, offset, &mut found)?;
        weights::fill(header.weights_seed, slot.layer, expert, offset, &mut expected);
        if let Some(at) = found.iter().zip(&expected).position(|(a, b)| a != b) {
            return Ok(Some(offset + at as u64));
        }
        offset += length as u64;
    }
    Ok(None)
}

impl Report {
    /// Whether every slot holds what the plan says.
    pub fn is_clean(&self) -> bool {
        self.slots_wrong == 0
    }

    /// The report as text.
    pub fn render(&self, output: Output) -> String {
        match output {
            Output::Table => self.table(),
            Output::Json => self.json(),
        }
    }

    fn table(&self) -> String {
        let plans: Vec<_> = self.epochs.iter().map(|(unit, epoch)| format!("{unit} epoch {epoch}")).collect();
        let rows = [
            ("plans", plans.join(", ")),
            ("agents", self.agents.to_string()),
            ("slots compared", self.slots_compared.to_string()),
            ("slots empty", self.slots_empty.to_string()),
            ("bytes compared", self.bytes_compared.to_string()),
            ("slots wrong", self.slots_wrong.to_string()),
        ];
        let mut text = String::new();
        for (name, value) in rows {
            writeln!(text, "{name:<16}{value}").expect("a string accepts text");
        }
        for m in &self.mismatches {
            let (layer, slot) = (m.slot.layer, m.slot.slot);
            writeln!(
                text,
                "  node {}, rank {}, layer {layer}, slot {slot}: expert {} differs from byte {} on",
                m.node, m.rank, m.expert, m.byte
            )
            .expect("a string accepts text");
        }
        text
    }

    fn json(&self) -> String {
        let mismatches: Vec<_> = self
            .mismatches
            .iter()
            .map(|m| {
                serde_json::json!({
                    "node": m.node, "rank": m.rank, "layer": m.slot.layer.0, "slot": m.slot.slot,
                    "expert": m.expert.0, "byte": m.byte,
                })
            })
            .collect();
        serde_json::json!({
            "epochs": self.epochs,
            "agents": self.agents,
            "slots_compared": self.slots_compared,
            "slots_empty": self.slots_empty,
            "bytes_compared": self.bytes_compared,
            "slots_wrong": self.slots_wrong,
            "mismatches": mismatches,
        })
        .to_string()
    }
}
