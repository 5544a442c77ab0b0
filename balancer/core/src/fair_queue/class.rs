//! The order of tenants within one priority: start-time fair queuing (Goyal, Vin and Cheng, SIGCOMM 1996).
//!
//! Every tenant has a tag, the virtual time at which its next request starts: where its last one ended, or the present, whichever
//! is later. A request takes its cost over the tenant's weight of virtual time; the lowest tag goes next, and the present is the
//! tag that went last. Only tenants are ordered here; which request of a tenant is next is its own queue's matter.

use super::TenantId;
use std::collections::{BTreeMap, BTreeSet};

/// Virtual time, in 1/65536 of a unit of cost at weight 1. 128 bits never end.
pub(super) type Tag = u128;
/// Tags of one unit of cost at weight 1. The least common multiple of 1 to 16: with the weights that people choose, nothing is lost
/// in rounding, and with any other less than one in ten of a unit of cost.
const TAG_SCALE: Tag = 720_720;
/// Highest weight of a tenant.
pub(super) const WEIGHT_MAX: u32 = 1 << 16;
/// Most tenants that hold nothing and are remembered, for being ahead of their share. Beyond it the one that is ahead the least is
/// forgotten, and gains that much.
pub(super) const IDLE_MAX: usize = 1 << 16;

/// Virtual time that a request takes.
pub(super) fn duration(cost: u64, weight: u32) -> Tag {
    let unweighted = Tag::from(cost.max(1)) * TAG_SCALE;
    // Most tenants have no weight of their own, and to divide 128 bits takes a while.
    if weight == 1 { unweighted } else { unweighted / Tag::from(weight) }
}

/// Tenants of one priority.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Class {
    now: Tag,
    /// Tags of the tenants that hold requests, and of those that do not and are ahead of `now`.
    tags: BTreeMap<TenantId, Tag>,
    /// The former by tag.
    waiting: BTreeSet<(Tag, TenantId)>,
    /// The latter by tag.
    idle: BTreeSet<(Tag, TenantId)>,
}

impl Class {
    /// Tenants that hold requests, next first.
    pub(super) fn waiting(&self) -> &BTreeSet<(Tag, TenantId)> {
        &self.waiting
    }

    /// Tenants that are known.
    pub(super) fn tenants(&self) -> usize {
        self.tags.len()
    }

    /// The tenant holds its first request.
    pub(super) fn enter(&mut self, tenant: TenantId) {
        let now = self.now;
        let tag = self.tags.entry(tenant).or_insert(now);
        self.idle.remove(&(*tag, tenant));
        *tag = now.max(*tag);
        self.waiting.insert((*tag, tenant));
    }

    /// The tenant holds nothing any more.
    pub(super) fn leave(&mut self, tenant: TenantId) {
        let tag = self.tags[&tenant];
        self.waiting.remove(&(tag, tenant));
        self.idle.insert((tag, tenant));
        // Nobody waits: the next to come has nobody to be fair to.
        if self.waiting.is_empty() {
            self.now = self.idle.last().map_or(self.now, |&(last, _)| self.now.max(last));
        }
        self.forget_idle();
    }

    /// A request of a waiting tenant goes out, which takes `duration`.
    pub(super) fn serve(&mut self, tenant: TenantId, duration: Tag) {
        // The lowest tag rather than this tenant's: whoever is served out of turn does not make the others late.
        let lowest = self.waiting.first().map_or(self.now, |&(tag, _)| tag);
        self.now = self.now.max(lowest);
        let tag = self.tags.get_mut(&tenant).expect("a tenant that is served waits");
        let waited = self.waiting.remove(&(*tag, tenant));
        assert!(waited, "a tenant that is served waits");
        *tag += duration;
        self.waiting.insert((*tag, tenant));
        self.forget_idle();
    }

    /// A tenant that is not ahead comes back as if it had never been here.
    fn forget_idle(&mut self) {
        while let Some(&(tag, tenant)) = self.idle.first()
            && (tag <= self.now || self.idle.len() > IDLE_MAX)
        {
            self.idle.pop_first();
            self.tags.remove(&tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TenantId = TenantId(1);
    const B: TenantId = TenantId(2);

    fn next(class: &Class) -> Option<TenantId> {
        class.waiting().first().map(|&(_, tenant)| tenant)
    }

    #[test]
    fn leaving_and_coming_back_gains_nothing() {
        let mut class = Class::default();
        class.enter(A);
        class.enter(B);
        class.serve(A, 100);
        class.leave(A);
        class.serve(B, 30);
        class.enter(A);
        // A is at 100 still, B at 30, 60, 90, 120.
        for _ in 0..3 {
            assert_eq!(next(&class), Some(B));
            class.serve(B, 30);
        }
        assert_eq!(next(&class), Some(A));
    }

    #[test]
    fn nobody_is_ahead_once_nobody_waits() {
        let mut class = Class::default();
        class.enter(A);
        class.serve(A, 100);
        class.leave(A);
        assert_eq!(class.tenants(), 0);
        class.enter(B);
        class.enter(A);
        assert_eq!(next(&class), Some(A));
    }

    #[test]
    fn a_tenant_that_stays_away_saves_nothing_up() {
        let mut class = Class::default();
        class.enter(A);
        (0..50).for_each(|_| class.serve(A, 10));
        class.enter(B);
        // The request that A was served last began at 490: B starts there, not at 0.
        class.serve(B, 10);
        assert_eq!(class.waiting().iter().copied().collect::<Vec<_>>(), [(500, A), (500, B)]);
    }

    #[test]
    fn idle_tenants_are_bounded() {
        let mut class = Class::default();
        class.enter(A);
        for tenant in 0..IDLE_MAX as u32 + 10 {
            let tenant = TenantId(100 + tenant);
            class.enter(tenant);
            class.serve(tenant, 1_000_000 + Tag::from(tenant.0));
            class.leave(tenant);
        }
        assert_eq!(class.tenants(), IDLE_MAX + 1);
        // Those who were least ahead went.
        assert_eq!(class.idle.first().map(|&(_, tenant)| tenant), Some(TenantId(110)));
    }
}
