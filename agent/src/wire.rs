//! The agent's side of the protocol to and from its messages.

use evenkeel_core::ids::{Digest, Epoch, Term};
use evenkeel_core::plan::{Move, Plan};
use evenkeel_core::protocol::agent::{
    BalancerRole, Command, NodeMove, Outcome, PlanId, Prepare, RefusalCode, Reply,
};
use evenkeel_proto::plan_content::{Assembler, Content};
use evenkeel_proto::{ConvertError, v1};
use evenkeel_worker::{RankGauges, WorkerEvent};
use std::sync::Arc;

/// Longest deadline accepted: a larger one means that the sender has another unit in mind.
const DEADLINE_MS_MAX: u32 = 3_600_000;

/// A command as far as it can be read without knowing what is in service.
#[derive(Debug)]
pub enum Order {
    /// Nothing more is needed.
    Command(Command),
    /// PREPARE, all chunks of its content together.
    Prepare(Box<UnreadPrepare>),
}

/// See [`Order::Prepare`].
#[derive(Debug)]
pub struct UnreadPrepare {
    term: Term,
    id: PlanId,
    content: Content,
    rest: v1::PlanCommand,
}

/// Reads the commands of one stream.
#[derive(Debug, Default)]
pub struct Orders {
    assembler: Assembler,
}

impl Orders {
    /// Reads a command; nothing comes of one that carries only a part of a plan. An error means that it
    /// cannot even be answered: term, phase or id are missing. A PREPARE that can be answered but not read
    /// becomes [`Command::Unreadable`].
    pub fn read(&mut self, mut command: v1::PlanCommand) -> Result<Option<Order>, ConvertError> {
        let term: Term = command.term.ok_or_else(|| ConvertError::new("term", "is required"))?.into();
        let wire_id = command.id.as_ref().ok_or_else(|| ConvertError::new("id", "is required"))?;
        let id: PlanId = wire_id.try_into()?;
        let phase = command.phase();
        if phase != v1::PlanPhase::Prepare {
            // Whatever was sent of a plan, it is not going to be finished.
            self.assembler.clear();
        }
        let order = match phase {
            v1::PlanPhase::Commit => Order::Command(Command::Commit { term, id }),
            v1::PlanPhase::Abort => Order::Command(Command::Abort { term, id }),
            v1::PlanPhase::Prepare => match command.content.take() {
                None => Order::Command(unchunked(command, term, id)),
                Some(chunk) => match self.assembler.push(id, chunk) {
                    Ok(None) => return Ok(None),
                    Ok(Some(content)) => {
                        Order::Prepare(Box::new(UnreadPrepare { term, id, content, rest: command }))
                    }
                    Err(error) => Order::Command(unreadable(term, id, error.code(), &error)),
                },
            },
            v1::PlanPhase::Unspecified => return Err(ConvertError::new("phase", "is required")),
        };
        Ok(Some(order))
    }
}

impl Order {
    /// The command, read with the plan that is in service now: a difference starts from it.
    pub fn command(self, in_service: Option<(PlanId, &Plan)>) -> Command {
        match self {
            Order::Command(command) => command,
            Order::Prepare(unread) => unread.command(in_service),
        }
    }
}

impl UnreadPrepare {
    fn command(self, in_service: Option<(PlanId, &Plan)>) -> Command {
        let Self { term, id, content, rest } = self;
        let base = match base(&rest) {
            Ok(base) => base,
            Err(error) => return unreadable(term, id, error.code(), &error),
        };
        let known = in_service.filter(|(name, _)| *name == base);
        if content.is_delta() && known.is_none() {
            let serves = in_service.map_or("no plan".to_owned(), |(id, _)| format!("plan {}", name(id)));
            let message =
                format!("the plan is a difference to plan {}, but {serves} is in service", name(base));
            return Command::Unreadable { term, id, code: RefusalCode::BaseMismatch, message };
        }
        match content.plan(known.map(|(_, plan)| plan)) {
            Ok(plan) => prepare(rest, term, id, Arc::new(plan)),
            Err(error) if content.is_delta() => {
                let message = format!("{}: {error}", error.code());
                Command::Unreadable { term, id, code: RefusalCode::DeltaMismatch, message }
            }
            Err(error) => unreadable(term, id, error.code(), &error),
        }
    }
}

