//! What a balancer is called, where it is reached, and how its lease is kept.

use evenkeel_core::protocol::election::Settings;
use std::time::Duration;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElectionSettings {
    /// Name, unique among those that share the store.
    pub name: String,
    /// host:port at which other balancers and agents reach it.
    pub address: String,
    /// host:port of its admin service.
    pub admin_address: String,
    /// Time of the lease, in milliseconds.
    pub ttl_ms: u64,
}

impl ElectionSettings {
    /// For the core. The margin is an eighth of the lease: half a second of the usual four.
    pub(super) fn core(&self) -> Settings {
        let safety_ms = self.ttl_ms * Settings::SAFETY_MS / Settings::TTL_MS;
        Settings { name: self.name.clone(), address: self.address.clone(), ttl_ms: self.ttl_ms, safety_ms }
    }

    pub(super) fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }

    /// No call of the store takes longer, so that a lease has time for four keep-alives one after the other.
    pub(super) fn call_deadline(&self) -> Duration {
        self.ttl() / 4
    }
}
