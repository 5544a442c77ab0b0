//! Plans one round of chunked prefill: how many tokens of which prompt each rank runs next.

use super::work::{Imbalance, Work};

/// A prompt as far as it is known to have run or to be given to its rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prompt {
    /// Tokens visible to the next new one: the cached prefix and what has run.
    pub context: u64,
    /// New tokens left, at least 1.
    pub remaining: u64,
}

/// What a rank has before the round is planned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RankBacklog {
    /// Prompts that began on this rank and stay there, oldest first.
    pub pinned: Vec<Prompt>,
    /// Work given to the rank that it has not finished.
    pub outstanding: Work,
}

/// A part of a prompt that runs in this round.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Index into [`RankBacklog::pinned`].
    Pinned(usize),
    /// Index into the held prompts.
    Held(usize),
}

/// A planned round.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    /// Rank by rank.
    pub chunks: Vec<Chunk>,
    /// Of the ranks' tokens, outstanding work included.
    pub tokens: Imbalance,
    /// Of the ranks' attention, outstanding work included.
    pub attention: Imbalance,
}

/// Part of the ranks (the lowest by what they could reach) that may stay below the attention target. A
/// higher part raises the target: long prompts run sooner, and the others wait for them. In simulation
/// (Mooncake, 70 to 80 % load) 0.25 and 0.1 leave attention and the longest waits worse, and 0.5 the mean wait.
const BELOW_TARGET: f64 = 0.35;

/// Part of the round's tokens that may be left out where a rank has nothing but long contexts. It buys a lower
/// ceiling for the attention of all, and costs that much in the balance of tokens (max / mean up to 1.042).
const TOKENS_LEFT_OUT: f64 = 0.04;
/// Every rank runs at least this part of its round, whatever that does to the ceiling: nothing waits for ever.
const PROGRESS_PART: u64 = 16;

/// Tokens a rank below which a round is not shortened for the sake of equal tokens. With so few rows an
/// expert's weights take longer to read than to multiply, so a thinner round would only be one more round:
/// a lone prompt would be cut into ever smaller parts.
const THIN_ROUND_TOKENS: u64 = 512;

/// One rank's candidates while the round is planned.
struct Candidates {
    members: Vec<(Source, Prompt)>,
    /// New tokens that the rank shall run.
    tokens: u64,
    /// Attention that the rank has already.
    carried: u64,
}

/// Plans a round of at most `round_tokens` new tokens a rank. Held prompts are taken in their order.
pub fn plan_round(ranks: &[RankBacklog], held: &[Prompt], round_tokens: u64) -> Round {
    let mut candidates = gather(ranks, held, round_tokens);
    let target = attention_target(&candidates);
    supply(&mut candidates, held, target);
    let target = target.max(ceiling(&candidates));
    let mut chunks = Vec::new();
    for (rank, candidate) in candidates.iter().enumerate() {
        chunks.extend(candidate.chunks(rank, target));
    }
    measure(ranks, held, chunks)
}

fn gather(ranks: &[RankBacklog], held: &[Prompt], round_tokens: u64) -> Vec<Candidates> {
    let pinned = ranks.iter().flat_map(|r| &r.pinned);
    let left: u64 = pinned.chain(held).map(|p| p.remaining).sum::<u64>()
        + ranks.iter().map(|r| r.outstanding.tokens).sum::<u64>();
    let even = left.div_ceil(ranks.len().max(1) as u64);
    let tokens = round_tokens.min(even.max(THIN_ROUND_TOKENS));
    let candidate = |rank: &RankBacklog| Candidates {
        members: rank.pinned.iter().enumerate().map(|(i, &p)| (Source::Pinned(i), p)).collect(),
        tokens: tokens.saturating_sub(rank.outstanding.tokens),
        carried: rank.outstanding.attention,
    };
    ranks.iter().map(candidate).collect()
}

/// The attention that all but the lowest ranks can reach with their longest contexts.
fn attention_target(candidates: &[Candidates]) -> u64 {
    let mut reach: Vec<u64> = candidates.iter().map(|c| c.attention(&c.fill(Order::LongestFirst))).collect();
    reach.sort_unstable();
    let place = (reach.len() as f64 * BELOW_TARGET) as usize;
    reach.get(place).copied().unwrap_or(0)
}

