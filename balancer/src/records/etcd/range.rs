//! Reading many keys of etcd at one revision.

use super::Inner;
use super::members::{Failed, Kind};
use super::wire::{
    KeyValue, Operation, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse,
};
use crate::records::path::Place;
use crate::records::{StoreError, path};
use evenkeel_core::records::{Key, Scope, Transaction};

/// Records of a response: 64 of the largest are 32 MiB.
const PAGE: i64 = 64;
/// Keys of a response that has no values: 100 bytes each.
const PAGE_OF_KEYS: i64 = 10_000;
/// How often a listing begins again whose revision was compacted meanwhile.
const AGAIN_MAX: usize = 3;

/// What was found, and the header of the first response: all of it stood there at that revision.
pub(super) struct Ranged {
    pub(super) header: ResponseHeader,
    pub(super) found: Vec<(Key, KeyValue)>,
}

impl Inner {
    /// Everything in a scope; without values if only keys are asked for.
    pub(super) async fn range(&self, scope: &Scope, keys_only: bool) -> Result<Ranged, StoreError> {
        for _ in 0..AGAIN_MAX {
            match self.range_once(scope, keys_only).await {
                Ok(ranged) => return Ok(ranged),
                Err(Failed::Store(error)) => return Err(error),
                Err(Failed::Compacted | Failed::Future | Failed::NoLease) => {}
            }
        }
        let reason = "what is listed is compacted before it is read".into();
        Err(StoreError::Away { place: self.members.place().to_owned(), reason })
    }

    async fn range_once(&self, scope: &Scope, keys_only: bool) -> Result<Ranged, Failed> {
        let place = path::of_scope(scope);
        if !place.sparse || keys_only {
            return self.pages(scope, &place, keys_only).await;
        }
        let Ranged { header, found } = self.pages(scope, &place, true).await?;
        let keys: Vec<Key> = found.into_iter().map(|(key, _)| key).collect();
        let mut found = Vec::new();
        for some in keys.chunks(usize::try_from(PAGE).expect("small")) {
            let read = self.read_at(some, header.revision).await?;
            found.extend(some.iter().cloned().zip(read.1).filter_map(|(key, kv)| Some((key, kv?))));
        }
        Ok(Ranged { header, found })
    }

    async fn pages(&self, scope: &Scope, place: &Place, keys_only: bool) -> Result<Ranged, Failed> {
        let key = self.absolute(&place.path);
        let range_end = if place.prefix { after_prefix(&key) } else { Vec::new() };
        let limit = if keys_only { PAGE_OF_KEYS } else { PAGE };
        let mut request = RangeRequest { key, range_end, limit, revision: 0, keys_only };
        let mut first: Option<ResponseHeader> = None;
        let mut found = Vec::new();
        loop {
            let path = "/etcdserverpb.KV/Range";
            let page: RangeResponse = self.members.unary(Kind::Read, "a listing", path, &request).await?;
            let header = first.get_or_insert(page.header.unwrap_or_default());
            request.revision = header.revision;
            let last = page.kvs.last().map(|kv| kv.key.clone());
            let known = page.kvs.into_iter().filter_map(|kv| Some((self.relative(&kv.key)?, kv)));
            found.extend(known.filter(|(key, _)| scope.contains(key)));
            match last {
                Some(mut next) if page.more => {
                    next.push(0);
                    request.key = next;
                }
                _ => return Ok(Ranged { header: header.clone(), found }),
            }
        }
    }

    /// Keys one by one, at a revision; 0: the newest.
    pub(super) async fn read_at(
        &self,
        keys: &[Key],
        revision: i64,
    ) -> Result<(ResponseHeader, Vec<Option<KeyValue>>), Failed> {
        assert!(keys.len() <= Transaction::CHANGES_MAX, "too many keys for one read");
        let range = |key: &Key| RequestOp {
            request: Some(Operation::Range(RangeRequest {
                key: self.absolute(&path::of_key(key)),
                revision,
                ..RangeRequest::default()
            })),
        };
        let request = TxnRequest { compare: Vec::new(), success: keys.iter().map(range).collect() };
        let path = "/etcdserverpb.KV/Txn";
        let response: TxnResponse = self.members.unary(Kind::Read, "a read", path, &request).await?;
        let first = |op: super::wire::ResponseOp| op.range.and_then(|range| range.kvs.into_iter().next());
        let mut found: Vec<_> = response.responses.into_iter().map(first).collect();
        found.resize(keys.len(), None);
        Ok((response.header.unwrap_or_default(), found))
    }
}

/// The first key behind all that begin with `prefix`. Prefixes end with a printable character.
pub(super) fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.checked_add(1).expect("prefixes are text");
    }
    end
}
