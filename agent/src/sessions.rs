//! A session with every balancer. Names are looked up again and again: a balancer that moves or is added is
//! found, and one that is gone is let go of once its stream has ended.

use crate::session::{Session, Shared};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How often names are looked up. Records of clusters live for 5 to 30 s.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);
/// How long a look-up may take.
const LOOK_UP_MAX: Duration = Duration::from_secs(5);
/// Sessions at most, whatever names lead to.
const SESSIONS_MAX: usize = 16;

/// See the module.
pub struct Sessions {
    shared: Arc<Shared>,
    names: Vec<Name>,
    /// By address; `false` tells a session that it is not wanted any more.
    open: BTreeMap<SocketAddr, watch::Sender<bool>>,
    running: JoinSet<SocketAddr>,
}

impl Sessions {
    /// With the balancers at these addresses (host:port).
    pub fn new(shared: Shared, balancers: &[String]) -> Self {
        let names = balancers.iter().map(|name| Name::new(name.clone())).collect();
        Self { shared: Arc::new(shared), names, open: BTreeMap::new(), running: JoinSet::new() }
    }

    /// Keeps them until shutdown.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => break,
                () = self.look_up() => {}
            }
            self.keep(&shutdown);
            tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => break,
                () = sleep(LOOK_UP_EVERY) => {}
            }
            while let Some(ended) = self.running.try_join_next() {
                self.open.remove(&ended.expect("a session does not panic"));
            }
        }
        while self.running.join_next().await.is_some() {}
    }

    async fn look_up(&mut self) {
        for name in &mut self.names {
            if let Some(address) = name.literal {
                name.addresses = vec![address];
                continue;
            }
            // A look-up that fails says nothing about balancers: those known before stay.
            let looked_up = timeout(LOOK_UP_MAX, lookup_host(name.text.clone())).await;
            match looked_up {
                Ok(Ok(found)) => name.found(found.collect()),
                Ok(Err(error)) => tracing::warn!(name = name.text, %error, "name not found"),
                Err(_) => tracing::warn!(name = name.text, "the look-up takes longer than {LOOK_UP_MAX:?}"),
            }
        }
    }

    /// Opens what is missing and lets go of what is not there any more.
    fn keep(&mut self, shutdown: &watch::Receiver<bool>) {
        let wanted = wanted(&self.names);
        for (address, session) in &self.open {
            if session.send_replace(wanted.contains(address)) && !wanted.contains(address) {
                tracing::info!(balancer = %address, "no name leads to this balancer any more");
            }
        }
        for address in wanted {
            // One that is being let go of is opened again once it has ended.
            if !self.open.contains_key(&address) {
                let (keep, kept) = watch::channel(true);
                let session = Session::new(self.shared.clone(), address);
                let shutdown = shutdown.clone();
                self.running.spawn(async move {
                    session.run(kept, shutdown).await;
                    address
                });
                self.open.insert(address, keep);
            }
        }
    }
}

/// Each address once, in the order of the names.
fn wanted(names: &[Name]) -> Vec<SocketAddr> {
    let mut wanted = Vec::new();
    for address in names.iter().flat_map(|name| &name.addresses) {
        if !wanted.contains(address) {
            wanted.push(*address);
        }
    }
    wanted.truncate(SESSIONS_MAX);
    wanted
}

/// A balancer as the configuration names it, and where that leads.
#[derive(Debug)]
struct Name {
    text: String,
    literal: Option<SocketAddr>,
    addresses: Vec<SocketAddr>,
}

impl Name {
    fn new(text: String) -> Self {
        Self { literal: text.parse().ok(), text, addresses: Vec::new() }
    }

    /// A host with addresses of both families is one balancer, not two: two streams of one agent to it would
    /// take each other's place. IPv4 is what balancers listen on by default.
    fn found(&mut self, found: Vec<SocketAddr>) {
        let mut v4: Vec<_> = found.iter().copied().filter(SocketAddr::is_ipv4).collect();
        if v4.is_empty() {
            v4 = found;
        }
        v4.sort_unstable();
        v4.dedup();
        // An answer without addresses is no better than none.
        if !v4.is_empty() {
            self.addresses = v4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> Vec<SocketAddr> {
        text.split_whitespace().map(|address| address.parse().unwrap()).collect()
    }

    /// Looks one name up again and again; expects what it leads to in the end.
    #[track_caller]
    fn check(answers: &[&str], expected: &str) {
        let mut name = Name::new("balancer:1".to_owned());
        answers.iter().for_each(|answer| name.found(addresses(answer)));
        assert_eq!(name.addresses, addresses(expected));
    }

    #[test]
    fn a_name_leads_to_all_its_addresses_of_one_family() {
        check(&["10.0.0.2:1 10.0.0.1:1 10.0.0.2:1"], "10.0.0.1:1 10.0.0.2:1");
        check(&["[::1]:1 127.0.0.1:1"], "127.0.0.1:1");
        check(&["[::1]:1"], "[::1]:1");
    }

    #[test]
    fn a_name_that_leads_nowhere_for_a_while_changes_nothing() {
        check(&["10.0.0.1:1", ""], "10.0.0.1:1");
        check(&["10.0.0.1:1", "10.0.0.2:1"], "10.0.0.2:1");
    }

    #[test]
    fn a_balancer_named_twice_gets_one_session() {
        let named = |text: &str, leads: &str| {
            let mut name = Name::new(text.to_owned());
            name.found(addresses(leads));
            name
        };
        let names = [named("a:1", "10.0.0.1:1 10.0.0.2:1"), named("10.0.0.2:1", "10.0.0.2:1")];
        assert_eq!(wanted(&names), addresses("10.0.0.1:1 10.0.0.2:1"));
        let many: Vec<String> = (0..40).map(|at| format!("10.0.0.{at}:1")).collect();
        assert_eq!(wanted(&[named("many:1", &many.join(" "))]).len(), SESSIONS_MAX);
    }
}
