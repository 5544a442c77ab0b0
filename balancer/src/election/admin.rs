//! The verbs of operators about the lead, and what a standby answers to those who want changes.

use super::{ElectionHandle, HandOverError, View};
use evenkeel_core::protocol::election::State;
use evenkeel_proto::v1::{
    AdoptLeaderRequest, AdoptLeaderResponse, BalancerState, GetLeaderResponse, Standby,
    TransferLeaderRequest, TransferLeaderResponse,
};
use tonic::Status;

/// The metadata of a `not_leader` answer: the leader's admin address.
pub const LEADER_METADATA: &str = "evenkeel-leader";

/// Who leads, as far as this balancer knows.
pub fn show(election: &ElectionHandle) -> GetLeaderResponse {
    let view = election.view();
    let leader = view.leader.as_ref();
    let standbys = election.standbys().into_iter();
    GetLeaderResponse {
        balancer: view.name.clone(),
        state: state(view.state).into(),
        leader: leader.map(|leader| leader.record.balancer.clone()).unwrap_or_default(),
        address: leader.map(|leader| leader.record.address.clone()).unwrap_or_default(),
        lease: leader.map(|leader| leader.record.lease.0).unwrap_or_default(),
        admin_address: view.leader_admin.clone().unwrap_or_default(),
        term: view.leader_term.map(Into::into),
        since_ms: view.since_ms,
        standbys: standbys
            .map(|standby| Standby { balancer: standby.name, address: standby.address })
            .collect(),
        highest_term: Some(view.highest.into()),
    }
}

fn state(state: Option<State>) -> BalancerState {
    match state {
        None => BalancerState::Unspecified,
        Some(State::Standby | State::Campaigning | State::Resigning) => BalancerState::Standby,
        Some(State::Leading { .. }) => BalancerState::Leading,
        Some(State::Frozen { .. }) => BalancerState::Frozen,
        Some(State::Behind { .. }) => BalancerState::NotAdopted,
    }
}

/// Makes another balancer lead.
pub async fn transfer(
    election: &ElectionHandle,
    request: TransferLeaderRequest,
) -> Result<TransferLeaderResponse, Status> {
    let view = election.view();
    let to = (!request.to.is_empty()).then_some(request.to);
    if to.as_ref() == Some(&view.name) && view.term().is_some() {
        return Ok(TransferLeaderResponse { leader: view.name });
    }
    let leader = election.hand_over(to).await.map_err(|error| match error {
        HandOverError::NotLeader => not_leader(&election.view()),
        error => Status::failed_precondition(format!("{}: {error}", error.code())),
    })?;
    tracing::info!(leader, "the lead was handed over by an operator");
    Ok(TransferLeaderResponse { leader })
}

/// Adopts a store whose revisions began again.
pub async fn adopt(
    election: &ElectionHandle,
    request: AdoptLeaderRequest,
    who: String,
) -> Result<AdoptLeaderResponse, Status> {
    let view = election.view();
    let Some(term) = view.term() else { return Err(not_leader(&view)) };
    if view.highest <= term && !request.force {
        let text = format!(
            "adopt_not_needed: no term above {term} has been seen by this store, this balancer or an agent, so commands of this leader are accepted; with --force the generation is raised all the same"
        );
        return Err(Status::failed_precondition(text));
    }
    let adopted = election.adopt(who).await;
    let term = adopted.map_err(|error| Status::aborted(format!("{}: {error}", error.code())))?;
    tracing::warn!(%term, "the store was adopted by an operator");
    Ok(AdoptLeaderResponse { term: Some(term.into()) })
}

/// Refuses what only the leader may do, and says where the leader is.
pub fn not_leader(view: &View) -> Status {
    let who = match (&view.leader, view.state) {
        (_, Some(State::Behind { .. })) => {
            "the store's revisions began again: `evenkeel leader adopt` first".to_owned()
        }
        (Some(leader), _) => {
            let admin = view.leader_admin.as_deref().unwrap_or("not known yet");
            format!("{} leads, admin address {admin}", leader.record.balancer)
        }
        (None, _) => "nobody leads at this moment: try again".to_owned(),
    };
    let mut status = Status::failed_precondition(format!("not_leader: this balancer stands by; {who}"));
    let behind = matches!(view.state, Some(State::Behind { .. }));
    if let Some(address) = view.leader_admin.as_ref().filter(|_| !behind).and_then(|a| a.parse().ok()) {
        status.metadata_mut().insert(LEADER_METADATA, address);
    }
    status
}
