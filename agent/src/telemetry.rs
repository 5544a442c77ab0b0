//! Cuts per-slot counts into load segments by window and epoch, and keeps them until they are sent.
//!
//! A segment is what one part of a window `[k * w, (k + 1) * w)` served under one plan. The last segment
//! of a window is marked complete only if every step of the window was counted: an agent that started in
//! the middle of one must not make its experts look cold.

use evenkeel_core::snapshot::Window;
use evenkeel_proto::{WINDOW_PARTS, v1};
use evenkeel_worker::StepCounts;
use std::collections::VecDeque;

/// Segments kept while they cannot be sent. With windows of seconds that is minutes: older loads are of no
/// use to a balancer that comes back.
const SEGMENTS_MAX: usize = 64;

/// Counts in one report: at five bytes each, at most 5 MiB of the 8 MiB that a message may have.
const REPORT_COUNTS_MAX: usize = 1 << 20;

/// The part of a window in which its step number `at` lies.
fn part_of(at: u64, window_steps: u64) -> u32 {
    let parts = window_steps.min(WINDOW_PARTS as u64);
    // Widened: windows may be as long as steps are counted.
    let part = u128::from(at) * u128::from(parts) / u128::from(window_steps);
    u32::try_from(part).expect("a window has few parts")
}

/// Counts not yet sent.
#[derive(Debug, Default)]
pub struct Telemetry {
    window_steps: u64,
    open: Option<Open>,
    queue: VecDeque<v1::LoadSegment>,
    dropped: u64,
}

#[derive(Debug)]
struct Open {
    window: Window,
    part: u32,
    epoch: u64,
    counts: Vec<u32>,
    next_step: u64,
    /// Every step of the window up to `next_step` was counted.
    whole: bool,
}

impl Telemetry {
    /// Sets the length of windows. An open window of another length is dropped.
    pub fn set_window(&mut self, steps: u64) {
        if steps != self.window_steps {
            self.window_steps = steps;
            self.dropped += u64::from(self.open.take().is_some());
        }
    }

    /// Adds the counts of a step; steps come in ascending order. Returns whether a window was completed.
    /// Nothing is counted while no balancer has said how long windows are.
    pub fn record(&mut self, step: StepCounts) -> bool {
        if self.window_steps == 0 {
            return false;
        }
        let from_step = step.step - step.step % self.window_steps;
        let window = Window { from_step, to_step: from_step.saturating_add(self.window_steps) };
        let part = part_of(step.step - from_step, self.window_steps);
        let open = match self.open.take() {
            Some(open) if open.window != window => {
                self.close(open, false);
                None
            }
            Some(open) if (open.part, open.epoch) != (part, step.epoch.0) => {
                let (next_step, whole) = (open.next_step, open.whole);
                self.close(open, false);
                Some(Open { window, part, epoch: step.epoch.0, counts: Vec::new(), next_step, whole })
            }
            other => other,
        };
        let mut open = open.unwrap_or(Open {
            window,
            part,
            epoch: step.epoch.0,
            counts: Vec::new(),
            next_step: from_step,
            whole: true,
        });
        open.whole &= open.next_step == step.step;
        open.next_step = step.step + 1;
        if open.counts.is_empty() {
            open.counts = step.counts;
        } else {
            open.counts.iter_mut().zip(step.counts).for_each(|(sum, count)| *sum = sum.saturating_add(count));
        }
        if open.next_step < window.to_step {
            self.open = Some(open);
            return false;
        }
        let whole = open.whole;
        self.close(open, whole);
        true
    }

    fn close(&mut self, open: Open, window_complete: bool) {
        if self.queue.len() == SEGMENTS_MAX {
            self.queue.pop_front();
            self.dropped += 1;
        }
        self.queue.push_back(v1::LoadSegment {
            window: Some(open.window.into()),
            epoch: open.epoch,
            counts: open.counts,
            window_complete,
            part: open.part,
        });
    }

