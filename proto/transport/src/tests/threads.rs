//! Blocking connections.

use super::stand::{AGENT, PATIENCE, Stand, cluster};
use crate::blocking::{self, Protocol, Timeouts};
use crate::credentials::Server;
use crate::fault::{Fault, FaultCode};
use crate::listen::Port;
use crate::security::Security;
use std::io::{BufRead as _, BufReader, Write as _};
use std::time::Duration;

const TIMES: Timeouts =
    Timeouts { connect: PATIENCE, read: Duration::from_millis(20), write: Duration::from_secs(5) };

/// The greeting of the server, read with timeouts in between, and an echo.
fn talk(security: &Security, address: &str) -> Result<String, FaultCode> {
    let connected = blocking::connect(security, Server::Agent, Protocol::Transfer, address, TIMES, &|| true);
    let mut stream = BufReader::new(connected.map_err(|e| Fault::of_io(&e).code)?);
    let mut line = || {
        let mut text = String::new();
        loop {
            match stream.read_line(&mut text) {
                Ok(_) => return Ok((text.trim().to_owned(), stream.get_mut().write_all(b"again\n"))),
                Err(e)
                    if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
                Err(e) => return Err(Fault::of_io(&e).code),
            }
        }
    };
    let (greeting, written) = line()?;
    written.expect("written");
    assert_eq!(line()?.0, "again");
    Ok(greeting)
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_talk_over_tls_and_plaintext_alike() {
    let (authority, _) = cluster();
    let agent = authority.security(AGENT);
    for (security, expected) in [(agent, "agent/n-1"), (Security::Loopback, "loopback")] {
        let stand = Stand::new(Port::Transfer, &security).await;
        let address = stand.address.to_string();
        let talked = tokio::task::spawn_blocking(move || talk(&security, &address)).await.expect("no panic");
        assert_eq!(talked, Ok(expected.to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_learns_why_it_is_refused() {
    let (authority, balancer) = cluster();
    let stand = Stand::new(Port::Transfer, &authority.security(AGENT)).await;
    let address = stand.address.to_string();
    let talked = tokio::task::spawn_blocking(move || talk(&balancer, &address)).await.expect("no panic");
    assert_eq!(talked, Err(FaultCode::Refused));
    stand.told.wait_for("forbidden").await;
}

#[test]
fn a_handshake_that_is_not_wanted_any_more_ends() {
    let (authority, _) = cluster();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let agent = authority.security(AGENT);
    let connected = blocking::connect(&agent, Server::Agent, Protocol::Transfer, &address, TIMES, &|| false);
    assert_eq!(connected.map(drop).map_err(|e| Fault::of_io(&e).code), Err(FaultCode::HandshakeTimeout));
}

#[test]
fn plaintext_does_not_leave_the_host() {
    let connect = |security| {
        let address = "192.0.2.1:9";
        blocking::connect(&security, Server::Agent, Protocol::Transfer, address, TIMES, &|| true)
    };
    let fault = connect(Security::Loopback).map(drop).map_err(|e| Fault::of_io(&e).code);
    assert_eq!(fault, Err(FaultCode::TlsRequired));
}
