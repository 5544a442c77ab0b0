//! How many tokens of which of its prompts a rank runs, so that its tokens are full and its time on target.

use super::chunks::{Chunk, Prompt, RankBacklog, Source};
use super::cut::{Span, halve};
use super::target::Target;
use super::work::Work;
use std::cmp::Reverse;

/// How much of the target time a rank must reach before it keeps to its cap.
const ON_TARGET: f64 = 0.99;
/// Attention that is the rank's oldest prompt's, in parts of the target, however many shorter ones come: they pass it, but it goes on.
const OLDEST_SHARE: f64 = 0.25;
/// And at most this part of the tokens: while its context is short it has little attention to give, which then others must.
const OLDEST_TOKENS: u64 = 8;

/// One rank's prompts while the round is planned.
pub(super) struct Candidates {
    pub(super) members: Vec<(Source, Prompt)>,
    /// New tokens that the rank shall run.
    tokens: u64,
    /// What the rank has already.
    carried: Work,
    /// Pinned prompts that are older than the first held one.
    older: usize,
}

/// Tokens of each member.
type Tokens = Vec<u64>;

impl Candidates {
    pub(super) fn of(rank: &RankBacklog, tokens: u64) -> Self {
        Self {
            members: rank.pinned.iter().enumerate().map(|(i, &p)| (Source::Pinned(i), p)).collect(),
            tokens: tokens.saturating_sub(rank.outstanding.tokens),
            carried: rank.outstanding,
            older: rank.pinned.len().saturating_sub(rank.newcomers),
        }
    }

    /// Members that the first held prompt waits for.
    pub(super) fn older(&self) -> &[(Source, Prompt)] {
        &self.members[..self.older]
    }

    /// The most attention that the rank can have in this round.
    pub(super) fn reach(&self) -> u64 {
        let blend = Blend { candidates: self, cap: u64::MAX, oldest: (0, 0) };
        self.work(&blend.of(&self.densest_first(), self.tokens, &[])).attention
    }

    /// Tokens that the rank lacks to fill up, with no prompt above its cap.
    pub(super) fn lacking(&self, target: &Target) -> u64 {
        self.tokens - self.split_capped(target, self.cap()).iter().sum::<u64>()
    }

    /// A prompt that has more than half of a rank's tokens cannot be cut into equal halves of equal attention.
    fn cap(&self) -> u64 {
        self.tokens.div_ceil(2)
    }

    /// Tokens per member: full and on target if that can be, and then no prompt above the cap if it can be.
    pub(super) fn split(&self, target: &Target) -> Tokens {
        let capped = self.split_capped(target, self.cap());
        let time = target.time_of(self.work(&capped));
        let full = capped.iter().sum::<u64>() == self.tokens;
        if full && time > ON_TARGET * target.time && time <= target.time {
            return capped;
        }
        self.split_capped(target, u64::MAX)
    }

    fn split_capped(&self, target: &Target, cap: u64) -> Tokens {
        let blend = Blend { candidates: self, cap, oldest: self.oldest_tokens(target, cap) };
        let above = |tokens: &Tokens| target.time_of(self.work(tokens)) > target.time;
        let small_first = self.sorted(|p| Work::of(p.context, p.remaining).attention);
        let is_heavy = |&m: &usize| target.is_heavy(&self.members[m].1);
        let is_ripe = |&m: &usize| target.is_ripe(&self.members[m].1);
        let (heavy, unripe): (Vec<usize>, Vec<usize>) =
            small_first.iter().copied().filter(is_heavy).partition(is_ripe);
        let light: Vec<usize> =
            unripe.into_iter().chain((0..self.members.len()).filter(|m| !is_heavy(m))).collect();
        if above(&blend.of(&light, self.tokens, &[])) {
            let short_first = self.sorted(|p| p.context);
            // Tokens are left out where even the shortest contexts are too long.
            let too_long = above(&blend.of(&short_first, self.tokens, &[]));
            let (one, other) = if too_long { (short_first, vec![]) } else { (light, short_first) };
            return blend.to_target(&one, &other, target);
        }
        if above(&blend.of(&heavy, self.tokens, &light)) {
            return blend.to_target(&heavy, &light, target);
        }
        // The small ones would take all tokens and leave attention short.
        let rest: Vec<usize> = heavy.iter().chain(&light).copied().collect();
        blend.to_target(&self.densest_first(), &rest, target)
    }

