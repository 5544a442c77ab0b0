//! Who may call what: every method of every service, and what its caller must be. What is not here is denied.

use crate::fault::{Fault, FaultCode};
use crate::identity::{PeerRole, Principal};

/// What a caller must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A viewer, or more: operators may do what viewers may, admins what operators may.
    Viewer,
    /// An operator, or more.
    Operator,
    /// An admin.
    Admin,
    /// A gateway, and nobody else.
    Gateway,
    /// An agent, and nobody else.
    Agent,
    /// A balancer, and nobody else.
    Balancer,
}

impl Need {
    fn is_met_by(self, role: PeerRole) -> bool {
        let person = |least: u8| rank(role).is_some_and(|rank| rank >= least);
        match self {
            Need::Viewer => person(0),
            Need::Operator => person(1),
            Need::Admin => person(2),
            Need::Gateway => role == PeerRole::Gateway,
            Need::Agent => role == PeerRole::Agent,
            Need::Balancer => role == PeerRole::Balancer,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Need::Viewer => "viewer",
            Need::Operator => "operator",
            Need::Admin => "admin",
            Need::Gateway => "gateway",
            Need::Agent => "agent",
            Need::Balancer => "balancer",
        }
    }
}

/// viewer < operator < admin; processes have no rank.
fn rank(role: PeerRole) -> Option<u8> {
    match role {
        PeerRole::Viewer => Some(0),
        PeerRole::Operator => Some(1),
        PeerRole::Admin => Some(2),
        PeerRole::Agent | PeerRole::Balancer | PeerRole::Gateway => None,
    }
}

/// The table.
pub const VERBS: &[(&str, Need)] = &[
    ("/evenkeel.v1.AgentService/Sync", Need::Agent),
    ("/evenkeel.v1.PeerService/Attend", Need::Balancer),
    ("/evenkeel.v1.RoutingService/Route", Need::Gateway),
    ("/evenkeel.v1.AdminService/GetStatus", Need::Viewer),
    ("/evenkeel.v1.AdminService/ListPlans", Need::Viewer),
    ("/evenkeel.v1.AdminService/GetPlan", Need::Viewer),
    ("/evenkeel.v1.AdminService/GetLoads", Need::Viewer),
    ("/evenkeel.v1.AdminService/GetRankLoads", Need::Viewer),
    ("/evenkeel.v1.AdminService/Pause", Need::Operator),
    ("/evenkeel.v1.AdminService/Resume", Need::Operator),
    ("/evenkeel.v1.AdminService/Drain", Need::Operator),
    ("/evenkeel.v1.AdminService/Undrain", Need::Operator),
    ("/evenkeel.v1.AdminService/Pin", Need::Operator),
    ("/evenkeel.v1.AdminService/Unpin", Need::Operator),
    ("/evenkeel.v1.AdminService/Rollback", Need::Operator),
    ("/evenkeel.v1.AdminService/AbortPlan", Need::Operator),
    ("/evenkeel.v1.AdminService/ListAudit", Need::Viewer),
    ("/evenkeel.v1.AdminService/GetLeader", Need::Viewer),
    ("/evenkeel.v1.AdminService/TransferLeader", Need::Operator),
    ("/evenkeel.v1.AdminService/AdoptLeader", Need::Admin),
    ("/evenkeel.v1.SimulatedEngineService/Step", Need::Operator),
    ("/evenkeel.v1.SimulatedEngineService/Disturb", Need::Operator),
    ("/grpc.health.v1.Health/Check", Need::Viewer),
    ("/grpc.health.v1.Health/Watch", Need::Viewer),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Need::Viewer),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Need::Viewer),
];

/// Says whether `caller` may call the method at `path`, as `/package.Service/Method`.
pub fn authorise(path: &str, caller: &Principal) -> Result<(), Fault> {
    let need = VERBS.iter().find(|(verb, _)| *verb == path).map(|(_, need)| *need);
    check(path, need, caller)
}

/// Says whether `caller` may see what a viewer may.
pub fn authorise_viewer(path: &str, caller: &Principal) -> Result<(), Fault> {
    check(path, Some(Need::Viewer), caller)
}

