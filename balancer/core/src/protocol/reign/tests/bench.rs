use crate::ids::{Digest, NodeId, Rank, Term, UnitId};
use crate::plan::Plan;
use crate::protocol::membership::Claim;
use crate::protocol::reign::*;
use crate::protocol::unit::{Answer as NodeAnswer, PlanRef};
use crate::records::memory::Memory;
use crate::records::{Change, Key, LeaderRecord, Outcome, Record, RequestId, Scope, Transaction, campaign};
use crate::topology::{Role as UnitRole, UnitShape};
use crate::units::Millis;
use std::collections::VecDeque;
use std::sync::Arc;

/// Two layers would say no more.
pub(super) fn shape() -> UnitShape {
    UnitShape {
        role: UnitRole::Decode,
        layers: 1,
        experts: 4,
        top_k: 1,
        ranks: 4,
        slots_per_rank: 2,
        spare_per_rank: 1,
        expert_bytes: 64,
    }
}

pub(super) fn unit() -> UnitId {
    UnitId::new("u").expect("valid")
}

pub(super) fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("valid")
}

pub(super) fn boot() -> Plan {
    Plan::boot(unit(), &shape())
}

pub(super) fn id_of(plan: &Plan) -> PlanRef {
    (plan.epoch, plan.digest())
}

/// How the store answers calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreMood {
    Good,
    /// Does as asked, and does not say so.
    LosesAnswers,
    /// Does nothing, and does not say so.
    LosesRequests,
    Away,
    /// Keeps calls until the mood changes.
    Silent,
}

/// A balancer over a store in memory. Node `a` has ranks 0 and 1, `b` 2 and 3; streams 1 and 2 are theirs.
pub(super) struct Bench {
    pub(super) reign: Reign,
    pub(super) store: Memory,
    pub(super) mood: StoreMood,
    pub(super) at: u64,
    calls: VecDeque<Action>,
    /// The actions since they were last taken, as words.
    said: Vec<String>,
    /// What operators were answered.
    pub(super) answers: Vec<Result<Answer, OrderError>>,
    /// Drafts are written down at once.
    pub(super) drafts: bool,
    requests: u64,
}

impl Bench {
    /// A standby.
    pub(super) fn standby() -> Self {
        Self {
            reign: Reign::new(Settings::default()),
            store: Memory::default(),
            mood: StoreMood::Good,
            at: 0,
            calls: VecDeque::new(),
            said: Vec::new(),
            answers: Vec::new(),
            drafts: true,
            requests: 0,
        }
    }

    /// A leader with a formed unit that serves its boot plan.
    pub(super) fn formed() -> Self {
        let mut bench = Self::standby();
        bench.lead();
        bench.join("a", Some(&boot()));
        bench.join("b", Some(&boot()));
        bench.take();
        bench
    }

    pub(super) fn now(&self) -> Now {
        Now { at: Millis(self.at), unix_ms: 1_000_000 + self.at }
    }

