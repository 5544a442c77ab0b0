//! Faults drawn from a seed.

use super::cluster::Cluster;
use std::time::Duration;

/// Something that strikes, lasts, and is mended.
#[derive(Debug)]
pub(crate) enum Fault {
    /// A host is connected to nobody.
    CutOff(String),
    /// A host is not heard by these.
    Mute(String, Vec<String>),
    /// A host does not hear these.
    Deafen(String, Vec<String>),
    /// What a host and these say to each other comes all at once when it is mended.
    Hold(String, Vec<String>),
    /// Messages of a host take long.
    Slow(String),
    /// A host is down.
    Crash(String),
}

/// As long as messages take otherwise, about.
const USUAL: Duration = Duration::from_millis(10);

impl Fault {
    /// Any of them, for a balancer or an agent.
    pub(crate) fn draw(cluster: &mut Cluster) -> Self {
        let mut hosts = cluster.balancer_hosts();
        hosts.extend(cluster.agent_hosts());
        let host = hosts.swap_remove(cluster.draw_of(hosts.len()));
        let mut others = cluster.all_but(&host);
        others.truncate(1 + cluster.draw_of(others.len()));
        match cluster.draw_of(6) {
            0 => Fault::CutOff(host),
            1 => Fault::Mute(host, others),
            2 => Fault::Deafen(host, others),
            3 => Fault::Hold(host, others),
            4 => Fault::Slow(host),
            _ => Fault::Crash(host),
        }
    }

    pub(crate) fn strike(&self, cluster: &mut Cluster) {
        match self {
            Fault::CutOff(host) => cluster.partition(host, &cluster.all_but(host)),
            Fault::Mute(host, others) => cluster.mute(host, others),
            Fault::Deafen(host, others) => cluster.deafen(host, others),
            Fault::Hold(host, others) => cluster.hold(host, others),
            Fault::Slow(host) => {
                let time = cluster.draw(Duration::from_millis(100), Duration::from_millis(900));
                cluster.delay(host, &cluster.all_but(host), time);
            }
            Fault::Crash(host) => cluster.crash(host),
        }
    }

    pub(crate) fn mend(&self, cluster: &mut Cluster) {
        match self {
            Fault::CutOff(host) => cluster.repair(host, &cluster.all_but(host)),
            Fault::Mute(host, others) | Fault::Deafen(host, others) => cluster.repair(host, others),
            Fault::Hold(host, others) => cluster.release(host, others),
            Fault::Slow(host) => cluster.delay(host, &cluster.all_but(host), USUAL),
            Fault::Crash(host) => cluster.restart(host),
        }
    }
}
