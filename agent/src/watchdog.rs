//! Notices calls into the worker that do not end. What a call waits for elsewhere, as for bytes from another
//! node, is not the worker's time.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The calls of some lanes, each of which makes one at a time.
#[derive(Debug)]
pub struct Watchdog {
    begun: Instant,
    /// By lane: when it went into the worker, in milliseconds since `begun` plus one; 0 while it is not there.
    entered: Vec<AtomicU64>,
}

impl Watchdog {
    /// For so many lanes.
    pub fn new(lanes: usize) -> Self {
        Self { begun: Instant::now(), entered: (0..lanes).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The longest that a call under way has been in the worker.
    pub fn longest(&self) -> Duration {
        let now = self.now();
        let since = |entered: &AtomicU64| match entered.load(Ordering::Relaxed) {
            0 => 0,
            entered => now.saturating_sub(entered),
        };
        Duration::from_millis(self.entered.iter().map(since).max().unwrap_or(0))
    }

    /// Makes a call of `lane`; the reader it is given is of time outside the worker.
    pub fn call<T>(&self, lane: usize, call: impl FnOnce(Lane<'_>) -> T) -> T {
        let lane = Lane { watchdog: self, lane };
        lane.enter();
        let done = call(lane);
        lane.leave();
        done
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// One lane within a call.
#[derive(Debug, Clone, Copy)]
pub struct Lane<'a> {
    watchdog: &'a Watchdog,
    lane: usize,
}

impl<'a> Lane<'a> {
    /// A reader whose time is not the worker's.
    pub fn outside<R: Read>(self, reader: R) -> Outside<'a, R> {
        Outside { lane: self, reader }
    }

    fn enter(self) {
        self.watchdog.entered[self.lane].store(self.watchdog.now(), Ordering::Relaxed);
    }

    fn leave(self) {
        self.watchdog.entered[self.lane].store(0, Ordering::Relaxed);
    }
}

/// See [`Lane::outside`].
#[derive(Debug)]
pub struct Outside<'a, R> {
    lane: Lane<'a>,
    reader: R,
}

impl<R: Read> Read for Outside<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.lane.leave();
        let read = self.reader.read(bytes);
        self.lane.enter();
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until the watchdog has seen a call for a while.
    fn seen(watchdog: &Watchdog) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        while watchdog.longest() < Duration::from_millis(3) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    /// A reader that looks at the watchdog.
    struct Looks<'a>(&'a Watchdog);

    impl Read for Looks<'_> {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            assert_eq!(self.0.longest(), Duration::ZERO);
            Ok(0)
        }
    }

    #[test]
    fn only_time_in_the_worker_counts() {
        let watchdog = Watchdog::new(2);
        assert_eq!(watchdog.longest(), Duration::ZERO);
        watchdog.call(1, |lane| {
            assert!(seen(&watchdog));
            assert_eq!(lane.outside(Looks(&watchdog)).read(&mut [0]).unwrap(), 0);
            assert!(seen(&watchdog));
        });
        assert_eq!(watchdog.longest(), Duration::ZERO);
    }
}
