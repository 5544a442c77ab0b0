//! Plans one round of chunked prefill: how many tokens of which prompt each rank runs next.

use super::fill::{Candidates, chunks_of};
use super::supply::{Waiting, supply};
use super::target::Target;
use super::work::{Imbalance, Work};
use std::collections::HashMap;

/// A prompt as far as it is known to have run or to be given to its rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prompt {
    /// Tokens visible to the next new one: the cached prefix and what has run.
    pub context: u64,
    /// New tokens left, at least 1.
    pub remaining: u64,
}

impl Prompt {
    /// Where so many leading tokens need not run. The last token always runs.
    pub fn with(self, tokens: u64) -> Self {
        let end = self.context + self.remaining;
        let context = self.context.max(tokens.min(end - 1));
        Self { context, remaining: end - context }
    }
}

/// What a rank has before the round is planned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RankBacklog {
    /// Prompts that began on this rank or go there for their prefix, and stay there; oldest first.
    pub pinned: Vec<Prompt>,
    /// So many of them, the last, are younger than the first held prompt and do not keep it waiting.
    pub newcomers: usize,
    /// Work given to the rank that it has not finished.
    pub outstanding: Work,
}

/// A part of a prompt that runs in this round. At most two prompts of a rank have a chunk in each half, so that
/// the halves are equal: the engine must then write the KV of half 0 before half 1 reads it, layer by layer, as
/// those do that cut a batch by tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Index of the rank.
    pub rank: usize,
    /// Index into the rank's pinned prompts, or into the held ones.
    pub prompt: Source,
    /// 0 or 1: the half of the rank's dual batch.
    pub microbatch: u8,
    /// New tokens, at least 1.
    pub tokens: u64,
}

/// Where a chunk's prompt comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Index into [`RankBacklog::pinned`].
    Pinned(usize),
    /// Index into the held prompts.
    Held(usize),
}

/// A planned round.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    /// Rank by rank, half 0 before half 1: the chunks of a prompt are in its order.
    pub chunks: Vec<Chunk>,
    /// Of the ranks' tokens, outstanding work included.
    pub tokens: Imbalance,
    /// Of the ranks' attention, outstanding work included.
    pub attention: Imbalance,
}

/// What a rank may run in a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundBudget {
    /// New tokens, at most.
    pub tokens: u64,
    /// Time of an attention pair over the time of a new token. Only ranks that cannot fill up depend on it:
    /// how much more attention than the others may they run?
    pub pair_cost: f64,
}

impl RoundBudget {
    /// With a pair's cost as DeepSeek-V3's shapes give it: 81.9 kFLOP a pair against 1.17 GFLOP a token, with
    /// attention at 70 % to 140 % of the efficiency of the rest.
    pub fn of(tokens: u64) -> Self {
        Self { tokens, pair_cost: 1e-4 }
    }
}

/// Plans a round.
pub fn plan_round(ranks: &[RankBacklog], held: &[Prompt], budget: &RoundBudget) -> Round {
    let seen = &held[..held.len().min(HELD_PER_RANK * ranks.len())];
    let tokens = tokens_per_rank(ranks, held, budget.tokens);
    let wanted = Target::of(ranks, seen, &RoundBudget { tokens, ..*budget });
    let mut candidates: Vec<Candidates> = ranks.iter().map(|rank| Candidates::of(rank, tokens)).collect();
    let mut target = wanted;
    let mut waiting = Waiting::of(seen);
    for _ in 0..DOUBLINGS_MAX {
        supply(&mut candidates, &mut waiting, &target);
        if waiting.is_empty() {
            target = wanted.relaxed();
            break;
        }
        if candidates.iter().all(|c| c.lacking(&target) == 0) {
            break;
        }
        // Nothing light enough is left for the ranks that cannot fill up.
        target = target.doubled();
    }
    let mut chunks = Vec::new();
    for (rank, candidate) in candidates.iter().enumerate() {
        chunks.extend(chunks_of(candidate, rank, &target));
    }
    measure(ranks, held, chunks)
}

/// Held prompts that are looked at, per rank: the oldest of a longer queue. Bounds the time of a plan.
pub const HELD_PER_RANK: usize = 64;

/// Doublings of the attention target at most: from a pair a token to contexts of a million.
const DOUBLINGS_MAX: usize = 20;

/// Tokens a rank below which a round is not shortened for the sake of equal tokens. With so few rows an
/// expert's weights take longer to read than to multiply, so a thinner round would only be one more round:
/// a lone prompt would be cut into ever smaller parts.
const THIN_ROUND_TOKENS: u64 = 512;

/// The round's tokens, or the even part of what is left.
fn tokens_per_rank(ranks: &[RankBacklog], held: &[Prompt], round_tokens: u64) -> u64 {
    let pinned = ranks.iter().flat_map(|r| &r.pinned);
    let left: u64 = pinned.chain(held).map(|p| p.remaining).sum::<u64>()
        + ranks.iter().map(|r| r.outstanding.tokens).sum::<u64>();
    let even = left.div_ceil(ranks.len().max(1) as u64);
    round_tokens.min(even.max(THIN_ROUND_TOKENS))
}

fn measure(ranks: &[RankBacklog], held: &[Prompt], chunks: Vec<Chunk>) -> Round {
    let mut total: Vec<Work> = ranks.iter().map(|r| r.outstanding).collect();
    // Tokens of the prompts whose chunk in half 0 was counted.
    let mut begun: HashMap<(usize, Source), u64> = HashMap::new();
    for chunk in &chunks {
        let prompt = match chunk.prompt {
            Source::Pinned(index) => ranks[chunk.rank].pinned[index],
            Source::Held(index) => held[index],
        };
        let run = begun.entry((chunk.rank, chunk.prompt)).or_default();
        total[chunk.rank] += Work::of(prompt.context + *run, chunk.tokens);
        *run += chunk.tokens;
        assert!(*run <= prompt.remaining, "chunks longer than their prompt");
    }
    // Chunks are cut freely: the mean is the bound.
    let tokens = Imbalance::of(total.iter().map(|w| w.tokens as f64), 0.0);
    let attention = Imbalance::of(total.iter().map(|w| w.attention as f64), 0.0);
    Round { chunks, tokens, attention }
}

#[cfg(test)]
#[path = "chunks_tests.rs"]
mod tests;
