//! What every store must do. Each implementation runs the whole suite: those of this crate beside their code, the shared
//! one in the end-to-end tests, against real processes.
//!
//! Every case gets a store without records and is the only one that writes to it.

use super::{Store, StoreError, Told};
use evenkeel_core::ids::{Digest, Epoch, NodeId, Term, UnitId};
use evenkeel_core::records::{
    AuditId, AuditRecord, CHUNK_BYTES_MAX, Change, Changed, Expect, Key, LeaderRecord, LeaseId, Manifest,
    Opaque, Outcome, PlanName, Record, RequestId, RequestRecord, Revision, Scope, Transaction, Versioned,
    campaign, commit, guarded,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longer than any case takes: leases that are to live do.
const TTL_LONG: Duration = Duration::from_secs(60);
/// The shortest that every store grants as it is asked.
const TTL_SHORT: Duration = Duration::from_secs(2);
/// Everything that is waited for happens within this time, on a machine of two busy cores.
const PATIENCE: Duration = Duration::from_secs(30);

macro_rules! cases {
    ($($(#[$doc:meta])* async fn $name:ident($store:ident) $body:block)*) => {
        /// Runs every case on a store that `open` makes for it. Panics at the first that fails, and says which on stderr.
        pub async fn check(open: impl AsyncFn() -> Arc<dyn Store>) {
            $(
                eprintln!("conformance: {}", stringify!($name));
                $name(open().await.as_ref()).await;
            )*
        }

        $($(#[$doc])* async fn $name($store: &dyn Store) $body)*
    };
}

fn unit(name: &str) -> UnitId {
    UnitId::new(name).expect("valid")
}

fn leader(lease: LeaseId) -> LeaderRecord {
    LeaderRecord { balancer: "a".into(), address: "127.0.0.1:1".into(), lease }
}

fn put(key: Key, record: Record) -> Change {
    Change::Put(key, record, None)
}

/// A change whose record is told apart from others of the same key.
fn drains(of: &str, node: &str) -> Change {
    let node = NodeId::new(node).expect("valid");
    put(Key::Drains(unit(of)), Record::Drains([node].into()))
}

/// A transaction that nothing can refuse.
fn free(changes: Vec<Change>) -> Transaction {
    Transaction { expects: Vec::new(), changes }
}

#[track_caller]
fn done(outcome: Result<Outcome, StoreError>) -> Revision {
    match outcome {
        Ok(Outcome::Done(revision)) => revision,
        other => panic!("not done: {other:?}"),
    }
}

/// A leader, and the term that it won.
async fn reign(store: &dyn Store) -> (Term, LeaseId) {
    let lease = store.grant(TTL_LONG).await.expect("a lease");
    let revision = done(store.transact(&campaign(leader(lease))).await);
    (Term { generation: 0, revision: revision.0 }, lease)
}

async fn get(store: &dyn Store, key: Key) -> Option<Versioned> {
    store.read(&[key]).await.expect("readable").records.pop().expect("one answer for one key")
}

/// The next message of a watch.
async fn told(watch: &mut mpsc::Receiver<Told>) -> Told {
    timeout(PATIENCE, watch.recv()).await.expect("the watch tells in time").expect("the watch goes on")
}

/// So many changes, however they are cut into messages.
async fn changes(watch: &mut mpsc::Receiver<Told>, count: usize) -> Vec<Changed> {
    let mut found = Vec::new();
    while found.len() < count {
        match told(watch).await {
            Told::Changed(changed) => found.extend(changed),
            Told::Listed(listed) => panic!("nothing was lost, but listed: {listed:?}"),
        }
    }
    assert_eq!(found.len(), count, "{found:?}");
    found
}

fn manifest(term: Term, epoch: u64, chunks: u32) -> Manifest {
    let name = PlanName { term, epoch: Epoch(epoch), digest: Digest([7; 32]) };
    Manifest { name, chunks, account: [1, 2].as_slice().into() }
}

/// Commits a plan of so many chunks; the outcome of the last transaction.
async fn commit_plan(
    store: &dyn Store,
    term: Term,
    head: Option<Revision>,
    epoch: u64,
    chunks: u32,
) -> Outcome {
    let content = (0..chunks).map(|i| Opaque::from(vec![u8::try_from(i).expect("few"); CHUNK_BYTES_MAX]));
    let transactions =
        commit(term, &unit("u"), head, manifest(term, epoch, chunks), content.collect(), Vec::new());
    let mut last = Outcome::Refused;
    for transaction in transactions {
        last = store.transact(&transaction).await.expect("an outcome");
    }
    last
}

/// One record under each kind of key, over two units whose names begin alike.
fn one_of_each(term: Term) -> Vec<Change> {
    let node = NodeId::new("n-1").expect("valid");
    let plan = Record::Plan(manifest(term, 0, 1).name);
    let request = RequestRecord { at_ms: 1, content: Digest([1; 32]), answer: [].as_slice().into() };
    let audit = AuditRecord {
        who: "a".into(),
        verb: "commit".into(),
        unit: Some(unit("u")),
        plan: None,
        detail: String::new(),
    };
    let at = |at_ms| AuditId { at_ms, term, sequence: 0 };
    let mut changes = vec![
        put(Key::Schema, Record::Schema(super::SCHEMA)),
        put(Key::Agent(node), Record::Agent { at_ms: 1, connected: true }),
        put(Key::Request(RequestId::new("r.1").expect("valid")), Record::Request(request)),
        put(Key::Audit(at(1)), Record::Audit(audit.clone())),
        put(Key::Audit(at(20)), Record::Audit(audit)),
    ];
    for name in ["u", "u-2"] {
        changes.extend([
            drains(name, "n-1"),
            put(Key::Head(unit(name)), plan.clone()),
            put(Key::Pending(unit(name)), plan.clone()),
            put(Key::Manifest(unit(name), Epoch(9)), Record::Manifest(manifest(term, 9, 1))),
            put(Key::Manifest(unit(name), Epoch(10)), Record::Manifest(manifest(term, 10, 0))),
            put(Key::Chunk(unit(name), Epoch(9), 0), Record::Chunk([3].as_slice().into())),
        ]);
    }
    changes
}

cases! {
    async fn an_empty_store_has_nothing(store) {
        assert_eq!(get(store, Key::Leader).await, None);
        assert_eq!(store.list(&Scope::All).await.expect("readable").records, []);
        assert_eq!(store.keys(&Scope::All).await.expect("readable").records, []);
    }

    async fn only_one_of_two_campaigns_wins(store) {
        let (term, _) = reign(store).await;
        let lease = store.grant(TTL_LONG).await.expect("a lease");
        assert_eq!(store.transact(&campaign(leader(lease))).await, Ok(Outcome::Refused));
        let found = get(store, Key::Leader).await.expect("reigns");
        assert_eq!(found.created, Revision(term.revision));
    }

    async fn a_term_that_is_over_changes_nothing(store) {
        let (term, lease) = reign(store).await;
        let change = || guarded(term, vec![drains("u", "n")]);
        let before = done(store.transact(&change()).await);
        store.revoke(lease).await.expect("ended");
        assert_eq!(store.transact(&change()).await, Ok(Outcome::Refused));
        let (next, _) = reign(store).await;
        assert!(next > term);
        assert_eq!(store.transact(&change()).await, Ok(Outcome::Refused));
        assert_eq!(get(store, Key::Drains(unit("u"))).await.map(|found| found.modified), Some(before));
    }

    async fn a_raised_generation_ends_the_terms_before_it(store) {
        let (term, _) = reign(store).await;
        done(store.transact(&guarded(term, vec![put(Key::Generation, Record::Generation(3))])).await);
        let change = |generation| guarded(Term { generation, ..term }, vec![drains("u", "n")]);
        for generation in [0, 1, 4] {
            assert_eq!(store.transact(&change(generation)).await, Ok(Outcome::Refused), "{generation}");
        }
        done(store.transact(&change(3)).await);
    }

    async fn a_term_of_nobody_reigns_nowhere(store) {
        let change = guarded(Term::default(), vec![drains("u", "n")]);
        assert_eq!(store.transact(&change).await, Ok(Outcome::Refused));
        let expects = vec![Expect::Modified(Key::Schema, Revision(0))];
        let change = Transaction { expects, changes: vec![drains("u", "n")] };
        assert_eq!(store.transact(&change).await, Ok(Outcome::Refused));
    }

    async fn a_plan_is_committed_once_and_only_on_its_head(store) {
        let (term, _) = reign(store).await;
        let Outcome::Done(head) = commit_plan(store, term, None, 0, 1).await else { panic!("the first") };
        assert_eq!(commit_plan(store, term, None, 0, 1).await, Outcome::Refused);
        let Outcome::Done(next) = commit_plan(store, term, Some(head), 1, 3).await else { panic!("a child") };
        assert_eq!(commit_plan(store, term, Some(head), 2, 1).await, Outcome::Refused);
        assert_eq!(get(store, Key::Head(unit("u"))).await.map(|found| found.modified), Some(next));
        let chunks = store.list(&Scope::Chunks(unit("u"), Epoch(1))).await.expect("readable").records;
        let sizes = chunks.iter().map(|(_, found)| match &found.record {
            Record::Chunk(bytes) => (bytes.len(), bytes[0]),
            other => panic!("{other:?}"),
        });
        assert_eq!(sizes.collect::<Vec<_>>(), (0..3).map(|i| (CHUNK_BYTES_MAX, i)).collect::<Vec<_>>());
    }

    async fn revisions_say_when_a_key_was_made_and_changed(store) {
        let made = done(store.transact(&free(vec![drains("u", "a")])).await);
        let changed = done(store.transact(&free(vec![drains("u", "b"), drains("v", "b")])).await);
        assert_eq!(changed.0, made.0 + 1);
        let found = get(store, Key::Drains(unit("u"))).await.expect("there");
        assert_eq!((found.created, found.modified, found.lease), (made, changed, None));
        done(store.transact(&free(vec![Change::Delete(Key::Drains(unit("u")))])).await);
        let again = done(store.transact(&free(vec![drains("u", "a")])).await);
        assert_eq!(again.0, changed.0 + 2);
        let found = get(store, Key::Drains(unit("u"))).await.expect("there");
        assert_eq!((found.created, found.modified), (again, again));
    }

    async fn what_changes_nothing_has_no_revision(store) {
        let before = done(store.transact(&free(vec![drains("u", "a")])).await);
        let absent = Change::Delete(Key::Drains(unit("v")));
        assert_eq!(done(store.transact(&free(vec![absent])).await), before);
        let there = Expect::Modified(Key::Drains(unit("u")), before);
        let looks = |expect| Transaction { expects: vec![expect], changes: Vec::new() };
        assert_eq!(done(store.transact(&looks(there)).await), before);
        let absent = Expect::Absent(Key::Drains(unit("u")));
        assert_eq!(store.transact(&looks(absent)).await, Ok(Outcome::Refused));
        assert_eq!(store.read(&[]).await.expect("readable").revision, before);
    }

    async fn a_transaction_of_the_largest_size_is_made_as_one(store) {
        let request = |i| RequestId::new(format!("r{i}")).expect("valid");
        let record = Record::Request(RequestRecord {
            at_ms: 1,
            content: Digest([1; 32]),
            answer: [0; 1000].as_slice().into(),
        });
        let change = |i| put(Key::Request(request(i)), record.clone());
        let revision = done(store.transact(&free((0..Transaction::CHANGES_MAX).map(change).collect())).await);
        let found = store.list(&Scope::Requests).await.expect("readable").records;
        assert_eq!(found.len(), Transaction::CHANGES_MAX);
        assert!(found.iter().all(|(_, found)| found.modified == revision));
        let keys: Vec<Key> = (0..Transaction::CHANGES_MAX).map(|i| Key::Request(request(i))).collect();
        let read = store.read(&keys).await.expect("readable").records;
        assert!(read.iter().all(Option::is_some));
    }

    async fn reads_answer_key_by_key(store) {
        let (term, lease) = reign(store).await;
        let revision = done(store.transact(&guarded(term, vec![drains("u", "a")])).await);
        let keys = [Key::Schema, Key::Drains(unit("u")), Key::Leader, Key::Drains(unit("u"))];
        let found = store.read(&keys).await.expect("readable");
        assert_eq!(found.revision, revision);
        assert_eq!(found.records[0], None);
        assert!(found.records[1].is_some());
        assert_eq!(found.records[2].as_ref().map(|found| &found.record), Some(&Record::Leader(leader(lease))));
        assert_eq!(found.records[2].as_ref().and_then(|found| found.lease), Some(lease));
        assert_eq!(found.records[1], found.records[3]);
    }

    async fn a_scope_lists_what_belongs_to_it_in_order(store) {
        let (term, _) = reign(store).await;
        let changes = one_of_each(term);
        let key = |change: &Change| match change {
            Change::Put(key, _, _) | Change::Delete(key) => key.clone(),
        };
        let keys: BTreeSet<Key> = changes.iter().map(key).chain([Key::Leader]).collect();
        let revision = done(store.transact(&guarded(term, changes)).await);
        for scope in [
            Scope::All,
            Scope::Leader,
            Scope::Units,
            Scope::OfUnit(unit("u")),
            Scope::Manifests(unit("u")),
            Scope::Chunks(unit("u"), Epoch(9)),
            Scope::Agents,
            Scope::Requests,
            Scope::Audit,
        ] {
            let expected: Vec<Key> = keys.iter().filter(|key| scope.contains(key)).cloned().collect();
            let found = store.list(&scope).await.expect("readable");
            assert_eq!(found.revision, revision);
            assert_eq!(found.records.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), expected, "{scope:?}");
            assert!(found.records.iter().all(|(key, found)| found.record.fits(key)));
            let expected: Vec<_> = found.records.iter().map(|(key, found)| (key.clone(), found.modified)).collect();
            assert_eq!(store.keys(&scope).await.expect("readable").records, expected, "{scope:?}");
        }
    }

    async fn a_lease_takes_its_keys_along(store) {
        let (term, lease) = reign(store).await;
        let under = Change::Put(Key::Pause(unit("u")), Record::Pause(evenkeel_core::records::Pause {
            by: "a".into(),
            until_ms: None,
        }), Some(lease));
        done(store.transact(&guarded(term, vec![under, drains("u", "a")])).await);
        store.revoke(lease).await.expect("ended");
        store.revoke(lease).await.expect("ended before, and no error");
        let keys = store.keys(&Scope::All).await.expect("readable").records;
        assert_eq!(keys.iter().map(|(key, _)| key).collect::<Vec<_>>(), [&Key::Drains(unit("u"))]);
        assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseEnded(lease)));
    }

    async fn a_lease_that_has_ended_refuses_puts(store) {
        let lease = store.grant(TTL_LONG).await.expect("a lease");
        store.revoke(lease).await.expect("ended");
        assert_eq!(store.transact(&campaign(leader(lease))).await, Ok(Outcome::Refused));
    }

    async fn a_key_put_again_without_its_lease_outlives_it(store) {
        let (term, lease) = reign(store).await;
        let schema = |lease| Change::Put(Key::Schema, Record::Schema(2), lease);
        done(store.transact(&guarded(term, vec![schema(Some(lease))])).await);
        done(store.transact(&guarded(term, vec![schema(None)])).await);
        store.revoke(lease).await.expect("ended");
        assert!(get(store, Key::Schema).await.is_some());
    }

    async fn a_lease_ends_by_itself_unless_it_is_kept_alive(store) {
        let kept = store.grant(TTL_SHORT).await.expect("a lease");
        let left = store.grant(TTL_SHORT).await.expect("a lease");
        let (agent, schema) = (Key::Agent(NodeId::new("n").expect("valid")), Key::Schema);
        let record = Record::Agent { at_ms: 1, connected: true };
        let changes = vec![
            Change::Put(agent.clone(), record, Some(kept)),
            Change::Put(schema.clone(), Record::Schema(2), Some(left)),
        ];
        done(store.transact(&free(changes)).await);
        let mut watch = store.watch(Scope::All);
        assert!(matches!(told(&mut watch).await, Told::Listed(_)));
        let ended = async {
            let mut pulse = tokio::time::interval(TTL_SHORT / 5);
            loop {
                tokio::select! {
                    _ = pulse.tick() => store.keep_alive(kept).await.expect("kept alive"),
                    told = watch.recv() => return told.expect("the watch goes on"),
                }
            }
        };
        let Told::Changed(changed) = timeout(PATIENCE, ended).await.expect("the lease ends") else {
            panic!("nothing was lost")
        };
        assert_eq!(changed.iter().map(|c| (&c.key, &c.now)).collect::<Vec<_>>(), [(&schema, &None)]);
        assert_eq!(store.keep_alive(left).await, Err(StoreError::LeaseEnded(left)));
        assert!(get(store, agent).await.is_some());
    }

    async fn a_watch_lists_and_then_tells_every_change_in_order(store) {
        let first = done(store.transact(&free(vec![drains("u", "a"), drains("v", "a")])).await);
        let mut watch = store.watch(Scope::OfUnit(unit("u")));
        let Told::Listed(listed) = told(&mut watch).await else { panic!("lists first") };
        assert_eq!((listed.revision, listed.records.len()), (first, 1));
        let record = Record::Plan(manifest(Term::default(), 0, 0).name);
        let both = vec![drains("u", "b"), drains("v", "b"), put(Key::Head(unit("u")), record)];
        let second = done(store.transact(&free(both)).await);
        done(store.transact(&free(vec![drains("v", "c")])).await);
        let fourth = done(store.transact(&free(vec![Change::Delete(Key::Drains(unit("u")))])).await);
        let found = changes(&mut watch, 3).await;
        let summary = |c: &Changed| (c.revision, c.key.clone(), c.now.is_some());
        assert_eq!(found.iter().map(summary).collect::<Vec<_>>(), [
            (second, Key::Drains(unit("u")), true),
            (second, Key::Head(unit("u")), true),
            (fourth, Key::Drains(unit("u")), false),
        ]);
        let now = found[0].now.clone().expect("put");
        assert_eq!((now.created, now.modified), (first, second));
    }

    async fn watchers_do_not_disturb_each_other(store) {
        let (mut all, leader) = (store.watch(Scope::All), store.watch(Scope::Leader));
        assert!(matches!(told(&mut all).await, Told::Listed(_)));
        drop(leader);
        let (_, lease) = reign(store).await;
        assert_eq!(changes(&mut all, 1).await[0].key, Key::Leader);
        store.revoke(lease).await.expect("ended");
        let found = changes(&mut all, 1).await;
        assert_eq!((&found[0].key, &found[0].now), (&Key::Leader, &None));
    }

    async fn a_watcher_that_does_not_read_misses_nothing_in_the_end(store) {
        let mut watch = store.watch(Scope::OfUnit(unit("u")));
        assert!(matches!(told(&mut watch).await, Told::Listed(_)));
        let mut last = Revision::default();
        for i in 0..150 {
            last = done(store.transact(&free(vec![drains("u", &format!("n{i}"))])).await);
        }
        let seen = async {
            let mut seen = Revision::default();
            while seen < last {
                let next = match told(&mut watch).await {
                    Told::Changed(changed) => changed.last().expect("not empty").revision,
                    Told::Listed(listed) => listed.revision,
                };
                assert!(next > seen, "{next:?} after {seen:?}");
                seen = next;
            }
            seen
        };
        assert_eq!(timeout(PATIENCE, seen).await.expect("told in time"), last);
    }

    async fn another_layout_is_refused(store) {
        super::check_schema(store).await.expect("a new store has none");
        done(store.transact(&free(vec![put(Key::Schema, Record::Schema(super::SCHEMA))])).await);
        super::check_schema(store).await.expect("ours");
        done(store.transact(&free(vec![put(Key::Schema, Record::Schema(super::SCHEMA + 1))])).await);
        let refused = super::check_schema(store).await.map_err(|e| e.code());
        assert_eq!(refused, Err("store_broken"));
    }
}
