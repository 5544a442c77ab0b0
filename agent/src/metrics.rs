//! The agent's metrics, and the HTTP port they are read from.

use crate::failure::Failure;
use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::get;
use evenkeel_transport::http::viewers_only;
use evenkeel_transport::{Incoming, Observer, PeerInfo};
use metrics::{Counter, Gauge, Key, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::watch;

const METADATA: Metadata<'static> = Metadata::new("evenkeel_agent", Level::INFO, None);

/// Counters with their help texts.
const COUNTERS: [(&str, &str); 11] = [
    ("evenkeel_agent_bytes_moved_total", "Expert bytes staged, by path: local copies or fetched from peers."),
    ("evenkeel_agent_slots_verified_total", "Slots whose staged bytes were compared with their fingerprint."),
    ("evenkeel_agent_results_total", "Answers to plan commands, by outcome and refusal code."),
    ("evenkeel_agent_reconnects_total", "Attempts to reach a balancer after the first."),
    ("evenkeel_agent_transfer_requests_total", "Requests of other nodes for expert bytes, by outcome."),
    (
        "evenkeel_agent_dropped_segments_total",
        "Load segments dropped because they could not be sent to a balancer in time.",
    ),
    ("evenkeel_agent_reports_total", "Reports sent to balancers."),
    ("evenkeel_agent_worker_events_total", "Events of the workers that balancers were told of, by code."),
    (
        "evenkeel_agent_auth_failures_total",
        "Connections and calls that failed for who a side is or did not show, by code.",
    ),
    (
        "evenkeel_agent_connections_refused_total",
        "Connections not taken for a bound or a fault of this host, by port and code.",
    ),
    (
        "evenkeel_agent_certificate_reloads_total",
        "Changes of the certificate's files, by outcome: reloaded, or broken (the old ones stay in use).",
    ),
];

/// Gauges with their help texts.
const GAUGES: [(&str, &str); 7] = [
    ("evenkeel_agent_connected", "1 while a balancer has welcomed this agent, else 0."),
    ("evenkeel_agent_applied_epoch", "Epoch of the plan in service; -1 before the workers hold weights."),
    ("evenkeel_agent_engine_step", "Last step that the engine ran."),
    ("evenkeel_agent_spare_slots", "Physical slots of this node that the plan in service leaves empty."),
    ("evenkeel_agent_staged_slots", "Slots staged for the plan under way."),
    (
        "evenkeel_agent_certificate_expiry_timestamp_seconds",
        "When the certificate in use ends, in seconds since 1970; without TLS there is none.",
    ),
    (
        "evenkeel_agent_insecure_plaintext",
        "1 while plaintext is allowed on addresses that are not loopback, else 0.",
    ),
];

/// Handles to every metric. Each agent has its own recorder, so that several can run in one process.
pub struct AgentMetrics {
    recorder: PrometheusRecorder,
    connected: Gauge,
    /// Streams on which this agent is welcome.
    streams: AtomicUsize,
    /// Epoch in service.
    pub applied_epoch: Gauge,
    /// Bytes copied between slots of the node.
    pub bytes_local: Counter,
    /// Bytes fetched from other nodes.
    pub bytes_peer: Counter,
    /// Slots compared with their fingerprint.
    pub slots_verified: Counter,
    /// Attempts to connect after the first.
    pub reconnects: Counter,
    /// Last step.
    pub engine_step: Gauge,
    /// Empty slots.
    pub spare_slots: Gauge,
    /// Slots staged for the plan under way.
    pub staged_slots: Gauge,
    /// Segments dropped.
    pub dropped_segments: Counter,
    /// Reports sent.
    pub reports: Counter,
    /// 1 while plaintext is allowed everywhere.
    pub insecure_plaintext: Gauge,
}

impl std::fmt::Debug for AgentMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AgentMetrics")
    }
}

impl Default for AgentMetrics {
    fn default() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        for (name, help) in COUNTERS {
            recorder.describe_counter(name.into(), Some(Unit::Count), help.into());
        }
        for (name, help) in GAUGES {
            recorder.describe_gauge(name.into(), Some(Unit::Count), help.into());
        }
        let gauge = |name| recorder.register_gauge(&Key::from_name(name), &METADATA);
        let counter = |name| recorder.register_counter(&Key::from_name(name), &METADATA);
        let moved = |path| {
            let key = Key::from_parts(
                "evenkeel_agent_bytes_moved_total",
                vec![Label::from_static_parts("path", path)],
            );
            recorder.register_counter(&key, &METADATA)
        };
        let metrics = Self {
            connected: gauge("evenkeel_agent_connected"),
            streams: AtomicUsize::new(0),
            applied_epoch: gauge("evenkeel_agent_applied_epoch"),
            bytes_local: moved("local"),
            bytes_peer: moved("peer"),
            slots_verified: counter("evenkeel_agent_slots_verified_total"),
            reconnects: counter("evenkeel_agent_reconnects_total"),
            engine_step: gauge("evenkeel_agent_engine_step"),
            spare_slots: gauge("evenkeel_agent_spare_slots"),
            staged_slots: gauge("evenkeel_agent_staged_slots"),
            dropped_segments: counter("evenkeel_agent_dropped_segments_total"),
            reports: counter("evenkeel_agent_reports_total"),
            insecure_plaintext: gauge("evenkeel_agent_insecure_plaintext"),
            recorder,
        };
        metrics.applied_epoch.set(-1.0);
        // Series that exist from the start show a rate from their first event on.
        metrics.result("applied", "").increment(0);
        metrics.transfer_request("ok").increment(0);
        metrics.worker_event("worker_hung").increment(0);
        metrics
            .counter("evenkeel_agent_auth_failures_total", &[("code", "certificate_expired")])
            .increment(0);
        let refused = [("port", "transfer"), ("code", "too_many_connections")];
        metrics.counter("evenkeel_agent_connections_refused_total", &refused).increment(0);
        metrics.counter("evenkeel_agent_certificate_reloads_total", &[("outcome", "reloaded")]).increment(0);
        metrics
    }
}

