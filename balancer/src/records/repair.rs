//! Carries out what [`evenkeel_core::records::collect`] finds: deletes what nobody needs any more, in the leader's name.

use super::{Found, Store, StoreError};
use evenkeel_core::ids::Term;
use evenkeel_core::records::collect::{Listing, collect};
use evenkeel_core::records::{Key, Outcome, Record, Scope};

/// Lists the store and deletes what is left over; the number of deleted keys. It stops when the term is over. To be run by
/// the leader at the beginning of its term and every hour or so; `now_ms` is Unix time in milliseconds.
pub async fn run(store: &dyn Store, term: Term, now_ms: u64) -> Result<usize, StoreError> {
    let listing = list(store).await?;
    let mut deleted = 0;
    for transaction in collect(&listing, term, now_ms) {
        match store.transact(&transaction).await? {
            Outcome::Done(_) => deleted += transaction.changes.len(),
            Outcome::Refused => break,
        }
    }
    Ok(deleted)
}

/// Keys first, then heads: a plan that is committed in between has keys that the listing does not know, and a head that
/// it knows spares the chunks that are on their way.
async fn list(store: &dyn Store) -> Result<Listing, StoreError> {
    let keys = store.keys(&Scope::All).await?.records;
    let heads: Vec<Key> =
        keys.iter().map(|(key, _)| key).filter(|key| matches!(key, Key::Head(_))).cloned().collect();
    let mut listing = Listing { keys, ..Listing::default() };
    for some in heads.chunks(evenkeel_core::records::Transaction::CHANGES_MAX) {
        let Found { records, .. } = store.read(some).await?;
        for (key, found) in some.iter().zip(records) {
            if let (Some(unit), Some(Record::Plan(name))) = (key.unit(), found.map(|found| found.record)) {
                listing.heads.insert(unit.clone(), name.epoch);
            }
        }
    }
    for (key, found) in store.list(&Scope::Requests).await?.records {
        if let (Key::Request(id), Record::Request(request)) = (key, found.record) {
            listing.requests.push((id, request.at_ms));
        }
    }
    Ok(listing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::memory::MemoryStore;
    use evenkeel_core::ids::{Digest, Epoch, UnitId};
    use evenkeel_core::records::{
        Change, LeaderRecord, Manifest, Opaque, PlanName, RequestId, RequestRecord, campaign, commit, guarded,
    };
    use std::time::Duration;

    const NOW_MS: u64 = 1 << 40;

    fn unit() -> UnitId {
        UnitId::new("u").expect("valid")
    }

    async fn reign(store: &dyn Store) -> Term {
        let lease = store.grant(Duration::from_secs(60)).await.expect("a lease");
        let leader = LeaderRecord { balancer: "a".into(), address: "a:1".into(), lease };
        match store.transact(&campaign(leader)).await {
            Ok(Outcome::Done(revision)) => Term { generation: 0, revision: revision.0 },
            other => panic!("not won: {other:?}"),
        }
    }

    fn request(id: &str, at_ms: u64) -> Change {
        let key = Key::Request(RequestId::new(id).expect("valid"));
        let answer = [].as_slice().into();
        Change::Put(key, Record::Request(RequestRecord { at_ms, content: Digest([0; 32]), answer }), None)
    }

    #[tokio::test]
    async fn what_a_leader_before_left_goes_and_what_is_committed_stays() {
        let store = MemoryStore::default();
        let term = reign(&store).await;
        let name = PlanName { term, epoch: Epoch(0), digest: Digest([1; 32]) };
        let manifest = Manifest { name, chunks: 2, account: [].as_slice().into() };
        let chunks = vec![Opaque::from([1].as_slice()); 2];
        for transaction in commit(term, &unit(), None, manifest, chunks, vec![request("new", NOW_MS)]) {
            assert!(matches!(store.transact(&transaction).await, Ok(Outcome::Done(_))));
        }
        let left = Change::Put(Key::Chunk(unit(), Epoch(1), 0), Record::Chunk([2].as_slice().into()), None);
        let changes = guarded(term, vec![left, request("old", 1)]);
        store.transact(&changes).await.expect("an outcome");
        assert_eq!(
            run(&store, term, NOW_MS).await,
            Ok(1),
            "this term's chunk may be on its way; the request is old"
        );
        let Some(Record::Leader(leader)) = leader(&store).await else { panic!("reigns") };
        store.revoke(leader.lease).await.expect("ended");
        let next = reign(&store).await;
        let nobodys = Term { revision: next.revision + 1, ..next };
        assert_eq!(run(&store, nobodys, NOW_MS).await, Ok(0), "a term that does not reign deletes nothing");
        assert_eq!(run(&store, next, NOW_MS).await, Ok(1));
        assert_eq!(run(&store, next, NOW_MS).await, Ok(0));
        let chunks = store.keys(&Scope::Chunks(unit(), Epoch(0))).await.expect("readable").records;
        assert_eq!(chunks.len(), 2);
    }

    async fn leader(store: &dyn Store) -> Option<Record> {
        let found = store.read(&[Key::Leader]).await.expect("readable").records;
        found.into_iter().next().flatten().map(|found| found.record)
    }
}
