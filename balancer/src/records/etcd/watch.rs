//! Changes as etcd tells them, and whether they follow on those told before.
//!
//! A stream that breaks is opened again behind the last change that was told. Before that it is made sure that the store
//! still is the one that told it: etcd restored from a backup, or another one at the same address, would be silent about
//! what it holds, for its revisions may be behind ours. Sure is: the same cluster, no lower raft term, and at our position
//! the last change that was told stands there. Anything else is told anew, by a listing.

use super::range::after_prefix;
use super::wire::{
    Event, EventType, RangeRequest, RangeResponse, ResponseHeader, WatchCreateRequest, WatchOrder,
    WatchProgressRequest, WatchRequest, WatchResponse,
};
use super::{Failed, Inner, Kind, listing, of_wire, versioned};
use crate::records::watcher::{Ended, Listing, Source};
use crate::records::{StoreError, path};
use evenkeel_core::records::{Changed, Revision, Scope};
use std::sync::Weak;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// After so long without a word the member is asked whether it is there, and after as long again it is given up: about the
/// time in which etcd's own members give up each other.
const SILENCE: Duration = Duration::from_secs(1);
/// Orders that wait to be sent: one to create, one for progress.
const ORDERS_MAX: usize = 2;
/// Bytes of one response, all its parts together: far more than any transaction has, and a bound against a peer that
/// never ends one.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// A watch does not keep the store.
pub(super) struct Watched(pub(super) Weak<Inner>);

/// Up to where a watcher has been told, and by which store.
pub(super) struct Position {
    revision: i64,
    cluster: u64,
    raft_term: u64,
    /// Key and revision of the last change that was told and can be looked at again: no deletion.
    anchor: Option<(Vec<u8>, i64)>,
    /// It came from a listing that was just made.
    fresh: bool,
}

/// An open stream.
pub(super) struct Changes {
    orders: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Watched {
    fn broken(inner: &Inner, reason: impl Into<String>) -> Ended {
        inner.members.pass_on();
        Ended::Broken(StoreError::Away { place: inner.members.place().to_owned(), reason: reason.into() })
    }
}

#[tonic::async_trait]
impl Source for Watched {
    type Position = Position;
    type Changes = Changes;

    async fn list(&self, scope: &Scope) -> Result<(Listing, Position), Ended> {
        let inner = self.0.upgrade().ok_or(Ended::Gone)?;
        let ranged = inner.range(scope, false).await?;
        let newest = ranged.found.iter().map(|(_, kv)| kv).max_by_key(|kv| kv.mod_revision);
        let position = Position {
            revision: ranged.header.revision,
            cluster: ranged.header.cluster_id,
            raft_term: ranged.header.raft_term,
            anchor: newest.map(|kv| (kv.key.clone(), kv.mod_revision)),
            fresh: true,
        };
        Ok((listing(&ranged)?, position))
    }

    async fn open(&self, scope: &Scope, position: &mut Position) -> Result<Changes, Ended> {
        let inner = self.0.upgrade().ok_or(Ended::Gone)?;
        if !std::mem::take(&mut position.fresh) {
            inner.check_same_store(position).await?;
        }
        let place = path::of_scope(scope);
        let key = inner.absolute(&place.path);
        let range_end = if place.prefix { after_prefix(&key) } else { Vec::new() };
        let start_revision = position.revision + 1;
        let create = WatchCreateRequest { key, range_end, start_revision, fragment: true };
        let (orders, waiting) = mpsc::channel(ORDERS_MAX);
        orders.try_send(order(WatchOrder::Create(create))).expect("room for the first order");
        // Taken by the one attempt that sends it; a second attempt with a new token finds it gone and fails.
        let waiting = std::sync::Mutex::new(Some(waiting));
        let requests = || {
            let taken = waiting.lock().expect("no holder panics").take();
            ReceiverStream::new(taken.unwrap_or_else(|| mpsc::channel(1).1))
        };
        let opened =
            inner.members.preferred().stream("/etcdserverpb.Watch/Watch", requests, SILENCE * 2).await;
        let responses = opened.map_err(|failure| Self::broken(&inner, format!("{failure:?}")))?;
        Ok(Changes { orders, responses })
    }

