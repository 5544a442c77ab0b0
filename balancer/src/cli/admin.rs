//! Commands that ask or order a running balancer over its admin service.

use super::tls::{EXIT_DENIED, TlsFlags};
use super::{Failure, runtime};
use crate::election::admin::LEADER_METADATA;
use clap::{Args, ValueEnum};
use comfy_table::{Table, TableStyle};
use evenkeel_proto::MESSAGE_BYTES_MAX;
use evenkeel_proto::v1::admin_service_client::AdminServiceClient;
use evenkeel_proto::v1::*;
use evenkeel_transport::credentials::Server as Expected;
use evenkeel_transport::{Fault, FaultCode, Security, dial};
use std::error::Error as _;
use std::time::Duration;
use tonic::transport::Channel;

/// An operator waits no longer than this for an answer.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(super) struct Server {
    /// Admin address of the balancer
    #[arg(long, env = "EVENKEEL_SERVER", default_value = "127.0.0.1:7401", value_name = "ADDRESS")]
    server: String,
    /// Name of the cluster, to be sure of it [default: the certificate's]
    #[arg(long, env = "EVENKEEL_CLUSTER", value_name = "NAME")]
    cluster: Option<String>,
    #[command(flatten)]
    tls: TlsFlags,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum Output {
    Table,
    Json,
}

impl Server {
    /// Asks the balancer, and the leader that it names if only the leader may do it: once, so that two balancers that
    /// take each other for the leader make no circle.
    pub(super) fn call<T>(
        self,
        work: impl AsyncFn(AdminServiceClient<Channel>) -> Result<T, tonic::Status>,
    ) -> Result<T, Failure> {
        self.call_within(DEADLINE, work)
    }

    /// The same for what takes longer.
    pub(super) fn call_within<T>(
        self,
        within: Duration,
        work: impl AsyncFn(AdminServiceClient<Channel>) -> Result<T, tonic::Status>,
    ) -> Result<T, Failure> {
        let security = self.tls.settings().resolve(self.cluster.as_deref())?;
        runtime().block_on(async {
            match ask(&security, "--server", &self.server, within, &work).await {
                Err(Refusal::NotLeader { leader }) => {
                    let answer = ask(&security, "the leader", &leader, within, &work).await;
                    answer.map_err(Refusal::into_failure)
                }
                answer => answer.map_err(Refusal::into_failure),
            }
        })
    }
}

/// Why a call came to nothing.
enum Refusal {
    NotLeader {
        /// The leader's admin address.
        leader: String,
    },
    Other(Failure),
}

impl Refusal {
    fn into_failure(self) -> Failure {
        match self {
            Refusal::NotLeader { leader } => Failure::new(
                "not_leader",
                format!("the balancer that was named as leader names {leader}: try again"),
            ),
            Refusal::Other(failure) => failure,
        }
    }
}

async fn ask<T>(
    security: &Security,
    key: &str,
    address: &str,
    within: Duration,
    work: &impl AsyncFn(AdminServiceClient<Channel>) -> Result<T, tonic::Status>,
) -> Result<T, Refusal> {
    security.check_target(key, address).map_err(|fault| Refusal::Other(fault.into()))?;
    let limited = |endpoint: tonic::transport::Endpoint| endpoint.timeout(within);
    let connected = dial::connect(security, Expected::Balancer, address, DEADLINE, limited).await;
    let (channel, fault) = connected.map_err(|fault| Refusal::Other(fault.into()))?;
    let client = AdminServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    work(client).await.map_err(|status| {
        let leader = status.metadata().get(LEADER_METADATA).and_then(|leader| leader.to_str().ok());
        match (fault.get(), leader) {
            (Some(fault), _) => Refusal::Other(fault.into()),
            (None, Some(leader)) => Refusal::NotLeader { leader: leader.to_owned() },
            (None, None) if broke(&status) => {
                Refusal::Other(Fault::new(FaultCode::HandshakeFailed, status.message()).into())
            }
            (None, None) => Refusal::Other(refused(&status)),
        }
    })
}

/// Whether no answer came, but the end of the connection.
fn broke(status: &tonic::Status) -> bool {
    status.source().is_some_and(|source| source.is::<tonic::transport::Error>())
}

/// Exit code of what does not fit what there is: repeat it otherwise, or later.
const EXIT_CONFLICT: u8 = 3;
/// Exit code of a balancer, or a store behind it, that cannot be reached.
const EXIT_UNREACHABLE: u8 = 4;
/// Exit code of bad input.
const EXIT_USAGE: u8 = 2;

