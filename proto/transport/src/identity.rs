//! Who a certificate names. The name is a DNS name of the certificate, and every part of it is a DNS label:
//!
//! ```text
//! <node>.agent.<cluster>.evenkeel       the agent of a node
//! balancer.<cluster>.evenkeel           a balancer; clients verify this name whatever address they dial
//! <name>.gateway.<cluster>.evenkeel     a gateway, which asks for routes
//! <name>.viewer.<cluster>.evenkeel      a person or a program that may look
//! <name>.operator.<cluster>.evenkeel    ... and may pause and resume
//! <name>.admin.<cluster>.evenkeel       ... and may do everything
//! ```

use crate::fault::{Fault, FaultCode};
use evenkeel_core::ids::{NodeId, UnitId};
use std::fmt;

/// What every name of the project ends in. It is no domain of the public DNS, so no public authority can issue it.
pub const DOMAIN: &str = "evenkeel";

/// What the owner of a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerRole {
    /// A node's agent.
    Agent,
    /// A balancer.
    Balancer,
    /// May look.
    Viewer,
    /// May look, pause and resume.
    Operator,
    /// May do everything.
    Admin,
    /// Asks for routes.
    Gateway,
}

impl PeerRole {
    /// All of them.
    pub const ALL: [PeerRole; 6] = [
        PeerRole::Agent,
        PeerRole::Balancer,
        PeerRole::Viewer,
        PeerRole::Operator,
        PeerRole::Admin,
        PeerRole::Gateway,
    ];

    /// The label in names.
    pub fn as_str(self) -> &'static str {
        match self {
            PeerRole::Agent => "agent",
            PeerRole::Balancer => "balancer",
            PeerRole::Viewer => "viewer",
            PeerRole::Operator => "operator",
            PeerRole::Admin => "admin",
            PeerRole::Gateway => "gateway",
        }
    }
}

/// Who a certificate names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// The cluster.
    pub cluster: String,
    /// What the owner is.
    pub role: PeerRole,
    /// The owner's name within its role: the node of an agent; empty for a balancer.
    pub name: String,
}

impl PeerIdentity {
    /// An agent, a person or a gateway; a balancer has no name. All parts must be DNS labels.
    pub fn new(cluster: &str, role: PeerRole, name: &str) -> Result<Self, Fault> {
        let label = |kind: &str, value: &str| {
            // The core's rule for names is the one for DNS labels.
            UnitId::new(value).map(drop).map_err(|_| {
                let text = format!("{kind} {value:?} is no DNS label: use 1 to 63 characters a-z, 0-9 and '-', not beginning or ending with '-'");
                Fault::new(FaultCode::InvalidName, text)
            })
        };
        label("cluster", cluster)?;
        if role == PeerRole::Balancer {
            if !name.is_empty() {
                return Err(Fault::new(FaultCode::InvalidName, "a balancer has no name of its own"));
            }
        } else {
            label("name", name)?;
        }
        Ok(Self { cluster: cluster.to_owned(), role, name: name.to_owned() })
    }

    /// The balancers of a cluster.
    pub fn balancer(cluster: &str) -> Result<Self, Fault> {
        Self::new(cluster, PeerRole::Balancer, "")
    }

    /// Reads a DNS name; `None` when it is none of this project's.
    pub fn parse(dns_name: &str) -> Option<Result<Self, Fault>> {
        let lower = dns_name.to_ascii_lowercase();
        let labels: Vec<&str> = lower.split('.').collect();
        let (last, labels) = labels.split_last()?;
        if *last != DOMAIN {
            return None;
        }
        Some(match labels {
            ["balancer", cluster] => Self::balancer(cluster),
            [name, role, cluster] => {
                let known =
                    PeerRole::ALL.into_iter().find(|r| r.as_str() == *role && *r != PeerRole::Balancer);
                known.ok_or_else(|| unknown_role(dns_name)).and_then(|role| Self::new(cluster, role, name))
            }
            _ => Err(unknown_role(dns_name)),
        })
    }

    /// Reads the names of a certificate, of which exactly one must be of this project.
    pub fn of_names<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Result<Self, Fault> {
        let mut ours = names.clone().filter_map(Self::parse);
        let Some(first) = ours.next() else {
            let names: Vec<&str> = names.collect();
            let text =
                format!("the certificate has no name of the form NAME.ROLE.CLUSTER.{DOMAIN}, only {names:?}");
            return Err(Fault::new(FaultCode::UnknownRole, text));
        };
        if ours.next().is_some() {
            let text = format!("the certificate has more than one name that ends in .{DOMAIN}");
            return Err(Fault::new(FaultCode::AmbiguousName, text));
        }
        first
    }

    /// Says whether this is a member of `cluster`.
    pub fn expect_cluster(self, cluster: &str) -> Result<Self, Fault> {
        if self.cluster == cluster {
            return Ok(self);
        }
        let text = format!("the certificate is of cluster {:?}, this is {cluster:?}", self.cluster);
        Err(Fault::new(FaultCode::WrongCluster, text))
    }

