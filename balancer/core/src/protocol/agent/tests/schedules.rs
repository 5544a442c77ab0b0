//! Random schedules: streams that come and go, terms old and new, work and disks that fail.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

/// What a random schedule may do next. Terms are relative to the highest seen plus one, so that most are
/// current and some are stale or new; streams are counted from the newest.
#[derive(Debug, Clone, Copy)]
enum Step {
    Connected,
    Disconnected(u64),
    Welcome(u64, u64, BalancerRole),
    Prepare(u64, u64, usize),
    Commit(u64, u64, usize),
    Abort(u64, u64, usize),
    /// The oldest unfinished piece of work ends well or badly.
    Work(bool),
    Tick,
}

fn steps() -> impl Strategy<Value = Vec<(Step, bool)>> {
    let order = || (0u64..2, prop_oneof![1 => Just(0u64), 12 => Just(1), 1 => Just(2)], 0usize..6);
    let role = prop_oneof![2 => Just(BalancerRole::Leader), 1 => Just(BalancerRole::Standby)];
    let step = prop_oneof![
        1 => Just(Step::Connected),
        1 => (0u64..3).prop_map(Step::Disconnected),
        1 => (0u64..3, 0u64..3, role).prop_map(|(s, t, r)| Step::Welcome(s, t, r)),
        6 => order().prop_map(|(s, t, p)| Step::Prepare(s, t, p)),
        6 => order().prop_map(|(s, t, p)| Step::Commit(s, t, p)),
        3 => order().prop_map(|(s, t, p)| Step::Abort(s, t, p)),
        8 => prop::bool::weighted(0.8).prop_map(Step::Work),
        1 => Just(Step::Tick),
    ];
    prop::collection::vec((step, prop::bool::weighted(0.85)), 0..120)
}

