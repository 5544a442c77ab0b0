//! What happens when.

use super::seat::Order;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Something that happens at a time. `unit` counts all units, prefill units first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// Orders reach a unit.
    Orders { unit: usize, orders: Vec<Order> },
    /// A unit's step ends.
    StepEnd { unit: usize },
    /// A policy hears from the ranks.
    Report { unit: usize },
    /// A request's KV has arrived at its decode rank.
    HandedOver { id: u64, unit: usize, number: u64 },
    /// The KV of a running request is complete on another rank.
    Copied { id: u64, unit: usize, to: u16 },
    /// Something happens to a rank.
    Incident { index: usize },
    /// A unit that waited for orders may begin its step.
    Wake { unit: usize },
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    at_us: u64,
    sequence: u64,
    event: Event,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at_us, self.sequence).cmp(&(other.at_us, other.sequence))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Events in the order of time, and of scheduling within a time.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    heap: BinaryHeap<Reverse<Entry>>,
    sequence: u64,
}

impl Schedule {
    pub(super) fn at(&mut self, at_us: u64, event: Event) {
        self.sequence += 1;
        self.heap.push(Reverse(Entry { at_us, sequence: self.sequence, event }));
    }

    pub(super) fn next_us(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(entry)| entry.at_us)
    }

    /// The next event, if it happens at `now_us` or before.
    pub(super) fn take(&mut self, now_us: u64) -> Option<Event> {
        if self.next_us()? > now_us {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry.event)
    }
}
