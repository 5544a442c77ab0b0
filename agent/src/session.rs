//! The stream with one balancer: Hello, then commands in, answers and reports out, for as long as it lasts;
//! and again after a wait when it ends. What is served does not depend on any of this.

use crate::link::{Introduction, Link, Outgoing};
use crate::loads::{LoadFeed, Reader};
use crate::metrics::AgentMetrics;
use crate::wire::{self, Orders};
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::agent::{BalancerRole, StreamId};
use evenkeel_kernels::mix::{GAMMA, mix64};
use evenkeel_proto::v1::agent_service_client::AgentServiceClient;
use evenkeel_proto::v1::sync_request::Message as Out;
use evenkeel_proto::v1::sync_response::Message as In;
use evenkeel_proto::{MESSAGE_BYTES_MAX, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, v1};
use evenkeel_transport::credentials::Server;
use evenkeel_transport::{Dialler, Fault, FaultCode, Observer as _, dial};
use evenkeel_worker::WorkerBackend;
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// How long a connection may take to open.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long the balancer may take to answer Hello.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How long the balancer may take to accept a message before it counts as gone.
const SEND_MAX: Duration = Duration::from_secs(10);
/// Messages waiting to be sent.
const OUT_MAX: usize = 16;
/// Answers and events waiting to be sent; there is one plan under way.
const OUTGOING_MAX: usize = 64;
/// Waits between attempts are drawn from zero to a bound that doubles from the first to the last of these
/// (full jitter), so that agents that lost the same balancer do not come back at the same moment.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LAST: Duration = Duration::from_secs(5);
/// HTTP/2 keep-alive: notices a dead connection even while nothing is said.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(6);

/// What all sessions share.
pub struct Shared {
    /// How balancers are connected to.
    pub dialler: Dialler,
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

/// The session with one balancer.
pub(crate) struct Session {
    shared: Arc<Shared>,
    address: SocketAddr,
    reader: Reader,
    sequence: u64,
    /// Whether the stream that ended last was welcomed.
    welcomed: bool,
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

/// What Welcome says about time, and in which version.
#[derive(Debug, Clone, Copy)]
struct Terms {
    report: Duration,
    ping: Duration,
    silence: Duration,
    protocol: u32,
}

impl Terms {
    /// Takes any times, within what makes sense: reports at most every 10 ms and at least every minute.
    fn of(welcome: &v1::Welcome) -> Self {
        let within = |ms: u32, least: u32, most: u32| Duration::from_millis(ms.clamp(least, most).into());
        Self {
            report: within(welcome.report_interval_ms, 10, 60_000),
            ping: within(welcome.ping_interval_ms, 10, 60_000),
            silence: within(welcome.silence_limit_ms, 100, 600_000),
            protocol: welcome.protocol,
        }
    }
}

/// An attached stream.
struct Open {
    stream: StreamId,
    out: mpsc::Sender<v1::SyncRequest>,
    inbound: Streaming<v1::SyncResponse>,
    orders: Orders,
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>, address: SocketAddr) -> Self {
        let reader = shared.loads.reader();
        Self { shared, address, reader, sequence: 0, welcomed: false }
    }

