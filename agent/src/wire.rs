//! The agent's side of the protocol to and from its messages.

use evenkeel_core::ids::{Digest, Epoch, Term};
use evenkeel_core::plan::{Move, Plan};
use evenkeel_core::protocol::agent::{Command, NodeMove, Outcome, PlanId, Prepare, Reply};
use evenkeel_proto::{ConvertError, v1};
use evenkeel_worker::RankGauges;
use std::sync::Arc;

/// Longest deadline accepted: a larger one means that the sender has another unit in mind.
const DEADLINE_MS_MAX: u32 = 3_600_000;

/// Reads a command. An error means that it cannot even be answered: term, phase or id are missing. A PREPARE
/// that can be answered but not read becomes [`Command::Malformed`].
pub fn command(command: v1::PlanCommand) -> Result<Command, ConvertError> {
    let term: Term = command.term.ok_or_else(|| ConvertError::new("term", "is required"))?.into();
    let wire_id = command.id.as_ref().ok_or_else(|| ConvertError::new("id", "is required"))?;
    let id: PlanId = wire_id.try_into()?;
    match command.phase() {
        v1::PlanPhase::Commit => Ok(Command::Commit { term, id }),
        v1::PlanPhase::Abort => Ok(Command::Abort { term, id }),
        v1::PlanPhase::Prepare => Ok(match prepare(command, term, id) {
            Ok(prepare) => Command::Prepare(prepare),
            Err(error) => Command::Malformed { term, id, message: format!("{}: {error}", error.code()) },
        }),
        v1::PlanPhase::Unspecified => Err(ConvertError::new("phase", "is required")),
    }
}

fn prepare(command: v1::PlanCommand, term: Term, id: PlanId) -> Result<Prepare, ConvertError> {
    let plan = command.plan.as_ref().ok_or_else(|| ConvertError::new("plan", "is required by PREPARE"))?;
    let plan = Plan::try_from(plan)?;
    if (plan.epoch, plan.digest()) != id {
        return Err(ConvertError::new("id", "does not name the plan that came with it"));
    }
    let base = command.base.as_ref().ok_or_else(|| ConvertError::new("base", "is required by PREPARE"))?;
    if !(1..=DEADLINE_MS_MAX).contains(&command.deadline_ms) {
        let reason = format!("is {}: must be 1 to {DEADLINE_MS_MAX}", command.deadline_ms);
        return Err(ConvertError::new("deadline_ms", reason));
    }
    Ok(Prepare {
        term,
        plan: Arc::new(plan),
        base: base.try_into()?,
        moves: command.moves.iter().map(node_move).collect::<Result<_, _>>()?,
        peers: command.peers,
        deadline_ms: command.deadline_ms.into(),
    })
}

fn node_move(slot_move: &v1::SlotMove) -> Result<NodeMove, ConvertError> {
    Ok(NodeMove { slot: Move::try_from(slot_move)?, peer: slot_move.peer.map(|peer| peer as usize) })
}

/// Writes an answer.
pub fn result(reply: &Reply) -> v1::PlanResult {
    let mut result = v1::PlanResult {
        term: Some(reply.term.into()),
        id: Some(reply.id.into()),
        applied: reply.applied.map(Into::into),
        ..v1::PlanResult::default()
    };
    match &reply.outcome {
        Outcome::Prepared(tally) => {
            result.set_outcome(v1::PlanOutcome::Prepared);
            result.bytes_local = tally.bytes_local.0;
            result.bytes_from_peers = tally.bytes_from_peers.0;
            result.slots_verified = tally.slots_verified;
            result.elapsed_us = tally.elapsed_us;
        }
        Outcome::Applied { elapsed_us } => {
            result.set_outcome(v1::PlanOutcome::Applied);
            result.elapsed_us = *elapsed_us;
        }
        Outcome::Aborted => result.set_outcome(v1::PlanOutcome::Aborted),
        Outcome::Refused { code, message } => {
            result.set_outcome(v1::PlanOutcome::Refused);
            code.code().clone_into(&mut result.code);
            message.clone_into(&mut result.message);
        }
    }
    result
}

/// Outcome and code of an answer, as metric labels.
pub fn labels(outcome: &Outcome) -> (&'static str, &'static str) {
    match outcome {
        Outcome::Prepared(_) => ("prepared", ""),
        Outcome::Applied { .. } => ("applied", ""),
        Outcome::Aborted => ("aborted", ""),
        Outcome::Refused { code, .. } => ("refused", code.code()),
    }
}

/// Writes the engine state of a rank.
pub fn gauges(gauges: &RankGauges) -> v1::RankGauges {
    v1::RankGauges {
        rank: gauges.rank.0.into(),
        kv_used_tokens: gauges.kv_used_tokens,
        kv_total_tokens: gauges.kv_total_tokens,
        requests: gauges.requests,
        tokens_in_hit: gauges.tokens_in_hit,
        tokens_in_miss: gauges.tokens_in_miss,
        tokens_out: gauges.tokens_out,
        step_us_p50: gauges.step_us_p50,
        step_us_p99: gauges.step_us_p99,
    }
}

/// A plan's name for people.
pub fn name((epoch, digest): (Epoch, Digest)) -> String {
    format!("{epoch} ({})", digest.short())
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_core::ids::UnitId;
    use evenkeel_core::topology::{Role, UnitShape};

    fn order() -> v1::PlanCommand {
        let shape = UnitShape {
            role: Role::Decode,
            layers: 1,
            experts: 2,
            top_k: 1,
            ranks: 2,
            slots_per_rank: 1,
            spare_per_rank: 1,
            expert_bytes: 8,
        };
        let boot = Plan::boot(UnitId::new("u").unwrap(), &shape);
        let plan = boot.child(boot.layers.clone());
        v1::PlanCommand {
            term: Some(Term { generation: 0, revision: 1 }.into()),
            phase: v1::PlanPhase::Prepare.into(),
            id: Some((plan.epoch, plan.digest()).into()),
            base: Some((boot.epoch, boot.digest()).into()),
            plan: Some((&plan).into()),
            moves: vec![v1::SlotMove::default()],
            peers: Vec::new(),
            deadline_ms: 1000,
        }
    }

    #[track_caller]
    fn check_malformed(field: &str, break_it: impl Fn(&mut v1::PlanCommand)) {
        let mut broken = order();
        break_it(&mut broken);
        match command(broken) {
            Ok(Command::Malformed { message, .. }) => assert!(message.contains(field), "{message}"),
            Err(error) => assert_eq!(error.field, field),
            Ok(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_malformed_command_names_the_field() {
        assert!(matches!(command(order()), Ok(Command::Prepare(_))));
        check_malformed("term", |c| c.term = None);
        check_malformed("id", |c| c.id = None);
        check_malformed("phase", |c| c.phase = 9);
        check_malformed("plan", |c| c.plan = None);
        check_malformed("base", |c| c.base = None);
        check_malformed("id", |c| c.id = c.base.clone());
        check_malformed("digest", |c| c.plan.as_mut().unwrap().layers[0].share.swap(0, 1));
        check_malformed("deadline_ms", |c| c.deadline_ms = 0);
        check_malformed("layer", |c| c.moves[0].layer = 70_000);
    }
}