impl AgentMetrics {
    /// A balancer has welcomed this agent on a stream, or such a stream has ended.
    pub fn welcomed(&self, up: bool) {
        let before = match up {
            true => self.streams.fetch_add(1, Ordering::Relaxed),
            false => self.streams.fetch_sub(1, Ordering::Relaxed),
        };
        self.connected.set(if up || before > 1 { 1.0 } else { 0.0 });
    }

    /// Answers of this outcome and code.
    pub fn result(&self, outcome: &'static str, code: &'static str) -> Counter {
        let labels =
            vec![Label::from_static_parts("outcome", outcome), Label::from_static_parts("code", code)];
        let key = Key::from_parts("evenkeel_agent_results_total", labels);
        self.recorder.register_counter(&key, &METADATA)
    }

    /// Requests for expert bytes with this outcome.
    pub fn transfer_request(&self, outcome: &'static str) -> Counter {
        let labels = vec![Label::from_static_parts("outcome", outcome)];
        let key = Key::from_parts("evenkeel_agent_transfer_requests_total", labels);
        self.recorder.register_counter(&key, &METADATA)
    }

    /// Events of the workers with this code.
    pub fn worker_event(&self, code: &'static str) -> Counter {
        self.counter("evenkeel_agent_worker_events_total", &[("code", code)])
    }

    fn counter(&self, name: &'static str, labels: &[(&'static str, &'static str)]) -> Counter {
        let labels: Vec<Label> = labels.iter().map(|(k, v)| Label::from_static_parts(k, v)).collect();
        self.recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
    }

    /// Everything in the Prometheus text format.
    pub fn render(&self) -> String {
        self.recorder.handle().render()
    }
}

impl Observer for AgentMetrics {
    fn auth_failure(&self, code: &'static str) {
        self.counter("evenkeel_agent_auth_failures_total", &[("code", code)]).increment(1);
    }

    fn connection_refused(&self, port: &'static str, code: &'static str) {
        let labels = [("port", port), ("code", code)];
        self.counter("evenkeel_agent_connections_refused_total", &labels).increment(1);
    }

    fn certificate_expiry(&self, unix_seconds: i64) {
        // Registered here and not before: a time of 0 would look like a certificate that has ended.
        let key = Key::from_name("evenkeel_agent_certificate_expiry_timestamp_seconds");
        self.recorder.register_gauge(&key, &METADATA).set(unix_seconds as f64);
    }

    fn certificate_reload(&self, outcome: &'static str) {
        self.counter("evenkeel_agent_certificate_reloads_total", &[("outcome", outcome)]).increment(1);
    }
}

async fn page(State(metrics): State<Arc<AgentMetrics>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}

/// Serves /metrics and /healthz until shutdown. Health means alive: an agent without a balancer is healthy,
/// since it keeps what is served.
pub async fn serve(
    incoming: Incoming,
    metrics: Arc<AgentMetrics>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let observer: Arc<dyn Observer> = metrics.clone();
    let router = Router::new()
        .route("/metrics", get(page))
        .route_layer(from_fn_with_state(observer, viewers_only))
        .route("/healthz", get(async || "ok\n"))
        .with_state(metrics);
    axum::serve(incoming, router.into_make_service_with_connect_info::<PeerInfo>())
        .with_graceful_shutdown(async move {
            // An error means that the sender is gone: that is a shutdown too.
            let _ = shutdown.wait_for(|stop| *stop).await;
        })
        .await
        .map_err(|error| Failure::other("metrics_failed", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_help_text() {
        let metrics = AgentMetrics::default();
        metrics.result("refused", "stale_term").increment(1);
        metrics.certificate_expiry(1);
        let text = metrics.render();
        for (name, help) in COUNTERS.iter().chain(&GAUGES) {
            assert!(text.contains(&format!("# HELP {name} {help}\n")), "{name} in {text}");
            let sample =
                |line: &str| line.starts_with(&format!("{name} ")) || line.starts_with(&format!("{name}{{"));
            assert!(text.lines().any(sample), "{name} in {text}");
        }
        assert!(
            text.contains("evenkeel_agent_results_total{outcome=\"refused\",code=\"stale_term\"} 1"),
            "{text}"
        );
    }
}
