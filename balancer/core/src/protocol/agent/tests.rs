mod schedules;

use super::*;
use crate::ids::{Digest, Epoch, ExpertId, LayerId};
use crate::plan::{LayerPlan, Move};
use crate::topology::Role;

fn shape() -> UnitShape {
    UnitShape {
        role: Role::Decode,
        layers: 1,
        experts: 4,
        top_k: 1,
        ranks: 4,
        slots_per_rank: 2,
        spare_per_rank: 1,
        expert_bytes: 8,
    }
}

fn unit() -> UnitId {
    UnitId::new("u").unwrap()
}

/// Streams to two balancers, and a later one to the first.
const FIRST: StreamId = StreamId(1);
const SECOND: StreamId = StreamId(2);
const LATER: StreamId = StreamId(3);

/// The agent of ranks 0 and 1, with two streams.
fn agent(applied: Option<Plan>) -> Agent {
    let ranks = vec![Rank(0), Rank(1)];
    let topology = node_view(unit(), shape(), &NodeId::new("a").unwrap(), &ranks).unwrap();
    let mut agent = Agent::new(topology, ranks, Term::default(), applied.map(Arc::new));
    for stream in [FIRST, SECOND] {
        assert_eq!(agent.on(Event::Connected { stream }, Millis(0)), []);
    }
    agent
}

/// Feeds one event and what follows from it on a disk that takes everything.
fn drive(agent: &mut Agent, event: Event, now: Millis) -> Vec<Action> {
    let mut actions = agent.on(event, now);
    let outcome = match actions.last() {
        Some(Action::PersistTerm(_)) => Event::TermPersisted,
        Some(Action::PersistPlan { .. }) => Event::PlanPersisted,
        Some(Action::PersistStaged(_)) => Event::StagedPersisted,
        _ => return actions,
    };
    actions.extend(agent.on(outcome, now));
    actions
}

fn layer(text: &str) -> LayerPlan {
    LayerPlan::even(text.split_whitespace().map(|s| s.parse().ok().map(ExpertId)).collect(), 4)
}

fn boot() -> Plan {
    let plan = Plan::boot(unit(), &shape());
    assert_eq!(plan.layers[0], layer("0 1 - 2 3 - 0 1 - 2 3 -"));
    plan
}

/// Rank 0 exchanges expert 1 for expert 2, rank 1 gets nothing.
fn next() -> Plan {
    boot().child(vec![layer("0 - 2 2 3 - 0 1 - 2 3 -")])
}

/// Another child of the boot plan: rank 1 exchanges expert 3 for expert 1, from the other node.
fn rival() -> Plan {
    boot().child(vec![layer("0 1 - 2 - 1 0 1 - 2 3 -")])
}

fn id(plan: &Plan) -> PlanId {
    (plan.epoch, plan.digest())
}

fn term(revision: u64) -> Term {
    Term { generation: 0, revision }
}

fn bring(destination: u32, expert: u16, source: u32, peer: Option<usize>) -> NodeMove {
    NodeMove { slot: Move { layer: LayerId(0), destination, expert: ExpertId(expert), source }, peer }
}

fn moves_of(plan: &Plan) -> Vec<NodeMove> {
    match plan {
        plan if *plan == next() => vec![bring(2, 2, 3, None)],
        plan if *plan == rival() => vec![bring(5, 1, 7, Some(0))],
        _ => Vec::new(),
    }
}

fn prepare(revision: u64, plan: &Plan, base: &Plan) -> Prepare {
    Prepare {
        term: term(revision),
        plan: Arc::new(plan.clone()),
        base: id(base),
        moves: moves_of(plan),
        peers: vec!["127.0.0.1:1".into()],
        deadline_ms: 100,
    }
}

fn order(revision: u64, plan: &Plan) -> Event {
    on(FIRST, Command::Prepare(prepare(revision, plan, &boot())))
}

fn commit(revision: u64, plan: &Plan) -> Event {
    on(FIRST, Command::Commit { term: term(revision), id: id(plan) })
}

