//! Where the records of [`evenkeel_core::records`] are kept: one trait, so that a store shared by several balancers can
//! stand beside the one in a local file. Every implementation passes the same conformance suite.

#[cfg(test)]
mod arbitrary;
pub mod codec;
pub mod comparison;
pub mod conformance;
pub mod embedded;
pub mod etcd;
pub mod memory;
mod metered;
pub mod path;
pub mod plan_content;
pub mod repair;
pub mod settings;
mod watcher;

use evenkeel_core::ids::Term;
use evenkeel_core::records::{
    Change, Changed, Expect, Key, LeaseId, Outcome, Record, Revision, Scope, Transaction, Versioned,
};
pub use settings::{StoreSettings, open};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::mpsc;

/// Why a store did not answer as asked. `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process has the store's file open.
    #[error("store {path} is in use by another process: stop it, or give this one another state_dir")]
    InUse {
        /// The store's file.
        path: String,
    },
    /// What is stored cannot be read or trusted.
    #[error(
        "store {place}: {reason}; if it is damaged, restore a backup, or move it away and restart the units without state"
    )]
    Broken {
        /// File or key.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The store cannot be reached or has no quorum; nothing was changed.
    #[error(
        "store {place} is away: {reason}; agents keep serving their last plan, and the balancer goes on by itself once it is back"
    )]
    Away {
        /// File or endpoints.
        place: String,
        /// What was seen.
        reason: String,
    },
    /// No answer came in time: a transaction may have been made or not. Read before trying again.
    #[error(
        "store {place}: no answer to {operation} within {waited_ms} ms: it may have been carried out or not"
    )]
    Unknown {
        /// File or endpoints.
        place: String,
        /// What was asked.
        operation: &'static str,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// The store takes no more: disk or quota.
    #[error(
        "store {place} has no room: {reason}; make room (etcd: compact, defragment, disarm the alarm), and it goes on by itself"
    )]
    Full {
        /// File or endpoints.
        place: String,
        /// What was said.
        reason: String,
    },
    /// The lease has ended.
    #[error("the lease {} has ended", .0.0)]
    LeaseEnded(LeaseId),
}

impl StoreError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            StoreError::InUse { .. } => "store_in_use",
            StoreError::Broken { .. } => "store_broken",
            StoreError::Away { .. } => "store_away",
            StoreError::Unknown { .. } => "store_unknown",
            StoreError::Full { .. } => "store_full",
            StoreError::LeaseEnded(_) => "lease_ended",
        }
    }

    /// Whether a transaction may have been made all the same.
    pub fn may_be_done(&self) -> bool {
        matches!(self, StoreError::Unknown { .. })
    }
}

/// What was found, and the revision at which it was so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<T> {
    /// The store's revision.
    pub revision: Revision,
    /// What was found.
    pub records: T,
}

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Changes, in order.
    Changed(Vec<Changed>),
    /// Changes were lost (compaction, a restored store): everything in the scope as it stands now.
    Listed(Found<Vec<(Key, Versioned)>>),
}

/// Durable records with transactions, leases and watches. Every success is on disk when the call returns; every call ends
/// within the implementation's deadline.
#[tonic::async_trait]
pub trait Store: Send + Sync + 'static {
    /// What stands under the keys, in their order, all at one revision. At most [`Transaction::CHANGES_MAX`] keys.
    async fn read(&self, keys: &[Key]) -> Result<Found<Vec<Option<Versioned>>>, StoreError>;

    /// The keys of a scope that exist, in their order, each with the transaction that last changed it, all at one revision:
    /// for those who do not need what stands there.
    async fn keys(&self, scope: &Scope) -> Result<Found<Vec<(Key, Revision)>>, StoreError>;

    /// What stands in a scope, in key order, all at one revision.
    async fn list(&self, scope: &Scope) -> Result<Found<Vec<(Key, Versioned)>>, StoreError>;

    /// Makes a transaction, or finds that an expectation does not hold.
    async fn transact(&self, transaction: &Transaction) -> Result<Outcome, StoreError>;

    /// A new lease.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Gives a lease its whole time again, counted from when the store got this.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease and the keys under it; one that has ended is no error.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Tells what stands in a scope ([`Told::Listed`], at first and whenever changes were lost) and then every change, for as
    /// long as the receiver is held. Reconnects by itself, for ever; a receiver that does not read is told `Listed` anew.
    fn watch(&self, scope: Scope) -> mpsc::Receiver<Told>;

    /// Where it is, for people: a path or endpoints.
    fn place(&self) -> String;
}

/// Version of the layout of keys, under [`Key::Schema`]: the first leader writes it. 1 was the embedded store's alone.
pub const SCHEMA: u64 = 2;

/// Refuses a store whose layout this program does not know. One without a version is new.
pub async fn check_schema(store: &dyn Store) -> Result<(), StoreError> {
    let found = store.read(&[Key::Schema]).await?.records;
    match found.into_iter().next().flatten().map(|found| found.record) {
        None | Some(Record::Schema(SCHEMA)) => Ok(()),
        Some(other) => Err(StoreError::Broken {
            place: store.place(),
            reason: format!(
                "has {other:?}, this program knows schema {SCHEMA}: run the version that wrote it"
            ),
        }),
    }
}

/// Marks a store that has no version yet with this program's, in the leader's name.
pub async fn mark_schema(store: &dyn Store, term: Term) -> Result<(), StoreError> {
    let expects = vec![Expect::Reigns(term), Expect::Absent(Key::Schema)];
    let changes = vec![Change::Put(Key::Schema, Record::Schema(SCHEMA), None)];
    store.transact(&Transaction { expects, changes }).await.map(drop)
}

/// What every transaction is, whatever it is made on. One that is not was built by a bug of ours.
fn assert_sound(transaction: &Transaction) {
    let mut keys = BTreeSet::new();
    assert!(transaction.changes.len() <= Transaction::CHANGES_MAX, "the transaction is too large");
    for change in &transaction.changes {
        let (Change::Put(key, _, _) | Change::Delete(key)) = change;
        assert!(keys.insert(key), "{key:?} is changed twice");
        if let Change::Put(key, record, _) = change {
            assert!(record.fits(key), "a record of another kind under {key:?}");
            // Term 0 is compared with the key's absence.
            assert_ne!(*record, Record::Generation(0), "a generation of 0 is its absence");
        }
    }
}
