//! The gate before HTTP paths that show something: metrics and page are for viewers; probes are for everybody.

use crate::connection::PeerInfo;
use crate::fault::FaultCode;
use crate::observer::Observer;
use crate::verbs;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// For `axum::middleware::from_fn_with_state`, as a layer of the routes that viewers may see.
pub async fn viewers_only(
    State(observer): State<Arc<dyn Observer>>,
    ConnectInfo(peer): ConnectInfo<PeerInfo>,
    mut request: Request,
    next: Next,
) -> Response {
    if let Err(fault) = verbs::authorise_viewer(request.uri().path(), &peer.principal) {
        observer.auth_failure(fault.code.as_str());
        let code = match fault.code {
            FaultCode::Missing => StatusCode::UNAUTHORIZED,
            _ => StatusCode::FORBIDDEN,
        };
        return (code, format!("{fault}\n")).into_response();
    }
    request.extensions_mut().insert(peer.principal);
    next.run(request).await
}