fn abort(revision: u64, plan: &Plan) -> Event {
    on(FIRST, Command::Abort { term: term(revision), id: id(plan) })
}

fn on(stream: StreamId, command: Command) -> Event {
    Event::Command { stream, command }
}

/// The same order, on another stream.
fn moved(stream: StreamId, event: Event) -> Event {
    match event {
        Event::Command { command, .. } => Event::Command { stream, command },
        other => panic!("{other:?} is no command"),
    }
}

fn leader(stream: StreamId, revision: u64) -> Event {
    Event::Welcomed { stream, role: BalancerRole::Leader, term: term(revision), boot_plan: None }
}

fn standby(stream: StreamId, revision: u64) -> Event {
    Event::Welcomed { stream, role: BalancerRole::Standby, term: term(revision), boot_plan: None }
}

fn closed(stream: StreamId) -> Event {
    Event::Disconnected { stream }
}

fn term_lost() -> Event {
    Event::TermNotPersisted { code: RefusalCode::DiskFull, message: "no room".into() }
}

fn plan_lost() -> Event {
    Event::PlanNotPersisted { code: RefusalCode::DiskFull, message: "no room".into() }
}

fn staged_lost() -> Event {
    Event::StagedNotPersisted { code: RefusalCode::DiskFull, message: "no room".into() }
}

fn staged(attempt: u64) -> Event {
    Event::Staged { attempt, tally: Tally { slots_verified: 1, ..Tally::default() } }
}

/// Names an action briefly: `term 3`, `stage 1`, `prepared 1`, `stale_term 1` (the epoch answered for);
/// what goes to another stream than the first has that stream's number behind.
fn brief(action: &Action) -> String {
    match action {
        Action::PersistTerm(term) => format!("term {}", term.revision),
        Action::PersistPlan { plan, before: None } => format!("persist {}", plan.epoch),
        Action::PersistPlan { plan, before: Some(before) } => {
            format!("persist {} after {}", plan.epoch, before.epoch)
        }
        Action::PersistStaged(plan) => format!("keep {}", plan.epoch),
        Action::Boot(plan) => format!("boot {}", plan.epoch),
        Action::Stage { attempt, .. } => format!("stage {attempt}"),
        Action::Unstage { attempt } => format!("unstage {attempt}"),
        Action::Flip { attempt, .. } => format!("flip {attempt}"),
        Action::CloseStream { stream, .. } => format!("close{}", at(*stream)),
        Action::Introduce { stream } => format!("introduce{}", at(*stream)),
        Action::Reply { stream, reply } => {
            let outcome = match &reply.outcome {
                Outcome::Prepared(_) => "prepared",
                Outcome::Applied { .. } => "applied",
                Outcome::Aborted => "aborted",
                Outcome::Refused { code, .. } => code.code(),
            };
            format!("{outcome} {}{}", reply.id.0, at(*stream))
        }
    }
}

fn at(stream: StreamId) -> String {
    if stream == FIRST { String::new() } else { format!(" to {}", stream.0) }
}

/// Feeds events at time 0 to an agent that serves the boot plan; the last one must lead to `expected`.
#[track_caller]
fn check(events: &[Event], expected: &str) -> Agent {
    check_at(events, Millis(0), expected)
}

#[track_caller]
fn check_at(events: &[Event], last_at: Millis, expected: &str) -> Agent {
    let mut agent = agent(Some(boot()));
    let (last, before) = events.split_last().unwrap();
    for event in before {
        drive(&mut agent, event.clone(), Millis(0));
    }
    let actions: Vec<_> = drive(&mut agent, last.clone(), last_at).iter().map(brief).collect();
    assert_eq!(actions.join(", "), expected);
    agent
}

/// Feeds events one by one, each with what it must lead to, at the times given; nothing is persisted but by
/// events.
#[track_caller]
fn check_steps(agent: &mut Agent, steps: &[(Event, u64, &str)]) {
    for (event, at, expected) in steps {
        let actions: Vec<_> = agent.on(event.clone(), Millis(*at)).iter().map(brief).collect();
        assert_eq!(actions.join(", "), *expected, "{event:?}");
    }
}

