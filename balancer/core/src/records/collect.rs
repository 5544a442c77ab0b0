//! What in a store nobody needs any more, and the transactions that delete it.
//!
//! | what | when |
//! |---|---|
//! | a plan, manifest first | [`PLANS_KEPT`] plans have followed it |
//! | a manifest beyond its unit's head | at once: only a restored backup has such |
//! | chunks without a manifest | when they were written before this term, by a leader that did not come to commit |
//! | a request, an audit entry | [`REQUEST_KEPT`], [`AUDIT_KEPT`] after it |
//!
//! Chunks of this term may belong to a commit that is under way; they are left to the next leader.

use super::{
    AUDIT_KEPT, Change, Expect, Key, PLANS_KEPT, REQUEST_KEPT, RequestId, Revision, Transaction, guarded,
};
use crate::ids::{Epoch, Term, UnitId};
use std::collections::{BTreeMap, BTreeSet};

/// What a store holds, as far as that matters here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// Every key, with the transaction that last changed it.
    pub keys: Vec<(Key, Revision)>,
    /// Epoch of each unit's head, read after the keys.
    pub heads: BTreeMap<UnitId, Epoch>,
    /// Every request, with the Unix time in milliseconds at which it was carried out.
    pub requests: Vec<(RequestId, u64)>,
}

/// The transactions that delete what is not needed at `now_ms` (Unix time), in the name of `term`. Each has at most
/// [`Transaction::CHANGES_MAX`] changes, and can be made or left without regard to the others.
pub fn collect(listing: &Listing, term: Term, now_ms: u64) -> Vec<Transaction> {
    let manifests = manifests(listing);
    let mut keys: Vec<&(Key, Revision)> = listing.keys.iter().collect();
    // Manifests come before chunks: a plan that is going is never one that seems whole.
    keys.sort_unstable();
    let mut doomed = Vec::new();
    for (key, modified) in keys {
        let fate = match key {
            Key::Manifest(unit, epoch) if is_beyond(listing, unit, *epoch) => Fate::Goes,
            Key::Manifest(unit, epoch) | Key::Chunk(unit, epoch, _) if is_old(listing, unit, *epoch) => {
                Fate::Goes
            }
            Key::Chunk(unit, epoch, _) if manifests.contains(&(unit, *epoch)) => {
                // With its manifest, or not at all.
                if is_beyond(listing, unit, *epoch) { Fate::Goes } else { Fate::Stays }
            }
            Key::Chunk(..) if modified.0 < term.revision => Fate::GoesAsItIs,
            Key::Audit(id) if over(id.at_ms, AUDIT_KEPT.0, now_ms) => Fate::Goes,
            _ => Fate::Stays,
        };
        match fate {
            Fate::Stays => {}
            Fate::Goes => doomed.push((key.clone(), None)),
            Fate::GoesAsItIs => doomed.push((key.clone(), Some(*modified))),
        }
    }
    let requests = listing.requests.iter().filter(|(_, at_ms)| over(*at_ms, REQUEST_KEPT.0, now_ms));
    doomed.extend(requests.map(|(id, _)| (Key::Request(id.clone()), None)));
    doomed.chunks(Transaction::CHANGES_MAX).map(|some| delete(term, some)).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Goes,
    /// Only if nobody has changed it since it was listed.
    GoesAsItIs,
}

fn manifests(listing: &Listing) -> BTreeSet<(&UnitId, Epoch)> {
    listing
        .keys
        .iter()
        .filter_map(|(key, _)| match key {
            Key::Manifest(unit, epoch) => Some((unit, *epoch)),
            _ => None,
        })
        .collect()
}

fn is_old(listing: &Listing, unit: &UnitId, epoch: Epoch) -> bool {
    listing.heads.get(unit).is_some_and(|head| head.0 >= epoch.0.saturating_add(PLANS_KEPT))
}

fn is_beyond(listing: &Listing, unit: &UnitId, epoch: Epoch) -> bool {
    listing.heads.get(unit).is_none_or(|head| epoch > *head)
}

fn over(at_ms: u64, kept_ms: u64, now_ms: u64) -> bool {
    now_ms.saturating_sub(at_ms) > kept_ms
}

