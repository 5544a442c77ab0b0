//! The stream with the balancer: Hello, then commands in, answers and reports out, for as long as it lasts;
//! and again after a wait when it ends. What is served does not depend on any of this.

use crate::metrics::AgentMetrics;
use crate::reconcile::{Introduction, Link};
use crate::telemetry::Telemetry;
use crate::wire;
use evenkeel_core::plan::Plan;
use evenkeel_kernels::mix::{GAMMA, mix64};
use evenkeel_proto::v1::agent_service_client::AgentServiceClient;
use evenkeel_proto::v1::sync_request::Message as Out;
use evenkeel_proto::v1::sync_response::Message as In;
use evenkeel_proto::{MESSAGE_BYTES_MAX, PROTOCOL_VERSION, v1};
use evenkeel_transport::credentials::Server;
use evenkeel_transport::{Fault, FaultCode, Observer as _, Security, dial};
use evenkeel_worker::WorkerBackend;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

/// How long a connection may take to open.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long the balancer may take to answer Hello.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How long the balancer may take to accept a message before it counts as gone.
const SEND_MAX: Duration = Duration::from_secs(10);
/// Messages waiting to be sent.
const OUT_MAX: usize = 16;
/// Answers waiting to be sent; there is one plan under way.
const RESULTS_MAX: usize = 64;
/// Waits between attempts are drawn from zero to a bound that doubles from the first to the last of these
/// (full jitter), so that agents that lost the same balancer do not come back at the same moment.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LAST: Duration = Duration::from_secs(5);
/// HTTP/2 keep-alive: notices a dead connection even while nothing is said.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(6);

/// Counts on their way from the engine to the balancer.
#[derive(Debug, Default)]
pub struct LoadFeed {
    telemetry: Mutex<Telemetry>,
    window_complete: Notify,
}

impl LoadFeed {
    /// Takes every finished step of the worker.
    pub fn drain(&self, worker: &dyn WorkerBackend) {
        let mut telemetry = self.telemetry();
        let mut complete = false;
        while let Some(step) = worker.poll_counts() {
            complete |= telemetry.record(step);
        }
        if complete {
            self.window_complete.notify_one();
        }
    }