#[test]
fn a_plan_is_staged_then_flipped_then_persisted_then_answered() {
    check(&[order(1, &next())], "term 1, stage 1");
    check(&[order(1, &next()), staged(1)], "keep 1, prepared 1");
    check(&[order(1, &next()), staged(1), commit(1, &next())], "flip 1");
    let flipped = Event::Flipped { attempt: 1, elapsed_us: 5 };
    let done = [order(1, &next()), staged(1), commit(1, &next()), flipped];
    let agent = check(&done, "persist 1 after 0, applied 1");
    assert_eq!(agent.applied(), Some(id(&next())));
}

#[test]
fn a_lower_term_is_refused_for_every_command() {
    for late in [order(4, &next()), commit(4, &next()), abort(4, &next())] {
        check(&[order(5, &next()), staged(1), late], "stale_term 1");
    }
    check(&[order(5, &next()), leader(SECOND, 4)], "close to 2");
    check(&[order(5, &next()), standby(SECOND, 4)], "");
}

#[test]
fn answers_go_to_the_leader_on_whatever_stream_it_is() {
    let later = [Event::Connected { stream: LATER }, leader(LATER, 1)];
    check(&[order(1, &next()), moved(SECOND, commit(0, &next()))], "stale_term 1 to 2");
    check(&[order(1, &next()), moved(SECOND, order(2, &next()))], "term 2, unstage 1, stage 2");
    check(&[order(1, &next()), leader(SECOND, 2), staged(1)], "keep 1, prepared 1 to 2");
    check(&[order(1, &next()), standby(SECOND, 2), staged(1)], "keep 1");
    check(&[order(1, &next()), closed(FIRST), staged(1)], "keep 1");
    check(
        &[&[order(1, &next()), closed(FIRST)], &later[..], &[staged(1)]].concat(),
        "keep 1, prepared 1 to 3",
    );
    check(&[order(1, &next()), standby(FIRST, 1), staged(1)], "keep 1");
    check(&[order(1, &next()), closed(SECOND), staged(1)], "keep 1, prepared 1");
    check(&[closed(SECOND), moved(SECOND, order(1, &next()))], "");
    check(&[closed(SECOND), leader(SECOND, 1)], "");
}

#[test]
fn a_stream_whose_balancer_becomes_the_leader_is_introduced_to_again() {
    check(&[standby(FIRST, 1), leader(FIRST, 2)], "term 2, introduce");
    check(&[standby(FIRST, 1), leader(FIRST, 1)], "introduce");
    check(&[leader(FIRST, 1), standby(FIRST, 1)], "introduce");
    check(&[leader(FIRST, 1), leader(SECOND, 2)], "term 2");
    check(&[leader(FIRST, 1), leader(SECOND, 2), order(1, &next())], "stale_term 1");
}

#[test]
fn a_welcome_that_comes_after_a_boot_with_another_balancer_is_answered_with_a_new_hello() {
    check_steps(
        &mut agent(None),
        &[
            (leader(FIRST, 1), 0, "term 1"),
            (Event::TermPersisted, 0, "boot 0"),
            (Event::Booted, 0, "persist 0"),
            (Event::PlanPersisted, 0, "applied 0"),
            (leader(SECOND, 2), 0, "term 2"),
            (Event::TermPersisted, 0, "introduce to 2"),
        ],
    );
}

#[test]
fn a_term_that_cannot_be_persisted_changes_nothing_and_is_tried_again() {
    let mut agent = agent(Some(boot()));
    check_steps(
        &mut agent,
        &[
            (order(3, &next()), 0, "term 3"),
            (term_lost(), 0, "disk_full 1"),
            (standby(FIRST, 3), 0, "term 3"),
            (term_lost(), 0, ""),
            (leader(FIRST, 3), 0, "term 3"),
            (term_lost(), 0, "introduce"),
            (order(2, &next()), 0, "stale_term 1"),
            (leader(SECOND, 2), 0, "close to 2"),
            (order(3, &next()), 0, "term 3"),
            (Event::TermPersisted, 0, "stage 1"),
        ],
    );
    assert_eq!(agent.term(), term(3));
}

