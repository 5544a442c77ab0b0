//! Cuts per-slot counts into load segments by window and epoch, and keeps the last of them for whoever sends
//! them: each balancer's session reads on from where it was, and nothing is kept for it but a number.
//!
//! A segment is what one part of a window `[k * w, (k + 1) * w)` served under one plan. The last segment
//! of a window is marked complete only if every step of the window was counted: an agent that started in
//! the middle of one must not make its experts look cold.

use evenkeel_core::snapshot::Window;
use evenkeel_proto::{WINDOW_PARTS, v1};
use evenkeel_worker::StepCounts;
use std::collections::VecDeque;
use std::sync::Arc;

/// Segments kept. With windows of seconds that is minutes: older loads are of no use to a balancer that comes
/// back, and enough to warm one that is new.
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

/// The last segments.
#[derive(Debug, Default)]
pub struct Telemetry {
    window_steps: u64,
    open: Option<Open>,
    queue: VecDeque<Arc<v1::LoadSegment>>,
    /// Number of the oldest segment kept.
    oldest: u64,
}

/// How far a reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor(u64);

/// What a reader gets.
#[derive(Debug, Default)]
pub struct Read {
    /// The next segments, oldest first, as many as fit one report.
    pub segments: Vec<Arc<v1::LoadSegment>>,
    /// Segments that are not kept any more and were not read by this reader.
    pub lost: u64,
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
    /// Sets the length of windows. An open window of another length is dropped; returns whether there was one.
    pub fn set_window(&mut self, steps: u64) -> bool {
        let other = steps != self.window_steps;
        self.window_steps = steps;
        other && self.open.take().is_some()
    }

    /// Whether a balancer has said how long windows are.
    pub fn has_window(&self) -> bool {
        self.window_steps > 0
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
            self.oldest += 1;
        }
        self.queue.push_back(Arc::new(v1::LoadSegment {
            window: Some(open.window.into()),
            epoch: open.epoch,
            counts: open.counts,
            window_complete,
            part: open.part,
        }));
    }

    /// A reader that begins with the oldest segment kept.
    pub fn reader(&self) -> Cursor {
        Cursor(self.oldest)
    }

    /// Reads on.
    pub fn read(&self, cursor: &mut Cursor) -> Read {
        let lost = self.oldest.saturating_sub(cursor.0);
        cursor.0 += lost;
        let read = usize::try_from(cursor.0 - self.oldest).expect("few segments are kept");
        let (mut segments, mut counts) = (Vec::new(), 0);
        for segment in self.queue.iter().skip(read) {
            counts += segment.counts.len();
            if !segments.is_empty() && counts > REPORT_COUNTS_MAX {
                break;
            }
            segments.push(Arc::clone(segment));
        }
        cursor.0 += segments.len() as u64;
        Read { segments, lost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_core::ids::Epoch;

    fn counts(step: u64, epoch: u64) -> StepCounts {
        StepCounts { step, epoch: Epoch(epoch), counts: vec![1, step as u32] }
    }

    fn all(telemetry: &Telemetry) -> Vec<Arc<v1::LoadSegment>> {
        telemetry.read(&mut telemetry.reader()).segments
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
        let found = all(&telemetry).into_iter().map(|s| {
            let counts = <[u32; 2]>::try_from(s.counts.as_slice()).unwrap();
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

    /// Windows of one step, so that each step is a segment.
    fn segments(steps: std::ops::Range<u64>, telemetry: &mut Telemetry) {
        telemetry.set_window(1);
        for step in steps {
            assert!(telemetry.record(counts(step, 1)));
        }
    }

    #[track_caller]
    fn check_read(telemetry: &Telemetry, cursor: &mut Cursor, from: &[u64], lost: u64) {
        let read = telemetry.read(cursor);
        let found: Vec<_> = read.segments.iter().map(|s| s.window.unwrap().from_step).collect();
        assert_eq!((found.as_slice(), read.lost), (from, lost));
    }

    #[test]
    fn each_reader_reads_all_segments_once() {
        let mut telemetry = Telemetry::default();
        segments(0..2, &mut telemetry);
        let (mut first, mut second) = (telemetry.reader(), telemetry.reader());
        check_read(&telemetry, &mut first, &[0, 1], 0);
        segments(2..3, &mut telemetry);
        check_read(&telemetry, &mut first, &[2], 0);
        check_read(&telemetry, &mut first, &[], 0);
        check_read(&telemetry, &mut second, &[0, 1, 2], 0);
        let (mine, others) = (all(&telemetry), all(&telemetry));
        assert!(Arc::ptr_eq(&mine[0], &others[0]), "nothing is copied");
    }

    #[test]
    fn a_slow_reader_loses_the_oldest_segments() {
        let mut telemetry = Telemetry::default();
        let mut cursor = telemetry.reader();
        let most = SEGMENTS_MAX as u64;
        segments(0..most + 3, &mut telemetry);
        let kept: Vec<u64> = (3..most + 3).collect();
        check_read(&telemetry, &mut cursor, &kept, 3);
        check_read(&telemetry, &mut cursor, &[], 0);
        check_read(&telemetry, &mut telemetry.reader(), &kept, 0);
    }

    #[test]
    fn another_window_length_drops_what_was_cut_by_the_old_one() {
        let mut telemetry = Telemetry::default();
        assert!(!telemetry.record(counts(0, 1)), "no window is known");
        assert!(!telemetry.has_window());
        telemetry.set_window(4);
        telemetry.record(counts(0, 1));
        assert!(!telemetry.set_window(4));
        assert!(telemetry.set_window(2));
        assert!(telemetry.record(counts(1, 1)));
        assert!(!all(&telemetry)[0].window_complete);
    }
}
