use super::*;
use crate::ids::{ExpertId, LayerId};
use crate::plan::{LayerPlan, Move};
use crate::topology::Role;
use proptest::prelude::*;

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

/// The agent of ranks 0 and 1.
fn agent(applied: Option<Plan>) -> Agent {
    let ranks = vec![Rank(0), Rank(1)];
    let topology = node_view(unit(), shape(), &NodeId::new("a").unwrap(), &ranks).unwrap();
    Agent::new(topology, ranks, Term::default(), applied.map(Arc::new))
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
    Event::Command(Command::Prepare(prepare(revision, plan, &boot())))
}

fn commit(revision: u64, plan: &Plan) -> Event {
    Event::Command(Command::Commit { term: term(revision), id: id(plan) })
}

fn abort(revision: u64, plan: &Plan) -> Event {
    Event::Command(Command::Abort { term: term(revision), id: id(plan) })
}

fn staged(attempt: u64) -> Event {
    Event::Staged { attempt, tally: Tally { slots_verified: 1, ..Tally::default() } }
}

/// Names an action briefly: `term 3`, `stage 1`, `prepared 1`, `stale_term 1` (the epoch answered for).
fn brief(action: &Action) -> String {
    match action {
        Action::PersistTerm(term) => format!("term {}", term.revision),
        Action::PersistPlan(plan) => format!("persist {}", plan.epoch),
        Action::Boot(plan) => format!("boot {}", plan.epoch),
        Action::Stage { attempt, .. } => format!("stage {attempt}"),
        Action::Unstage { attempt } => format!("unstage {attempt}"),
        Action::Flip { attempt, .. } => format!("flip {attempt}"),
        Action::CloseStream { .. } => "close".into(),
        Action::Reply(reply) => {
            let outcome = match &reply.outcome {
                Outcome::Prepared(_) => "prepared",
                Outcome::Applied { .. } => "applied",
                Outcome::Aborted => "aborted",
                Outcome::Refused { code, .. } => code.code(),
            };
            format!("{outcome} {}", reply.id.0)
        }
    }
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
        agent.on(event.clone(), Millis(0));
    }
    let actions: Vec<_> = agent.on(last.clone(), last_at).iter().map(brief).collect();
    assert_eq!(actions.join(", "), expected);
    agent
}

#[test]
fn a_plan_is_staged_then_flipped_then_persisted_then_answered() {
    check(&[order(1, &next())], "term 1, stage 1");
    check(&[order(1, &next()), staged(1)], "prepared 1");
    check(&[order(1, &next()), staged(1), commit(1, &next())], "flip 1");
    let flipped = Event::Flipped { attempt: 1, elapsed_us: 5 };
    let done = [order(1, &next()), staged(1), commit(1, &next()), flipped];
    let agent = check(&done, "persist 1, applied 1");
    assert_eq!(agent.applied(), Some(id(&next())));
}

#[test]
fn a_lower_term_is_refused_for_every_command() {
    for late in [order(4, &next()), commit(4, &next()), abort(4, &next())] {
        check(&[order(5, &next()), staged(1), late], "stale_term 1");
    }
    let welcome = Event::Welcomed { term: term(4), boot_plan: None };
    check(&[order(5, &next()), welcome], "close");
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
    check(&[order(1, &next()), staged(1), Event::Connected, order(1, &rival())], "unstage 1, stage 2");
    check(&[order(1, &next()), staged(1), Event::Connected, commit(2, &next())], "term 2, flip 1");
    check(&[order(1, &next()), order(2, &rival()), staged(1)], "");
}