    fn telemetry(&self) -> std::sync::MutexGuard<'_, Telemetry> {
        self.telemetry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a session needs.
pub struct Session {
    /// host:port of the balancer.
    pub balancer: String,
    /// How it is connected to.
    pub security: Security,
    /// Hello, but for what changes between streams.
    pub hello: v1::Hello,
    /// The reconciler.
    pub link: Link,
    /// The worker, for its gauges.
    pub worker: Arc<dyn WorkerBackend>,
    /// Loads to report.
    pub loads: Arc<LoadFeed>,
    /// Metrics.
    pub metrics: Arc<AgentMetrics>,
}

/// Why a stream ended.
#[derive(Debug)]
enum End {
    /// The agent is going down.
    Shutdown,
    /// The balancer does not want this agent.
    Refused(v1::Refusal),
    /// Anything else.
    Lost(String),
}

/// What Welcome says about time.
#[derive(Debug, Clone, Copy)]
struct Rhythm {
    report: Duration,
    ping: Duration,
    silence: Duration,
}

impl Rhythm {
    /// Takes any values, within what makes sense: reports at most every 10 ms and at least every minute.
    fn of(welcome: &v1::Welcome) -> Self {
        let within = |ms: u32, least: u32, most: u32| Duration::from_millis(ms.clamp(least, most).into());
        Self {
            report: within(welcome.report_interval_ms, 10, 60_000),
            ping: within(welcome.ping_interval_ms, 10, 60_000),
            silence: within(welcome.silence_limit_ms, 100, 600_000),
        }
    }
}

impl Session {
    /// Keeps a stream with the balancer until shutdown.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) {
        let mut failures = 0u32;
        let mut sequence = 0;
        loop {
            let mut welcomed = false;
            let end = tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => End::Shutdown,
                end = self.stream(&mut welcomed, &mut sequence) => end,
            };
            self.metrics.connected.set(0.0);
            failures = if welcomed { 0 } else { failures.saturating_add(1) };
            match end {
                End::Shutdown => return,
                End::Refused(refusal) => {
                    tracing::error!(
                        code = refusal.code,
                        message = refusal.message,
                        "refused by the balancer"
                    );
                }
                End::Lost(reason) => tracing::warn!(reason, balancer = self.balancer, "no stream"),
            }
            let wait = backoff(failures, self.hello.incarnation);
            tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => return,
                () = sleep(wait) => {}
            }
            self.metrics.reconnects.increment(1);
        }
    }

    /// One stream, from connect to its end.
    async fn stream(&self, welcomed: &mut bool, sequence: &mut u64) -> End {
        match self.open().await {
            Err(end) => end,
            Ok(mut open) => {
                *welcomed = true;
                self.metrics.connected.set(1.0);
                let Err(end) = self.talk(&mut open, sequence).await;
                end
            }
        }
    }

    async fn open(&self) -> Result<Open, End> {
        let keep_alive = |endpoint: Endpoint| {
            endpoint
                .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
                .keep_alive_timeout(KEEP_ALIVE_MAX)
                .keep_alive_while_idle(true)
        };
        let dialled =
            dial::connect(&self.security, Server::Balancer, &self.balancer, CONNECT_MAX, keep_alive);
        let (channel, fault) = dialled.await.map_err(|fault| self.denied(fault))?;
        // In TLS 1.3 a client hears only with the first answer that it is not wanted.
        let status = |status| fault.get().map_or_else(|| self::status(status), |fault| self.denied(fault));
        let mut client = AgentServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (results_sender, results) = mpsc::channel(RESULTS_MAX);
        let introduction = self.link.attach(results_sender).await.map_err(|_| End::Shutdown)?;
        let (out, outgoing) = mpsc::channel(OUT_MAX);
        send(&out, Out::Hello(self.introduce(introduction))).await?;
        let call = timeout(HANDSHAKE_MAX, client.sync(ReceiverStream::new(outgoing)));
        let mut inbound = call.await.map_err(lost)?.map_err(status)?.into_inner();
        let first = timeout(HANDSHAKE_MAX, inbound.message()).await.map_err(lost)?.map_err(status)?;
        let welcome = match first.and_then(|first| first.message) {
            Some(In::Welcome(welcome)) => welcome,
            Some(In::Refusal(refusal)) => return Err(End::Refused(refusal)),
            _ => return Err(lost("the balancer answered Hello with neither Welcome nor Refusal")),
        };
        let rhythm = self.welcome(welcome).await?;
        Ok(Open { out, inbound, results, rhythm })
    }

    /// No connection: for a reason of certificates it is counted.
    fn denied(&self, fault: Fault) -> End {
        if fault.code != FaultCode::Unreachable {
            self.metrics.auth_failure(fault.code.as_str());
        }
        lost(fault)
    }

    fn introduce(&self, introduction: Introduction) -> v1::Hello {
        v1::Hello {
            applied: introduction.applied.map(Into::into),
            term: Some(introduction.term.into()),
            ..self.hello.clone()
        }
    }

    async fn welcome(&self, welcome: v1::Welcome) -> Result<Rhythm, End> {
        let rhythm = Rhythm::of(&welcome);
        let term = welcome.term.ok_or_else(|| lost("Welcome has no term"))?;
        if welcome.protocol != PROTOCOL_VERSION {
            let version = welcome.protocol;
            return Err(lost(format!("the balancer chose protocol {version}, not {PROTOCOL_VERSION}")));
        }
        if welcome.window_steps == 0 {
            return Err(lost("Welcome has windows of no steps"));
        }
        let boot_plan = welcome.boot_plan.as_ref().map(Plan::try_from).transpose();
        let boot_plan = boot_plan.map_err(|error| lost(format!("boot_plan: {error}")))?;
        self.loads.telemetry().set_window(welcome.window_steps.into());
        tracing::info!(balancer = self.balancer, revision = term.revision, "welcomed");
        self.link.welcomed(term.into(), boot_plan).await.map_err(|_| End::Shutdown)?;
        Ok(rhythm)
    }

    /// Talks until the stream ends, which is the only way this returns.
    async fn talk(&self, open: &mut Open, sequence: &mut u64) -> Result<std::convert::Infallible, End> {
        let every = |period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let (mut reports, mut pings) = (every(open.rhythm.report), every(open.rhythm.ping));
        let mut pinged = 0;
        let mut silent_at = Instant::now() + open.rhythm.silence;
        loop {
            tokio::select! {
                biased;
                result = open.results.recv() => match result {
                    Some(result) => send(&open.out, Out::Result(result)).await?,
                    None => return Err(lost("closed by this agent")),
                },
                message = timeout_at(silent_at, open.inbound.message()) => {
                    let message = message.map_err(|_| lost("the balancer was silent for too long"))?;
                    let message = message.map_err(status)?.ok_or_else(|| lost("closed by the balancer"))?;
                    silent_at = Instant::now() + open.rhythm.silence;
                    self.receive(message).await?;
                }
                _ = pings.tick() => {
                    pinged += 1;
                    send(&open.out, Out::Ping(v1::Ping { sequence: pinged })).await?;
                }
                _ = reports.tick() => self.report(&open.out, sequence).await?,
                // A window is worth most when it is new.
                () = self.loads.window_complete.notified() => self.report(&open.out, sequence).await?,
            }
        }
    }

    async fn receive(&self, message: v1::SyncResponse) -> Result<(), End> {
        match message.message {
            Some(In::Plan(command)) => {
                let command = wire::command(command).map_err(|e| lost(format!("unreadable command: {e}")))?;
                self.link.command(command).await.map_err(|_| End::Shutdown)
            }
            Some(In::Ping(_)) => Ok(()),
            Some(In::Refusal(refusal)) => Err(End::Refused(refusal)),
            Some(In::Welcome(_)) => Err(lost("a second Welcome")),
            // A message of a newer balancer.
            None => Ok(()),
        }
    }

    async fn report(&self, out: &mpsc::Sender<v1::SyncRequest>, sequence: &mut u64) -> Result<(), End> {
        // The balancer first hears what the workers booted with.
        if self.link.applied().is_none() {
            return Ok(());
        }
        let (segments, dropped) = {
            let mut telemetry = self.loads.telemetry();
            (telemetry.take(), telemetry.take_dropped())
        };
        self.metrics.dropped_segments.increment(dropped);
        *sequence += 1;
        let gauges = self.worker.gauges().iter().map(wire::gauges).collect();
        self.metrics.reports.increment(1);
        send(out, Out::Report(v1::Report { sequence: *sequence, segments, gauges })).await
    }
}