    /// The member that has waited longest: the first held prompt, where all that is pinned came later.
    fn oldest(&self) -> usize {
        let first_held = self.members.iter().position(|(source, _)| *source == Source::Held(0));
        first_held.filter(|_| self.older == 0).unwrap_or(0)
    }

    /// The oldest member, and its tokens with its share of the attention, but for what is outstanding.
    fn oldest_tokens(&self, target: &Target, cap: u64) -> (usize, u64) {
        let oldest = self.oldest();
        let heavy = self.members.get(oldest).filter(|(_, prompt)| target.is_heavy(prompt));
        let share = OLDEST_SHARE * (target.attention - self.carried.attention as f64);
        let Some((_, prompt)) = heavy.filter(|_| share > 0.0) else { return (0, 0) };
        // However long its context is.
        let tokens = (share / (prompt.context as f64 + 1.0)).max(1.0) as u64;
        (oldest, tokens.min(prompt.remaining).min(cap).min(self.tokens.div_ceil(OLDEST_TOKENS)))
    }

    /// Work of the rank with these tokens per member.
    fn work(&self, tokens: &[u64]) -> Work {
        let parts = self.members.iter().zip(tokens);
        parts.fold(self.carried, |sum, ((_, p), &t)| sum + Work::of(p.context, t))
    }

    /// By attention a token, most first, as far as a prompt can run in the round.
    fn densest_first(&self) -> Vec<usize> {
        self.sorted(|p| Reverse(2 * p.context + p.remaining.min(self.tokens)))
    }

    fn sorted<K: Ord>(&self, key: impl Fn(&Prompt) -> K) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.members.len()).collect();
        order.sort_by_key(|&m| (key(&self.members[m].1), self.members[m].0));
        order
    }
}

/// Fills a rank in two orders, one after the other, with at most `cap` tokens of a prompt.
struct Blend<'a> {
    candidates: &'a Candidates,
    cap: u64,
    /// A member, and its tokens before any other's.
    oldest: (usize, u64),
}

impl Blend<'_> {
    /// `first` tokens in one order, and the rest of the rank's in the other.
    fn of(&self, one: &[usize], first: u64, other: &[usize]) -> Tokens {
        let mut tokens = vec![0; self.candidates.members.len()];
        let (oldest, share) = self.oldest;
        if let Some(tokens) = tokens.get_mut(oldest) {
            *tokens = share;
        }
        let all = self.candidates.tokens - share;
        let first = first.min(all);
        let mut give = |order: &[usize], mut left: u64| {
            for &member in order {
                let most = self.candidates.members[member].1.remaining.min(self.cap);
                let more = left.min(most - tokens[member]);
                tokens[member] += more;
                left -= more;
            }
            left
        };
        let unspent = give(one, first);
        give(other, all - first + unspent);
        tokens
    }

    /// The blend that comes nearest to the target from below.
    fn to_target(&self, one: &[usize], other: &[usize], target: &Target) -> Tokens {
        let (mut low, mut high) = (0, self.candidates.tokens + 1);
        while high - low > 1 {
            let middle = low.midpoint(high);
            let time = target.time_of(self.candidates.work(&self.of(one, middle, other)));
            if time > target.time { high = middle } else { low = middle }
        }
        self.of(one, low, other)
    }
}

/// The rank's chunks, half 0 before half 1.
pub(super) fn chunks_of(candidates: &Candidates, rank: usize, target: &Target) -> Vec<Chunk> {
    let tokens = candidates.split(target);
    let run = candidates.members.iter().zip(tokens).filter(|&(_, tokens)| tokens > 0);
    let (sources, spans): (Vec<Source>, Vec<Span>) =
        run.map(|(&(source, p), tokens)| (source, Span { context: p.context, tokens })).unzip();
    let zero = halve(&spans);
    let in_half = |half: u8| {
        let parts = sources.iter().zip(&spans).zip(&zero);
        parts.filter_map(move |((&prompt, span), &zero)| {
            let tokens = if half == 0 { zero } else { span.tokens - zero };
            (tokens > 0).then_some(Chunk { rank, prompt, microbatch: half, tokens })
        })
    };
    in_half(0).chain(in_half(1)).collect()
}
