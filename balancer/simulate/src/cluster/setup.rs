//! What is simulated: the units, what they can hold, how fast news travels, and what fails when. Times in microseconds.

use super::SetupError;

/// Units of one kind, all alike. A request is given to one of them, and every unit has a policy of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Units, at least 1.
    pub units: u16,
    /// Ranks of a unit, at least 1. They run in lockstep: a step lasts as long as its slowest rank.
    pub ranks: u16,
    /// KV tokens that a rank has room for, cached prefixes included. At least a block.
    pub kv_tokens: u64,
}

/// Prefill units.
#[derive(Debug, Clone, PartialEq)]
pub struct PrefillPool {
    /// The units.
    pub pool: Pool,
    /// New tokens that a rank runs in one step at most. What is left of a prompt comes first in the next.
    pub step_tokens: u64,
    /// A prefix cache that all ranks share, as DeepSeek's on disk: tokens it holds, 0 for none. What it has is there before the
    /// prompt begins and costs no step time.
    pub shared_cache_tokens: u64,
}

/// Decode units.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodePool {
    /// The units.
    pub pool: Pool,
    /// Requests that a rank runs at once at most. What is over waits in the rank's own queue.
    pub slots: u32,
    /// KV tokens that must be free beyond the context of a request before a rank begins it, for what will be generated.
    pub reserve_tokens: u64,
}

impl DecodePool {
    /// What SGLang keeps free for each request that a decode rank takes from prefill.
    pub const RESERVE_TOKENS: u64 = 512;
}

/// Which units there are.
#[derive(Debug, Clone, PartialEq)]
pub enum Units {
    /// Prompts only: a request ends with its first token.
    Prefill(PrefillPool),
    /// Outputs only: a request arrives with its KV.
    Decode(DecodePool),
    /// Prompts run in prefill units, their KV is handed over, outputs are generated in decode units.
    Disaggregated(PrefillPool, DecodePool, HandOff),
}

/// The way of a request's KV, from prefill to decode and between decode ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HandOff {
    /// Bytes of one token's KV.
    pub bytes_per_token: u64,
    /// Bytes a microsecond of one rank's network port. Transfers out of a rank go one after the other.
    pub bytes_per_us: f64,
    /// Before the first byte.
    pub latency_us: u64,
}

impl Default for HandOff {
    /// DeepSeek-V3 in BF16: 61 layers of 576 values. A 400 Gbit/s port, and 2 ms for the agreement of the two sides (assumed).
    fn default() -> Self {
        Self { bytes_per_token: 61 * 576 * 2, bytes_per_us: 50_000.0, latency_us: 2_000 }
    }
}

impl HandOff {
    /// Time on the wire of `tokens` tokens of KV.
    pub fn transfer_us(&self, tokens: u64) -> u64 {
        ((tokens * self.bytes_per_token) as f64 / self.bytes_per_us) as u64
    }
}

/// How old news is.
#[derive(Debug, Clone, PartialEq)]
pub struct News {
    /// How often Evenkeel hears from each rank. Peers hear from the engines at their own interval.
    pub report_interval_us: u64,
    /// From the rank to the policy.
    pub report_delay_us: u64,
    /// From a change of a rank's prefix cache to the policy, for everybody.
    pub kv_event_delay_us: u64,
    /// From a policy's decision to the engine, for everybody.
    pub order_delay_us: u64,
    /// Reports made in these times (from, until) never arrive, whoever waits for them.
    pub lost_us: Vec<(u64, u64)>,
}

impl Default for News {
    /// Reports every 100 ms as vLLM's coordinator sends them; everything else takes a round trip in a data centre.
    fn default() -> Self {
        Self {
            report_interval_us: 100_000,
            report_delay_us: 1_000,
            kv_event_delay_us: 1_000,
            order_delay_us: 500,
            lost_us: Vec::new(),
        }
    }
}

impl News {
    /// Whether a report made now arrives.
    pub fn arrives(&self, now_us: u64) -> bool {
        !self.lost_us.iter().any(|&(from, until)| (from..until).contains(&now_us))
    }
}

/// When a request was served well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objectives {
    /// First token: the fixed part.
    pub ttft_us: f64,
    /// First token: for each prompt token that no cache had.
    pub ttft_us_per_uncached_token: f64,
    /// Each further token, mean of a request.
    pub tpot_us: f64,
}

impl Default for Objectives {
    /// 2 s and 1 ms per 10 uncached tokens; 50 ms.
    fn default() -> Self {
        Self { ttft_us: 2e6, ttft_us_per_uncached_token: 100.0, tpot_us: 50e3 }
    }
}

/// Which of the two kinds of unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Prefill units.
    Prefill,
    /// Decode units.
    Decode,
}