fn unreadable(term: Term, id: PlanId, code: &str, error: &dyn std::fmt::Display) -> Command {
    let message = format!("{code}: {error}");
    Command::Unreadable { term, id, code: RefusalCode::InvalidPlan, message }
}

/// PREPARE of version 1.
fn unchunked(mut command: v1::PlanCommand, term: Term, id: PlanId) -> Command {
    let plan = command.plan.take().ok_or_else(|| ConvertError::new("plan", "is required by PREPARE"));
    let named = |plan: Plan| match (plan.epoch, plan.digest()) == id {
        true => Ok(plan),
        false => Err(ConvertError::new("id", "does not name the plan that came with it")),
    };
    match plan.and_then(|plan| Plan::try_from(&plan)).and_then(named) {
        Ok(plan) => prepare(command, term, id, Arc::new(plan)),
        Err(error) => unreadable(term, id, error.code(), &error),
    }
}

fn base(command: &v1::PlanCommand) -> Result<PlanId, ConvertError> {
    command.base.as_ref().ok_or_else(|| ConvertError::new("base", "is required by PREPARE"))?.try_into()
}

/// PREPARE of a plan that has been read.
fn prepare(command: v1::PlanCommand, term: Term, id: PlanId, plan: Arc<Plan>) -> Command {
    match read_prepare(command, term, plan) {
        Ok(prepare) => Command::Prepare(prepare),
        Err(error) => unreadable(term, id, error.code(), &error),
    }
}

