use super::*;
use crate::ids::UnitId;
use crate::topology::{Role, UnitShape};

fn boot() -> Arc<Plan> {
    let shape = UnitShape {
        role: Role::Decode,
        layers: 1,
        experts: 4,
        top_k: 1,
        ranks: 2,
        slots_per_rank: 2,
        spare_per_rank: 1,
        expert_bytes: 64,
    };
    Arc::new(Plan::boot(UnitId::new("u").expect("valid"), &shape))
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("valid")
}

fn id(plan: &Plan) -> PlanRef {
    (plan.epoch, plan.digest())
}

/// Nodes `a` and `b`, both serving the boot plan.
struct Bench {
    control: UnitControl,
    next: Arc<Plan>,
    now: Millis,
}

impl Bench {
    fn new() -> Self {
        let head = boot();
        let next = Arc::new(head.child(head.layers.clone()));
        let mut control =
            UnitControl::new(Arc::clone(&head), None, [node("a"), node("b")], Limits::default());
        for name in ["a", "b"] {
            control.step(Millis(0), Event::Joined(node(name), Some(id(&head))));
        }
        Self { control, next, now: Millis(0) }
    }

    /// Runs an event and renders the actions as words: `prepare a`, `commit b`, ...
    fn run(&mut self, event: Event) -> Vec<String> {
        let word = |action: &Action| match action {
            Action::Prepare { node, .. } => format!("prepare {node}"),
            Action::Commit { node, .. } => format!("commit {node}"),
            Action::Abort { node, .. } => format!("abort {node}"),
            Action::Store(plan) => format!("store {}", plan.epoch),
            Action::Aborted { code, .. } => format!("aborted {code}"),
            Action::Settled((epoch, _)) => format!("settled {epoch}"),
            Action::Hung { node, .. } => format!("hung {node}"),
            Action::Close { node, code } => format!("close {node} {code}"),
        };
        self.control.step(self.now, event).iter().map(word).collect()
    }

    fn answer(&mut self, name: &str, answer: Answer) -> Vec<String> {
        let event = Event::Answered(node(name), id(&self.next), answer);
        self.run(event)
    }

    fn propose(&mut self) -> Vec<String> {
        let event = Event::Propose(Arc::clone(&self.next));
        self.run(event)
    }

    /// Up to the point where the plan is committed and COMMIT is on its way.
    fn commit(&mut self) {
        self.propose();
        self.answer("a", Answer::Prepared);
        self.answer("b", Answer::Prepared);
        assert_eq!(self.run(Event::Stored(Ok(()))), ["commit a", "commit b"]);
    }
}

#[test]
fn a_plan_is_stored_when_all_are_prepared_and_settles_when_all_have_applied() {
    let mut bench = Bench::new();
    assert_eq!(bench.propose(), ["prepare a", "prepare b"]);
    assert!(bench.answer("a", Answer::Prepared).is_empty());
    assert!(bench.answer("a", Answer::Prepared).is_empty(), "a repeat counts once");
    assert_eq!(bench.answer("b", Answer::Prepared), ["store 1"]);
    assert_eq!(bench.control.head().epoch, Epoch(0), "not before the store says so");
    assert_eq!(bench.run(Event::Stored(Ok(()))), ["commit a", "commit b"]);
    assert!(!bench.control.can_propose());
    assert!(bench.answer("a", Answer::Applied).is_empty());
    assert_eq!(bench.answer("b", Answer::Applied), ["settled 1"]);
    assert!(bench.control.can_propose());
}

#[test]
fn trouble_before_the_commit_aborts_everywhere() {
    let check = |event: &dyn Fn(&Bench) -> Event, later: u64, expected: &[&str]| {
        let mut bench = Bench::new();
        bench.propose();
        bench.answer("a", Answer::Prepared);
        bench.now = bench.now.after(later);
        let event = event(&bench);
        assert_eq!(bench.run(event), expected);
        assert_eq!(bench.control.head().epoch, Epoch(0));
    };
    let refused = |b: &Bench| {
        let refused = Answer::Refused("fingerprint_mismatch".to_owned());
        Event::Answered(node("b"), id(&b.next), refused)
    };
    check(&refused, 0, &["abort a", "abort b", "aborted fingerprint_mismatch"]);
    check(&|_| Event::Tick, 59_999, &[]);
    check(&|_| Event::Tick, 60_000, &["abort a", "abort b", "aborted deadline_exceeded"]);
    check(&|_| Event::Left(node("b")), 0, &["abort a", "aborted node_left"]);
}

