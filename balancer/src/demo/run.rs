//! The demo from start to end.

use super::cluster::{Cluster, Launch, POLL};
use super::experts::{Admin, channel};
use super::figures::{Figures, Totals, WorkloadFigures};
use super::live::{self, Stage};
use super::progress::Progress;
use super::requests::{ROUND_TOKENS, Workload};
use super::units::{DECODE, DemoUnit, PREFILL, units};
use super::verify::verify;
use super::windows::RecordedWindows;
use super::{CLUSTER, Demo, DemoError};
use evenkeel_proto::v1;
use evenkeel_simulate::trace::read_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

/// Every agent has joined and every unit has formed within this time, on a busy machine of two cores.
const FORM_DEADLINE: Duration = Duration::from_secs(60);
/// Bound of any single call to the balancer.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// Runs the demo.
pub(super) async fn run(demo: &Demo) -> Result<Figures, DemoError> {
    let units = units(demo.expert_bytes);
    let trace: Arc<[_]> = read_all(&demo.trace_file())?.into();
    let (prefill, decode) = (&units[PREFILL].shape, &units[DECODE].shape);
    let workload = Workload::new(trace.clone(), demo.minutes, demo.seed, decode.ranks, prefill.ranks);
    let recorded = RecordedWindows::read(&demo.data_dir())?;
    let agent_program = demo.agent_program()?;

    let mut directory = tempfile::Builder::new()
        .prefix("evenkeel-demo-")
        .tempdir()
        .map_err(|e| DemoError::file(&std::env::temp_dir(), e))?;
    directory.disable_cleanup(demo.keep);
    if demo.keep {
        eprintln!("state and logs stay in {}", directory.path().display());
    }
    let config = config();
    let launch = Launch {
        dir: directory.path(),
        agent_program: &agent_program,
        config: &config,
        units: &units,
        expert_bytes: demo.expert_bytes,
    };
    let progress = Progress::new(live::work(&workload));
    let drawing = tokio::spawn(progress.clone().draw());
    progress.say("starting one balancer and 23 agents");
    let mut cluster = Cluster::start(&launch).await?;
    let address = cluster.balancer.admin.to_string();
    let mut admin = Admin::new(channel(&address, CALL_DEADLINE).await?);
    formed(&mut cluster, &mut admin, &units).await?;
    progress.say(format!("replaying; live page: http://{}/", cluster.balancer.metrics));

    let began = Instant::now();
    let stage = Stage {
        cluster: &cluster,
        admin: admin.clone(),
        units: &units,
        workload: &workload,
        recorded: &recorded,
        progress: &progress,
        seed: demo.seed,
    };
    let outcome = match stage.run().await {
        Ok(outcome) => outcome,
        Err(error) => {
            // A process that died explains more than the call that failed because of it.
            cluster.check_alive()?;
            return Err(error);
        }
    };
    let replay_seconds = began.elapsed().as_secs_f64();
    progress.say("comparing every slot's bytes with the committed plans");
    let verified = verify(&cluster, &agent_program).await?;
    cluster.check_alive()?;
    let metrics = scrape(&cluster.balancer.metrics.to_string()).await?;
    let totals = totals(&mut admin, &units, &metrics).await?;
    drawing.abort();
    progress.finish();
    if demo.linger > 0 {
        eprintln!("the page stays up for {} s: http://{}/", demo.linger, cluster.balancer.metrics);
        tokio::time::sleep(Duration::from_secs(demo.linger)).await;
    }
    let (processes, balancer_peak_memory) =
        (cluster.processes(), cluster.balancer_peak_memory().unwrap_or(0));
    cluster.stop().await;
    Ok(Figures {
        experts: outcome.experts,
        shift: outcome.shift,
        round_robin: outcome.round_robin,
        least_requests: outcome.least_requests,
        evenkeel: outcome.evenkeel,
        workload: WorkloadFigures {
            minutes: demo.minutes,
            recorded: trace.len(),
            decode_copies: workload.decode_copies,
            prefill_copies: workload.prefill_copies(),
            decisions: outcome.decisions,
        },
        totals,
        verified,
        balancer_peak_memory,
        processes,
        replay_seconds,
    })
}

/// The balancer's configuration: production's defaults but for the compressed clock.
fn config() -> String {
    format!(
        "cluster = \"{CLUSTER}\"\n\
         [control]\n\
         window_steps = {}\n\
         report_interval_ms = 100\n\
         abort_pause_ms = 500\n\
         [routing]\n\
         prefill_round_tokens = {ROUND_TOKENS}\n",
        super::experts::WINDOW_STEPS
    )
}

/// Waits until every unit has formed.
async fn formed(cluster: &mut Cluster, admin: &mut Admin, units: &[DemoUnit]) -> Result<(), DemoError> {
    let deadline = Instant::now() + FORM_DEADLINE;
    loop {
        let status = admin.status().await?;
        let steady = status.units.iter().filter(|u| u.state() == v1::UnitState::Steady).count();
        if steady == units.len() {
            return Ok(());
        }
        cluster.check_alive()?;
        if Instant::now() >= deadline {
            let what = format!("{} units to form, {steady} have", units.len());
            return Err(DemoError::Deadline { what, after: FORM_DEADLINE });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The balancer's own metrics, read as Prometheus reads them.
async fn scrape(address: &str) -> Result<String, DemoError> {
    let failed =
        |e: std::io::Error| DemoError::Connect { address: address.to_owned(), reason: e.to_string() };
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    };
    tokio::time::timeout(CALL_DEADLINE, exchange)
        .await
        .map_err(|_| DemoError::Deadline { what: "the metrics".to_owned(), after: CALL_DEADLINE })?
        .map_err(failed)
}

/// Sum over all units of a metric, of the series whose labels contain `label`.
fn sum_of(metrics: &str, name: &str, label: &str) -> u64 {
    let series = metrics.lines().filter(|line| line.starts_with(name) && line.contains(label));
    let value = |line: &str| line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok());
    series.filter_map(value).sum::<f64>() as u64
}

async fn totals(admin: &mut Admin, units: &[DemoUnit], metrics: &str) -> Result<Totals, DemoError> {
    let mut totals = Totals {
        bytes_local: sum_of(metrics, crate::metrics::MOVED_BYTES, "path=\"local\""),
        bytes_peer: sum_of(metrics, crate::metrics::MOVED_BYTES, "path=\"peer\""),
        slots_fingerprinted: sum_of(metrics, crate::metrics::SLOTS_VERIFIED, ""),
        ..Totals::default()
    };
    for unit in units {
        for plan in admin.plans(unit.name).await? {
            match plan.kind() {
                v1::PlanKind::WeightsOnly => totals.weights_plans += 1,
                v1::PlanKind::Moves => totals.moves_plans += 1,
                v1::PlanKind::Boot | v1::PlanKind::Unspecified => {}
            }
            totals.slots_moved += plan.moves;
        }
    }
    Ok(totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_series() {
        let text = "# HELP a x\na{p=\"l\"} 2\na{p=\"q\"} 3\nab 9\n";
        assert_eq!(sum_of(text, "a{", "p=\"l\""), 2);
        assert_eq!(sum_of(text, "a{", ""), 5);
    }
}