/// What happens to a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It dies. What it had is lost, its cache too.
    Dies,
    /// It takes nothing new and runs what it has.
    Drains,
    /// It serves (again), empty if it had died.
    Joins,
}

/// Something that happens to a rank at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incident {
    /// When.
    pub at_us: u64,
    /// Which kind of unit.
    pub kind: Kind,
    /// Which unit.
    pub unit: u16,
    /// Which rank of it.
    pub rank: u16,
    /// What.
    pub change: Change,
}

/// A simulation.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// The units.
    pub units: Units,
    /// How old news is.
    pub news: News,
    /// When a request was served well.
    pub objectives: Objectives,
    /// What happens to ranks.
    pub incidents: Vec<Incident>,
    /// Until then a prefill step and the orders for it take a fiftieth of their time, so that caches fill. At most `warm_up_us`.
    pub fill_us: u64,
    /// Requests that arrive earlier and steps that begin earlier are not measured: the units start empty.
    pub warm_up_us: u64,
    /// Requests that arrive from here on are not simulated, and steps that begin later are not measured.
    pub end_us: u64,
    /// How long after `end_us` the requests that are there may take. What is left then has failed.
    pub grace_us: u64,
    /// Of what is drawn: bootstrap rooms.
    pub seed: u64,
}

/// Most ranks of one unit: what the router takes.
const RANKS_MAX: u64 = evenkeel_core::topology::RANKS_MAX as u64;
/// Most units of a kind: 64 units of the largest size are beyond any cluster.
const UNITS_MAX: u64 = 64;
/// Most KV tokens of a rank: a terabyte of the smallest KV.
const KV_TOKENS_MAX: u64 = 1 << 32;
/// Latest time: a year.
const TIME_US_MAX: u64 = 366 * 24 * 3600 * 1_000_000;

impl Setup {
    /// When the simulation stops if it is not done.
    pub fn stop_us(&self) -> u64 {
        self.end_us + self.grace_us
    }

    /// Checks every number.
    pub fn validate(&self) -> Result<(), SetupError> {
        let within = |field, value: u64, min, max| {
            let inside = (min..=max).contains(&value);
            if inside { Ok(()) } else { Err(SetupError::OutOfRange { field, value, min, max }) }
        };
        let (prefill, decode) = self.pools();
        for pool in [prefill.map(|p| &p.pool), decode.map(|d| &d.pool)].into_iter().flatten() {
            within("units", pool.units.into(), 1, UNITS_MAX)?;
            within("ranks", pool.ranks.into(), 1, RANKS_MAX)?;
            within("kv_tokens", pool.kv_tokens, crate::dispatch::BLOCK_TOKENS, KV_TOKENS_MAX)?;
        }
        if let Some(prefill) = prefill {
            within("step_tokens", prefill.step_tokens, 1, evenkeel_core::routing::PROMPT_TOKENS_MAX)?;
        }
        if let Some(decode) = decode {
            within("slots", decode.slots.into(), 1, 1 << 20)?;
            within("reserve_tokens", decode.reserve_tokens, 0, decode.pool.kv_tokens)?;
        }
        within("report_interval_us", self.news.report_interval_us, 1, TIME_US_MAX)?;
        within("end_us", self.end_us, 1, TIME_US_MAX)?;
        within("warm_up_us", self.warm_up_us, 0, self.end_us)?;
        within("fill_us", self.fill_us, 0, self.warm_up_us)?;
        within("grace_us", self.grace_us, 0, TIME_US_MAX)?;
        for incident in &self.incidents {
            let pool = match incident.kind {
                Kind::Prefill => prefill.map(|p| &p.pool),
                Kind::Decode => decode.map(|d| &d.pool),
            };
            let (units, ranks) = pool.map_or((0, 0), |p| (u64::from(p.units), u64::from(p.ranks)));
            within("incident unit", u64::from(incident.unit) + 1, 1, units)?;
            within("incident rank", u64::from(incident.rank) + 1, 1, ranks)?;
        }
        Ok(())
    }

    /// The pools that there are.
    pub fn pools(&self) -> (Option<&PrefillPool>, Option<&DecodePool>) {
        match &self.units {
            Units::Prefill(prefill) => (Some(prefill), None),
            Units::Decode(decode) => (None, Some(decode)),
            Units::Disaggregated(prefill, decode, _) => (Some(prefill), Some(decode)),
        }
    }

    /// The way of KV.
    pub fn hand_off(&self) -> HandOff {
        match self.units {
            Units::Disaggregated(_, _, hand_off) => hand_off,
            Units::Prefill(_) | Units::Decode(_) => HandOff::default(),
        }
    }
}