/// An accepted stream.
struct Open {
    out: mpsc::Sender<v1::SyncRequest>,
    inbound: Streaming<v1::SyncResponse>,
    results: mpsc::Receiver<v1::PlanResult>,
    rhythm: Rhythm,
}

async fn send(out: &mpsc::Sender<v1::SyncRequest>, message: Out) -> Result<(), End> {
    match timeout(SEND_MAX, out.send(v1::SyncRequest { message: Some(message) })).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(lost("the stream is closed")),
        Err(_) => Err(lost(format!("the balancer accepted nothing for {SEND_MAX:?}"))),
    }
}

fn lost(reason: impl ToString) -> End {
    End::Lost(reason.to_string())
}

fn status(status: tonic::Status) -> End {
    lost(format!("{:?}: {}", status.code(), status.message()))
}

/// The wait before the next attempt.
fn backoff(failures: u32, seed: u64) -> Duration {
    let bound = BACKOFF_FIRST.saturating_mul(1 << failures.min(10)).min(BACKOFF_LAST);
    // Any source of bits does: agents only have to differ, and a wait from the time before.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let bits = mix64(seed ^ u64::from(now.subsec_nanos()).wrapping_mul(GAMMA));
    bound.mul_f64((bits >> 11) as f64 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_within_their_bounds() {
        for (failures, most) in [(0, 100), (1, 200), (5, 3200), (6, 5000), (u32::MAX, 5000)] {
            assert!((0..100).all(|seed| backoff(failures, seed) <= Duration::from_millis(most)));
        }
        let longest = (0..100).map(|seed| backoff(6, seed)).max().unwrap();
        assert!(longest > Duration::from_millis(2500), "{longest:?}");
    }
}
