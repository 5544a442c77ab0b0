//! A request as it comes in.

use std::sync::Arc;

/// One request. What a policy does not see of it, the length of its output, is said so there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// When it arrives.
    pub at_us: u64,
    /// Prompt tokens, at least 1.
    pub prompt_tokens: u64,
    /// Tokens it generates, at least 1. No policy sees it.
    pub output_tokens: u64,
    /// Ids of its whole prefix blocks of [`BLOCK_TOKENS`](crate::dispatch::BLOCK_TOKENS); `prompt_tokens / BLOCK_TOKENS` of them
    /// or none. An id names the whole prefix up to its block's end.
    pub blocks: Arc<[u64]>,
    /// Turns of the same session before it.
    pub turn: u32,
    /// Whose it is.
    pub tenant: u32,
}
