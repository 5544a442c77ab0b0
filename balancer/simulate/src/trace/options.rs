//! What is taken of a trace, and how.

use super::{TraceError, TraceFormat};

/// Idle times between two requests of a coding session are cut to this, as the source's own replay does
/// (kv-cache-tester, `--max-delay 60`): nights and lunches would leave a user idle for most of the trace.
pub const IDLE_MAX_MS: u64 = 60_000;
/// Fastest and slowest that a trace is replayed.
const SPEEDS: std::ops::RangeInclusive<f64> = 0.001..=1000.0;
/// Copies: their number and the ids of a trace fit into 64 bits.
const COPIES_MAX: u32 = 1 << 20;
/// Widest jitter, ms: an hour.
const JITTER_MS_MAX: u64 = 3_600_000;

/// By how much arrivals are moved, so that stamps in ticks do not become bursts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Jitter {
    /// Within the tick, if the stamps come in ticks.
    #[default]
    Auto,
    /// By less than so many ms of the recorded clock; 0 leaves the stamps as they are.
    Ms(u64),
}

/// What is taken of a trace, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceOptions {
    /// The format; found by how the file begins when `None`.
    pub format: Option<TraceFormat>,
    /// Of everything that is drawn.
    pub seed: u64,
    /// How many times faster than recorded it is replayed: 0.001 to 1000.
    pub speed: f64,
    /// Copies that arrive at the same time: 1 to 1048576. ServeGen's clients send so many times more instead.
    pub copies: u32,
    /// How far arrivals are moved.
    pub jitter: Jitter,
    /// Requests before this time of the recorded clock are left out, ms.
    pub from_ms: u64,
    /// Requests from this time of the recorded clock on are left out, ms.
    pub until_ms: Option<u64>,
    /// Longest idle time within a coding session, ms of the recorded clock.
    pub idle_max_ms: u64,
}

impl Default for TraceOptions {
    fn default() -> Self {
        Self {
            format: None,
            seed: 0,
            speed: 1.0,
            copies: 1,
            jitter: Jitter::Auto,
            from_ms: 0,
            until_ms: None,
            idle_max_ms: IDLE_MAX_MS,
        }
    }
}

impl TraceOptions {
    /// Refuses options that are out of range, by the names that the command line has for them.
    pub(super) fn check(&self) -> Result<(), TraceError> {
        let check = |right: bool, option: &'static str, value: String, accepted: &'static str| {
            if right { Ok(()) } else { Err(TraceError::Option { option, value, accepted }) }
        };
        check(SPEEDS.contains(&self.speed), "--speed", self.speed.to_string(), "0.001 to 1000")?;
        check(
            (1..=COPIES_MAX).contains(&self.copies),
            "--scale",
            self.copies.to_string(),
            "1 to 1048576 copies",
        )?;
        if let Jitter::Ms(ms) = self.jitter {
            check(ms <= JITTER_MS_MAX, "--jitter", format!("{ms} ms"), "0 to 3600000 ms")?;
        }
        let until_ms = self.until_ms.unwrap_or(u64::MAX);
        check(until_ms > self.from_ms, "--until", format!("{until_ms} ms"), "times after --from")?;
        check(self.idle_max_ms >= 1, "--idle-max", "0 ms".to_owned(), "1 ms and more")
    }
}
