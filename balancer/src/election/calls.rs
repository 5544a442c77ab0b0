//! Calls of the store: each a task with a deadline, each answered by an event.

use super::driver::Input;
use crate::records::{Store, StoreError};
use evenkeel_core::protocol::election::{Answer, Event, Found, Generation, Holder};
use evenkeel_core::records::{Key, LeaseId, Outcome, Record, Revision, Transaction, Versioned};
use evenkeel_core::units::Millis;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// What is asked of the store.
#[derive(Debug)]
pub(super) enum Call {
    Grant(Duration),
    KeepAlive(LeaseId),
    /// After a pause, which the deadline does not count.
    Revoke(LeaseId, Duration),
    Campaign(Transaction, LeaseId),
    Adopt(Transaction),
    Read,
}

/// Asks, and tells the driver how it went. `sent_at` was taken before.
pub(super) fn start(
    store: &Arc<dyn Store>,
    call: Call,
    sent_at: Millis,
    deadline: Duration,
    inputs: &mpsc::Sender<Input>,
) {
    let (store, inputs) = (Arc::clone(store), inputs.clone());
    tokio::spawn(async move {
        for event in answer(store.as_ref(), call, sent_at, deadline).await {
            // The driver is gone only when the balancer has stopped.
            let _ = inputs.send(Input::Event(event)).await;
        }
    });
}

/// `None`: no answer came in time.
async fn within<T>(
    deadline: Duration,
    what: &'static str,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Option<Result<T, StoreError>> {
    let result = tokio::time::timeout(deadline, call).await.ok();
    match &result {
        None => tracing::debug!(what, "no answer of the store in time"),
        Some(Err(error)) => tracing::debug!(what, code = error.code(), %error, "the store did not do it"),
        Some(Ok(_)) => {}
    }
    result
}

async fn answer(store: &dyn Store, call: Call, sent_at: Millis, deadline: Duration) -> Vec<Event> {
    match call {
        Call::Grant(ttl) => vec![match within(deadline, "grant", store.grant(ttl)).await {
            Some(Ok(lease)) => Event::Granted { lease, sent_at },
            _ => Event::GrantFailed,
        }],
        Call::KeepAlive(lease) => vec![match within(deadline, "keep_alive", store.keep_alive(lease)).await {
            Some(Ok(())) => Event::KeptAlive { lease, sent_at },
            Some(Err(StoreError::LeaseEnded(_))) => Event::LeaseEnded(lease),
            _ => Event::KeepAliveFailed { lease },
        }],
        Call::Revoke(lease, pause) => {
            tokio::time::sleep(pause).await;
            vec![match within(deadline, "revoke", store.revoke(lease)).await {
                Some(Ok(()) | Err(StoreError::LeaseEnded(_))) => Event::Revoked(lease),
                _ => Event::RevokeFailed(lease),
            }]
        }
        Call::Campaign(transaction, lease) => {
            match within(deadline, "campaign", store.transact(&transaction)).await {
                // Otherwise only the next keep-alive would notice.
                Some(Err(StoreError::LeaseEnded(_))) => {
                    vec![Event::LeaseEnded(lease), Event::CampaignAnswered(Answer::Refused)]
                }
                result => vec![Event::CampaignAnswered(transacted(result))],
            }
        }
        Call::Adopt(transaction) => {
            let result = within(deadline, "adopt", store.transact(&transaction)).await;
            vec![Event::AdoptAnswered(transacted(result))]
        }
        Call::Read => {
            vec![match within(deadline, "read", store.read(&[Key::Leader, Key::Generation])).await {
                Some(Ok(found)) => Event::Found(both(found.revision, &found.records)),
                _ => Event::ReadFailed,
            }]
        }
    }
}

fn transacted(result: Option<Result<Outcome, StoreError>>) -> Answer {
    match result {
        Some(Ok(Outcome::Done(revision))) => Answer::Done(revision),
        Some(Ok(Outcome::Refused) | Err(StoreError::LeaseEnded(_))) => Answer::Refused,
        Some(Err(StoreError::Away { .. } | StoreError::Full { .. } | StoreError::InUse { .. })) => {
            Answer::Away
        }
        // What cannot be read may have been written all the same.
        None | Some(Err(StoreError::Unknown { .. } | StoreError::Broken { .. })) => Answer::Unknown,
    }
}

/// Who holds the leader's key.
pub(super) fn holder(found: &Versioned) -> Option<Holder> {
    match &found.record {
        Record::Leader(record) => Some(Holder { record: record.clone(), created: found.created }),
        _ => None,
    }
}

fn both(revision: Revision, records: &[Option<Versioned>]) -> Found {
    let record = |i: usize| records.get(i).and_then(Option::as_ref);
    let generation = record(1).map_or(Generation::default(), |found| Generation {
        value: if let Record::Generation(value) = found.record { value } else { 0 },
        modified: Some(found.modified),
    });
    Found { revision, holder: record(0).and_then(holder), generation }
}
