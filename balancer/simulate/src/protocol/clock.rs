//! Monotonic clocks that run a little too fast or too slow, and change their rate.

use evenkeel_core::units::Millis;

/// How far a clock's rate may be off, in parts per thousand. A lease of 4 s with a margin of 0.5 s bears a leader's clock
/// that runs 12 % slow; half of that leaves room for the time that a command is on its way.
pub(super) const DRIFT_MAX: i64 = 60;

/// One process's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// True time and local time at the last change of the rate, in milliseconds.
    base: (u64, u64),
    /// Parts per thousand by which it runs fast.
    drift: i64,
}

impl Clock {
    /// A clock that shows `local` at true time `now`.
    pub(super) fn new(now: u64, local: u64) -> Self {
        Self { base: (now, local), drift: 0 }
    }

    pub(super) fn read(&self, now: u64) -> Millis {
        let passed = (now - self.base.0) * self.rate() / 1000;
        Millis(self.base.1 + passed)
    }

    /// The first true time at which the clock shows `local`, not before `now`.
    pub(super) fn when(&self, local: Millis, now: u64) -> u64 {
        let wanted = local.0.saturating_sub(self.base.1);
        (self.base.0 + (wanted * 1000).div_ceil(self.rate())).max(now)
    }

    pub(super) fn set_drift(&mut self, now: u64, drift: i64) {
        self.base = (now, self.read(now).0);
        self.drift = drift.clamp(-DRIFT_MAX, DRIFT_MAX);
    }

    fn rate(&self) -> u64 {
        u64::try_from(1000 + self.drift).expect("the drift is small")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_wakes_when_it_shows_the_time() {
        for drift in [-DRIFT_MAX, 0, 7, DRIFT_MAX] {
            let mut clock = Clock::new(50, 1000);
            clock.set_drift(80, drift);
            for local in 1000..3000 {
                let at = clock.when(Millis(local), 80);
                assert!(clock.read(at).0 >= local, "{drift}: {local} is not shown yet at {at}");
                assert!(at == 80 || clock.read(at - 1).0 < local, "{drift}: {local} was shown before {at}");
            }
        }
    }
}