#[test]
fn a_boot_whose_term_cannot_be_persisted_waits_for_the_next_welcome() {
    check_steps(
        &mut agent(None),
        &[
            (standby(SECOND, 3), 0, "term 3"),
            (term_lost(), 0, ""),
            (leader(FIRST, 3), 0, "term 3"),
            (term_lost(), 0, "close"),
            (leader(FIRST, 3), 0, "term 3"),
            (Event::TermPersisted, 0, "boot 0"),
            (Event::Booted, 0, "persist 0"),
            (plan_lost(), 0, "disk_full 0"),
            (Event::Tick, 999, ""),
            (Event::Tick, 1000, "persist 0"),
            (Event::PlanPersisted, 1000, "applied 0"),
        ],
    );
}

#[test]
fn a_plan_that_cannot_be_persisted_is_served_and_not_answered_and_nothing_comes_after_it() {
    let mut agent = agent(Some(boot()));
    let further = next().child(next().layers);
    let further = || on(FIRST, Command::Prepare(prepare(1, &further, &next())));
    let flipped = Event::Flipped { attempt: 1, elapsed_us: 5 };
    drive(&mut agent, order(1, &next()), Millis(0));
    check_steps(
        &mut agent,
        &[
            (staged(1), 0, "keep 1"),
            (Event::StagedPersisted, 0, "prepared 1"),
            (commit(1, &next()), 0, "flip 1"),
            (flipped, 0, "persist 1 after 0"),
            (plan_lost(), 0, "disk_full 1"),
            (commit(1, &next()), 0, "disk_full 1"),
            (order(1, &next()), 0, "disk_full 1"),
            (further(), 0, "disk_full 2"),
            (Event::Tick, 1000, "persist 1 after 0"),
            (plan_lost(), 1000, "disk_full 1"),
            (Event::Tick, 2000, "persist 1 after 0"),
            (Event::PlanPersisted, 2000, "applied 1"),
            (further(), 2000, "stage 2"),
        ],
    );
    assert_eq!(agent.applied(), Some(id(&next())));
}

#[test]
fn what_is_staged_and_cannot_be_persisted_is_given_up() {
    let mut agent = agent(Some(boot()));
    drive(&mut agent, order(1, &next()), Millis(0));
    check_steps(
        &mut agent,
        &[
            (staged(1), 0, "keep 1"),
            (staged_lost(), 0, "unstage 1, disk_full 1"),
            (commit(1, &next()), 0, "not_prepared 1"),
            (order(1, &next()), 0, "stage 2"),
        ],
    );
}

#[test]
fn a_plan_that_brings_a_node_nothing_is_prepared_without_a_word_to_the_disk() {
    let weights = boot().child(boot().layers);
    check(&[order(1, &weights), staged(1)], "prepared 1");
}

#[test]
fn a_repeat_is_answered_as_before() {
    check(&[order(1, &next()), order(1, &next())], "");
    check(&[order(1, &next()), staged(1), order(1, &next())], "prepared 1");
    check(&[order(1, &next()), staged(1), commit(1, &next()), commit(1, &next())], "");
    check(&[order(1, &boot())], "term 1, applied 0");
    check(&[commit(1, &boot())], "term 1, applied 0");
    check(&[abort(1, &boot())], "term 1, applied 0");
}

#[test]
fn the_same_epoch_with_another_digest_is_a_conflict() {
    let mut other = boot();
    other.layers[0].share.swap(0, 1);
    other.layers[0].share[0] += 1;
    check(&[order(1, &other)], "term 1, epoch_conflict 0");
    check(&[order(1, &next()), order(1, &rival())], "epoch_conflict 1");
    check(&[order(1, &next()), staged(1), commit(1, &rival())], "epoch_conflict 1");
    check(
        &[order(1, &next()), staged(1), commit(1, &next()), order(2, &rival())],
        "term 2, epoch_conflict 1",
    );
}

