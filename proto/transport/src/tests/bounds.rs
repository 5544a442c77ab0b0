//! What listeners bear: silence, floods, and a host that is out of descriptors.

use super::stand::{AGENT, PATIENCE, Stand, client_hello, cluster};
use crate::credentials::Server;
use crate::listen::{Limits, Port};
use crate::network::{Accept, AnyWire};
use crate::security::Security;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

async fn closed(stream: &mut TcpStream) {
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 64])).await.expect("it is closed");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_cut_and_holds_up_nobody() {
    let (authority, balancer) = cluster();
    let limits = Limits { hello_max: Duration::from_millis(300), ..Limits::new(64) };
    let stand = Stand::bounded(Port::Agents, &balancer, limits).await;
    let mut silent = TcpStream::connect(stand.address).await.expect("connects");
    let agent = authority.security(AGENT);
    assert_eq!(stand.greeting(&agent, Server::Balancer).await, Ok("agent/n-1".to_owned()));
    closed(&mut silent).await;
    stand.told.wait_for("handshake_timeout").await;
}

#[tokio::test]
async fn who_says_nothing_or_little_takes_no_handshake() {
    let (authority, balancer) = cluster();
    // The deadlines are far away.
    let limits = Limits { handshakes_max: 1, hello_max: PATIENCE * 2, ..Limits::new(64) };
    let stand = Stand::bounded(Port::Agents, &balancer, limits).await;
    let _silent = TcpStream::connect(stand.address).await.expect("connects");
    let mut slow = TcpStream::connect(stand.address).await.expect("connects");
    slow.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await.expect("written");
    let agent = authority.security(AGENT);
    assert_eq!(stand.greeting(&agent, Server::Balancer).await, Ok("agent/n-1".to_owned()));
}

#[tokio::test]
async fn a_handshake_that_stands_still_gives_its_turn_to_the_next() {
    let (authority, balancer) = cluster();
    let limits = Limits { handshakes_max: 1, handshake_max: Duration::from_millis(300), ..Limits::new(64) };
    let stand = Stand::bounded(Port::Agents, &balancer, limits).await;
    let mut stalled = TcpStream::connect(stand.address).await.expect("connects");
    stalled.write_all(&client_hello()).await.expect("written");
    let agent = authority.security(AGENT);
    assert_eq!(stand.greeting(&agent, Server::Balancer).await, Ok("agent/n-1".to_owned()));
    stand.told.wait_for("handshake_timeout").await;
}

#[tokio::test]
async fn who_speaks_plaintext_reads_the_alert_though_it_goes_on_speaking() {
    let (_, balancer) = cluster();
    let stand = Stand::new(Port::Admin, &balancer).await;
    let mut client = TcpStream::connect(stand.address).await.expect("connects");
    // The server gives up after the first. A socket that it had closed would be reset by the second, and the third would fail:
    // who writes before reading would never see the alert.
    for _ in 0..3 {
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("written");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut alert = [0; 64];
    let read = tokio::time::timeout(PATIENCE, client.read(&mut alert)).await.expect("in time");
    assert!(matches!(read, Ok(1..)) && alert[0] == 0x15, "{read:?} {alert:?}");
}

#[tokio::test]
async fn connections_beyond_the_bound_are_closed_until_one_ends() {
    let stand = Stand::bounded(Port::Admin, &Security::Loopback, Limits::new(1)).await;
    let (first, greeting) = stand.connect(&Security::Loopback, Server::Balancer).await.expect("greeted");
    assert_eq!(greeting, "loopback");
    closed(&mut TcpStream::connect(stand.address).await.expect("connects")).await;
    stand.told.wait_for("admin too_many_connections").await;
    drop(first);
    let again = async {
        while stand.greeting(&Security::Loopback, Server::Balancer).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("the place is free again");
}

#[tokio::test]
async fn a_client_without_a_certificate_does_not_stay() {
    let (_, balancer) = cluster();
    let limits = Limits { anonymous_max: Duration::from_millis(50), ..Limits::new(64) };
    let stand = Stand::bounded(Port::Metrics, &balancer, limits).await;
    assert_eq!(stand.careless_until_closed().await, "anonymous");
}

#[tokio::test]
async fn connections_notice_a_host_that_vanished() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let stream = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connects");
    crate::network::configure(&stream).expect("configured");
    let socket = socket2::SockRef::from(&stream);
    assert!(socket.keepalive().expect("asked"));
    assert_eq!(socket.tcp_keepalive_time().expect("asked"), Duration::from_secs(30));
}

/// A socket whose first accepts fail as they do without descriptors.
struct Exhausted {
    listener: TcpListener,
    failures: u32,
}

impl Accept for Exhausted {
    async fn accept(&mut self) -> io::Result<(AnyWire, SocketAddr)> {
        if self.failures > 0 {
            self.failures -= 1;
            /// Too many open files.
            const EMFILE: i32 = 24;
            return Err(io::Error::from_raw_os_error(EMFILE));
        }
        Accept::accept(&mut self.listener).await
    }
}

#[tokio::test(start_paused = true)]
async fn accepts_that_fail_are_tried_again_after_growing_pauses() {
    let begun = tokio::time::Instant::now();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let source = Exhausted { listener, failures: 9 };
    let stand = Stand::over(source, address, Port::Admin, &Security::Loopback, Limits::new(4));
    let found = stand.greeting(&Security::Loopback, Server::Balancer).await;
    assert_eq!(found, Ok("loopback".to_owned()));
    assert_eq!(stand.told.all(), vec!["admin accept_failed"; 9]);
    // 10, 20, 40, 80, 160, 320, 640 and twice 1000 ms of the paused clock.
    assert!(begun.elapsed() >= Duration::from_millis(3270), "{:?}", begun.elapsed());
}
