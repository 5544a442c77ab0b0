//! The mean shares of one layer by time of the season.

use super::average::VectorAverage;
use crate::policy::HistoryPolicy;

/// Seasons that a bucket's mean remembers, counting for one each: a week of days, so that a new habit is learnt
/// in one.
const SEASONS: u16 = 7;

/// Buckets of one layer. A window goes into the visit under way; the visit goes into its bucket when another
/// bucket's first window arrives, so `S` never moves under the average of what is above it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Season {
    /// `[buckets][experts]`; empty until a bucket has been left.
    mean: Vec<f32>,
    /// `[buckets]`: visits in the mean, at most [`SEASONS`].
    visits: Vec<u16>,
    /// The bucket of the last window.
    bucket: usize,
    visit: VectorAverage,
}

impl Season {
    /// Takes the shares of a window.
    pub(super) fn add(&mut self, at_ms: u64, share: &[f64], policy: &HistoryPolicy) {
        let buckets = usize::from(policy.season_buckets);
        let bucket = (position(at_ms, policy) as usize).min(buckets - 1);
        if bucket != self.bucket {
            self.leave(buckets, share.len());
        }
        self.bucket = bucket;
        self.visit.add(share.iter().copied(), 1.0);
    }

    fn leave(&mut self, buckets: usize, experts: usize) {
        if self.visit.weight == 0.0 {
            return;
        }
        self.mean.resize(buckets * experts, 0.0);
        self.visits.resize(buckets, 0);
        let visits = &mut self.visits[self.bucket];
        *visits = (*visits + 1).min(SEASONS);
        let mean = &mut self.mean[self.bucket * experts..(self.bucket + 1) * experts];
        for (mean, visit) in mean.iter_mut().zip(&self.visit.mean) {
            *mean += (visit - *mean) / f32::from(*visits);
        }
        self.visit.reset();
    }

    /// `S` at a time; `None` when a bucket that it needs does not count yet.
    pub(super) fn at(&self, at_ms: u64, policy: &HistoryPolicy) -> Option<SeasonAt<'_>> {
        let buckets = self.visits.len();
        if buckets == 0 {
            return None;
        }
        // From the middle of one bucket to the middle of the next.
        let from_middle = position(at_ms, policy) + buckets as f64 - 0.5;
        let (before, part) = (from_middle as usize % buckets, from_middle.fract());
        let after = (before + 1) % buckets;
        let known = self.visits[before] > 0 && (part == 0.0 || self.visits[after] > 0);
        let experts = self.mean.len() / buckets;
        let row = |bucket: usize| &self.mean[bucket * experts..(bucket + 1) * experts];
        known.then(|| SeasonAt { before: row(before), after: row(after), part })
    }

    pub(super) fn values(&self) -> usize {
        self.mean.len() + self.visit.mean.len()
    }
}

/// Where in the season a time lies, in buckets.
fn position(at_ms: u64, policy: &HistoryPolicy) -> f64 {
    (at_ms % policy.season_ms) as f64 / policy.season_ms as f64 * f64::from(policy.season_buckets)
}

/// `S` at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct SeasonAt<'a> {
    before: &'a [f32],
    after: &'a [f32],
    part: f64,
}

impl SeasonAt<'_> {
    pub(super) fn of(&self, expert: usize) -> f64 {
        f64::from(self.before[expert]) * (1.0 - self.part) + f64::from(self.after[expert]) * self.part
    }
}