fn check(path: &str, need: Option<Need>, caller: &Principal) -> Result<(), Fault> {
    let identity = match caller {
        Principal::Loopback | Principal::Plaintext => return Ok(()),
        Principal::Anonymous => {
            return Err(Fault::new(FaultCode::Missing, format!("{path} needs a certificate")));
        }
        Principal::Peer(identity) => identity,
    };
    match need {
        Some(need) if need.is_met_by(identity.role) => Ok(()),
        Some(need) => {
            let text = format!("{path} needs the role {}, the caller is {identity}", need.as_str());
            Err(Fault::new(FaultCode::Forbidden, text))
        }
        // Paths are the caller's words: cut, so that they do not fill logs.
        None => {
            let path: String = path.chars().take(120).collect();
            Err(Fault::new(FaultCode::Forbidden, format!("{path:?} is no method of this version")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PeerIdentity;
    use prost::Message as _;

    fn peer(role: PeerRole) -> Principal {
        let name = if role == PeerRole::Balancer { "" } else { "x" };
        Principal::Peer(PeerIdentity::new("c", role, name).expect("valid"))
    }

    /// Which roles may call it.
    #[track_caller]
    fn check(path: &str, expected: &[PeerRole]) {
        let may = |role: &PeerRole| authorise(path, &peer(*role)).is_ok();
        let found: Vec<PeerRole> = PeerRole::ALL.into_iter().filter(may).collect();
        assert_eq!(found, expected, "{path}");
    }

    #[test]
    fn each_method_is_for_its_roles_and_no_others() {
        use PeerRole::{Admin, Agent, Balancer, Gateway, Operator, Viewer};
        check("/evenkeel.v1.AdminService/GetStatus", &[Viewer, Operator, Admin]);
        check("/evenkeel.v1.AdminService/Pause", &[Operator, Admin]);
        check("/evenkeel.v1.RoutingService/Route", &[Gateway]);
        check("/evenkeel.v1.AgentService/Sync", &[Agent]);
        check("/evenkeel.v1.PeerService/Attend", &[Balancer]);
        check("/evenkeel.v1.AdminService/AdoptLeader", &[Admin]);
        check("/evenkeel.v1.AdminService/DeleteEverything", &[]);
        check("/evenkeel.v1.AdminService/getstatus", &[]);
        check("/evenkeel.v1.AdminService/GetStatus/", &[]);
        check("", &[]);
        check("/", &[]);
    }

    #[test]
    fn needs_are_ordered() {
        let may = |need: Need| PeerRole::ALL.into_iter().filter(|role| need.is_met_by(*role)).count();
        assert_eq!([Need::Viewer, Need::Operator, Need::Admin].map(may), [3, 2, 1]);
    }

    #[test]
    fn without_tls_everything_is_allowed_and_without_a_certificate_nothing() {
        assert_eq!(authorise("/anything", &Principal::Loopback), Ok(()));
        assert_eq!(authorise("/anything", &Principal::Plaintext), Ok(()));
        let refused = authorise("/evenkeel.v1.AdminService/GetStatus", &Principal::Anonymous);
        assert_eq!(refused.unwrap_err().code, FaultCode::Missing);
    }

    #[test]
    fn a_refusal_names_the_role_that_is_needed() {
        let refused = authorise("/evenkeel.v1.AdminService/Pause", &peer(PeerRole::Viewer)).unwrap_err();
        assert_eq!(refused.code, FaultCode::Forbidden);
        assert!(refused.text.contains("needs the role operator, the caller is viewer/x"), "{refused}");
    }

    #[test]
    fn every_method_of_the_descriptor_set_is_in_the_table() {
        let set = prost_types::FileDescriptorSet::decode(evenkeel_proto::DESCRIPTOR_SET).expect("ours");
        let methods = set.file.iter().flat_map(|file| {
            file.service.iter().flat_map(|service| {
                service
                    .method
                    .iter()
                    .map(|method| format!("/{}.{}/{}", file.package(), service.name(), method.name()))
            })
        });
        let methods: Vec<String> = methods.collect();
        assert!(!methods.is_empty());
        for method in &methods {
            assert!(VERBS.iter().any(|(verb, _)| verb == method), "{method} is in no row: who may call it?");
        }
        for (verb, _) in VERBS.iter().filter(|(verb, _)| verb.starts_with("/evenkeel.")) {
            assert!(methods.iter().any(|method| method == verb), "{verb} does not exist");
        }
    }
}
