//! The gRPC services: thin translations between the wire and the control loop, the store and the routers.

pub mod admin;
pub mod agents;
mod changes;
mod reading;
pub mod routing;

use std::time::Duration;
use tonic::transport::Server;

/// A client that stops reading or vanishes is noticed by HTTP/2 pings, not by the next write.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams one connection may open: an agent opens one, a gateway a few.
const STREAMS_PER_CONNECTION_MAX: u32 = 64;

/// A server with the limits that every port shares.
pub fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .tcp_nodelay(true)
}