/// What the balancer says, its code apart from its words.
fn refused(status: &tonic::Status) -> Failure {
    use tonic::Code;
    let exit = match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => EXIT_DENIED,
        Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => EXIT_CONFLICT,
        // Cancelled is what a client says whose own time was up.
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => EXIT_UNREACHABLE,
        Code::InvalidArgument => EXIT_USAGE,
        _ => 1,
    };
    let (code, text) = status.message().split_once(": ").unwrap_or(("internal", status.message()));
    Failure { exit, ..Failure::new(code, text) }
}

/// Show units and agents of a running balancer
#[derive(Args)]
pub(super) struct Status {
    #[command(flatten)]
    server: Server,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

impl Status {
    pub(super) fn run(self) -> Result<(), Failure> {
        let request = GetStatusRequest {};
        let status = self.server.call(async |mut c| Ok(c.get_status(request).await?.into_inner()))?;
        if self.output == Output::Json {
            println!("{:#}", crate::page::status_json(&status));
            return Ok(());
        }
        let mut units =
            table(&["UNIT", "ROLE", "STATE", "EPOCH", "RANKS", "EXPERT IMBALANCE", "LAST DECISION"]);
        for unit in &status.units {
            let shape = unit.shape.unwrap_or_default();
            let imbalance = unit.imbalance.and_then(|i| i.expert);
            units.add_row([
                unit.unit.clone(),
                shape.role().as_str_name().trim_start_matches("ROLE_").to_lowercase(),
                unit.state().as_str_name().trim_start_matches("UNIT_STATE_").to_lowercase(),
                unit.head.as_ref().map_or("-".to_owned(), |h| h.epoch.to_string()),
                format!("{}/{}", unit.ranks_connected, shape.ranks),
                imbalance.map_or("-".to_owned(), |i| format!("{i:.4}")),
                match unit.paused_by.as_str() {
                    "" => unit.last_decision.clone(),
                    by => format!("paused by {by}; {}", unit.last_decision),
                },
            ]);
        }
        let mut agents = table(&["AGENT", "UNIT", "CONNECTED", "EPOCH", "DRAIN"]);
        for agent in &status.agents {
            agents.add_row([
                agent.node.clone(),
                agent.unit.clone(),
                if agent.connected { "yes" } else { "no" }.to_owned(),
                agent.applied.as_ref().map_or("-".to_owned(), |a| a.epoch.to_string()),
                match agent.drain() {
                    DrainState::Unspecified => "-",
                    DrainState::Draining => "draining",
                    DrainState::Empty => "empty",
                }
                .to_owned(),
            ]);
        }
        println!("{units}\n\n{agents}");
        Ok(())
    }
}

/// Show committed plans of a unit
#[derive(Args)]
pub(super) struct Plans {
    /// The unit
    unit: String,
    /// At most this many, newest first
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
    limit: u32,
    #[command(flatten)]
    server: Server,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

impl Plans {
    pub(super) fn run(self) -> Result<(), Failure> {
        let request = ListPlansRequest { unit: self.unit, limit: self.limit };
        let plans =
            self.server.call(async |mut c| Ok(c.list_plans(request.clone()).await?.into_inner().plans))?;
        if self.output == Output::Json {
            println!("{:#}", crate::page::plans_json(&plans));
            return Ok(());
        }
        print_plans(&plans);
        Ok(())
    }
}

/// Accounts of plans, as a table.
pub(super) fn print_plans(plans: &[PlanSummary]) {
    let mut rows = table(&["EPOCH", "KIND", "MOVES", "BYTES", "BEFORE", "AFTER", "BOUND", "WINDOW"]);
    for plan in plans {
        let window = plan.window.unwrap_or_default();
        rows.add_row([
            plan.id.as_ref().map_or(0, |id| id.epoch).to_string(),
            plan.kind().as_str_name().trim_start_matches("PLAN_KIND_").to_lowercase(),
            plan.moves.to_string(),
            plan.bytes.to_string(),
            format!("{:.4}", plan.imbalance_before),
            format!("{:.4}", plan.imbalance_after),
            format!("{:.4}", plan.imbalance_bound),
            format!("{}-{}", window.from_step, window.to_step),
        ]);
    }
    println!("{rows}");
}

pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(header.iter().copied());
    table
}