fn read_prepare(command: v1::PlanCommand, term: Term, plan: Arc<Plan>) -> Result<Prepare, ConvertError> {
    if !(1..=DEADLINE_MS_MAX).contains(&command.deadline_ms) {
        let reason = format!("is {}: must be 1 to {DEADLINE_MS_MAX}", command.deadline_ms);
        return Err(ConvertError::new("deadline_ms", reason));
    }
    Ok(Prepare {
        term,
        plan,
        base: base(&command)?,
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

/// Writes what a worker tells.
pub fn event(event: &WorkerEvent) -> v1::Event {
    let (kind, rank, message) = match event {
        WorkerEvent::RankDown { rank, message } => (v1::EventKind::RankDown, Some(rank), message),
        WorkerEvent::OutOfMemory { rank, message } => (v1::EventKind::OutOfMemory, Some(rank), message),
        WorkerEvent::Drain { message } => (v1::EventKind::Drain, None, message),
        WorkerEvent::Hung { message } => (v1::EventKind::WorkerHung, None, message),
    };
    v1::Event { kind: kind.into(), rank: rank.map(|rank| rank.0.into()), message: message.clone() }
}

/// What a balancer is; one of version 1 leads.
pub fn role(welcome: &v1::Welcome) -> BalancerRole {
    match welcome.role() {
        v1::BalancerRole::Standby => BalancerRole::Standby,
        v1::BalancerRole::Leader | v1::BalancerRole::Unspecified => BalancerRole::Leader,
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
    use evenkeel_proto::plan_content::Encoded;

    fn plans() -> [Plan; 2] {
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
        let mut layers = boot.layers.clone();
        layers[0].share.swap(0, 1);
        let plan = boot.child(layers);
        [boot, plan]
    }

    fn id(plan: &Plan) -> PlanId {
        (plan.epoch, plan.digest())
    }

    /// PREPARE without its content.
    fn order() -> v1::PlanCommand {
        let [boot, plan] = plans();
        v1::PlanCommand {
            term: Some(Term { generation: 0, revision: 1 }.into()),
            phase: v1::PlanPhase::Prepare.into(),
            id: Some(id(&plan).into()),
            base: Some(id(&boot).into()),
            moves: vec![v1::SlotMove::default()],
            deadline_ms: 1000,
            ..v1::PlanCommand::default()
        }
    }

    fn version_1() -> v1::PlanCommand {
        v1::PlanCommand { plan: Some((&plans()[1]).into()), ..order() }
    }

    fn delta() -> v1::PlanCommand {
        let [boot, plan] = plans();
        let content = Encoded::delta(&plan, &boot).unwrap().unwrap().chunks().next();
        v1::PlanCommand { content, ..order() }
    }

    fn full() -> v1::PlanCommand {
        let content = Encoded::full(&plans()[1]).unwrap().chunks().next();
        v1::PlanCommand { content, ..order() }
    }

    /// Reads a command while the boot plan is in service.
    fn command(wire: v1::PlanCommand) -> Result<Command, ConvertError> {
        let [boot, _] = plans();
        let order = Orders::default().read(wire)?.expect("one command is all");
        Ok(order.command(Some((id(&boot), &boot))))
    }

    #[track_caller]
    fn check_malformed(wire: v1::PlanCommand, field: &str, break_it: impl Fn(&mut v1::PlanCommand)) {
        let mut broken = wire;
        break_it(&mut broken);
        match command(broken) {
            Ok(Command::Unreadable { message, .. }) => assert!(message.contains(field), "{message}"),
            Err(error) => assert_eq!(error.field, field),
            Ok(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_malformed_command_names_the_field() {
        for wire in [version_1, delta, full] {
            match command(wire()) {
                Ok(Command::Prepare(prepare)) => assert_eq!(*prepare.plan, plans()[1]),
                other => panic!("{other:?}"),
            }
            check_malformed(wire(), "term", |c| c.term = None);
            check_malformed(wire(), "id", |c| c.id = None);
            check_malformed(wire(), "phase", |c| c.phase = 9);
            check_malformed(wire(), "base", |c| c.base = None);
            check_malformed(wire(), "deadline_ms", |c| c.deadline_ms = 0);
            check_malformed(wire(), "layer", |c| c.moves[0].layer = 70_000);
        }
        check_malformed(version_1(), "plan", |c| c.plan = None);
        check_malformed(version_1(), "id", |c| c.id = c.base.clone());
        check_malformed(version_1(), "digest", |c| c.plan.as_mut().unwrap().layers[0].share.swap(0, 1));
        check_malformed(full(), "content_other_plan", |c| c.id = Some((Epoch(1), Digest([0; 32])).into()));
        check_malformed(full(), "content_bad_chunk", |c| c.content.as_mut().unwrap().count = 0);
    }

    #[track_caller]
    fn check_code(wire: v1::PlanCommand, in_service: Option<&Plan>, expected: RefusalCode) {
        let order = Orders::default().read(wire).unwrap().unwrap();
        match order.command(in_service.map(|plan| (id(plan), plan))) {
            Command::Unreadable { code, .. } => assert_eq!(code, expected),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_difference_needs_its_base_and_must_lead_to_the_plan() {
        let [boot, plan] = plans();
        check_code(delta(), None, RefusalCode::BaseMismatch);
        check_code(delta(), Some(&plan), RefusalCode::BaseMismatch);
        let other = Some((Epoch(1), Digest([0; 32])).into());
        check_code(v1::PlanCommand { id: other.clone(), ..delta() }, Some(&boot), RefusalCode::DeltaMismatch);
        check_code(v1::PlanCommand { id: other, ..full() }, Some(&boot), RefusalCode::InvalidPlan);
    }

    #[test]
    fn nothing_comes_of_a_plan_until_all_of_it_is_there() {
        let mut orders = Orders::default();
        let part = || {
            let mut part = full();
            part.content.as_mut().unwrap().count = 2;
            part
        };
        assert!(orders.read(part()).unwrap().is_none());
        let abort = v1::PlanCommand { phase: v1::PlanPhase::Abort.into(), content: None, ..order() };
        assert!(orders.read(abort).unwrap().is_some());
        let mut rest = part();
        rest.content.as_mut().unwrap().index = 1;
        match orders.read(rest).unwrap() {
            Some(Order::Command(Command::Unreadable { message, .. })) => {
                assert!(message.starts_with("content_chunk_order"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
}