/// The lowest attention that all ranks can keep to, if together they leave out [`TOKENS_LEFT_OUT`] of what
/// they could run and each makes progress. Below the fullest rank attention is free: all others may go up to
/// it. A ceiling under the mean would leave tokens out and even nothing.
fn ceiling(candidates: &[Candidates]) -> u64 {
    let full: Vec<Vec<u64>> = candidates.iter().map(|c| c.fill(Order::ShortestFirst)).collect();
    let attention: Vec<u64> = candidates.iter().zip(&full).map(|(c, tokens)| c.attention(tokens)).collect();
    let fullest = attention.iter().copied().max().unwrap_or(0);
    // With ranks that idle anyhow, leaving work for a later round only makes one more round.
    if candidates.iter().zip(&full).any(|(c, tokens)| sum(tokens) < c.tokens) {
        return fullest;
    }
    let budget = full.iter().flatten().sum::<u64>() as f64 * TOKENS_LEFT_OUT;
    let left_out = |ceiling: u64| -> u64 {
        let above = candidates.iter().zip(&full).zip(&attention).filter(|&(_, &a)| a > ceiling);
        above.map(|((c, tokens), _)| sum(tokens) - sum(&c.within(ceiling))).sum()
    };
    let mean = attention.iter().sum::<u64>() / attention.len().max(1) as u64;
    let progress = candidates.iter().map(Candidates::least_attention).max().unwrap_or(0);
    let (mut low, mut high) = (mean.max(progress), fullest);
    // To within 1/256: finer than the ranks can be filled.
    while high.saturating_sub(low) > high / 256 + 1 {
        let middle = low.midpoint(high);
        if left_out(middle) as f64 <= budget { high = middle } else { low = middle }
    }
    high.max(progress)
}

fn sum(tokens: &[u64]) -> u64 {
    tokens.iter().sum()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    LongestFirst,
    ShortestFirst,
}

impl Candidates {
    /// Attention of the least that the rank runs in a round.
    fn least_attention(&self) -> u64 {
        self.attention(&self.fill_up_to(self.tokens.div_ceil(PROGRESS_PART), Order::ShortestFirst))
    }

    /// Tokens per member when the rank fills up in the order of context.
    fn fill(&self, order: Order) -> Vec<u64> {
        self.fill_up_to(self.tokens, order)
    }

    fn fill_up_to(&self, mut left: u64, order: Order) -> Vec<u64> {
        let mut by_context: Vec<usize> = (0..self.members.len()).collect();
        by_context.sort_by_key(|&m| (self.members[m].1.context, self.members[m].0));
        if order == Order::LongestFirst {
            by_context.reverse();
        }
        let mut tokens = vec![0; self.members.len()];
        for member in by_context {
            tokens[member] = left.min(self.members[member].1.remaining);
            left -= tokens[member];
        }
        tokens
    }

    /// Attention of the rank with these tokens per member.
    fn attention(&self, tokens: &[u64]) -> u64 {
        let parts = self.members.iter().zip(tokens);
        self.carried + parts.map(|((_, p), &t)| Work::of(p.context, t).attention).sum::<u64>()
    }

    /// The shortest contexts first, cut off where the target is reached.
    fn within(&self, target: u64) -> Vec<u64> {
        let mut tokens = self.fill(Order::ShortestFirst);
        let mut by_context: Vec<usize> = (0..self.members.len()).collect();
        by_context.sort_by_key(|&m| (self.members[m].1.context, self.members[m].0));
        for member in by_context.into_iter().rev() {
            let over = self.attention(&tokens).saturating_sub(target);
            if over == 0 {
                break;
            }
            let context = self.members[member].1.context;
            // The last tokens of a chunk cost at least the context each: dropping this many is enough.
            let drop = over.div_ceil(context.max(1)).min(tokens[member]);
            tokens[member] -= drop;
        }
        tokens
    }

    /// Tokens per member so that the attention is as near to the target as can be and not above it, and the
    /// rank full unless that contradicts: a mix of filling up with the longest and with the shortest contexts.
    fn split(&self, target: u64) -> Vec<u64> {
        let (long, short) = (self.fill(Order::LongestFirst), self.fill(Order::ShortestFirst));
        if self.attention(&long) <= target {
            return long;
        }
        if self.attention(&short) >= target {
            return self.within(target);
        }
        // 1/1024 of a round's attention is far below what one token of a long context adds.
        let (mut low, mut high) = (0u64, 1024u64);
        while high - low > 1 {
            let middle = (low + high) / 2;
            let above = self.attention(&mix(&long, &short, middle)) > target;
            if above { high = middle } else { low = middle }
        }
        mix(&long, &short, low)
    }
}

