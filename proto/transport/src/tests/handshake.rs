//! Who gets in, who does not, and what each side says about it.

use super::authority::{Authority, Wish};
use super::stand::{AGENT, BALANCER, GATEWAY, PATIENCE, Stand, cluster, line};
use crate::credentials::Server;
use crate::dial::Dialler;
use crate::fault::FaultCode;
use crate::listen::Port;
use crate::security::Security;
use rcgen::ExtendedKeyUsagePurpose as Purpose;
use rustls::pki_types::UnixTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn both_sides_are_named() {
    let (authority, balancer) = cluster();
    let stand = Stand::new(Port::Agents, &balancer).await;
    let agent = authority.security(AGENT);
    let (connection, greeting) = stand.connect(&agent, Server::Balancer).await.expect("greeted");
    assert_eq!(greeting, "agent/n-1");
    assert_eq!(connection.peer().principal.to_string(), "balancer");
}

#[tokio::test]
async fn agents_accept_any_agent_of_the_cluster_and_nobody_else() {
    let (authority, balancer) = cluster();
    let check = async |server: &Security, expected: Result<&str, FaultCode>| {
        let stand = Stand::new(Port::Transfer, server).await;
        let agent = authority.security("n-2.agent.c.evenkeel");
        let found = stand.greeting(&agent, Server::Agent).await.map_err(|fault| fault.code);
        assert_eq!(found, expected.map(str::to_owned));
    };
    check(&authority.security(AGENT), Ok("agent/n-2")).await;
    check(&balancer, Err(FaultCode::WrongName)).await;
    check(&authority.security("n-1.agent.other.evenkeel"), Err(FaultCode::WrongCluster)).await;
    check(&Authority::new("two").security(AGENT), Err(FaultCode::UnknownAuthority)).await;
    check(&Authority::new("one").security(AGENT), Err(FaultCode::UnknownAuthority)).await;
}

#[tokio::test]
async fn a_client_is_refused_for_what_its_certificate_is() {
    let (authority, balancer) = cluster();
    let named = |names| Wish { names, ..Wish::default() };
    // What the client is told, and what the server counts.
    let check = async |wish: Wish<'_>, port, client: FaultCode, server: FaultCode| {
        let stand = Stand::new(port, &balancer).await;
        let files = authority.issue("client", &wish);
        assert_eq!(stand.careless(Some(&files)).await, Err(client));
        stand.told.wait_for(server.as_str()).await;
    };
    let ended = Wish { years: (2020, 2021), ..named(&[AGENT]) };
    check(ended, Port::Agents, FaultCode::Expired, FaultCode::Expired).await;
    let early = Wish { years: (3000, 3001), ..named(&[AGENT]) };
    check(early, Port::Agents, FaultCode::Expired, FaultCode::NotYetValid).await;
    let other = named(&["n-1.agent.other.evenkeel"]);
    check(other, Port::Agents, FaultCode::Refused, FaultCode::WrongCluster).await;
    let role = named(&["n-1.root.c.evenkeel"]);
    check(role, Port::Agents, FaultCode::Refused, FaultCode::UnknownRole).await;
    let nameless = named(&["example.com"]);
    check(nameless, Port::Agents, FaultCode::Refused, FaultCode::UnknownRole).await;
    let both = named(&["a.admin.c.evenkeel", "a.viewer.c.evenkeel"]);
    check(both, Port::Admin, FaultCode::Refused, FaultCode::AmbiguousName).await;
    check(named(&[GATEWAY]), Port::Transfer, FaultCode::Refused, FaultCode::Forbidden).await;
    let server_only = Wish { purposes: &[Purpose::ServerAuth], ..named(&[AGENT]) };
    check(server_only, Port::Agents, FaultCode::WrongPurpose, FaultCode::WrongPurpose).await;
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let (_, balancer) = cluster();
    for name in ["two", "one"] {
        let stand = Stand::new(Port::Agents, &balancer).await;
        let stranger = Authority::new(name);
        let files = stranger.issue("client", &Wish { names: &[AGENT], ..Wish::default() });
        assert_eq!(stand.careless(Some(&files)).await, Err(FaultCode::UnknownAuthority));
        stand.told.wait_for("certificate_unknown_authority").await;
    }
}

#[tokio::test]
async fn without_a_certificate_only_the_metrics_port_opens() {
    let (_, balancer) = cluster();
    let stand = Stand::new(Port::Admin, &balancer).await;
    assert_eq!(stand.careless(None).await, Err(FaultCode::Missing));
    stand.told.wait_for("certificate_missing").await;
    let stand = Stand::new(Port::Metrics, &balancer).await;
    assert_eq!(stand.careless(None).await, Ok("anonymous".to_owned()));
}