    /// The name in a certificate.
    pub fn dns_name(&self) -> String {
        match self.role {
            PeerRole::Balancer => format!("balancer.{}.{DOMAIN}", self.cluster),
            role => format!("{}.{}.{}.{DOMAIN}", self.name, role.as_str(), self.cluster),
        }
    }

    /// The node of an agent.
    pub fn node(&self) -> Option<NodeId> {
        (self.role == PeerRole::Agent)
            .then(|| NodeId::new(self.name.as_str()).expect("checked when it was made"))
    }
}

fn unknown_role(dns_name: &str) -> Fault {
    let roles: Vec<&str> = PeerRole::ALL.iter().map(|role| role.as_str()).collect();
    let text =
        format!("the certificate's name {dns_name:?} has no known role: known are {}", roles.join(", "));
    Fault::new(FaultCode::UnknownRole, text)
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            PeerRole::Balancer => f.write_str("balancer"),
            role => write!(f, "{}/{}", role.as_str(), self.name),
        }
    }
}

/// Who calls, as handlers and the audit see it: an extension of every request. Its text is `operator/alice`,
/// `agent/n-1`, `balancer`, `loopback`, `plaintext` or `anonymous`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    /// TLS is off, and the caller is on this host. It may do everything.
    Loopback,
    /// TLS is off by `insecure_plaintext`, and the caller is somewhere. It may do everything.
    Plaintext,
    /// TLS, and no certificate was shown: only probes are answered.
    Anonymous,
    /// The owner of a certificate of this cluster.
    Peer(PeerIdentity),
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Principal::Loopback => f.write_str("loopback"),
            Principal::Plaintext => f.write_str("plaintext"),
            Principal::Anonymous => f.write_str("anonymous"),
            Principal::Peer(identity) => identity.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(names: &[&str], expected: Result<&str, FaultCode>) {
        let found = PeerIdentity::of_names(names.iter().copied());
        let found = found.map(|id| format!("{id} of {}", id.cluster)).map_err(|fault| fault.code);
        assert_eq!(found, expected.map(str::to_owned), "{names:?}");
    }

    #[test]
    fn a_certificate_names_one_member_of_one_cluster() {
        check(&["n-1.agent.prod.evenkeel"], Ok("agent/n-1 of prod"));
        check(&["balancer.prod.evenkeel"], Ok("balancer of prod"));
        check(&["alice.viewer.prod.evenkeel"], Ok("viewer/alice of prod"));
        check(&["alice.operator.prod.evenkeel"], Ok("operator/alice of prod"));
        check(&["alice.admin.prod.evenkeel"], Ok("admin/alice of prod"));
        check(&["gw.gateway.prod.evenkeel"], Ok("gateway/gw of prod"));
        check(&["Balancer.PROD.Evenkeel"], Ok("balancer of prod"));
        check(&["balancer.example.com", "balancer.prod.evenkeel", "localhost"], Ok("balancer of prod"));
        check(&[], Err(FaultCode::UnknownRole));
        check(&["balancer.example.com"], Err(FaultCode::UnknownRole));
        check(&["alice.root.prod.evenkeel"], Err(FaultCode::UnknownRole));
        check(&["x.balancer.prod.evenkeel"], Err(FaultCode::UnknownRole));
        check(&["prod.evenkeel"], Err(FaultCode::UnknownRole));
        check(&["evenkeel"], Err(FaultCode::UnknownRole));
        check(&["a.b.agent.prod.evenkeel"], Err(FaultCode::UnknownRole));
        check(&["*.agent.prod.evenkeel"], Err(FaultCode::InvalidName));
        check(&[".agent.prod.evenkeel"], Err(FaultCode::InvalidName));
        check(&["-n.agent.prod.evenkeel"], Err(FaultCode::InvalidName));
        check(&["n.agent..evenkeel"], Err(FaultCode::InvalidName));
        check(&["a.viewer.prod.evenkeel", "a.admin.prod.evenkeel"], Err(FaultCode::AmbiguousName));
        check(&["a.viewer.prod.evenkeel", "a.root.prod.evenkeel"], Err(FaultCode::AmbiguousName));
    }

    #[test]
    fn a_name_that_is_written_is_read_back() {
        for role in PeerRole::ALL {
            let name = if role == PeerRole::Balancer { "" } else { "x-1" };
            let identity = PeerIdentity::new("prod", role, name).expect("valid");
            assert_eq!(PeerIdentity::parse(&identity.dns_name()), Some(Ok(identity)));
        }
    }

    #[test]
    fn only_an_agent_has_a_node() {
        let of = |role| PeerIdentity::new("c", role, "x").expect("valid").node();
        assert_eq!(of(PeerRole::Agent), Some(NodeId::new("x").expect("valid")));
        assert_eq!(of(PeerRole::Admin), None);
    }
}
