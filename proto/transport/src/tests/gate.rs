//! Calls through tonic and axum: each is let through or refused by the name of its caller.

use super::stand::{BALANCER, GATEWAY, Told, cluster};
use crate::authorise::Authorise;
use crate::blocking::{self, Protocol, Timeouts};
use crate::credentials::Server;
use crate::http::viewers_only;
use crate::identity::Principal;
use crate::listen::{Incoming, Limits, Port};
use crate::observer::Observer;
use crate::security::Security;
use crate::{PeerInfo, dial};
use axum::routing::get;
use evenkeel_proto::v1::admin_service_client::AdminServiceClient;
use evenkeel_proto::v1::routing_service_client::RoutingServiceClient;
use evenkeel_proto::v1::routing_service_server::{RoutingService, RoutingServiceServer};
use evenkeel_proto::v1::{GetStatusRequest, RouteRequest, RouteResponse};
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};

/// Answers nothing, but says to whom.
struct Names;

#[tonic::async_trait]
impl RoutingService for Names {
    type RouteStream = Box<dyn Stream<Item = Result<RouteResponse, Status>> + Send + Unpin>;

    async fn route(
        &self,
        request: Request<Streaming<RouteRequest>>,
    ) -> Result<Response<Self::RouteStream>, Status> {
        let principal = request.extensions().get::<Principal>().expect("put there by the gate");
        Err(Status::already_exists(principal.to_string()))
    }
}

async fn incoming(security: &Security, port: Port, told: &Arc<Told>) -> Incoming {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    Incoming::new(listener, port, security.clone(), Limits::new(64), told.clone()).expect("an address")
}

#[tokio::test]
async fn a_handler_is_told_who_calls_and_others_never_reach_it() {
    let (authority, balancer) = cluster();
    let told = Arc::new(Told::default());
    let incoming = incoming(&balancer, Port::Admin, &told).await;
    let address = incoming.address().to_string();
    let server = tonic::transport::Server::builder()
        .layer(Authorise::new(told.clone()))
        .add_service(RoutingServiceServer::new(Names))
        .serve_with_incoming(incoming);
    tokio::spawn(server);
    let route = async |name: &str| {
        let security = authority.security(name);
        let dialled =
            dial::connect(&security, Server::Balancer, &address, Duration::from_secs(30), |e| e).await;
        let mut client = RoutingServiceClient::new(dialled.expect("connected").0);
        client.route(tokio_stream::empty()).await.map(drop).unwrap_err()
    };
    let status = route(GATEWAY).await;
    assert_eq!((status.code(), status.message()), (Code::AlreadyExists, "gateway/gw"));
    let status = route("a.admin.c.evenkeel").await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().starts_with("forbidden: "), "{status}");
    assert_eq!(told.all(), ["forbidden"]);
    // A service that the server does not have is denied before anybody looks for it.
    let security = authority.security(GATEWAY);
    let dialled = dial::connect(&security, Server::Balancer, &address, Duration::from_secs(30), |e| e).await;
    let mut client = AdminServiceClient::new(dialled.expect("connected").0);
    let status = client.get_status(GetStatusRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_refused_client_learns_why_from_its_channel() {
    let (authority, balancer) = cluster();
    let told = Arc::new(Told::default());
    let incoming = incoming(&balancer, Port::Admin, &told).await;
    let address = incoming.address().to_string();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(RoutingServiceServer::new(Names))
            .serve_with_incoming(incoming),
    );
    // The authorities know each other in one direction only.
    let stranger = super::authority::Authority::new("two");
    let files =
        stranger.issue("stranger", &super::authority::Wish { names: &[GATEWAY], ..Default::default() });
    let both =
        [authority.ca(), stranger.ca()].map(|path| std::fs::read_to_string(path).expect("read")).concat();
    std::fs::write(&files.ca, both).expect("written");
    let security = Security::Tls(crate::Credentials::load(files, None).expect("credentials"));
    let dialled = dial::connect(&security, Server::Balancer, &address, Duration::from_secs(30), |e| e).await;
    let fault = match dialled {
        Err(fault) => fault,
        Ok((channel, fault)) => {
            RoutingServiceClient::new(channel).route(tokio_stream::empty()).await.map(drop).unwrap_err();
            fault.get().expect("a fault of TLS")
        }
    };
    assert_eq!(fault.code.as_str(), "certificate_unknown_authority");
}

fn get_page(security: &Security, address: &str, path: &str) -> String {
    let times = Timeouts {
        connect: Duration::from_secs(30),
        read: Duration::from_secs(30),
        write: Duration::from_secs(30),
    };
    let mut stream = blocking::connect(security, Server::Balancer, Protocol::Http, address, times, &|| true)
        .expect("connected");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_for_viewers_and_probes_for_everybody() {
    let (authority, balancer) = cluster();
    let told = Arc::new(Told::default());
    let observer: Arc<dyn Observer> = told.clone();
    let incoming = incoming(&balancer, Port::Metrics, &told).await;
    let address = incoming.address().to_string();
    let router = axum::Router::new()
        .route("/page", get(|| async { "the page" }))
        .route_layer(axum::middleware::from_fn_with_state(observer, viewers_only))
        .route("/healthz", get(|| async { "ok" }));
    let service = router.into_make_service_with_connect_info::<PeerInfo>();
    tokio::spawn(async move { axum::serve(incoming, service).await });
    let check = async |name: &str, path: &'static str, expected: &str| {
        let (security, address) = (authority.security(name), address.clone());
        let text =
            tokio::task::spawn_blocking(move || get_page(&security, &address, path)).await.expect("no panic");
        assert!(text.starts_with(&format!("HTTP/1.1 {expected}")), "{name}, {path}: {text}");
    };
    check("v.viewer.c.evenkeel", "/page", "200").await;
    check("o.operator.c.evenkeel", "/page", "200").await;
    check(GATEWAY, "/page", "403").await;
    check(GATEWAY, "/healthz", "200").await;
    check(BALANCER, "/page", "403").await;
    assert_eq!(told.all(), ["forbidden", "forbidden"]);
}
