//! Looks at the files of certificates while the process runs.

use crate::credentials::{Credentials, Look};
use crate::fault::Fault;
use crate::observer::Observer;
use crate::security::Security;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How often the files are looked at. Reading three small files costs nothing, and certificates are replaced days
/// before they end.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Looks every [`LOOK_EVERY`], and at once at SIGHUP, until dropped. Nothing to do without TLS: then it never ends.
pub async fn watch(security: Security, observer: Arc<dyn Observer>) {
    let Security::Tls(credentials) = security else { return std::future::pending().await };
    observer.certificate_expiry(credentials.not_after());
    let mut hangup = signal(SignalKind::hangup()).ok();
    let mut last = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = hung_up(hangup.as_mut()) => {}
        }
        let looking = credentials.clone();
        // A look that panics is a bug of ours, and the certificates in use are still good.
        let Ok(look) = tokio::task::spawn_blocking(move || looking.look()).await else { continue };
        last = report(look, &credentials, observer.as_ref(), last);
    }
}

async fn hung_up(signal: Option<&mut tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Says what was found, the same fault once.
fn report(
    look: Look,
    credentials: &Credentials,
    observer: &dyn Observer,
    last: Option<Fault>,
) -> Option<Fault> {
    match look {
        Look::Unchanged => None,
        Look::Reloaded => {
            observer.certificate_expiry(credentials.not_after());
            observer.certificate_reload("reloaded");
            tracing::info!(identity = %credentials.identity(), "new certificates are in use");
            None
        }
        Look::Broken(fault) => {
            if last.as_ref() != Some(&fault) {
                observer.certificate_reload("broken");
                let (code, reason) = (fault.code.as_str(), fault.message());
                tracing::error!(code, reason, "new certificates cannot be used; the old ones stay in use");
            }
            Some(fault)
        }
    }
}
