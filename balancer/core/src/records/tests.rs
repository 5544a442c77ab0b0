use super::memory::{Compacted, Memory};
use super::*;
use crate::ids::Term;

fn unit() -> UnitId {
    UnitId::new("u").expect("valid")
}

fn name(term: Term, epoch: u64) -> PlanName {
    PlanName { term, epoch: Epoch(epoch), digest: Digest([7; 32]) }
}

/// A store with a leader.
fn reigning() -> (Memory, Term, LeaseId) {
    let mut store = Memory::default();
    let lease = store.grant();
    let leader = LeaderRecord { balancer: "a".into(), address: "127.0.0.1:1".into(), lease };
    let Outcome::Done(revision) = store.transact(&campaign(leader)) else { panic!("nobody reigned") };
    (store, Term { generation: 0, revision: revision.0 }, lease)
}

fn commit_plan(
    store: &mut Memory,
    term: Term,
    head: Option<Revision>,
    epoch: u64,
    chunks: usize,
) -> Vec<Outcome> {
    let manifest = Manifest {
        name: name(term, epoch),
        chunks: u32::try_from(chunks).expect("few"),
        account: Arc::from([].as_slice()),
    };
    let chunks = vec![Opaque::from([1].as_slice()); chunks];
    commit(term, &unit(), head, manifest, chunks, Vec::new()).iter().map(|t| store.transact(t)).collect()
}

#[test]
fn only_one_of_two_campaigns_wins() {
    let (mut store, _, _) = reigning();
    let lease = store.grant();
    let rival = LeaderRecord { balancer: "b".into(), address: "127.0.0.1:2".into(), lease };
    assert_eq!(store.transact(&campaign(rival)), Outcome::Refused);
}

#[test]
fn a_term_that_is_over_changes_nothing() {
    let (mut store, term, lease) = reigning();
    assert!(store.end(lease));
    let before = store.revision();
    assert_eq!(commit_plan(&mut store, term, None, 0, 3), vec![Outcome::Refused; 3]);
    assert_eq!(store.revision(), before);
}

#[test]
fn a_raised_generation_ends_the_terms_before_it() {
    let (mut store, term, _) = reigning();
    let raise = Change::Put(Key::Generation, Record::Generation(1), None);
    assert!(matches!(store.transact(&guarded(term, vec![raise])), Outcome::Done(_)));
    assert!(!store.holds(&Expect::Reigns(term)));
    assert!(store.holds(&Expect::Reigns(Term { generation: 1, ..term })));
}

#[test]
fn a_plan_is_committed_once_and_only_on_its_head() {
    let (mut store, term, _) = reigning();
    let last = |outcomes: Vec<Outcome>| *outcomes.last().expect("at least the commit");
    let Outcome::Done(head) = last(commit_plan(&mut store, term, None, 0, 1)) else { panic!("the first") };
    assert_eq!(last(commit_plan(&mut store, term, None, 0, 1)), Outcome::Refused);
    let Outcome::Done(next) = last(commit_plan(&mut store, term, Some(head), 1, 2)) else {
        panic!("a child")
    };
    assert_eq!(last(commit_plan(&mut store, term, Some(head), 2, 1)), Outcome::Refused);
    assert_eq!(store.get(&Key::Head(unit())).map(|found| found.modified), Some(next));
    assert_eq!(store.list(&Scope::Chunks(unit(), Epoch(1))).count(), 2);
}

#[test]
fn a_lease_takes_its_keys_along_at_one_revision() {
    let (mut store, _, lease) = reigning();
    let before = store.revision();
    assert!(store.end(lease));
    assert!(!store.end(lease), "once");
    assert_eq!(store.get(&Key::Leader), None);
    let told = store.changes_after(before, &Scope::Leader).expect("kept");
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].now, None);
}

#[test]
fn a_key_put_again_without_its_lease_outlives_it() {
    let (mut store, term, lease) = reigning();
    let put = |lease| Change::Put(Key::Schema, Record::Schema(1), lease);
    store.transact(&guarded(term, vec![put(Some(lease))]));
    store.transact(&guarded(term, vec![put(None)]));
    store.end(lease);
    assert!(store.get(&Key::Schema).is_some());
}

#[test]
fn a_lease_that_has_ended_refuses_puts() {
    let mut store = Memory::default();
    let lease = store.grant();
    store.end(lease);
    let leader = LeaderRecord { balancer: "a".into(), address: "127.0.0.1:1".into(), lease };
    assert_eq!(store.transact(&campaign(leader)), Outcome::Refused);
}

#[test]
fn deleting_what_is_not_there_changes_nothing() {
    let (mut store, term, _) = reigning();
    let before = store.revision();
    assert_eq!(store.transact(&guarded(term, vec![Change::Delete(Key::Schema)])), Outcome::Done(before));
}

#[test]
fn changes_before_a_compaction_are_refused_with_where_to_go_on() {
    let (mut store, term, _) = reigning();
    store.transact(&guarded(term, vec![Change::Put(Key::Schema, Record::Schema(1), None)]));
    let last = store.revision();
    store.compact(last);
    assert_eq!(store.changes_after(Revision(0), &Scope::All), Err(Compacted { oldest: last }));
    assert_eq!(store.changes_after(last, &Scope::All), Ok(Vec::new()));
}

#[test]
fn request_ids_are_short_and_plain() {
    for (value, valid) in [("a", true), ("A-1_b.c", true), ("", false), ("a/b", false), ("é", false)] {
        assert_eq!(RequestId::new(value).is_some(), valid, "{value:?}");
    }
    assert!(RequestId::new("x".repeat(RequestId::LENGTH_MAX)).is_some());
    assert!(RequestId::new("x".repeat(RequestId::LENGTH_MAX + 1)).is_none());
}
