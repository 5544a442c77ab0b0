//! Calls of the store: each a task whose end is an event, so that the loop never waits for a disk or a network.

use super::{ControlLoop, Event, trouble};
use evenkeel_core::protocol::reign::{self, Ticket, Trouble};
use evenkeel_core::records::{Key, Outcome, Transaction};
use std::sync::Arc;

impl ControlLoop {
    /// Makes transactions in order, up to the first that is not done.
    pub(super) fn transact(&self, ticket: Ticket, transactions: Arc<[Transaction]>) {
        let (store, events, election) = (Arc::clone(&self.store), self.events.clone(), self.election.clone());
        tokio::spawn(async move {
            let mut outcome: Result<Outcome, Trouble> = Ok(Outcome::Refused);
            for transaction in &*transactions {
                outcome = store.transact(transaction).await.map_err(|error| {
                    tracing::error!(code = error.code(), %error, "a write was not made");
                    trouble(&error)
                });
                let Ok(Outcome::Done(revision)) = outcome else { break };
                election.wrote(revision);
            }
            // The loop is gone only at a shutdown.
            let _ = events.send(Event::Store(Box::new(reign::Event::StoreDone { ticket, outcome }))).await;
        });
    }

    /// Reads keys.
    pub(super) fn read(&self, ticket: Ticket, keys: Vec<Key>) {
        let (store, events) = (Arc::clone(&self.store), self.events.clone());
        tokio::spawn(async move {
            let found = store.read(&keys).await.map(|found| found.records).map_err(|error| {
                tracing::warn!(code = error.code(), %error, "the store was not read");
                trouble(&error)
            });
            let _ = events.send(Event::Store(Box::new(reign::Event::ReadDone { ticket, found }))).await;
        });
    }
}
