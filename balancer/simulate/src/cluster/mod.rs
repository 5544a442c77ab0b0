//! Whole clusters, simulated: prefill units, decode units, or both with a hand-off, each unit with a policy that decides where requests
//! run. Event by event in virtual time; the same setup, requests and policies give the same figures.
//!
//! What is modelled, and how:
//!
//! - **Lockstep.** The ranks of a unit begin a step together and wait for the slowest: a step lasts max over ranks of
//!   [`StepTime`]. Requests that come during a step join the next one.
//! - **Prefill.** Each rank has a first-in-first-out queue and runs up to `step_tokens` new tokens a step, prompts cut where the step is
//!   full. A policy that plans chunks is followed instead: it hears of a step when it begins, and the next one waits for orders that
//!   are on their way. A prompt needs room for its whole KV to begin.
//! - **Prefix caches.** Each rank keeps the blocks that it computed while there is room ([`RankCache`]); what hits is looked up when a
//!   prompt begins. Policies hear of it later, by KV events.
//! - **Hand-off.** When a prompt has run, the decode policy chooses a rank, the KV goes over the prefill rank's port, and then waits
//!   for a slot. The first token counts at the end of the prompt; everything after it counts in the time per token.
//! - **Policies** see what real ones see: requests when they arrive, first tokens and ends, and the ranks' loads as old as their reports
//!   are. A policy without a report interval runs inside the engine, decides before each step on fresh loads, and its orders take
//!   no time.
//! - **Filling.** For the first `fill_us` prefill takes no time to speak of, a step that goes beyond it but for the rest, so that caches fill as each policy fills them: else all
//!   sessions of a trace would begin with a cold cache at once.
//! - **Several units** stand behind the same fixed rule (`front.rs`), so that policies differ within units only.
//! - **A rank that dies** loses its requests and its cache. Evenkeel is told; peers have no such event here, and what they send there is
//!   refused. A rank that drains takes what is sent to it still.

mod decode;
mod figures;
mod front;
mod peer_seat;
mod prefill;
mod rank_cache;
mod rank_state;
mod request;
mod router_seat;
mod run;
mod schedule;
mod seat;
mod setup;
mod shared_cache;
mod step_time;
mod unit;
mod workload;

pub use decode::{DecodeStep, DecodeUnit};
pub use figures::{Fates, Figures, PoolFigures, Series, Spread};
pub use peer_seat::PeerSeat;
pub use prefill::{PrefillUnit, PromptDone, RankStep};
pub use rank_cache::RankCache;
pub use rank_state::{CacheNews, RankState, StepSample, UnitView};
pub use request::Request;
pub use router_seat::RouterSeat;
pub use run::{Progress, simulate};
pub use seat::{Asking, Order, Seat, Told};
pub use setup::{
    Change, DecodePool, HandOff, Incident, Kind, News, Objectives, Pool, PrefillPool, Setup, Units,
};
pub use step_time::{Assumed, StepTime};
pub use workload::{Demand, demand, of_trace};

/// Why a simulation has no figures.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// It cannot begin.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A policy failed.
    #[error(transparent)]
    Policy(#[from] crate::policy::SimulationError),
}

impl RunError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            RunError::Setup(error) => error.code(),
            RunError::Policy(error) => error.code(),
        }
    }
}

/// Why a setup cannot be simulated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// A number out of range.
    #[error("{field} is {value}: accepted are {min} to {max}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// As given.
        value: u64,
        /// Lowest accepted.
        min: u64,
        /// Highest accepted.
        max: u64,
    },
    /// A request that comes before the one before it.
    #[error(
        "request {request} arrives at {at_us} us, before its predecessor at {last_us} us: sort the requests by time"
    )]
    Unsorted {
        /// Its place, from 1.
        request: u64,
        /// When it arrives.
        at_us: u64,
        /// When its predecessor does.
        last_us: u64,
    },
    /// A request without a prompt or an output, or with more blocks than its prompt has.
    #[error("request {request} has {field} of {value}: accepted are {min} to {max}")]
    Request {
        /// Its place, from 1.
        request: u64,
        /// The field.
        field: &'static str,
        /// As given.
        value: u64,
        /// Lowest accepted.
        min: u64,
        /// Highest accepted.
        max: u64,
    },
}

impl SetupError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            SetupError::OutOfRange { .. } => "simulation_setup_out_of_range",
            SetupError::Unsorted { .. } => "simulation_requests_unsorted",
            SetupError::Request { .. } => "simulation_request_out_of_range",
        }
    }
}
