//! The same random work on several stores: they must agree on every outcome and on everything that stands in them.
//!
//! Revisions and leases have other numbers in each store, so the work names them by the step that made them.

use super::Store;
use evenkeel_core::ids::{Digest, Epoch, NodeId, Term, UnitId};
use evenkeel_core::records::{
    Change, Expect, Key, LeaderRecord, LeaseId, Outcome, PlanName, Record, RequestId, RequestRecord,
    Revision, Scope, Transaction,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// No lease ends by itself during a comparison.
const TTL: Duration = Duration::from_secs(600);
/// Few leases, so that they often hold several keys, and keys often change hands.
const LEASES: u64 = 3;

/// splitmix64: the same work from the same seed, on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// A revision or a lease, by the step that made it. A step that was refused made none.
type Step = u64;

enum SymbolicExpect {
    Absent(Key),
    Modified(Key, Step),
    Reigns { generation: u64, step: Step },
}

enum SymbolicChange {
    Put(Key, Record, Option<u64>),
    Delete(Key),
}

enum Work {
    Transact(Vec<SymbolicExpect>, Vec<SymbolicChange>),
    Revoke(u64),
    Grant(u64),
}

fn keys() -> Vec<Key> {
    let unit = UnitId::new("u").expect("valid");
    let request = RequestId::new("r").expect("valid");
    let node = NodeId::new("n").expect("valid");
    vec![
        Key::Leader,
        Key::Generation,
        Key::Schema,
        Key::Head(unit.clone()),
        Key::Chunk(unit.clone(), Epoch(1), 0),
        Key::Drains(unit),
        Key::Request(request),
        Key::Agent(node),
    ]
}

fn record(key: &Key, dice: &mut Dice) -> Record {
    let n = dice.below(3) + 1;
    let digest = Digest([u8::try_from(n).expect("small"); 32]);
    match key {
        Key::Leader => Record::Leader(LeaderRecord {
            balancer: format!("b{n}"),
            address: String::new(),
            lease: LeaseId(0),
        }),
        Key::Generation => Record::Generation(n),
        Key::Schema => Record::Schema(n),
        Key::Head(_) => Record::Plan(PlanName { term: Term::default(), epoch: Epoch(n), digest }),
        Key::Chunk(..) => Record::Chunk(vec![1; usize::try_from(n).expect("small") * 1000].into()),
        Key::Drains(_) => Record::Drains([NodeId::new(format!("n{n}")).expect("valid")].into()),
        Key::Request(_) => {
            Record::Request(RequestRecord { at_ms: n, content: digest, answer: [].as_slice().into() })
        }
        _ => Record::Agent { at_ms: n, connected: n == 1 },
    }
}

fn work(step: Step, dice: &mut Dice) -> Work {
    let keys = keys();
    let pick = |dice: &mut Dice| keys[usize::try_from(dice.below(keys.len() as u64)).expect("few")].clone();
    match dice.below(12) {
        0 => return Work::Revoke(dice.below(LEASES)),
        1 => return Work::Grant(dice.below(LEASES)),
        _ => {}
    }
    // Mostly what happened just now, so that expectations often hold.
    let recent = |dice: &mut Dice| step.saturating_sub(1 + dice.below(6) * dice.below(3));
    let expects = (0..dice.below(3)).map(|_| match dice.below(3) {
        0 => SymbolicExpect::Absent(pick(dice)),
        1 => SymbolicExpect::Modified(pick(dice), recent(dice)),
        _ => SymbolicExpect::Reigns { generation: dice.below(3), step: recent(dice) },
    });
    let expects = expects.collect();
    let mut changed: Vec<Key> = (0..dice.below(4)).map(|_| pick(dice)).collect();
    changed.sort_unstable();
    changed.dedup();
    let changes = changed.into_iter().map(|key| match dice.below(4) {
        0 => SymbolicChange::Delete(key),
        _ => {
            let record = record(&key, dice);
            let lease = (dice.below(3) == 0).then(|| dice.below(LEASES));
            SymbolicChange::Put(key, record, lease)
        }
    });
    Work::Transact(expects, changes.collect())
}

/// One store, and what its numbers mean.
struct Side {
    store: Arc<dyn Store>,
    revisions: BTreeMap<Step, Revision>,
    leases: BTreeMap<u64, LeaseId>,
}

/// What stands under a key, in terms that are the same for all stores.
type Content = BTreeMap<Key, (Record, Option<Step>, Option<Step>, Option<u64>)>;

impl Side {
    async fn new(store: Arc<dyn Store>) -> Self {
        let mut side = Self { store, revisions: BTreeMap::new(), leases: BTreeMap::new() };
        for lease in 0..LEASES {
            side.grant(lease).await;
        }
        side
    }

    async fn grant(&mut self, lease: u64) {
        // The old one goes on without a name, with the keys that are under it.
        if let Some(before) = self.leases.remove(&lease) {
            self.store.revoke(before).await.expect("ended");
        }
        self.leases.insert(lease, self.store.grant(TTL).await.expect("a lease"));
    }

    async fn revision(&self) -> Revision {
        self.store.read(&[]).await.expect("readable").revision
    }

    /// Does the work; whether it was done.
    async fn apply(&mut self, step: Step, work: &Work) -> bool {
        let before = self.revision().await;
        let done = match work {
            Work::Revoke(lease) => {
                self.store.revoke(self.leases[lease]).await.expect("ended");
                true
            }
            Work::Grant(lease) => {
                self.grant(*lease).await;
                true
            }
            Work::Transact(expects, changes) => {
                let outcome = self.store.transact(&self.concrete(expects, changes)).await;
                matches!(outcome.expect("an outcome"), Outcome::Done(_))
            }
        };
        let after = self.revision().await;
        assert!(after.0 <= before.0 + 1, "one step is one revision");
        if after > before {
            self.revisions.insert(step, after);
        }
        done
    }

    fn concrete(&self, expects: &[SymbolicExpect], changes: &[SymbolicChange]) -> Transaction {
        // No store has come this far.
        let revision = |step: &Step| self.revisions.get(step).copied().unwrap_or(Revision(u64::MAX >> 2));
        let expect = |expect: &SymbolicExpect| match expect {
            SymbolicExpect::Absent(key) => Expect::Absent(key.clone()),
            SymbolicExpect::Modified(key, step) => Expect::Modified(key.clone(), revision(step)),
            SymbolicExpect::Reigns { generation, step } => {
                Expect::Reigns(Term { generation: *generation, revision: revision(step).0 })
            }
        };
        let change = |change: &SymbolicChange| match change {
            SymbolicChange::Put(key, record, lease) => {
                Change::Put(key.clone(), record.clone(), lease.map(|lease| self.leases[&lease]))
            }
            SymbolicChange::Delete(key) => Change::Delete(key.clone()),
        };
        Transaction {
            expects: expects.iter().map(expect).collect(),
            changes: changes.iter().map(change).collect(),
        }
    }

    async fn content(&self) -> Content {
        let steps: BTreeMap<Revision, Step> = self.revisions.iter().map(|(step, at)| (*at, *step)).collect();
        let leases: BTreeMap<LeaseId, u64> = self.leases.iter().map(|(lease, id)| (*id, *lease)).collect();
        let listed = self.store.list(&Scope::All).await.expect("readable").records;
        let entry = |(key, found): (Key, evenkeel_core::records::Versioned)| {
            let step = |revision| steps.get(&revision).copied();
            let lease = found.lease.and_then(|lease| leases.get(&lease).copied());
            (key, (found.record, step(found.created), step(found.modified), lease))
        };
        listed.into_iter().map(entry).collect()
    }
}

/// Does `steps` steps of random work on all stores, which must have no records. Panics where the first disagrees with
/// another.
pub async fn check(stores: Vec<Arc<dyn Store>>, seed: u64, steps: Step) {
    let mut dice = Dice(seed);
    let mut sides = Vec::new();
    for store in stores {
        sides.push(Side::new(store).await);
    }
    for step in 1..=steps {
        let work = work(step, &mut dice);
        let mut first = None;
        for side in &mut sides {
            let found = (side.apply(step, &work).await, side.content().await);
            let place = side.store.place();
            match &first {
                None => first = Some(found),
                Some(first) => assert_eq!(*first, found, "{place} differs at step {step} of seed {seed}"),
            }
        }
    }
}