fn delete(term: Term, keys: &[(Key, Option<Revision>)]) -> Transaction {
    let mut transaction = guarded(term, keys.iter().map(|(key, _)| Change::Delete(key.clone())).collect());
    let as_listed =
        keys.iter().filter_map(|(key, revision)| Some(Expect::Modified(key.clone(), (*revision)?)));
    transaction.expects.extend(as_listed);
    transaction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::AuditId;

    const TERM: Term = Term { generation: 0, revision: 100 };
    const NOW_MS: u64 = 100 * 24 * 3600 * 1000;

    fn unit() -> UnitId {
        UnitId::new("u").expect("valid")
    }

    fn manifest(epoch: u64) -> (Key, Revision) {
        (Key::Manifest(unit(), Epoch(epoch)), Revision(1))
    }

    fn chunk(epoch: u64, i: u32, modified: u64) -> (Key, Revision) {
        (Key::Chunk(unit(), Epoch(epoch), i), Revision(modified))
    }

    fn listing(head: Option<u64>, keys: Vec<(Key, Revision)>) -> Listing {
        let heads = head.map(|epoch| (unit(), Epoch(epoch))).into_iter().collect();
        Listing { keys, heads, requests: Vec::new() }
    }

    /// The keys that go, and how many of them only as they were listed.
    #[track_caller]
    fn check(listing: &Listing, gone: &[Key], as_listed: usize) {
        let transactions = collect(listing, TERM, NOW_MS);
        let deleted: Vec<Key> = transactions
            .iter()
            .flat_map(|t| &t.changes)
            .map(|change| match change {
                Change::Delete(key) => key.clone(),
                Change::Put(..) => panic!("nothing is written"),
            })
            .collect();
        assert_eq!(deleted, gone);
        let expects = transactions.iter().flat_map(|t| &t.expects);
        assert_eq!(expects.filter(|e| matches!(e, Expect::Modified(..))).count(), as_listed);
        assert!(transactions.iter().all(|t| t.expects[0] == Expect::Reigns(TERM)));
    }

    #[test]
    fn plans_go_when_enough_have_followed_manifest_first() {
        let keys = vec![chunk(0, 0, 1), manifest(0), chunk(1, 0, 1), manifest(1)];
        check(&listing(Some(PLANS_KEPT - 1), keys.clone()), &[], 0);
        let gone = [manifest(0).0, chunk(0, 0, 1).0];
        check(&listing(Some(PLANS_KEPT), keys), &gone, 0);
    }

    #[test]
    fn chunks_of_a_plan_that_was_not_committed_go_in_the_next_term_as_they_are() {
        let keys = vec![manifest(4), chunk(4, 0, 90), chunk(5, 0, 91), chunk(5, 1, 99), chunk(6, 0, 101)];
        check(&listing(Some(4), keys), &[chunk(5, 0, 0).0, chunk(5, 1, 0).0], 2);
    }

    #[test]
    fn chunks_left_of_a_plan_that_has_gone_go_whoever_wrote_them() {
        check(&listing(Some(PLANS_KEPT + 3), vec![chunk(3, 0, 101)]), &[chunk(3, 0, 0).0], 0);
    }

    #[test]
    fn manifests_beyond_the_head_go_with_their_chunks() {
        let keys = vec![manifest(4), manifest(5), chunk(4, 0, 1), chunk(5, 0, 101)];
        check(&listing(Some(4), keys.clone()), &[manifest(5).0, chunk(5, 0, 0).0], 0);
        let all = [manifest(4).0, manifest(5).0, chunk(4, 0, 1).0, chunk(5, 0, 1).0];
        check(&listing(None, keys), &all, 0);
    }

    #[test]
    fn requests_and_audit_go_by_their_age() {
        let audit = |age_ms| Key::Audit(AuditId { at_ms: NOW_MS - age_ms, term: TERM, sequence: 0 });
        let id = |name| RequestId::new(name).expect("valid");
        let listing = Listing {
            keys: vec![(audit(AUDIT_KEPT.0 + 1), Revision(1)), (audit(AUDIT_KEPT.0), Revision(1))],
            heads: BTreeMap::new(),
            requests: vec![
                (id("old"), NOW_MS - REQUEST_KEPT.0 - 1),
                (id("kept"), NOW_MS - REQUEST_KEPT.0),
                (id("of-a-clock-ahead"), NOW_MS + 1),
            ],
        };
        check(&listing, &[audit(AUDIT_KEPT.0 + 1), Key::Request(id("old"))], 0);
    }

    #[test]
    fn the_rest_stays() {
        let keys = [
            Key::Schema,
            Key::Generation,
            Key::Leader,
            Key::Unit(unit()),
            Key::Head(unit()),
            Key::Pending(unit()),
            Key::Pins(unit()),
            Key::Drains(unit()),
            Key::Pause(unit()),
        ];
        check(&listing(None, keys.into_iter().map(|key| (key, Revision(1))).collect()), &[], 0);
    }

    #[test]
    fn no_transaction_is_too_large() {
        let keys: Vec<_> = (0..250).map(|i| chunk(9, i, 1)).collect();
        let sizes: Vec<_> =
            collect(&listing(None, keys), TERM, NOW_MS).iter().map(|t| t.changes.len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
    }
}
