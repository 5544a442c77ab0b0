//! The order in which held requests are served: which priority has the turn, and which tenant within it.

use super::class::{Tag, duration};
use super::lines::{NOBODY, Place};
use super::queue::{FairQueue, HeldRequest};
use super::{Priority, TenantId};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, btree_set};

/// Shares of the turn are counted in so many parts.
const PARTS: u64 = 65_536;

/// Whose turn it is: interactive, until batch is owed its next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Turn {
    /// Batch's share, in [`PARTS`].
    share: u64,
    /// Cost that batch is owed of what was served while both waited, in 1 / [`PARTS`].
    owed: u128,
}

impl Turn {
    pub(super) fn new(batch_share: f64) -> Self {
        Self { share: (batch_share * PARTS as f64).round() as u64, owed: 0 }
    }

    /// The priority that goes next, given the cost of the next request of each.
    fn next(&self, interactive: Option<u64>, batch: Option<u64>) -> Option<Priority> {
        match (interactive, batch) {
            (None, None) => None,
            (Some(_), None) => Some(Priority::Interactive),
            (None, Some(_)) => Some(Priority::Batch),
            (Some(_), Some(cost)) if self.share > 0 && self.owed >= self.price(cost) => Some(Priority::Batch),
            (Some(_), Some(_)) => Some(Priority::Interactive),
        }
    }

    /// A request is served while these wait, itself among them. Without company nobody is owed anything.
    pub(super) fn serve(&mut self, priority: Priority, cost: u64, interactive: bool, batch: bool) {
        if !(interactive && batch) {
            return;
        }
        match priority {
            Priority::Interactive => self.owed += u128::from(cost.max(1)) * u128::from(self.share),
            // Served out of turn it may cost more than is owed.
            Priority::Batch => self.owed = self.owed.saturating_sub(self.price(cost)),
        }
    }

    /// Nothing is saved up for requests that are not there.
    pub(super) fn batch_is_empty(&mut self) {
        self.owed = 0;
    }

    /// What batch pays for its share of a request; interactive pays the rest.
    fn price(&self, cost: u64) -> u128 {
        u128::from(cost.max(1)) * u128::from(PARTS - self.share)
    }
}

/// The tenants of one priority in turn, each with its next request.
struct ClassOrder<'a> {
    queue: &'a FairQueue,
    priority: Priority,
    /// Tenants of whom nothing was given yet.
    fresh: std::iter::Peekable<btree_set::Iter<'a, (Tag, TenantId)>>,
    /// The others: tag, tenant, and where the first that was not given yet stands.
    begun: BinaryHeap<Reverse<(Tag, TenantId, Place)>>,
    /// The next request, and where it stands.
    head: Option<(HeldRequest, Tag, Place)>,
}

impl<'a> ClassOrder<'a> {
    fn new(queue: &'a FairQueue, priority: Priority) -> Self {
        let fresh = queue.class(priority).waiting().iter().peekable();
        let mut order = Self { queue, priority, fresh, begun: BinaryHeap::new(), head: None };
        order.advance();
        order
    }

    fn cost(&self) -> Option<u64> {
        self.head.map(|(request, ..)| request.cost)
    }

    /// Gives the head and finds the next.
    fn take(&mut self) -> Option<HeldRequest> {
        let (request, tag, place) = self.head?;
        let tag = tag + duration(request.cost, self.queue.weight(request.tenant));
        let behind = self.queue.lines().behind(place);
        if behind != NOBODY {
            self.begun.push(Reverse((tag, request.tenant, behind)));
        }
        self.advance();
        Some(request)
    }

    fn advance(&mut self) {
        let begun = self.begun.peek().map(|Reverse((tag, tenant, _))| (*tag, *tenant));
        let fresh = self.fresh.peek().map(|&&head| head);
        let next = match (begun, fresh) {
            (Some(begun), fresh) if fresh.is_none_or(|fresh| begun < fresh) => {
                let Reverse((tag, _, place)) = self.begun.pop().expect("it was peeked at");
                Some((tag, place))
            }
            (_, Some((tag, tenant))) => {
                self.fresh.next();
                Some((tag, self.queue.line(tenant, self.priority).first()))
            }
            _ => None,
        };
        self.head = next.map(|(tag, place)| (self.queue.lines().at(place), tag, place));
    }
}

/// Held requests, next first. Each takes the logarithm of their number.
pub struct InOrder<'a> {
    interactive: ClassOrder<'a>,
    batch: ClassOrder<'a>,
    turn: Turn,
}

impl<'a> InOrder<'a> {
    pub(super) fn new(queue: &'a FairQueue) -> Self {
        Self {
            interactive: ClassOrder::new(queue, Priority::Interactive),
            batch: ClassOrder::new(queue, Priority::Batch),
            turn: queue.turn(),
        }
    }
}

impl Iterator for InOrder<'_> {
    type Item = HeldRequest;

    fn next(&mut self) -> Option<HeldRequest> {
        let (interactive, batch) = (self.interactive.cost(), self.batch.cost());
        let priority = self.turn.next(interactive, batch)?;
        let class = match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Batch => &mut self.batch,
        };
        let next = class.take()?;
        self.turn.serve(priority, next.cost, interactive.is_some(), batch.is_some());
        if self.batch.cost().is_none() {
            self.turn.batch_is_empty();
        }
        Some(next)
    }
}
