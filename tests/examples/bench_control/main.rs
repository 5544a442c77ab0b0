//! `make bench-control`: a real balancer process over TLS, with as many agents as asked for in this process, on one host.
//! Balancer and agents share the host's cores, so every figure includes the agents' own work.
//!
//! The agents are stand-ins: they speak the protocol and answer at once; they hold no weights. What is measured is the
//! balancer.
#![forbid(unsafe_code)]

mod balancer;
mod fleet;
mod slow;
mod table;

use balancer::Balancer;
use clap::Parser;
use fleet::{Fleet, FleetShape};
use std::process::ExitCode;
use std::time::Duration;
use table::Table;
use tokio::time::Instant;

#[derive(Debug, Parser)]
#[command(name = "bench_control", about = "The balancer with thousands of agents over TLS, on loopback")]
struct Flags {
    /// Agents
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    agents: usize,
    /// Agents of a unit, one rank each
    #[arg(long, default_value_t = 1000, value_name = "N")]
    unit: usize,
    /// Seconds over which the cost of reports is measured
    #[arg(long, default_value_t = 30, value_name = "N")]
    report_seconds: u64,
    /// Agents beside the slow connections
    #[arg(long, default_value_t = 1000, value_name = "N")]
    beside: usize,
    /// Half-open and slow connections
    #[arg(long, default_value_t = 8000, value_name = "N")]
    slow: usize,
}

/// Everything waited for happens within this time or the bench fails.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let flags = Flags::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    match runtime.block_on(run(&flags)) {
        Ok(table) => {
            table.print();
            if table.missed() == 0 { ExitCode::SUCCESS } else { ExitCode::from(10) }
        }
        Err(reason) => {
            eprintln!("bench_control: {reason}");
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: &Flags) -> Result<Table, String> {
    let mut table = Table::default();
    whole(flags, &mut table).await?;
    slow::beside(flags.beside, flags.slow, &mut table).await?;
    Ok(table)
}

/// Connect, report, plan, lose the leader.
async fn whole(flags: &Flags, table: &mut Table) -> Result<(), String> {
    let n = flags.agents;
    progress("certificates");
    let mut balancer = Balancer::start(n)?;
    let empty = balancer.resident();
    let shape = FleetShape { agents: n, unit: flags.unit };
    progress("connecting");
    let began = Instant::now();
    let fleet = Fleet::start(&balancer, shape)?;
    fleet.wait("all agents to be welcomed", PATIENCE, |seen| seen.connected == n).await?;
    table.note("agents", n.to_string());
    table.note("all connected and welcomed after", seconds(began.elapsed()));
    fleet.wait("all units to form", PATIENCE, |seen| seen.booted == n).await?;
    balancer.wait_until_formed(n, PATIENCE).await?;
    let idle = balancer.resident();
    table.note("memory per agent, idle", kib((idle.saturating_sub(empty)) / n as u64));

    progress("reports");
    let before = balancer.cpu();
    let watched = Duration::from_secs(flags.report_seconds);
    tokio::time::sleep(watched).await;
    let cores = (balancer.cpu() - before).as_secs_f64() / watched.as_secs_f64();
    table.goal("cores for one report a second from each", cores, 0.3, |v| format!("{v:.3}"));

    progress("a plan");
    fleet.unbalance();
    fleet.wait("every agent to apply a plan", PATIENCE, |seen| seen.applied_plans >= n).await?;
    let plans = fleet.plan_times();
    table.note("bytes of a plan on the wire, median", plans.bytes.to_string());
    table.goal("plan acknowledged, p99, ms after its unit's first PREPARE", plans.p99_ms, 1000.0, |v| {
        format!("{v:.0}")
    });
    table.note("plan acknowledged, median, ms", format!("{:.0}", plans.p50_ms));
    let planned = balancer.resident();
    let each = (planned.saturating_sub(empty) / n as u64) as f64 / 1024.0;
    table.goal("KiB of the balancer per agent after one full plan", each, 100.0, |v| format!("{v:.1}"));

    progress("leader loss");
    balancer.kill();
    fleet.wait("every stream to end", PATIENCE, |seen| seen.connected == 0).await?;
    balancer.restart()?;
    let began = Instant::now();
    fleet.wait("all agents to be back", PATIENCE, |seen| seen.connected == n).await?;
    table.goal("seconds until all agents are back", began.elapsed().as_secs_f64(), 10.0, |v| {
        format!("{v:.1}")
    });
    let peak = balancer.peak() as f64 / planned as f64;
    table.goal("peak memory over memory before the loss", peak, 1.5, |v| format!("{v:.2}"));
    Ok(())
}

fn progress(what: &str) {
    eprintln!("bench_control: {what}");
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn kib(bytes: u64) -> String {
    format!("{:.1} KiB", bytes as f64 / 1024.0)
}