#[test]
fn a_newer_term_or_stream_replaces_what_is_unfinished() {
    check(&[order(1, &next()), order(2, &rival())], "term 2, unstage 1, stage 2");
    check(&[order(1, &next()), staged(1), order(2, &rival())], "term 2, unstage 1, stage 2");
    check(&[order(1, &next()), order(2, &next())], "term 2, unstage 1, stage 2");
    check(&[order(1, &next()), staged(1), moved(SECOND, order(1, &rival()))], "unstage 1, stage 2");
    check(
        &[order(1, &next()), staged(1), closed(FIRST), moved(SECOND, commit(2, &next()))],
        "term 2, flip 1",
    );
    check(&[order(1, &next()), order(2, &rival()), staged(1)], "");
}

#[test]
fn a_plan_starts_from_the_one_in_service() {
    let later = next().child(next().layers);
    check(&[on(FIRST, Command::Prepare(prepare(1, &later, &next())))], "term 1, base_mismatch 2");
    let mut fresh = agent(None);
    let actions = drive(&mut fresh, order(1, &next()), Millis(0));
    assert_eq!(actions.iter().map(brief).collect::<Vec<_>>(), ["term 1", "base_mismatch 1"]);
    let done =
        [order(1, &next()), staged(1), commit(1, &next()), Event::Flipped { attempt: 1, elapsed_us: 0 }];
    check(&[&done[..], &[order(1, &boot())]].concat(), "stale_epoch 0");
    check(&[&done[..], &[commit(1, &boot())]].concat(), "stale_epoch 0");
}

#[test]
fn only_what_is_prepared_is_committed() {
    check(&[commit(1, &next())], "term 1, not_prepared 1");
    check(&[order(1, &next()), commit(1, &next())], "not_prepared 1");
    check(&[order(1, &next()), staged(1), abort(1, &next()), commit(1, &next())], "not_prepared 1");
}

#[test]
fn an_abort_forgets_what_was_staged_and_nothing_else() {
    check(&[order(1, &next()), abort(1, &next())], "unstage 1, aborted 1");
    check(&[order(1, &next()), staged(1), abort(1, &next())], "unstage 1, aborted 1");
    check(&[order(1, &next()), abort(1, &rival())], "aborted 1");
    let late = [order(1, &next()), staged(1), commit(1, &next()), abort(1, &next())];
    check(&late, "");
    let flipped = Event::Flipped { attempt: 1, elapsed_us: 0 };
    check(&[&late[..], &[flipped]].concat(), "persist 1 after 0, applied 1");
}

#[test]
fn a_deadline_ends_staging_only() {
    check_at(&[order(1, &next()), Event::Tick], Millis(99), "");
    check_at(&[order(1, &next()), Event::Tick], Millis(100), "unstage 1, deadline_exceeded 1");
    check_at(&[order(1, &next()), staged(1), Event::Tick], Millis(100), "");
}

#[test]
fn failures_are_answered_with_their_code() {
    let failed =
        Event::StageFailed { attempt: 1, code: RefusalCode::FingerprintMismatch, message: "bytes".into() };
    check(&[order(1, &next()), failed.clone()], "unstage 1, fingerprint_mismatch 1");
    check(&[failed], "");
    let flip = Event::FlipFailed { attempt: 1, message: "stuck".into() };
    let stuck = [order(1, &next()), staged(1), commit(1, &next()), flip];
    check(&stuck, "worker_fault 1");
    check(&[&stuck[..], &[commit(1, &next())]].concat(), "flip 1");
}