/// `part` / 1024 of one split and the rest of the other; the sum stays what both have.
fn mix(long: &[u64], short: &[u64], part: u64) -> Vec<u64> {
    let total: u64 = short.iter().sum();
    let mut mixed: Vec<u64> =
        long.iter().zip(short).map(|(&l, &s)| (l * part + s * (1024 - part)) / 1024).collect();
    let mut lost = total - mixed.iter().sum::<u64>();
    for (m, (&l, &s)) in mixed.iter_mut().zip(long.iter().zip(short)) {
        let room = l.max(s) - *m;
        let back = room.min(lost);
        *m += back;
        lost -= back;
    }
    mixed
}

/// Gives held prompts, oldest first: to ranks that cannot fill the round at all, and when there are none, to
/// those that cannot fill it within the target.
fn supply(candidates: &mut [Candidates], held: &[Prompt], target: u64) {
    let mut needs: Vec<Need> = candidates.iter().map(|c| c.need(target)).collect();
    for (index, &prompt) in held.iter().enumerate() {
        // A prompt longer than a round will be a long context later: it joins where least such work waits.
        let long = |rank: usize| prompt.remaining > candidates[rank].tokens;
        let urgent = needs.iter().any(|need| need.unfilled > 0);
        let key = |&rank: &usize| {
            let Need { unfilled, lacking, backlog } = needs[rank];
            let amount = u64::MAX - if urgent { unfilled } else { lacking };
            if long(rank) { (backlog, amount, rank) } else { (amount, backlog, rank) }
        };
        let wanting = |&rank: &usize| if urgent { needs[rank].unfilled > 0 } else { needs[rank].lacking > 0 };
        let Some(rank) = (0..candidates.len()).filter(wanting).min_by_key(key) else {
            return;
        };
        candidates[rank].members.push((Source::Held(index), prompt));
        needs[rank] = candidates[rank].need(target);
    }
}

/// What a rank still wants from the held prompts.
#[derive(Clone, Copy)]
struct Need {
    /// Tokens that the rank cannot run for want of prompts.
    unfilled: u64,
    /// Tokens that it cannot run within the attention target.
    lacking: u64,
    /// Attention of all its prompts, in this round and later.
    backlog: u64,
}

impl Candidates {
    fn need(&self, target: u64) -> Need {
        let all: Work =
            self.members.iter().fold(Work::default(), |sum, (_, p)| sum + Work::of(p.context, p.remaining));
        Need {
            unfilled: self.tokens.saturating_sub(all.tokens),
            lacking: self.tokens - self.within(target).iter().sum::<u64>(),
            backlog: all.attention,
        }
    }

    /// The rank's chunks, halved into two microbatches: each chunk, largest first, joins the half with less.
    fn chunks(&self, rank: usize, target: u64) -> Vec<Chunk> {
        let parts = self.members.iter().zip(self.split(target)).filter(|&(_, tokens)| tokens > 0);
        let mut parts: Vec<(Source, Work)> =
            parts.map(|(&(source, p), tokens)| (source, Work::of(p.context, tokens))).collect();
        let whole = parts.iter().fold(Work::default(), |sum, &(_, work)| sum + work);
        let share = |work: Work| {
            let part = |value: u64, of: u64| value as f64 / of.max(1) as f64;
            part(work.tokens, whole.tokens).max(part(work.attention, whole.attention))
        };
        parts.sort_by(|x, y| share(y.1).total_cmp(&share(x.1)).then(x.0.cmp(&y.0)));
        let mut halves = [Work::default(); 2];
        let place = |(prompt, work): (Source, Work)| {
            let half = usize::from(share(halves[1] + work) < share(halves[0] + work));
            halves[half] += work;
            Chunk { rank, prompt, microbatch: half as u8, tokens: work.tokens }
        };
        parts.into_iter().map(place).collect()
    }
}

fn measure(ranks: &[RankBacklog], held: &[Prompt], chunks: Vec<Chunk>) -> Round {
    let mut total: Vec<Work> = ranks.iter().map(|r| r.outstanding).collect();
    for chunk in &chunks {
        let prompt = match chunk.prompt {
            Source::Pinned(index) => ranks[chunk.rank].pinned[index],
            Source::Held(index) => held[index],
        };
        assert!(chunk.tokens <= prompt.remaining, "a chunk longer than its prompt");
        total[chunk.rank] += Work::of(prompt.context, chunk.tokens);
    }
    // Chunks are cut freely: the mean is the bound.
    let tokens = Imbalance::of(total.iter().map(|w| w.tokens as f64), 0.0);
    let attention = Imbalance::of(total.iter().map(|w| w.attention as f64), 0.0);
    Round { chunks, tokens, attention }
}

#[cfg(test)]
#[path = "chunks_tests.rs"]
mod tests;
