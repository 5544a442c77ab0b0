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
