//! What reports of one rank are compared with: what the ledger held of the rank after each dispatch to it.
//!
//! A report is as old as it is, and between two dispatches that it can name the rank's requests end and its
//! KV grows. So a dispatch stands for a window, up to the next dispatch to the rank, and the window for the
//! least and the most that the ledger held in it. A report contradicts the ledger only where it is outside.

use std::collections::VecDeque;

/// Windows of a rank that are kept. At ten dispatches a second the finer half spans three seconds; when they are
/// full, pairs of the older half are merged, so that the coarse ones reach back to the beginning.
const WINDOWS_MAX: usize = 64;

/// Least and most of a quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct Range {
    low: u64,
    high: u64,
}

impl Range {
    fn at(value: u64) -> Self {
        Self { low: value, high: value }
    }

    fn reach(&mut self, value: u64) {
        (self.low, self.high) = (self.low.min(value), self.high.max(value));
    }

    fn merge(&mut self, other: Range) {
        self.reach(other.low);
        self.reach(other.high);
    }

    /// What `reported` has more than the ledger; `before`, unless that is contradicted.
    fn difference(self, reported: u64, before: i64) -> i64 {
        let over = |held: u64| reported as i64 - held as i64;
        before.clamp(over(self.high), over(self.low))
    }
}

/// From one dispatch to the rank until the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct Window {
    number: u64,
    requests: Range,
    kv: Range,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct History {
    /// Oldest first, never empty; the last is still open.
    windows: VecDeque<Window>,
}

impl History {
    /// Of a rank that is empty when the unit's latest dispatch is `number`.
    pub(super) fn new(number: u64) -> Self {
        Self { windows: VecDeque::from([Window { number, requests: Range::at(0), kv: Range::at(0) }]) }
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.windows.capacity() * size_of::<Window>()
    }

    /// The ledger holds so much now. To be called before and after every change.
    pub(super) fn reach(&mut self, requests: u64, kv: u64) {
        let open = self.windows.back_mut().expect("never empty");
        open.requests.reach(requests);
        open.kv.reach(kv);
    }

    /// The dispatch `number` has brought the rank to so much.
    pub(super) fn dispatched(&mut self, number: u64, requests: u64, kv: u64) {
        if self.windows.len() == WINDOWS_MAX {
            self.merge_older_half();
        }
        self.windows.push_back(Window { number, requests: Range::at(requests), kv: Range::at(kv) });
    }

    fn merge_older_half(&mut self) {
        for pair in 0..WINDOWS_MAX / 4 {
            let (mut first, second) = (self.windows[2 * pair], self.windows[2 * pair + 1]);
            first.requests.merge(second.requests);
            first.kv.merge(second.kv);
            self.windows[pair] = first;
        }
        self.windows.drain(WINDOWS_MAX / 4..WINDOWS_MAX / 2);
    }

    /// What the rank had more than the ledger, in (requests, KV), when it had received dispatch `as_of` and
    /// had this; `before` is what was thought until now.
    pub(super) fn differences(
        &self,
        as_of: u64,
        (requests, kv): (u64, u64),
        before: (i64, i64),
    ) -> (i64, i64) {
        let place = self.windows.partition_point(|window| window.number <= as_of).saturating_sub(1);
        let window = self.windows[place];
        (window.requests.difference(requests, before.0), window.kv.difference(kv, before.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dispatch 1 brought the rank to 5 requests and 500 tokens, of which it lost 2 with 150 tokens until
    /// dispatch 4 brought it to 9 and 900.
    fn history() -> History {
        let mut history = History::new(0);
        history.reach(0, 0);
        history.dispatched(1, 5, 500);
        history.reach(5, 550);
        history.reach(3, 400);
        history.dispatched(4, 9, 900);
        history.reach(9, 900);
        history
    }

    #[track_caller]
    fn check(as_of: u64, reported: (u64, u64), before: (i64, i64), expected: (i64, i64)) {
        assert_eq!(history().differences(as_of, reported, before), expected);
    }

    #[test]
    fn a_report_within_its_window_contradicts_nothing() {
        for reported in [(5, 500), (3, 400), (4, 550)] {
            check(1, reported, (0, 0), (0, 0));
            check(3, reported, (0, 0), (0, 0));
        }
        check(4, (9, 900), (0, 0), (0, 0));
        check(0, (0, 0), (0, 0), (0, 0));
    }

    #[test]
    fn a_report_outside_corrects_by_as_little_as_it_must() {
        check(1, (7, 600), (0, 0), (2, 50));
        check(1, (1, 390), (0, 0), (-2, -10));
        check(4, (9, 950), (0, 0), (0, 50));
        check(0, (2, 20), (0, 0), (2, 20));
    }

    #[test]
    fn a_known_difference_stays_until_a_report_contradicts_it() {
        check(1, (5, 500), (1, 60), (1, 60));
        check(1, (5, 500), (3, -60), (2, -50));
    }

    #[test]
    fn old_windows_are_merged_and_keep_their_extremes() {
        let mut history = History::new(0);
        for number in 1..=1000 {
            history.dispatched(number, number % 7, 10 * number);
        }
        assert!(history.windows.len() <= WINDOWS_MAX);
        // The newest are exact, the oldest span much and contradict nothing in that.
        assert_eq!(history.differences(1000, (1000 % 7 + 2, 10_001), (0, 0)), (2, 1));
        assert_eq!(history.differences(990, (990 % 7, 9901), (0, 0)), (0, 1));
        assert_eq!(history.differences(3, (6, 2000), (0, 0)), (0, 0));
        let numbers: Vec<u64> = history.windows.iter().map(|w| w.number).collect();
        assert!(numbers.is_sorted() && numbers[0] == 0, "{numbers:?}");
    }
}
