//! The store that several balancers share: etcd 3.4 or later, by its v3 API.
//!
//! | module | what |
//! |---|---|
//! | `wire` | the messages of its API |
//! | `connect`, `member` | one member: connections, calls, what failures mean |
//! | `members` | which member is asked, and which one next |
//! | `range` | listings and reads at one revision |
//! | `watch` | changes, and whether they are those of the same store |
//!
//! A fence is two comparisons: the create revision of the leader's key, and the bytes of the generation (or its absence).

mod connect;
mod member;
mod members;
mod range;
mod watch;
mod wire;

use super::watcher::{self, Listing};
use super::{Found, Store, StoreError, Told, assert_sound, codec, path};
use connect::Connector;
use evenkeel_core::records::{
    Change, Expect, Key, LeaseId, Outcome, Record, Revision, Scope, Transaction, Versioned,
};
use http::Uri;
use member::{Failure, Member, User};
use members::{Call, Failed, Kind, Members};
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use wire::{
    Compare, Compared, DeleteRangeRequest, KeyValue, LeaseGrantRequest, LeaseGrantResponse,
    LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest, LeaseRevokeResponse, Operation,
    PutRequest, RequestOp, ResponseHeader, TxnRequest, TxnResponse,
};

/// Where etcd is and how it is reached. Made from the settings, which have been checked.
pub(super) struct Reach {
    /// `http://host:port` of each member, whether TLS is used or not.
    pub(super) endpoints: Vec<Uri>,
    /// TLS, for all members.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// Whether TLS shows a certificate of ours.
    pub(super) shows_certificate: bool,
    /// Name and password.
    pub(super) user: Option<(String, String)>,
    /// What all keys begin with; ends with a slash.
    pub(super) prefix: String,
    /// How long a call takes at most.
    pub(super) deadline: Duration,
}

/// See the module.
pub struct EtcdStore(Arc<Inner>);

struct Inner {
    members: Members,
    prefix: Vec<u8>,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("EtcdStore").field(&self.0.members.place()).finish()
    }
}

impl EtcdStore {
    /// Connects when it is first asked. Must be called within a tokio runtime.
    pub(super) fn new(reach: Reach) -> Self {
        let Reach { endpoints, tls, shows_certificate, user, prefix, deadline } = reach;
        let hosts = endpoints.iter().filter_map(|endpoint| Some(endpoint.authority()?.as_str()));
        let place = format!("etcd {} {prefix}", hosts.collect::<Vec<_>>().join(","));
        // By TLS 1.3 a member that misses it just closes the connection.
        let hint = (tls.is_some() && !shows_certificate).then_some(
            "; no certificate is shown: if etcd asks for one, set store.certificate and store.key",
        );
        let connector = Connector(tls);
        let user = user.map(|(name, password)| User { name, password });
        let member = |endpoint| Member::new(endpoint, connector.clone(), user.clone());
        let members = endpoints.into_iter().map(member).collect();
        let members = Members::new(members, deadline, place, hint.unwrap_or_default());
        Self(Arc::new(Inner { members, prefix: prefix.into_bytes() }))
    }
}

/// A stream of one request and one answer.
struct KeepAlive(i64);

impl Call for KeepAlive {
    type Answer = LeaseKeepAliveResponse;

    async fn make(&self, member: &Member, deadline: Duration) -> Result<LeaseKeepAliveResponse, Failure> {
        let answer = async {
            let requests = || tokio_stream::once(LeaseKeepAliveRequest { id: self.0 });
            let mut answers = member.stream("/etcdserverpb.Lease/LeaseKeepAlive", requests, deadline).await?;
            let answer = answers.message().await.map_err(|status| member::judge(&status))?;
            answer.ok_or_else(|| Failure::Lost("the stream ended without an answer".into()))
        };
        member.within(deadline, answer).await
    }
}

impl Inner {
    /// A path of ours as etcd's key.
    fn absolute(&self, path: &str) -> Vec<u8> {
        [self.prefix.as_slice(), path.as_bytes()].concat()
    }

    /// The key that stands at etcd's key, if it is one of ours.
    fn relative(&self, key: &[u8]) -> Option<Key> {
        path::to_key(std::str::from_utf8(key.strip_prefix(self.prefix.as_slice())?).ok()?)
    }

    /// `None`: it can never hold, which etcd's comparisons cannot say.
    fn compares(&self, expect: &Expect) -> Option<Vec<Compare>> {
        let key = |key: &Key| self.absolute(&path::of_key(key));
        Some(match expect {
            Expect::Absent(absent) => vec![Compare::equal(key(absent), Compared::CreateRevision(0))],
            // To etcd an absent key was changed at revision 0.
            Expect::Modified(_, Revision(0)) => return None,
            Expect::Modified(changed, revision) => {
                vec![Compare::equal(key(changed), Compared::ModRevision(to_wire(revision.0)))]
            }
            Expect::Reigns(term) if term.revision == 0 => return None,
            Expect::Reigns(term) => {
                let leader = Compared::CreateRevision(to_wire(term.revision));
                let generation = match term.generation {
                    0 => Compared::CreateRevision(0),
                    raised => Compared::Value(codec::encode(&Record::Generation(raised))),
                };
                vec![
                    Compare::equal(key(&Key::Leader), leader),
                    Compare::equal(key(&Key::Generation), generation),
                ]
            }
        })
    }