    /// Keeps a stream with the balancer until shutdown. Once `wanted` is false, no new one is opened.
    pub(crate) async fn run(
        mut self,
        mut wanted: watch::Receiver<bool>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let (mut failures, mut attempts) = (0u32, 0u64);
        while *wanted.borrow() {
            let end = tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => End::Shutdown,
                end = self.stream() => end,
            };
            let welcomed = std::mem::take(&mut self.welcomed);
            if welcomed {
                self.shared.metrics.welcomed(false);
            }
            failures = if welcomed { 0 } else { failures.saturating_add(1) };
            match end {
                End::Shutdown => return,
                End::Refused(refusal) => tracing::error!(
                    balancer = %self.address,
                    code = refusal.code,
                    message = refusal.message,
                    "refused by the balancer"
                ),
                End::Lost(reason) => tracing::warn!(reason, balancer = %self.address, "no stream"),
            }
            attempts += 1;
            let wait = backoff(failures, attempts, self.seed());
            tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => return,
                _ = wanted.wait_for(|wanted| !*wanted) => return,
                () = sleep(wait) => {}
            }
            self.shared.metrics.reconnects.increment(1);
        }
    }

    /// Differs between agents, between their starts, and between the sessions of one.
    fn seed(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.shared.hello.incarnation, self.address).hash(&mut hasher);
        hasher.finish()
    }

    /// One stream, from connect to its end.
    async fn stream(&mut self) -> End {
        let (client, fault) = match self.connect().await {
            Ok(connected) => connected,
            Err(end) => return end,
        };
        let (sender, outgoing) = mpsc::channel(OUTGOING_MAX);
        let Ok((stream, introduction)) = self.shared.link.attach(sender).await else { return End::Shutdown };
        let Err(end) = self.converse(stream, client, fault, introduction, outgoing).await;
        match self.shared.link.detach(stream).await {
            Ok(()) => end,
            Err(_) => End::Shutdown,
        }
    }

    async fn connect(&self) -> Result<(AgentServiceClient<Channel>, dial::ConnectionFault), End> {
        let keep_alive = |endpoint: Endpoint| {
            endpoint
                .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
                .keep_alive_timeout(KEEP_ALIVE_MAX)
                .keep_alive_while_idle(true)
        };
        let address = self.address.to_string();
        let dialled = self.shared.dialler.connect(Server::Balancer, &address, CONNECT_MAX, keep_alive);
        let (channel, fault) = dialled.await.map_err(|fault| self.denied(fault))?;
        let client = AgentServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok((client, fault))
    }

    /// No connection: for a reason of certificates it is counted.
    fn denied(&self, fault: Fault) -> End {
        if fault.code != FaultCode::Unreachable {
            self.shared.metrics.auth_failure(fault.code.as_str());
        }
        lost(fault)
    }

    async fn converse(
        &mut self,
        stream: StreamId,
        mut client: AgentServiceClient<Channel>,
        fault: dial::ConnectionFault,
        introduction: Introduction,
        outgoing: mpsc::Receiver<Outgoing>,
    ) -> Result<Infallible, End> {
        let (out, requests) = mpsc::channel(OUT_MAX);
        send(&out, Out::Hello(self.introduce(introduction))).await?;
        // In TLS 1.3 a client hears only with the first answer that it is not wanted.
        let status = |status| fault.get().map_or_else(|| self::status(status), |fault| self.denied(fault));
        let call = timeout(HANDSHAKE_MAX, client.sync(ReceiverStream::new(requests)));
        let mut inbound = call.await.map_err(lost)?.map_err(status)?.into_inner();
        let first = timeout(HANDSHAKE_MAX, inbound.message()).await.map_err(lost)?.map_err(status)?;
        let terms = match first.and_then(|first| first.message) {
            Some(In::Welcome(welcome)) => self.welcome(stream, welcome).await?,
            Some(In::Refusal(refusal)) => return Err(End::Refused(refusal)),
            _ => return Err(lost("the balancer answered Hello with neither Welcome nor Refusal")),
        };
        self.welcomed = true;
        self.shared.metrics.welcomed(true);
        self.talk(Open { stream, out, inbound, orders: Orders::default() }, outgoing, terms).await
    }

    fn introduce(&self, introduction: Introduction) -> v1::Hello {
        v1::Hello {
            applied: introduction.applied.map(Into::into),
            term: Some(introduction.term.into()),
            ..self.shared.hello.clone()
        }
    }

    async fn welcome(&self, stream: StreamId, welcome: v1::Welcome) -> Result<Terms, End> {
        let (terms, role) = (Terms::of(&welcome), wire::role(&welcome));
        let term = welcome.term.ok_or_else(|| lost("Welcome has no term"))?;
        let version = welcome.protocol;
        if !(PROTOCOL_VERSION_MIN..=PROTOCOL_VERSION).contains(&version) {
            let ours = format!("{PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}");
            return Err(lost(format!("the balancer chose protocol {version}, this agent speaks {ours}")));
        }
        if welcome.window_steps == 0 {
            return Err(lost("Welcome has windows of no steps"));
        }
        let boot_plan = welcome.boot_plan.as_ref().map(Plan::try_from).transpose();
        let boot_plan = boot_plan.map_err(|error| lost(format!("boot_plan: {error}")))?;
        // All balancers of a cluster should say the same; the leader decides.
        if role == BalancerRole::Leader || !self.shared.loads.has_window() {
            let dropped = self.shared.loads.set_window(welcome.window_steps.into());
            self.shared.metrics.dropped_segments.increment(dropped.into());
        }
        let leader = welcome.leader;
        tracing::info!(balancer = %self.address, ?role, revision = term.revision, leader, "welcomed");
        let told = self.shared.link.welcomed(stream, role, term.into(), boot_plan).await;
        told.map_err(|_| End::Shutdown)?;
        Ok(terms)
    }

    /// Talks until the stream ends, which is the only way this returns.
    async fn talk(
        &mut self,
        mut open: Open,
        mut outgoing: mpsc::Receiver<Outgoing>,
        mut terms: Terms,
    ) -> Result<Infallible, End> {
        let (mut reports, mut pings) = (every(terms.report), every(terms.ping));
        let mut pinged = 0;
        let mut silent_at = Instant::now() + terms.silence;
        loop {
            tokio::select! {
                biased;
                said = outgoing.recv() => match said {
                    Some(said) => self.say(&open.out, said, terms.protocol).await?,
                    None => return Err(lost("closed by this agent")),
                },
                message = timeout_at(silent_at, open.inbound.message()) => {
                    let message = message.map_err(|_| lost("the balancer was silent for too long"))?;
                    let message = message.map_err(status)?.ok_or_else(|| lost("closed by the balancer"))?;
                    if let Some(changed) = self.receive(&mut open, message).await? {
                        terms = changed;
                        (reports, pings) = (every(terms.report), every(terms.ping));
                    }
                    silent_at = Instant::now() + terms.silence;
                }
                _ = pings.tick() => {
                    pinged += 1;
                    send(&open.out, Out::Ping(v1::Ping { sequence: pinged })).await?;
                }
                _ = reports.tick() => self.report(&open.out).await?,
                // A window is worth most when it is new.
                () = self.reader.window_complete() => self.report(&open.out).await?,
            }
        }
    }

    async fn say(
        &self,
        out: &mpsc::Sender<v1::SyncRequest>,
        said: Outgoing,
        protocol: u32,
    ) -> Result<(), End> {
        match said {
            Outgoing::Result(result) => send(out, Out::Result(result)).await,
            Outgoing::Introduction(introduction) => send(out, Out::Hello(self.introduce(introduction))).await,
            // Version 1 does not know them.
            Outgoing::Event(_) if protocol < 2 => Ok(()),
            Outgoing::Event(event) => send(out, Out::Event(event)).await,
        }
    }

    /// Takes a message; a further Welcome changes the terms.
    async fn receive(&self, open: &mut Open, message: v1::SyncResponse) -> Result<Option<Terms>, End> {
        match message.message {
            Some(In::Plan(command)) => {
                let order = open.orders.read(command);
                if let Some(order) = order.map_err(|e| lost(format!("unreadable command: {e}")))? {
                    self.shared.link.order(open.stream, order).await.map_err(|_| End::Shutdown)?;
                }
                Ok(None)
            }
            Some(In::Ping(_)) => Ok(None),
            Some(In::Refusal(refusal)) => Err(End::Refused(refusal)),
            Some(In::Welcome(welcome)) => self.welcome(open.stream, welcome).await.map(Some),
            // A message of a newer balancer.
            None => Ok(None),
        }
    }

    async fn report(&mut self, out: &mpsc::Sender<v1::SyncRequest>) -> Result<(), End> {
        // Balancers first hear what the workers booted with.
        if self.shared.link.applied().is_none() {
            return Ok(());
        }
        let read = self.shared.loads.read(&mut self.reader);
        self.shared.metrics.dropped_segments.increment(read.lost);
        self.sequence += 1;
        let report = v1::Report {
            sequence: self.sequence,
            // The wire wants them as its own; while they wait in the queue there is one of each.
            segments: read.segments.into_iter().map(Arc::unwrap_or_clone).collect(),
            gauges: self.shared.worker.gauges().iter().map(wire::gauges).collect(),
        };
        self.shared.metrics.reports.increment(1);
        send(out, Out::Report(report)).await
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
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

/// The wait before an attempt. Any source of bits does: sessions only have to differ, and a wait from the time before.
fn backoff(failures: u32, attempt: u64, seed: u64) -> Duration {
    let bound = BACKOFF_FIRST.saturating_mul(1 << failures.min(10)).min(BACKOFF_LAST);
    let bits = mix64(seed ^ attempt.wrapping_mul(GAMMA));
    bound.mul_f64((bits >> 11) as f64 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_within_their_bounds() {
        for (failures, most) in [(0, 100), (1, 200), (5, 3200), (6, 5000), (u32::MAX, 5000)] {
            assert!((0..100).all(|seed| backoff(failures, 1, seed) <= Duration::from_millis(most)));
        }
        // As far apart between agents as between the attempts of one.
        let longest = |waits: &mut dyn Iterator<Item = Duration>| waits.max().unwrap();
        let of_all = longest(&mut (0..100).map(|seed| backoff(6, 1, seed)));
        let of_one = longest(&mut (0..100).map(|attempt| backoff(6, attempt, 7)));
        assert!(of_all.min(of_one) > Duration::from_millis(2500), "{of_all:?}, {of_one:?}");
    }
}
