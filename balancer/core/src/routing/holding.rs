//! Requests that wait in the balancer for a rank.

use super::{BlockHash, Decision, REFUSED_HELD_FULL, REFUSED_TENANT_HELD_FULL, RequestId, RoutingEvent};
use crate::fair_queue::{Admission, FairQueue, HeldRequest, InvalidFairPolicy, Refusal, TenantId};
use crate::policy::RoutingPolicy;
use crate::prefix::{KeptHits, PrefixIndex};
use crate::units::Millis;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// Held requests in the order in which they are served, with what the ledger does not need of them.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Holding {
    queue: FairQueue,
    /// Of the held requests that have any blocks.
    prefixes: FxHashMap<RequestId, HeldPrefix>,
    /// Of the prompts that have begun and are not wholly dispatched, or, if they went out whole, have not run; with when their rank was
    /// last said to expect them.
    begun: FxHashMap<RequestId, (Arc<[BlockHash]>, Millis)>,
    held_max: usize,
    tenant_held_max: usize,
}

/// What a held prompt has in common with others.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct HeldPrefix {
    blocks: Arc<[BlockHash]>,
    hits: KeptHits,
}

impl Holding {
    pub(super) fn new(policy: &RoutingPolicy) -> Result<Self, InvalidFairPolicy> {
        let queue = FairQueue::new(policy.fairness())?;
        let (held_max, tenant_held_max) = (policy.held_max, policy.fairness().tenant_held_max);
        Ok(Self {
            queue,
            prefixes: FxHashMap::default(),
            begun: FxHashMap::default(),
            held_max,
            tenant_held_max,
        })
    }

    /// Takes an arrival whose service costs so much. Whoever has no room any more, the arrival itself or one that was
    /// held, is answered: the refusal, and the request that it is about.
    pub(super) fn push(&mut self, arrival: &RoutingEvent, cost: u64) -> Option<Decision> {
        let &RoutingEvent::Arrive { request, tenant, priority, ref blocks, .. } = arrival else {
            panic!("only arrivals are held");
        };
        if !blocks.is_empty() {
            let held = HeldPrefix { blocks: Arc::clone(blocks), hits: KeptHits::default() };
            self.prefixes.insert(request, held);
        }
        let (refused, refusal) = match self.queue.push(HeldRequest { request, tenant, priority, cost }) {
            Admission::Held => return None,
            Admission::Displaced { request, refusal } => (request, refusal),
            Admission::Refused(refusal) => (request, refusal),
        };
        self.prefixes.remove(&refused);
        Some(self.refusal(refused, tenant, refusal))
    }

    fn refusal(&self, request: RequestId, tenant: TenantId, refusal: Refusal) -> Decision {
        let (code, message) = match refusal {
            Refusal::TenantFull => (
                REFUSED_TENANT_HELD_FULL,
                format!(
                    "tenant {} holds {} requests, as many as one tenant may: slow it down",
                    tenant.0, self.tenant_held_max
                ),
            ),
            Refusal::QueueFull => (
                REFUSED_HELD_FULL,
                format!(
                    "{} requests are held, and its tenant holds the most for its weight: slow it down or add ranks",
                    self.held_max
                ),
            ),
        };
        Decision::Refuse { request, code, message }
    }

    /// Held requests, next first.
    pub(super) fn in_order(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.queue.in_order().map(|held| held.request)
    }

    pub(super) fn first(&self) -> Option<RequestId> {
        self.in_order().next()
    }

    /// Blocks of a held request.
    pub(super) fn blocks(&self, request: RequestId) -> &[BlockHash] {
        self.prefixes.get(&request).map_or(&[], |held| &held.blocks)
    }

    /// What ranks have of a held request's blocks by now; `None` where it has no blocks.
    pub(super) fn hits(&mut self, request: RequestId, index: &PrefixIndex) -> Option<&KeptHits> {
        let held = self.prefixes.get_mut(&request)?;
        index.keep_hits(&held.blocks, &mut held.hits);
        Some(&held.hits)
    }

    /// A prompt with blocks has a rank, and its engine cannot have all of them yet.
    pub(super) fn begin(&mut self, request: RequestId, blocks: Arc<[BlockHash]>, now: Millis) {
        self.begun.insert(request, (blocks, now));
    }

    /// Blocks of a request, held or begun.
    pub(super) fn any_blocks(&self, request: RequestId) -> &[BlockHash] {
        match self.begun.get(&request) {
            Some((blocks, _)) => blocks,
            None => self.blocks(request),
        }
    }

    /// A prompt is wholly dispatched in chunks, has run, or is gone.
    pub(super) fn end(&mut self, request: RequestId) {
        self.begun.remove(&request);
    }

    /// Begun prompts whose rank was told `age_ms` ago or longer, the longest ago first.
    pub(super) fn aged(&self, now: Millis, age_ms: u64) -> Vec<RequestId> {
        let aged = self.begun.iter().filter(|(_, (_, told))| now.since(*told) >= age_ms);
        let mut aged: Vec<(Millis, RequestId)> = aged.map(|(&request, &(_, told))| (told, request)).collect();
        aged.sort_unstable();
        aged.into_iter().map(|(_, request)| request).collect()
    }

    /// The rank of a begun prompt is told of it again; returns its blocks.
    pub(super) fn tell_again(&mut self, request: RequestId, now: Millis) -> Arc<[BlockHash]> {
        let (blocks, told) = self.begun.get_mut(&request).expect("it has begun");
        *told = now;
        Arc::clone(blocks)
    }

    /// Takes a request out because a rank has it; its tenant is charged.
    pub(super) fn serve(&mut self, request: RequestId) -> Option<Arc<[BlockHash]>> {
        self.queue.serve(request);
        self.prefixes.remove(&request).map(|held| held.blocks)
    }

    /// Takes a request out that is gone.
    pub(super) fn remove(&mut self, request: RequestId) {
        self.queue.remove(request);
        self.prefixes.remove(&request);
        self.begun.remove(&request);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}