#[test]
fn a_plan_starts_from_the_one_in_service() {
    let later = next().child(next().layers);
    check(&[Event::Command(Command::Prepare(prepare(1, &later, &next())))], "term 1, base_mismatch 2");
    let mut fresh = agent(None);
    let actions = fresh.on(order(1, &next()), Millis(0));
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
    check(&[&late[..], &[flipped]].concat(), "persist 1, applied 1");
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
    let event = Event::Command(Command::Prepare(Prepare { moves: Vec::new(), ..prepare(1, &plan, &boot()) }));
    check(&[event], "term 1, invalid_plan 1");
    let malformed = Command::Malformed { term: term(1), id: id(&next()), message: "share".into() };
    check(&[Event::Command(malformed)], "term 1, invalid_plan 1");
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
        let welcome = Event::Welcomed { term: term(1), boot_plan: boot_plan.map(Arc::new) };
        let mut actions = agent.on(welcome.clone(), Millis(0));
        actions.extend(agent.on(welcome, Millis(0)));
        actions.extend(agent.on(Event::Booted, Millis(0)));
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
    let mut on = |event| agent.on(event, Millis(0)).iter().map(brief).collect::<Vec<_>>().join(", ");
    let welcome = |plan: Plan| Event::Welcomed { term: term(1), boot_plan: Some(Arc::new(plan)) };
    assert_eq!(on(welcome(bad)), "term 1, invalid_plan 0");
    assert_eq!(on(welcome(boot())), "boot 0");
    assert_eq!(on(Event::BootFailed { message: "no room".into() }), "worker_fault 0");
    assert_eq!(on(welcome(boot())), "boot 0");
}

/// What a random schedule may do next. Terms are relative to the highest seen plus one, so that most are
/// current and some are stale or new.
#[derive(Debug, Clone, Copy)]
enum Step {
    Connected,
    Welcome(u64),
    Prepare(u64, usize),
    Commit(u64, usize),
    Abort(u64, usize),
    /// The oldest unfinished piece of work ends well or badly.
    Work(bool),
    Tick,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let order = || (prop_oneof![1 => Just(0u64), 12 => Just(1), 1 => Just(2)], 0usize..6);
    let step = prop_oneof![
        1 => Just(Step::Connected),
        1 => (0u64..3).prop_map(Step::Welcome),
        6 => order().prop_map(|(t, p)| Step::Prepare(t, p)),
        6 => order().prop_map(|(t, p)| Step::Commit(t, p)),
        3 => order().prop_map(|(t, p)| Step::Abort(t, p)),
        8 => prop::bool::weighted(0.8).prop_map(Step::Work),
        1 => Just(Step::Tick),
    ];
    prop::collection::vec(step, 0..120)
}

/// The boot plan, two lines of two children each, and a plan from nowhere; each with its base.
fn plans() -> Vec<(Plan, Plan)> {
    let (boot, mut left, mut right) = (boot(), boot().child(boot().layers), boot().child(boot().layers));
    left.layers[0].share = vec![1, 65536, 0, 65536, 65536, 0, 65535, 0, 0, 0, 0, 0];
    right.layers[0].share = vec![2, 65536, 0, 65536, 65536, 0, 65534, 0, 0, 0, 0, 0];
    let (left_next, right_next) = (left.child(left.layers.clone()), right.child(right.layers.clone()));
    let stray = left_next.child(boot.layers.clone()).child(boot.layers.clone());
    vec![
        (boot.clone(), boot.clone()),
        (left.clone(), boot.clone()),
        (right.clone(), boot.clone()),
        (left_next, left),
        (right_next, right.clone()),
        (stray, right),
    ]
}