#[test]
fn another_head_in_the_store_aborts() {
    let mut bench = Bench::new();
    bench.propose();
    bench.answer("a", Answer::Prepared);
    bench.answer("b", Answer::Prepared);
    assert_eq!(
        bench.run(Event::Stored(Err("store_conflict"))),
        ["abort a", "abort b", "aborted store_conflict"]
    );
    assert_eq!(bench.control.head().epoch, Epoch(0));
    assert!(bench.control.can_propose());
}

#[test]
fn after_the_commit_a_returning_node_is_rolled_forward() {
    let mut bench = Bench::new();
    bench.commit();
    bench.answer("a", Answer::Applied);
    assert!(bench.run(Event::Left(node("b"))).is_empty());
    let parent = bench.control.parent.as_ref().expect("committed").1;
    assert_eq!(bench.run(Event::Joined(node("b"), Some(parent))), ["prepare b"]);
    assert_eq!(bench.answer("b", Answer::Prepared), ["commit b"]);
    assert_eq!(bench.answer("b", Answer::Applied), ["settled 1"]);
}

#[test]
fn a_returning_node_that_serves_the_head_settles_at_once() {
    let mut bench = Bench::new();
    bench.commit();
    bench.answer("a", Answer::Applied);
    bench.run(Event::Left(node("b")));
    let head = id(&bench.next);
    assert_eq!(bench.run(Event::Joined(node("b"), Some(head))), ["settled 1"]);
}

#[test]
fn a_node_that_forgot_its_staging_is_prepared_again() {
    let mut bench = Bench::new();
    bench.commit();
    assert_eq!(bench.answer("a", Answer::Refused("not_prepared".to_owned())), ["prepare a"]);
    assert!(bench.answer("a", Answer::Refused("source_unreachable".to_owned())).is_empty());
    assert!(bench.run(Event::Tick).is_empty(), "not before the retry is due");
    bench.now = bench.now.after(1_000);
    assert_eq!(bench.run(Event::Tick), ["prepare a"]);
}

#[test]
fn silence_after_the_commit_closes_the_stream() {
    let mut bench = Bench::new();
    bench.commit();
    bench.answer("a", Answer::Applied);
    bench.now = bench.now.after(4_000);
    assert_eq!(bench.run(Event::Tick), ["hung b"]);
    assert!(bench.run(Event::Tick).is_empty(), "said once");
    bench.now = bench.now.after(6_000);
    assert_eq!(bench.run(Event::Tick), ["close b silent_after_commit"]);
}

#[test]
fn nothing_is_proposed_while_a_node_is_away_or_the_parent_is_stale() {
    let mut bench = Bench::new();
    bench.run(Event::Left(node("a")));
    assert!(bench.propose().is_empty());
    let mut bench = Bench::new();
    let stale = Arc::new(bench.next.child(bench.next.layers.clone()));
    assert!(bench.run(Event::Propose(stale)).is_empty());
}

#[test]
fn a_node_without_weights_boots_with_the_head() {
    let mut bench = Bench::new();
    bench.run(Event::Left(node("b")));
    assert!(bench.run(Event::Joined(node("b"), None)).is_empty());
    assert_eq!(bench.control.activity(), Activity::Incomplete);
    let head = bench.control.head_id();
    assert_eq!(bench.run(Event::Answered(node("b"), head, Answer::Applied)), ["settled 0"]);
}

#[test]
fn a_node_with_an_unknown_plan_is_not_admitted() {
    let mut bench = Bench::new();
    let head = bench.control.head_id();
    let check = |control: &UnitControl, applied, expected: Option<&str>| {
        assert_eq!(control.admit(applied).err().map(|e| e.code()), expected);
    };
    check(&bench.control, None, None);
    check(&bench.control, Some(head), None);
    check(&bench.control, Some(id(&bench.next)), Some("epoch_ahead"));
    check(&bench.control, Some((Epoch(0), Digest([7; 32]))), Some("epoch_unknown"));
    bench.commit();
    check(&bench.control, Some(head), None);
}