#[tokio::test]
async fn a_client_refuses_a_server_for_what_its_certificate_is() {
    let authority = Authority::new("one");
    let client = authority.security(AGENT);
    let check = async |server: Security, expected: FaultCode| {
        let stand = Stand::new(Port::Agents, &server).await;
        let fault = stand.greeting(&client, Server::Balancer).await.unwrap_err();
        assert_eq!(fault.code, expected, "{fault}");
        assert!(fault.text.contains("127.0.0.1"), "{fault}");
    };
    check(authority.security("balancer.other.evenkeel"), FaultCode::WrongName).await;
    check(authority.security("n-2.agent.c.evenkeel"), FaultCode::WrongName).await;
    check(Authority::new("two").security(BALANCER), FaultCode::UnknownAuthority).await;
    let ended = Wish { names: &[BALANCER], years: (2020, 2021), ..Wish::default() };
    check(authority.wished(&ended), FaultCode::Expired).await;
    let client_only = Wish { names: &[BALANCER], purposes: &[Purpose::ClientAuth], ..Wish::default() };
    check(authority.wished(&client_only), FaultCode::WrongPurpose).await;
}

#[tokio::test]
async fn a_process_does_not_start_with_a_certificate_that_nobody_accepts() {
    let authority = Authority::new("one");
    let check = |wish: Wish<'_>, expected| {
        let found = authority.load(&wish, UnixTime::now()).map(drop);
        assert_eq!(found.map_err(|fault| fault.code), Err(expected));
    };
    let named = |names| Wish { names, ..Wish::default() };
    check(Wish { years: (2020, 2021), ..named(&[AGENT]) }, FaultCode::Expired);
    check(Wish { years: (3000, 3001), ..named(&[AGENT]) }, FaultCode::NotYetValid);
    check(named(&["example.com"]), FaultCode::UnknownRole);
    let mut files = authority.issue("agent", &named(&[AGENT]));
    let load = |files: &crate::TlsFiles| {
        crate::Credentials::load(files.clone(), Some("c")).map(drop).map_err(|fault| fault.code)
    };
    assert_eq!(load(&files), Ok(()));
    files.ca = Authority::new("two").ca();
    assert_eq!(load(&files), Err(FaultCode::Unreadable), "its directory is gone");
    let other = Authority::new("two");
    files.ca = other.ca();
    assert_eq!(load(&files), Err(FaultCode::UnknownAuthority));
    files = authority.files("agent");
    files.key = authority.issue("other", &named(&[AGENT])).key;
    assert_eq!(load(&files), Err(FaultCode::KeyMismatch));
    let wrong = crate::Credentials::load(authority.files("agent"), Some("d")).unwrap_err();
    assert_eq!(wrong.code, FaultCode::WrongCluster);
}

#[tokio::test]
async fn plaintext_to_a_tls_port_is_told_so_on_both_sides() {
    let (_, balancer) = cluster();
    let stand = Stand::new(Port::Admin, &balancer).await;
    let dialler = Dialler::from(Security::Loopback);
    let opened = dialler.open(Server::Balancer, "127.0.0.1", stand.address.port(), None).await;
    let mut stream = opened.expect("connects");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("sent");
    let error = line(&mut stream).await.unwrap_err();
    assert_eq!(crate::Fault::of_io(&error).code, FaultCode::NotTls);
    assert_eq!(stream.fault().get().map(|fault| fault.code), Some(FaultCode::NotTls));
    stand.told.wait_for("not_tls").await;
}

#[tokio::test]
async fn tls_to_a_plaintext_port_is_told_so() {
    let (authority, _) = cluster();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("sent");
        // Until the client has had enough.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let client = Dialler::from(authority.security(AGENT));
    let opened = client.open(Server::Balancer, "127.0.0.1", address.port(), None).await;
    assert_eq!(opened.map(drop).map_err(|fault| fault.code), Err(FaultCode::NotTls));
    tokio::time::timeout(PATIENCE, server).await.expect("it ends").expect("no panic");
}

#[tokio::test]
async fn garbage_is_refused_and_counted() {
    let (authority, balancer) = cluster();
    let stand = Stand::new(Port::Admin, &balancer).await;
    for garbage in [&[0xff; 64][..], b"GET / HTTP/1.1\r\n\r\n", &[0x16, 0x03, 0x01, 0xff, 0xff]] {
        let mut stream = TcpStream::connect(stand.address).await.expect("connects");
        stream.write_all(garbage).await.expect("sent");
        let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
        assert!(end.is_ok(), "the connection is closed: {garbage:?}");
    }
    stand.told.wait_for("not_tls").await;
    let alice = authority.security("alice.admin.c.evenkeel");
    assert_eq!(stand.greeting(&alice, Server::Balancer).await, Ok("admin/alice".to_owned()));
}

#[tokio::test]
async fn a_client_of_another_protocol_is_told_so() {
    let (authority, balancer) = cluster();
    let stand = Stand::new(Port::Agents, &balancer).await;
    let port = stand.address.port();
    let agent = Dialler::from(authority.security(AGENT));
    let mut opened = agent.open(Server::Balancer, "127.0.0.1", port, Some(b"http/1.1")).await;
    let fault = opened.as_mut().map(drop).map_err(|fault| fault.code);
    assert_eq!(fault, Err(FaultCode::WrongProtocol));
}
