//! Request traces of every source in one form, in the order of time.
//!
//! | format | what it has | prefixes |
//! |---|---|---|
//! | Mooncake | recorded requests, stamps in ticks | ids of 512-token blocks, the same for everybody |
//! | agentic | recorded coding sessions, one after the other as one user | ids of 64-token blocks, of one session each |
//! | Azure | recorded requests | none |
//! | ServeGen | rates and length distributions of clients; requests are drawn from them | none |

mod agentic;
mod azure;
mod blocks;
mod error;
mod format;
mod lines;
mod load;
mod mooncake;
mod options;
mod reader;
mod servegen;

pub use crate::dispatch::BLOCK_TOKENS;
pub use blocks::{BlockRange, Blocks, ID_BITS, SYSTEM_PROMPT_BLOCKS};
pub use error::TraceError;
pub use format::TraceFormat;
pub use load::{Trace, load};
pub use options::{IDLE_MAX_MS, Jitter, TraceOptions};
pub use reader::{TraceReader, read_all};

/// Longest prompt or output, in tokens: what the router takes.
const TOKENS_MAX: i64 = evenkeel_core::routing::PROMPT_TOKENS_MAX as i64;
/// Latest stamp: a year.
const TIMESTAMP_MS_MAX: i64 = 366 * 24 * 3600 * 1000;

/// One request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceRequest {
    /// Arrival, ms from the beginning of the trace.
    pub at_ms: u64,
    /// Prompt tokens, at least 1.
    pub input_tokens: u64,
    /// Generated tokens, at least 1.
    pub output_tokens: u64,
    /// Whole prefix blocks, `input_tokens / BLOCK_TOKENS` of them, or none where the source has no prefixes.
    pub blocks: Blocks,
    /// The session that it is a turn of, numbered from 1; 0 where the source has no sessions.
    pub session: u32,
    /// Requests of the same session before it.
    pub turn: u32,
    /// The client that sent it, numbered from 1; 0 where the source does not say.
    pub client: u32,
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