    /// Takes the oldest segments, as many as fit one report.
    pub fn take(&mut self) -> Vec<v1::LoadSegment> {
        let (mut taken, mut counts) = (Vec::new(), 0);
        while let Some(segment) = self.queue.front() {
            counts += segment.counts.len();
            if !taken.is_empty() && counts > REPORT_COUNTS_MAX {
                break;
            }
            taken.extend(self.queue.pop_front());
        }
        taken
    }

    /// Segments dropped since the last call.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_core::ids::Epoch;

    fn counts(step: u64, epoch: u64) -> StepCounts {
        StepCounts { step, epoch: Epoch(epoch), counts: vec![1, step as u32] }
    }

    /// Feeds (step, epoch) pairs with windows of eight, so parts of two; expects segments as
    /// (from, part, epoch, counts, complete).
    #[track_caller]
    fn check(steps: &[(u64, u64)], expected: &[(u64, u32, u64, [u32; 2], bool)]) {
        let mut telemetry = Telemetry::default();
        telemetry.set_window(8);
        for &(step, epoch) in steps {
            telemetry.record(counts(step, epoch));
        }
        let found = telemetry.take().into_iter().map(|s| {
            let counts = <[u32; 2]>::try_from(s.counts).unwrap();
            (s.window.unwrap().from_step, s.part, s.epoch, counts, s.window_complete)
        });
        assert_eq!(found.collect::<Vec<_>>(), expected);
    }

    /// Steps `of` under one epoch.
    fn steps(of: std::ops::Range<u64>) -> Vec<(u64, u64)> {
        of.map(|step| (step, 1)).collect()
    }

    #[test]
    fn a_window_is_cut_into_four_parts() {
        let whole = |from: u64, [a, b, c, d]: [u32; 4]| {
            let part = |part, sum, last| (from, part, 1, [2, sum], last);
            [part(0, a, false), part(1, b, false), part(2, c, false), part(3, d, true)]
        };
        check(&steps(0..9), &whole(0, [1, 5, 9, 13]));
        check(&steps(8..16), &whole(8, [17, 21, 25, 29]));
    }

    #[test]
    fn a_short_window_has_a_part_per_step() {
        assert_eq!((part_of(0, 1), part_of(0, 2), part_of(1, 2), part_of(2, 3)), (0, 0, 1, 2));
        assert_eq!((part_of(0, 5), part_of(4, 5), part_of(u64::MAX - 1, u64::MAX)), (0, 3, 3));
    }

    #[test]
    fn a_new_epoch_begins_a_new_segment() {
        let first = [(0, 0, 1, [1, 0], false), (0, 0, 2, [1, 1], false)];
        check(&[(0, 1), (1, 2), (2, 2)], &first);
        let last = [(8, 3, 1, [1, 14], false), (8, 3, 2, [1, 15], false)];
        check(&[(14, 1), (15, 2)], &last);
    }

    #[test]
    fn a_window_with_a_missing_step_is_not_complete() {
        check(&steps(6..8), &[(0, 3, 1, [2, 13], false)]);
        check(&[(4, 1), (6, 1), (7, 1)], &[(0, 2, 1, [1, 4], false), (0, 3, 1, [2, 13], false)]);
        check(&[(0, 1), (1, 1), (8, 1)], &[(0, 0, 1, [2, 1], false)]);
    }

    #[test]
    fn the_oldest_segments_are_dropped_and_counted() {
        let mut telemetry = Telemetry::default();
        telemetry.set_window(1);
        for step in 0..(SEGMENTS_MAX as u64 + 3) {
            assert!(telemetry.record(counts(step, 1)));
        }
        assert_eq!((telemetry.take_dropped(), telemetry.take_dropped()), (3, 0));
        assert_eq!(telemetry.take()[0].window.unwrap().from_step, 3);
    }

    #[test]
    fn another_window_length_drops_what_was_cut_by_the_old_one() {
        let mut telemetry = Telemetry::default();
        assert!(!telemetry.record(counts(0, 1)), "no window is known");
        telemetry.set_window(4);
        telemetry.record(counts(0, 1));
        telemetry.set_window(4);
        telemetry.set_window(2);
        assert_eq!(telemetry.take_dropped(), 1);
        assert!(telemetry.record(counts(1, 1)));
        assert!(!telemetry.take()[0].window_complete);
    }
}