proptest! {
    #[test]
    fn no_schedule_breaks_the_rules(steps in steps(), boots in any::<bool>()) {
        let plans = plans();
        let mut agent = agent(boots.then(boot));
        let (mut persisted_term, mut now) = (Term::default(), 0u64);
        let (mut work, mut staged_plans) = (std::collections::VecDeque::new(), BTreeMap::new());
        for step in steps {
            let relative = |t: u64| (persisted_term.revision + t).saturating_sub(1);
            let step = match step {
                Step::Welcome(t) => Step::Welcome(relative(t)),
                Step::Prepare(t, p) => Step::Prepare(relative(t), p),
                Step::Commit(t, p) => Step::Commit(relative(t), p),
                Step::Abort(t, p) => Step::Abort(relative(t), p),
                other => other,
            };
            let command_term = match step {
                Step::Welcome(t) | Step::Prepare(t, _) | Step::Commit(t, _) | Step::Abort(t, _) => Some(term(t)),
                _ => None,
            };
            let event = match step {
                Step::Connected => Event::Connected,
                Step::Welcome(t) => Event::Welcomed { term: term(t), boot_plan: None },
                Step::Prepare(t, p) => Event::Command(Command::Prepare(prepare(t, &plans[p].0, &plans[p].1))),
                Step::Commit(t, p) => commit(t, &plans[p].0),
                Step::Abort(t, p) => abort(t, &plans[p].0),
                Step::Tick => { now += 60; Event::Tick }
                Step::Work(good) => match work.pop_front() {
                    None => continue,
                    Some(Action::Boot(_)) if good => Event::Booted,
                    Some(Action::Boot(_)) => Event::BootFailed { message: String::new() },
                    Some(Action::Stage { attempt, plan, .. }) if good => {
                        staged_plans.insert(attempt, plan);
                        Event::Staged { attempt, tally: Tally::default() }
                    }
                    Some(Action::Stage { attempt, .. }) => Event::StageFailed {
                        attempt, code: RefusalCode::SourceUnreachable, message: String::new(),
                    },
                    Some(Action::Flip { attempt, .. }) if good => Event::Flipped { attempt, elapsed_us: 0 },
                    Some(Action::Flip { attempt, .. }) => Event::FlipFailed { attempt, message: String::new() },
                    Some(other) => unreachable!("{other:?} is no work"),
                },
            };
            let before = agent.applied();
            let flipped = matches!(event, Event::Flipped { .. });
            let stale = command_term.is_some_and(|t| t < persisted_term);
            for action in agent.on(event, Millis(now)) {
                match &action {
                    Action::PersistTerm(t) => {
                        prop_assert!(*t > persisted_term);
                        persisted_term = *t;
                        continue;
                    }
                    Action::Reply(reply) => {
                        prop_assert_eq!(reply.term, persisted_term);
                        prop_assert_eq!(reply.applied, agent.applied());
                        continue;
                    }
                    Action::CloseStream { .. } => { prop_assert!(stale); continue }
                    Action::PersistPlan(plan) => prop_assert_eq!(Some(id(plan)), agent.applied()),
                    Action::Unstage { attempt } => {
                        staged_plans.remove(attempt);
                        let flips = |w: &Action| matches!(w, Action::Flip { attempt: a, .. } if a == attempt);
                        prop_assert!(!work.iter().any(flips), "forgets a committed plan");
                        work.retain(|w| !matches!(w, Action::Stage { attempt: a, .. } if a == attempt));
                    }
                    Action::Flip { attempt, plan } => {
                        prop_assert_eq!(staged_plans.get(attempt), Some(plan), "flips an unprepared plan");
                    }
                    Action::Boot(_) => prop_assert!(agent.applied().is_none()),
                    Action::Stage { .. } => prop_assert!(agent.applied().is_some()),
                }
                prop_assert!(!stale, "acts on a lower term: {action:?}");
                prop_assert!(command_term.is_none_or(|t| t == persisted_term), "acts before persisting");
                if matches!(action, Action::Boot(_) | Action::Stage { .. } | Action::Flip { .. }) {
                    work.push_back(action);
                }
            }
            prop_assert!(work.len() <= 1, "one plan under way");
            let after = agent.applied();
            prop_assert!(after.map(|p| p.0) >= before.map(|p| p.0), "the applied epoch went down");
            prop_assert!(before.is_none() || after == before || flipped, "changed without a flip");
        }
    }
}