    async fn next(
        &self,
        scope: &Scope,
        changes: &mut Changes,
        position: &mut Position,
    ) -> Result<Vec<Changed>, Ended> {
        let response = self.response(changes).await?;
        let inner = self.0.upgrade().ok_or(Ended::Gone)?;
        let header = response.header.unwrap_or_default();
        if header.cluster_id != position.cluster {
            return Err(Ended::Lost);
        }
        let mut changed = Vec::new();
        for event in &response.events {
            changed.extend(inner.changed(scope, event)?);
        }
        // Only now: what could not be understood is asked for again.
        position.raft_term = position.raft_term.max(header.raft_term);
        if let Some((event, kv)) = response.events.last().and_then(|event| Some((event, event.kv.as_ref()?)))
        {
            position.revision = kv.mod_revision;
            position.anchor = (!is_deletion(event)).then(|| (kv.key.clone(), kv.mod_revision));
        }
        Ok(changed)
    }
}

impl Watched {
    /// A whole response with events.
    async fn response(&self, changes: &mut Changes) -> Result<WatchResponse, Ended> {
        let mut events: Vec<Event> = Vec::new();
        let mut bytes = 0;
        let mut asked = false;
        loop {
            let received = tokio::time::timeout(SILENCE, changes.responses.message()).await;
            let inner = self.0.upgrade().ok_or(Ended::Gone)?;
            let mut response = match received {
                Err(_) if asked => return Err(Self::broken(&inner, "the watch is silent")),
                Err(_) => {
                    let progress = order(WatchOrder::Progress(WatchProgressRequest {}));
                    // A stream that takes no orders is silent, too.
                    let _ = changes.orders.try_send(progress);
                    asked = true;
                    continue;
                }
                Ok(Ok(None)) => return Err(Self::broken(&inner, "the watch ended")),
                Ok(Err(status)) => return Err(Self::broken(&inner, status.message())),
                Ok(Ok(Some(response))) => response,
            };
            asked = false;
            if response.canceled {
                return Err(match response.compact_revision {
                    0 => Self::broken(&inner, response.cancel_reason),
                    _ => Ended::Lost,
                });
            }
            bytes += response.events.iter().filter_map(|e| Some(e.kv.as_ref()?.value.len())).sum::<usize>();
            if bytes > RESPONSE_BYTES_MAX {
                return Err(Self::broken(&inner, "a response of the watch is too large"));
            }
            events.append(&mut response.events);
            if !response.fragment && !events.is_empty() {
                return Ok(WatchResponse { events, ..response });
            }
        }
    }
}

impl Inner {
    /// Asked of a majority: a single member may be behind, or not know yet that it was replaced.
    async fn check_same_store(&self, position: &Position) -> Result<(), Ended> {
        let Some((key, modified)) = position.anchor.clone() else { return Err(Ended::Lost) };
        let request = RangeRequest { key, revision: position.revision, ..RangeRequest::default() };
        let path = "/etcdserverpb.KV/Range";
        let read = self.members.unary(Kind::Read, "a look at the last change", path, &request).await;
        let read: RangeResponse = match read {
            Ok(read) => read,
            Err(Failed::Store(error)) => return Err(Ended::Broken(error)),
            Err(Failed::Compacted | Failed::Future | Failed::NoLease) => return Err(Ended::Lost),
        };
        let ResponseHeader { cluster_id, raft_term, .. } = read.header.unwrap_or_default();
        let there = read.kvs.first().is_some_and(|kv| kv.mod_revision == modified);
        let same = there && cluster_id == position.cluster && raft_term >= position.raft_term;
        if same { Ok(()) } else { Err(Ended::Lost) }
    }

    /// The change that an event is; `None`: it does not concern the scope.
    fn changed(&self, scope: &Scope, event: &Event) -> Result<Option<Changed>, StoreError> {
        let Some(kv) = &event.kv else { return Ok(None) };
        let known = self.relative(&kv.key).filter(|key| scope.contains(key));
        let Some(key) = known else { return Ok(None) };
        let now = if is_deletion(event) { None } else { Some(versioned(&key, kv)?) };
        Ok(Some(Changed { revision: Revision(of_wire(kv.mod_revision)), key, now }))
    }
}

fn is_deletion(event: &Event) -> bool {
    event.r#type == i32::from(EventType::Delete)
}

fn order(order: WatchOrder) -> WatchRequest {
    WatchRequest { request: Some(order) }
}