    fn operation(&self, change: &Change) -> RequestOp {
        let key = |key: &Key| self.absolute(&path::of_key(key));
        RequestOp {
            request: Some(match change {
                Change::Put(put, record, lease) => Operation::Put(PutRequest {
                    key: key(put),
                    value: codec::encode(record),
                    lease: lease.map_or(0, |lease| to_wire(lease.0)),
                }),
                Change::Delete(deleted) => Operation::Delete(DeleteRangeRequest { key: key(deleted) }),
            }),
        }
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Outcome, Failed> {
        let mut compare = Vec::new();
        for expect in &transaction.expects {
            let Some(compares) = self.compares(expect) else { return Ok(Outcome::Refused) };
            compare.extend(compares);
        }
        let success = transaction.changes.iter().map(|change| self.operation(change)).collect();
        let request = TxnRequest { compare, success };
        let path = "/etcdserverpb.KV/Txn";
        let answer: Result<TxnResponse, _> =
            self.members.unary(Kind::Once, "a transaction", path, &request).await;
        match answer {
            Ok(response) if response.succeeded => Ok(Outcome::Done(revision(response.header.as_ref()))),
            Ok(_) | Err(Failed::NoLease) => Ok(Outcome::Refused),
            Err(other) => Err(other),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Failed> {
        let call = KeepAlive(to_wire(lease.0));
        let answer = self.members.call(Kind::Repeatable, "a keep-alive", &call).await?;
        if answer.ttl > 0 { Ok(()) } else { Err(Failed::NoLease) }
    }

    fn told(&self, failed: Failed, lease: LeaseId) -> StoreError {
        match failed {
            Failed::Store(error) => error,
            Failed::NoLease => StoreError::LeaseEnded(lease),
            Failed::Compacted | Failed::Future => StoreError::Away {
                place: self.members.place().to_owned(),
                reason: "it answers with another revision than was asked for".into(),
            },
        }
    }
}

/// etcd's numbers are signed and never negative; one that does not fit matches nothing.
fn to_wire(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn of_wire(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

fn revision(header: Option<&ResponseHeader>) -> Revision {
    Revision(header.map_or(0, |header| of_wire(header.revision)))
}

fn versioned(key: &Key, kv: &KeyValue) -> Result<Versioned, StoreError> {
    Ok(Versioned {
        record: codec::decode(key, &kv.value)?,
        created: Revision(of_wire(kv.create_revision)),
        modified: Revision(of_wire(kv.mod_revision)),
        lease: (kv.lease != 0).then_some(LeaseId(of_wire(kv.lease))),
    })
}

/// Leases of no call.
const NO_LEASE: LeaseId = LeaseId(0);

#[tonic::async_trait]
impl Store for EtcdStore {
    async fn read(&self, keys: &[Key]) -> Result<Found<Vec<Option<Versioned>>>, StoreError> {
        let read = self.0.read_at(keys, 0).await;
        let (header, found) = read.map_err(|failed| self.0.told(failed, NO_LEASE))?;
        let records =
            keys.iter().zip(&found).map(|(key, kv)| kv.as_ref().map(|kv| versioned(key, kv)).transpose());
        Ok(Found { revision: revision(Some(&header)), records: records.collect::<Result<_, _>>()? })
    }

    async fn keys(&self, scope: &Scope) -> Result<Found<Vec<(Key, Revision)>>, StoreError> {
        let ranged = self.0.range(scope, true).await?;
        let entry = |(key, kv): (Key, KeyValue)| (key, Revision(of_wire(kv.mod_revision)));
        let mut records: Vec<_> = ranged.found.into_iter().map(entry).collect();
        records.sort_unstable();
        Ok(Found { revision: revision(Some(&ranged.header)), records })
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, StoreError> {
        listing(&self.0.range(scope, false).await?)
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        assert_sound(transaction);
        self.0.transact(transaction).await.map_err(|failed| self.0.told(failed, NO_LEASE))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        // etcd counts in seconds; a little longer does no harm, for the leader stops by its own clock.
        let ttl = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let request = LeaseGrantRequest { ttl };
        let path = "/etcdserverpb.Lease/LeaseGrant";
        let granted = self.0.members.unary(Kind::Repeatable, "a lease", path, &request).await;
        let granted: LeaseGrantResponse = granted.map_err(|failed| self.0.told(failed, NO_LEASE))?;
        Ok(LeaseId(of_wire(granted.id)))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.keep_alive(lease).await.map_err(|failed| self.0.told(failed, lease))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let request = LeaseRevokeRequest { id: to_wire(lease.0) };
        let path = "/etcdserverpb.Lease/LeaseRevoke";
        let revoked = self.0.members.unary(Kind::Repeatable, "the end of a lease", path, &request).await;
        let revoked: Result<LeaseRevokeResponse, Failed> = revoked;
        match revoked {
            Ok(_) | Err(Failed::NoLease) => Ok(()),
            Err(failed) => Err(self.0.told(failed, lease)),
        }
    }

    fn watch(&self, scope: Scope) -> mpsc::Receiver<Told> {
        watcher::watch(watch::Watched(Arc::downgrade(&self.0)), scope)
    }

    fn place(&self) -> String {
        self.0.members.place().to_owned()
    }
}

fn listing(ranged: &range::Ranged) -> Result<Listing, StoreError> {
    let records = ranged.found.iter().map(|(key, kv)| Ok((key.clone(), versioned(key, kv)?)));
    let mut records = records.collect::<Result<Vec<_>, StoreError>>()?;
    records.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(Found { revision: revision(Some(&ranged.header)), records })
}
