//! The metrics port: Prometheus text, probes, the page, and the JSON that the page reads.

use crate::election::ElectionHandle;
use crate::grpc::admin::Admin;
use crate::page;
use crate::serve::{ServeError, until_stopped};
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use evenkeel_transport::http::viewers_only;
use evenkeel_transport::{Incoming, Observer, PeerInfo};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use tokio::sync::watch;

#[derive(Clone)]
struct Http {
    recorder: PrometheusHandle,
    admin: Admin,
    election: ElectionHandle,
}

/// Serves until stopped.
pub(crate) async fn serve(
    port: Incoming,
    recorder: PrometheusHandle,
    admin: Admin,
    election: ElectionHandle,
    observer: Arc<dyn Observer>,
    stopped: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let files = page::FILES.into_iter().fold(Router::new(), |files, (path, kind, body)| {
        files.route(path, get(move || async move { asset(kind, body) }))
    });
    let app = files
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(status))
        .route("/api/v1/units/{unit}/plans", get(plans))
        .route("/api/v1/units/{unit}/heat", get(heat))
        .route_layer(from_fn_with_state(observer, viewers_only))
        // Probes show nothing of the cluster, and a kubelet has no certificate.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Http { recorder, admin, election });
    axum::serve(port, app.into_make_service_with_connect_info::<PeerInfo>())
        .with_graceful_shutdown(until_stopped(stopped))
        .await
        .map_err(|e| ServeError::Server { what: "metrics", reason: e.to_string() })
}

fn asset(kind: &'static str, body: &'static str) -> Response {
    // The page must never reach out: only this server's own resources are allowed.
    let policy = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:";
    ([(header::CONTENT_TYPE, kind), (header::CONTENT_SECURITY_POLICY, policy)], body).into_response()
}

async fn metrics(State(http): State<Http>) -> Response {
    http.recorder.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], http.recorder.render()).into_response()
}

/// Ready when the control loop answers and the store has said who leads. A store that is away later makes nothing unready:
/// what is served then is served as well as by any other balancer.
async fn ready(State(http): State<Http>) -> Response {
    if !http.election.view().synced {
        let text = "not_synced: the store has not said yet who leads\n";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    match http.admin.status().await {
        Ok(_) => "ready\n".into_response(),
        Err(status) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", status.message())).into_response(),
    }
}

fn failed(status: &tonic::Status) -> Response {
    let code = match status.code() {
        tonic::Code::NotFound => StatusCode::NOT_FOUND,
        tonic::Code::InvalidArgument => StatusCode::BAD_REQUEST,
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (code, Json(json!({"error": status.message()}))).into_response()
}

async fn status(State(http): State<Http>) -> Response {
    match http.admin.status().await {
        Ok(status) => Json(page::status_json(&status)).into_response(),
        Err(status) => failed(&status),
    }
}

#[derive(Deserialize)]
struct Limit {
    limit: Option<u32>,
}

async fn plans(State(http): State<Http>, Path(unit): Path<String>, Query(query): Query<Limit>) -> Response {
    match http.admin.plans(&unit, query.limit.unwrap_or(0)).await {
        Ok(plans) => Json(page::plans_json(&plans)).into_response(),
        Err(status) => failed(&status),
    }
}

async fn heat(State(http): State<Http>, Path(unit): Path<String>) -> Response {
    match http.admin.rank_loads(&unit).await {
        Ok(loads) => Json(page::heat_json(&loads)).into_response(),
        Err(status) => failed(&status),
    }
}