    /// Runs an event, and whatever the store and the drafts answer.
    pub(super) fn run(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.reign.step(self.now(), event) {
                self.say(&action);
                match action {
                    Action::Transact { .. } | Action::Read { .. } => self.calls.push_back(action),
                    Action::Draft { plan, .. } if self.drafts => events.push_back(proposal(plan)),
                    Action::Answer { answer, .. } => self.answers.push(answer),
                    _ => {}
                }
            }
            if events.is_empty()
                && self.mood != StoreMood::Silent
                && let Some(call) = self.calls.pop_front()
            {
                events.push_back(self.answer_of_store(call));
            }
        }
    }

    fn answer_of_store(&mut self, call: Action) -> Event {
        match call {
            Action::Transact { ticket, transactions } => {
                let trouble = match self.mood {
                    StoreMood::Away => Some(Trouble::Away),
                    StoreMood::LosesRequests | StoreMood::LosesAnswers => Some(Trouble::Unknown),
                    StoreMood::Good | StoreMood::Silent => None,
                };
                let mut outcome = Outcome::Refused;
                if matches!(self.mood, StoreMood::Good | StoreMood::LosesAnswers) {
                    for transaction in &*transactions {
                        outcome = self.store.transact(transaction);
                        if outcome == Outcome::Refused {
                            break;
                        }
                    }
                }
                // One call is lost; the next look finds the store again.
                if matches!(self.mood, StoreMood::LosesAnswers | StoreMood::LosesRequests) {
                    self.mood = StoreMood::Good;
                }
                Event::StoreDone { ticket, outcome: trouble.map_or(Ok(outcome), Err) }
            }
            Action::Read { ticket, keys } => {
                let found = keys.iter().map(|key| self.store.get(key).cloned()).collect();
                let away = self.mood == StoreMood::Away;
                Event::ReadDone { ticket, found: if away { Err(Trouble::Away) } else { Ok(found) } }
            }
            other => panic!("{other:?} is no call of the store"),
        }
    }

    fn say(&mut self, action: &Action) {
        let node_of = |stream: &StreamId| match stream.0 {
            1 => "a".to_owned(),
            2 => "b".to_owned(),
            other => other.to_string(),
        };
        let word = match action {
            Action::Send { stream, message } => {
                let node = node_of(stream);
                match message {
                    Message::Welcome { role: Role::Leader, .. } => format!("leader {node}"),
                    Message::Welcome { role: Role::Standby, .. } => format!("standby {node}"),
                    Message::Refuse { code, .. } => format!("refuse {node} {code}"),
                    Message::Ping => return,
                    Message::Prepare { plan, .. } => format!("prepare {node} {}", plan.epoch),
                    Message::Commit { plan, .. } => format!("commit {node} {}", plan.0),
                    Message::Abort { plan, .. } => format!("abort {node} {}", plan.0),
                }
            }
            Action::Close { stream, code } => format!("close {} {code}", node_of(stream)),
            Action::Transact { .. } => "write".to_owned(),
            Action::Read { .. } => "read".to_owned(),
            Action::Draft { plan, .. } => format!("draft {}", plan.epoch),
            Action::Answer { answer: Ok(answer), .. } if answer.repeated => "ok again".to_owned(),
            Action::Answer { answer, .. } => {
                answer.as_ref().map_or_else(|e| e.code().to_owned(), |_| "ok".to_owned())
            }
            Action::Notice(notice) => match notice {
                Notice::Committed { name, .. } => format!("committed {}", name.epoch),
                Notice::Aborted { code, .. } => format!("aborted {code}"),
                Notice::Settled { plan, .. } => format!("settled {}", plan.0),
                Notice::Invalid { code, .. } => format!("invalid {code}"),
                Notice::Hung { node, .. } => format!("hung {node}"),
                Notice::MassLoss { unit, on } => {
                    format!("mass loss {} {on}", unit.as_ref().map_or("all", UnitId::as_str))
                }
                _ => return,
            },
        };
        self.said.push(word);
    }

    /// What was done since this was last asked.
    pub(super) fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.said)
    }

    /// Runs an event and says what was done by it.
    pub(super) fn does(&mut self, event: Event) -> Vec<String> {
        self.run(event);
        self.take()
    }

    pub(super) fn later(&mut self, ms: u64) -> Vec<String> {
        self.at += ms;
        self.does(Event::Tick)
    }

    /// Wins an election, reads the store and begins to lead; the lead is good for an hour.
    pub(super) fn lead(&mut self) -> Term {
        self.lead_in(0)
    }

    /// The same in a generation of the store.
    pub(super) fn lead_in(&mut self, generation: u64) -> Term {
        let lease = self.store.grant();
        let leader = LeaderRecord { balancer: "x".into(), address: "127.0.0.1:1".into(), lease };
        if let Some(old) = self.store.get(&Key::Leader).and_then(|found| found.lease) {
            self.store.end(old);
        }
        if generation > 0 {
            let change = Change::Put(Key::Generation, Record::Generation(generation), None);
            self.store.transact(&Transaction { expects: Vec::new(), changes: vec![change] });
        }
        let Outcome::Done(revision) = self.store.transact(&campaign(leader)) else { panic!("nobody leads") };
        let term = Term { generation, revision: revision.0 };
        let state = self.recovered();
        self.run(Event::Begin { term, until: Millis(self.at + 3_600_000), state });
        term
    }

    /// What the store holds. Plans are kept as they are by the tests: the content of a chunk is of no interest, so every
    /// plan has the layers that the boot plan has unless a test says otherwise.
    pub(super) fn recovered(&self) -> Recovered {
        let Some(found) = self.store.get(&Key::Unit(unit())) else { return Recovered::default() };
        let Record::Unit(record) = found.record.clone() else { panic!("a unit's record") };
        let head = self.store.get(&Key::Head(unit())).expect("a unit that is stored has a head");
        let Record::Plan(name) = head.record else { panic!("a plan's name") };
        let mut plan = boot();
        let mut parent = None;
        while plan.epoch < name.epoch {
            let next = plan.child(plan.layers.clone());
            parent = Some(Arc::new(std::mem::replace(&mut plan, next)));
        }
        assert_eq!(plan.digest(), name.digest, "tests commit plans of equal layers");
        let head = Head { plan: Arc::new(plan), modified: head.modified };
        let of = |key| self.store.get(&key).map(|found| found.record.clone());
        let mut holds = Holds::default();
        if let Some(Record::Pause(pause)) = of(Key::Pause(unit())) {
            holds.pause = Some(pause);
        }
        if let Some(Record::Pins(pins)) = of(Key::Pins(unit())) {
            holds.pins = pins;
        }
        if let Some(Record::Drains(drains)) = of(Key::Drains(unit())) {
            holds.drains = drains;
        }
        Recovered { units: vec![RecoveredUnit { unit: unit(), record, head, parent, holds }] }
    }

    pub(super) fn hello(&self, name: &str, applied: Option<&Plan>) -> Introduction {
        let ranks = if name == "a" { [0, 1] } else { [2, 3] };
        Introduction {
            node: node(name),
            incarnation: 1,
            unit: unit(),
            claim: Claim { shape: shape(), ranks: ranks.map(Rank).to_vec(), weights_digest: b"w".to_vec() },
            applied: applied.map(id_of),
            term: Term::default(),
            reintroduces: true,
        }
    }

    pub(super) fn stream(name: &str) -> StreamId {
        StreamId(if name == "a" { 1 } else { 2 })
    }

    pub(super) fn join(&mut self, name: &str, applied: Option<&Plan>) {
        let hello = self.hello(name, applied);
        self.run(Event::Hello { stream: Self::stream(name), hello });
    }

    pub(super) fn answer(&mut self, name: &str, plan: &Plan, answer: NodeAnswer) -> Vec<String> {
        self.does(Event::Result { stream: Self::stream(name), plan: id_of(plan), answer })
    }

    /// The child of the head with the same layers.
    pub(super) fn next(&self) -> Plan {
        let head = self.reign.units()[&unit()].head().expect("formed");
        let epoch = self.reign.next_epoch(&unit()).expect("leads");
        head.child(head.layers.clone()).numbered(epoch)
    }

    pub(super) fn propose(&mut self, plan: &Plan) -> Vec<String> {
        self.does(proposal(Arc::new(plan.clone())))
    }

    /// Commits a plan and has every node apply it.
    pub(super) fn settle(&mut self, plan: &Plan) {
        for answer in [NodeAnswer::Prepared, NodeAnswer::Applied] {
            for name in ["a", "b"] {
                self.answer(name, plan, answer.clone());
            }
        }
        assert_eq!(self.reign.units()[&unit()].head().map(|head| head.epoch), Some(plan.epoch));
    }

    /// Gives an order under a new request id.
    pub(super) fn order(&mut self, order: Order) -> Vec<String> {
        self.requests += 1;
        let request = format!("r{}", self.requests);
        self.order_as(&request, 0, order)
    }

    pub(super) fn order_as(&mut self, request: &str, content: u8, order: Order) -> Vec<String> {
        self.give(request, content, order, false)
    }

    pub(super) fn give(&mut self, request: &str, content: u8, order: Order, dry_run: bool) -> Vec<String> {
        let request = RequestId::new(request).expect("valid");
        let ticket = Ticket(900 + self.requests);
        let (who, content) = ("kim".to_owned(), Digest([content; 32]));
        self.does(Event::Admin(Admin { ticket, who, request, content, order, dry_run }))
    }

    pub(super) fn audited(&self) -> Vec<String> {
        let entries = self.store.list(&Scope::Audit).map(|(_, found)| match &found.record {
            Record::Audit(entry) => format!("{} {}", entry.who, entry.verb),
            other => panic!("{other:?} in the audit"),
        });
        entries.collect()
    }

    pub(super) fn head_in_store(&self) -> u64 {
        match self.store.get(&Key::Head(unit())).map(|found| &found.record) {
            Some(Record::Plan(name)) => name.epoch.0,
            other => panic!("{other:?} as head"),
        }
    }
}

fn proposal(plan: Arc<Plan>) -> Event {
    let (account, chunks) = (Arc::from([].as_slice()), vec![Arc::from([1].as_slice())]);
    Event::Propose { plan, account, chunks }
}