/// The boot plan, two lines of two children each, and a plan from nowhere; each with its base.
fn plans() -> Vec<(Plan, Plan)> {
    let (boot, left, right) = (boot(), next(), rival());
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

/// An agent with its disk and its unfinished work.
struct World {
    agent: Agent,
    plans: Vec<(Plan, Plan)>,
    newest: u64,
    open: Vec<StreamId>,
    disk_term: Term,
    /// The highest told on an open stream, by whoever may command.
    seen: Term,
    disk_plan: Option<PlanId>,
    disk_staged: Option<PlanId>,
    now: u64,
    work: VecDeque<Action>,
    staged: BTreeMap<u64, Arc<Plan>>,
}

impl World {
    fn new(boots: bool) -> Self {
        Self {
            agent: agent(boots.then(boot)),
            plans: plans(),
            newest: SECOND.0,
            open: vec![FIRST, SECOND],
            disk_term: Term::default(),
            seen: Term::default(),
            disk_plan: boots.then(|| id(&boot())),
            disk_staged: None,
            now: 0,
            work: VecDeque::new(),
            staged: BTreeMap::new(),
        }
    }

    fn event(&mut self, step: Step) -> Option<Event> {
        let at = |t: u64| (self.disk_term.revision + t).saturating_sub(1);
        let stream = |s: u64| StreamId(self.newest.saturating_sub(s));
        Some(match step {
            Step::Connected => {
                self.newest += 1;
                self.open.push(StreamId(self.newest));
                Event::Connected { stream: StreamId(self.newest) }
            }
            Step::Disconnected(s) => {
                let stream = stream(s);
                self.open.retain(|open| *open != stream);
                Event::Disconnected { stream }
            }
            Step::Welcome(s, t, role) => {
                Event::Welcomed { stream: stream(s), role, term: term(at(t)), boot_plan: None }
            }
            Step::Prepare(s, t, p) => {
                let (plan, base) = &self.plans[p];
                on(stream(s), Command::Prepare(prepare(at(t), plan, base)))
            }
            Step::Commit(s, t, p) => moved(stream(s), commit(at(t), &self.plans[p].0)),
            Step::Abort(s, t, p) => moved(stream(s), abort(at(t), &self.plans[p].0)),
            Step::Tick => {
                self.now += 600;
                Event::Tick
            }
            Step::Work(good) => self.done(good)?,
        })
    }

    fn done(&mut self, good: bool) -> Option<Event> {
        let message = String::new;
        Some(match self.work.pop_front()? {
            Action::Boot(_) if good => Event::Booted,
            Action::Boot(_) => Event::BootFailed { message: message() },
            Action::Stage { attempt, plan, .. } if good => {
                self.staged.insert(attempt, plan);
                Event::Staged { attempt, tally: Tally::default() }
            }
            Action::Stage { attempt, .. } => {
                Event::StageFailed { attempt, code: RefusalCode::SourceUnreachable, message: message() }
            }
            Action::Flip { attempt, .. } if good => Event::Flipped { attempt, elapsed_us: 0 },
            Action::Flip { attempt, .. } => Event::FlipFailed { attempt, message: message() },
            other => unreachable!("{other:?} is no work"),
        })
    }

    /// Feeds an event and what follows from it; the disk takes what it is given, or not.
    fn feed(&mut self, event: Event, disk: bool) -> Result<(), TestCaseError> {
        let (before, flips) = (self.agent.applied(), matches!(event, Event::Flipped { .. }));
        let (stream, term) = match &event {
            Event::Welcomed { stream, term, role: BalancerRole::Leader, .. } => (Some(*stream), Some(*term)),
            Event::Command { stream, command } => (Some(*stream), Some(command.name().0)),
            _ => (None, None),
        };
        let heard = term.filter(|_| stream.is_some_and(|stream| self.open.contains(&stream)));
        self.seen = self.seen.max(heard.unwrap_or_default());
        let mut actions = self.agent.on(event, Millis(self.now));
        if let [only @ (Action::PersistTerm(_) | Action::PersistPlan { .. } | Action::PersistStaged(_))] =
            actions.as_slice()
        {
            let outcome = self.persist(only.clone(), disk)?;
            actions = self.agent.on(outcome, Millis(self.now));
        }
        for action in actions {
            self.take(action, term)?;
        }
        prop_assert!(self.work.len() <= 1, "one plan under way");
        let after = self.agent.applied();
        prop_assert!(after.map(|p| p.0) >= before.map(|p| p.0), "the applied epoch went down");
        prop_assert!(before.is_none() || after == before || flips, "changed without a flip");
        let epoch = |plan: Option<PlanId>| plan.map_or(0, |id| id.0.0 + 1);
        prop_assert!(epoch(after) <= epoch(self.disk_plan) + 1, "two plans ahead of the disk");
        Ok(())
    }

    fn persist(&mut self, action: Action, disk: bool) -> Result<Event, TestCaseError> {
        match action {
            Action::PersistTerm(term) => {
                prop_assert!(term > self.disk_term);
                if !disk {
                    return Ok(term_lost());
                }
                self.disk_term = term;
                Ok(Event::TermPersisted)
            }
            Action::PersistStaged(plan) => {
                prop_assert_eq!(plan.parent, self.agent.applied());
                if !disk {
                    return Ok(staged_lost());
                }
                self.disk_staged = Some(id(&plan));
                Ok(Event::StagedPersisted)
            }
            Action::PersistPlan { plan, before } => {
                prop_assert_eq!(Some(id(&plan)), self.agent.applied());
                prop_assert_eq!(before.map(|before| id(&before)), plan.parent);
                if !disk {
                    return Ok(plan_lost());
                }
                self.disk_plan = Some(id(&plan));
                Ok(Event::PlanPersisted)
            }
            other => unreachable!("{other:?} persists nothing"),
        }
    }

    fn take(&mut self, action: Action, term: Option<Term>) -> Result<(), TestCaseError> {
        let stale = term.is_some_and(|t| t < self.seen);
        match &action {
            Action::Reply { stream, reply } => {
                prop_assert!(self.open.contains(stream), "answers on a closed stream");
                prop_assert_eq!(reply.term, self.disk_term);
                prop_assert_eq!(reply.applied, self.agent.applied());
                if matches!(reply.outcome, Outcome::Prepared(_)) {
                    let receives = [next(), rival()].iter().any(|plan| id(plan) == reply.id);
                    let kept = self.disk_staged == Some(reply.id);
                    prop_assert_eq!(kept, receives, "said before it is on disk");
                }
                if matches!(reply.outcome, Outcome::Applied { .. }) {
                    prop_assert_eq!(self.disk_plan, Some(reply.id), "said before it is on disk");
                }
                return Ok(());
            }
            Action::CloseStream { .. } | Action::Introduce { .. } => return Ok(()),
            Action::PersistTerm(_) | Action::PersistPlan { .. } | Action::PersistStaged(_) => {
                prop_assert!(false, "{action:?} is not alone");
            }
            Action::Unstage { attempt } => {
                self.staged.remove(attempt);
                let flips = |w: &Action| matches!(w, Action::Flip { attempt: a, .. } if a == attempt);
                prop_assert!(!self.work.iter().any(flips), "forgets a committed plan");
                self.work.retain(|w| !matches!(w, Action::Stage { attempt: a, .. } if a == attempt));
            }
            Action::Flip { attempt, plan } => {
                prop_assert_eq!(self.staged.get(attempt), Some(plan), "flips an unprepared plan");
            }
            Action::Boot(_) => prop_assert!(self.agent.applied().is_none()),
            Action::Stage { .. } => prop_assert_eq!(self.disk_plan, self.agent.applied()),
        }
        prop_assert!(!stale, "acts on a lower term: {action:?}");
        prop_assert!(term.is_none_or(|t| t == self.disk_term), "acts before persisting");
        if matches!(action, Action::Boot(_) | Action::Stage { .. } | Action::Flip { .. }) {
            self.work.push_back(action);
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn no_schedule_breaks_the_rules(steps in steps(), boots in any::<bool>()) {
        let mut world = World::new(boots);
        for (step, disk) in steps {
            if let Some(event) = world.event(step) {
                world.feed(event, disk)?;
            }
        }
    }
}