#[test]
fn a_node_that_returns_two_plans_behind_while_a_plan_is_stored_is_cut_off() {
    let mut bench = Bench::new();
    let boot = bench.control.head_id();
    bench.commit();
    bench.answer("a", Answer::Applied);
    bench.answer("b", Answer::Applied);
    bench.next = Arc::new(bench.next.child(bench.next.layers.clone()));
    bench.propose();
    bench.answer("a", Answer::Prepared);
    assert_eq!(bench.answer("b", Answer::Prepared), ["store 2"]);
    // Its state is older than it was: it serves the parent of what is about to become the parent.
    bench.run(Event::Joined(node("b"), Some(boot)));
    assert_eq!(bench.run(Event::Stored(Ok(()))), ["commit a", "close b epoch_unknown"]);
}

#[test]
fn a_plan_is_given_up_while_it_is_prepared_and_not_later() {
    let mut bench = Bench::new();
    bench.propose();
    assert_eq!(bench.run(Event::GiveUp("ordered")), ["abort a", "abort b", "aborted ordered"]);
    assert!(bench.run(Event::GiveUp("ordered")).is_empty(), "nothing is under way");
    for name in ["a", "b"] {
        bench.answer(name, Answer::Aborted);
    }
    bench.propose();
    bench.answer("a", Answer::Prepared);
    bench.answer("b", Answer::Prepared);
    assert!(bench.run(Event::GiveUp("ordered")).is_empty(), "the store may have it");
    assert_eq!(bench.run(Event::Stored(Ok(()))), ["commit a", "commit b"]);
}

#[test]
fn a_time_in_which_nothing_could_be_commanded_does_not_count() {
    let mut bench = Bench::new();
    bench.propose();
    bench.now = bench.now.after(100_000);
    bench.control.postpone(100_000);
    assert!(bench.run(Event::Tick).is_empty());
    bench.answer("a", Answer::Prepared);
    bench.answer("b", Answer::Prepared);
    bench.run(Event::Stored(Ok(())));
    bench.now = bench.now.after(100_000);
    bench.control.postpone(100_000);
    assert!(bench.run(Event::Tick).is_empty());
}

#[test]
fn what_a_node_says_of_an_attempt_that_was_given_up_does_not_count_for_the_next() {
    let mut bench = Bench::new();
    bench.propose();
    bench.answer("a", Answer::Prepared);
    bench.run(Event::Answered(node("b"), id(&bench.next), Answer::Refused("worker_fault".to_owned())));
    assert_eq!(bench.propose(), ["prepare a", "prepare b"], "the same plan again");
    assert!(bench.answer("b", Answer::Prepared).is_empty());
    for name in ["a", "b"] {
        assert!(bench.answer(name, Answer::Aborted).is_empty(), "the answer to ABORT");
    }
    assert!(bench.answer("a", Answer::Prepared).is_empty());
    assert_eq!(bench.answer("b", Answer::Prepared), ["store 1"]);
}

#[test]
fn an_abort_that_is_refused_is_answered_too() {
    let mut bench = Bench::new();
    bench.propose();
    bench.run(Event::Answered(node("b"), id(&bench.next), Answer::Refused("disk_full".to_owned())));
    bench.propose();
    bench.answer("a", Answer::Aborted);
    bench.answer("b", Answer::Refused("disk_full".to_owned()));
    bench.answer("a", Answer::Prepared);
    assert_eq!(bench.answer("b", Answer::Prepared), ["store 1"]);
}

#[test]
fn a_node_that_answers_no_abort_is_closed_after_a_few() {
    let mut bench = Bench::new();
    for _ in 0..ABORTS_MAX {
        bench.propose();
        bench.now = bench.now.after(Limits::default().prepare_ms);
        assert!(bench.run(Event::Tick).contains(&"abort a".to_owned()));
        bench.answer("b", Answer::Aborted);
    }
    bench.propose();
    bench.now = bench.now.after(Limits::default().prepare_ms);
    assert!(bench.run(Event::Tick).contains(&"close a aborts_unanswered".to_owned()));
}
