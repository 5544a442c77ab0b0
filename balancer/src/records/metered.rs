//! A store whose operations are timed and counted.

use super::{Found, Store, StoreError, Told};
use crate::metrics as m;
use evenkeel_core::records::{Key, LeaseId, Outcome, Revision, Scope, Transaction, Versioned};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// See the module.
#[derive(Debug)]
pub(super) struct Metered<S>(pub(super) S);

fn count<T>(
    operation: &'static str,
    began: Instant,
    done: &Result<T, StoreError>,
    ok: impl FnOnce(&T) -> &'static str,
) {
    let outcome = match done {
        Ok(value) => ok(value),
        Err(error) => error.code(),
    };
    metrics::histogram!(m::STORE_SECONDS, "operation" => operation, "outcome" => outcome)
        .record(began.elapsed().as_secs_f64());
}

async fn timed<T>(
    operation: &'static str,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let began = Instant::now();
    let done = call.await;
    count(operation, began, &done, |_| "ok");
    done
}

#[tonic::async_trait]
impl<S: Store> Store for Metered<S> {
    async fn read(&self, keys: &[Key]) -> Result<Found<Vec<Option<Versioned>>>, StoreError> {
        timed("read", self.0.read(keys)).await
    }

    async fn keys(&self, scope: &Scope) -> Result<Found<Vec<(Key, Revision)>>, StoreError> {
        timed("keys", self.0.keys(scope)).await
    }

    async fn list(&self, scope: &Scope) -> Result<Found<Vec<(Key, Versioned)>>, StoreError> {
        timed("list", self.0.list(scope)).await
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let began = Instant::now();
        let done = self.0.transact(transaction).await;
        count("transact", began, &done, |outcome| match outcome {
            Outcome::Done(_) => "ok",
            Outcome::Refused => "refused",
        });
        done
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        timed("grant", self.0.grant(ttl)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        timed("keep_alive", self.0.keep_alive(lease)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        timed("revoke", self.0.revoke(lease)).await
    }

    fn watch(&self, scope: Scope) -> mpsc::Receiver<Told> {
        self.0.watch(scope)
    }

    fn place(&self) -> String {
        self.0.place()
    }
}