#[test]
fn a_plan_that_breaks_an_invariant_is_refused() {
    let mut plan = next();
    plan.layers[0].share[0] += 1;
    let order = Prepare { moves: Vec::new(), ..prepare(1, &plan, &boot()) };
    check(&[on(FIRST, Command::Prepare(order))], "term 1, invalid_plan 1");
}

#[test]
fn a_plan_that_cannot_be_read_is_refused_unless_it_is_in_service() {
    let unreadable = |id: PlanId, code| {
        on(FIRST, Command::Unreadable { term: term(1), id, code, message: "share".into() })
    };
    check(&[unreadable(id(&next()), RefusalCode::InvalidPlan)], "term 1, invalid_plan 1");
    check(&[unreadable(id(&next()), RefusalCode::DeltaMismatch)], "term 1, delta_mismatch 1");
    check(&[unreadable(id(&boot()), RefusalCode::BaseMismatch)], "term 1, applied 0");
    let other: PlanId = (Epoch(0), Digest([7; 32]));
    check(&[unreadable(other, RefusalCode::BaseMismatch)], "term 1, epoch_conflict 0");
}

#[track_caller]
fn check_moves(moves: Vec<NodeMove>, code: &str) {
    let order = Prepare { moves, ..prepare(1, &rival(), &boot()) };
    let found = moves::check(&order, &boot(), &shape(), &[Rank(0), Rank(1)]).err().map(|e| e.code());
    assert_eq!(found.unwrap_or("ok"), code);
}

#[test]
fn moves_are_exactly_the_arrivals_on_the_node() {
    check_moves(vec![bring(5, 1, 7, Some(0))], "ok");
    check_moves(vec![bring(5, 1, 1, None)], "ok");
    check_moves(vec![], "move_not_once");
    check_moves(vec![bring(5, 1, 7, Some(0)); 2], "move_not_once");
    check_moves(vec![bring(2, 2, 3, None)], "move_not_asked");
    check_moves(vec![bring(5, 1, 6, Some(0))], "move_wrong_source");
    check_moves(vec![bring(5, 1, 99, Some(0))], "move_wrong_source");
    check_moves(vec![bring(5, 1, 7, Some(1))], "move_wrong_peer");
    check_moves(vec![bring(5, 1, 7, None)], "move_wrong_peer");
    check_moves(vec![bring(5, 1, 1, Some(0))], "move_wrong_peer");
}

#[test]
fn a_worker_without_weights_boots_with_the_plan_of_the_welcome() {
    let boots = |boot_plan: Option<Plan>| {
        let mut agent = agent(None);
        let boot_plan = boot_plan.map(Arc::new);
        let welcome =
            |stream, role| Event::Welcomed { stream, role, term: term(1), boot_plan: boot_plan.clone() };
        let mut actions = drive(&mut agent, welcome(SECOND, BalancerRole::Standby), Millis(0));
        actions.extend(drive(&mut agent, welcome(FIRST, BalancerRole::Leader), Millis(0)));
        actions.extend(drive(&mut agent, Event::Booted, Millis(0)));
        actions.iter().map(brief).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(boots(None), "term 1, boot 0, persist 0, applied 0");
    assert_eq!(boots(Some(next())), "term 1, boot 1, persist 1, applied 1");
}

#[test]
fn a_boot_plan_is_checked_and_a_failed_boot_can_be_repeated() {
    let mut agent = agent(None);
    let mut bad = boot();
    bad.layers[0].share[0] += 1;
    let mut on = |event| drive(&mut agent, event, Millis(0)).iter().map(brief).collect::<Vec<_>>().join(", ");
    let role = BalancerRole::Leader;
    let welcome =
        |plan: Plan| Event::Welcomed { stream: FIRST, role, term: term(1), boot_plan: Some(Arc::new(plan)) };
    assert_eq!(on(welcome(bad)), "term 1, invalid_plan 0");
    assert_eq!(on(welcome(boot())), "introduce, boot 0");
    assert_eq!(on(Event::BootFailed { message: "no room".into() }), "worker_fault 0");
    assert_eq!(on(welcome(boot())), "introduce, boot 0");
}
