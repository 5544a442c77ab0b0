//! Counts connections: in all, and of each peer address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// How many connections are up, and how many may be.
#[derive(Debug)]
pub(crate) struct Slots {
    max: usize,
    per_peer_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// Why there is no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    All,
    Peer,
}

impl Full {
    pub(crate) fn code(self) -> &'static str {
        match self {
            Full::All => "too_many_connections",
            Full::Peer => "too_many_connections_of_peer",
        }
    }
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    peer: IpAddr,
}

impl Slots {
    pub(crate) fn new(max: usize, per_peer_max: usize) -> Arc<Self> {
        Arc::new(Self { max, per_peer_max, taken: Mutex::default() })
    }

    /// A place for a connection of `peer`. Peers on this host share it with proxies and port forwards, so only the
    /// bound over all holds for them.
    pub(crate) fn take(self: &Arc<Self>, peer: IpAddr) -> Result<Slot, Full> {
        let peer = group(peer);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.max {
            return Err(Full::All);
        }
        let of_peer = taken.by_peer.entry(peer).or_default();
        if *of_peer >= self.per_peer_max && !peer.is_loopback() {
            return Err(Full::Peer);
        }
        *of_peer += 1;
        taken.all += 1;
        Ok(Slot { slots: self.clone(), peer })
    }
}

/// Whoever has one IPv6 address has the 2^64 of its network.
fn group(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let [a, b, c, d, ..] = v6.segments();
            [a, b, c, d, 0, 0, 0, 0].into()
        }
        other => other,
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        let of_peer = taken.by_peer.get_mut(&self.peer).expect("counted when it was taken");
        *of_peer -= 1;
        if *of_peer == 0 {
            // The table holds peers that are connected, and no others.
            taken.by_peer.remove(&self.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn one_peer_cannot_take_the_place_of_others() {
        let slots = Slots::new(4, 2);
        let first = slots.take(ip("10.0.0.1")).expect("free");
        let _second = slots.take(ip("10.0.0.1")).expect("free");
        assert_eq!(slots.take(ip("10.0.0.1")).map(drop), Err(Full::Peer));
        assert_eq!(slots.take(ip("::ffff:10.0.0.1")).map(drop), Err(Full::Peer), "the same peer over IPv6");
        let _third = slots.take(ip("10.0.0.2")).expect("free");
        let _fourth = slots.take(ip("10.0.0.3")).expect("free");
        assert_eq!(slots.take(ip("10.0.0.4")).map(drop), Err(Full::All));
        drop(first);
        assert!(slots.take(ip("10.0.0.1")).is_ok());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_peer() {
        let slots = Slots::new(9, 1);
        let _first = slots.take(ip("2001:db8::1")).expect("free");
        assert_eq!(slots.take(ip("2001:db8::2")).map(drop), Err(Full::Peer));
        assert!(slots.take(ip("2001:db8:0:1::2")).is_ok());
    }

    #[test]
    fn this_host_is_bounded_by_the_whole_alone() {
        let slots = Slots::new(3, 1);
        let held: Vec<_> = (0..3).map(|_| slots.take(ip("127.0.0.1")).expect("free")).collect();
        assert_eq!(slots.take(ip("127.0.0.1")).map(drop), Err(Full::All));
        drop(held);
        assert!(slots.taken.lock().expect("not poisoned").by_peer.is_empty());
    }
}
