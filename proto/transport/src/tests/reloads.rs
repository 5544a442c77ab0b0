//! Files that change under a running process.

use super::authority::{Authority, Wish};
use super::stand::{AGENT, BALANCER, Stand, Told, echo};
use crate::credentials::{Credentials, Look, Server};
use crate::fault::FaultCode;
use crate::listen::Port;
use crate::security::Security;
use crate::{TlsFiles, reload};
use std::sync::Arc;

const YEARS: Wish<'static> =
    Wish { names: &[BALANCER], purposes: &[rcgen::ExtendedKeyUsagePurpose::ServerAuth], years: (2020, 3000) };

fn load(files: &TlsFiles) -> Arc<Credentials> {
    Credentials::load(files.clone(), Some("c")).expect("credentials")
}

#[track_caller]
fn check_broken(credentials: &Credentials, code: FaultCode) {
    let before = credentials.not_after();
    match credentials.look() {
        Look::Broken(fault) => assert_eq!(fault.code, code, "{fault}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(credentials.not_after(), before, "the old certificate stays in use");
}

#[test]
fn broken_files_change_nothing() {
    let authority = Authority::new("one");
    let files = authority.issue("balancer", &YEARS);
    let credentials = load(&files);
    assert_eq!(credentials.look(), Look::Unchanged);
    let good = std::fs::read(&files.certificate).expect("read");
    let write = |bytes: &[u8]| std::fs::write(&files.certificate, bytes).expect("written");
    write(b"");
    check_broken(&credentials, FaultCode::Unreadable);
    assert_eq!(credentials.look(), Look::Unchanged, "what is broken is looked at once");
    write(&good[..good.len() / 2]);
    check_broken(&credentials, FaultCode::Unreadable);
    std::fs::remove_file(&files.certificate).expect("removed");
    check_broken(&credentials, FaultCode::Unreadable);
    write(&vec![b'x'; 2 << 20]);
    check_broken(&credentials, FaultCode::Unreadable);
    let issue = |wish: Wish<'_>| drop(authority.issue("balancer", &wish));
    issue(Wish { years: (2020, 2021), ..YEARS });
    check_broken(&credentials, FaultCode::Expired);
    issue(Wish { names: &["balancer.other.evenkeel"], ..YEARS });
    check_broken(&credentials, FaultCode::WrongCluster);
    issue(Wish { names: &[AGENT], ..YEARS });
    check_broken(&credentials, FaultCode::WrongName);
    // Certificate first, key a moment later, as a copy goes.
    let next = authority.issue("next", &Wish { years: (2020, 3500), ..YEARS });
    let ended = credentials.not_after();
    std::fs::copy(&next.certificate, &files.certificate).expect("copied");
    check_broken(&credentials, FaultCode::KeyMismatch);
    std::fs::copy(&next.key, &files.key).expect("copied");
    assert_eq!(credentials.look(), Look::Reloaded);
    assert!(credentials.not_after() > ended);
}

#[tokio::test]
async fn a_new_certificate_is_used_at_once_and_connections_stay_up() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let files = old.issue("balancer", &YEARS);
    let credentials = load(&files);
    let stand = Stand::new(Port::Agents, &Security::Tls(credentials.clone())).await;
    let (of_old, of_new) = (old.security(AGENT), new.security(AGENT));
    let (mut up, _) = stand.connect(&of_old, Server::Balancer).await.expect("greeted");
    assert!(stand.greeting(&of_new, Server::Balancer).await.is_err());
    let next = new.issue("balancer", &YEARS);
    for (from, to) in
        [(&next.ca, &files.ca), (&next.certificate, &files.certificate), (&next.key, &files.key)]
    {
        std::fs::copy(from, to).expect("copied");
    }
    assert_eq!(credentials.look(), Look::Reloaded);
    assert_eq!(stand.greeting(&of_new, Server::Balancer).await, Ok("agent/n-1".to_owned()));
    assert!(stand.greeting(&of_old, Server::Balancer).await.is_err(), "the old authority is gone");
    assert_eq!(echo(&mut up, "still here").await.expect("up"), "still here");
}

#[tokio::test]
async fn the_files_are_watched_and_what_is_found_is_counted() {
    let authority = Authority::new("one");
    let files = authority.issue("balancer", &YEARS);
    let told = Arc::new(Told::default());
    let watching = tokio::spawn(reload::watch(Security::Tls(load(&files)), told.clone()));
    told.wait_for("ends 32503680000").await;
    std::fs::write(&files.key, "no key").expect("written");
    told.wait_for("broken").await;
    authority.issue("balancer", &Wish { years: (2020, 2999), ..YEARS });
    told.wait_for("reloaded").await;
    told.wait_for("ends 32472144000").await;
    watching.abort();
}
