//! How many tokens of which of its prompts a rank runs, so that its tokens are full and its attention on target.

use super::chunks::{Chunk, Prompt, RankBacklog, Source};
use super::cut::{Span, halve};
use super::target::Target;
use super::work::Work;

/// One rank's prompts while the round is planned.
pub(super) struct Candidates {
    pub(super) members: Vec<(Source, Prompt)>,
    /// New tokens that the rank shall run.
    pub(super) tokens: u64,
    /// Attention that the rank has already.
    pub(super) carried: u64,
    pub(super) cap: u64,
}

/// Tokens of each member.
type Tokens = Vec<u64>;

impl Candidates {
    pub(super) fn of(rank: &RankBacklog, tokens: u64) -> Self {
        Self {
            members: rank.pinned.iter().enumerate().map(|(i, &p)| (Source::Pinned(i), p)).collect(),
            tokens: tokens.saturating_sub(rank.outstanding.tokens),
            carried: rank.outstanding.attention,
            cap: u64::MAX,
        }
    }

    /// Attention of the rank with these tokens per member.
    pub(super) fn attention(&self, tokens: &[u64]) -> u64 {
        let parts = self.members.iter().zip(tokens);
        self.carried + parts.map(|((_, p), &t)| Work::of(p.context, t).attention).sum::<u64>()
    }

    fn sorted<K: Ord>(&self, key: impl Fn(&Prompt) -> K) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.members.len()).collect();
        order.sort_by_key(|&m| (key(&self.members[m].1), self.members[m].0));
        order
    }

    /// `first` tokens of the members in one order, and the rest of the rank's in another.
    fn blend(&self, one: &[usize], first: u64, other: &[usize]) -> Tokens {
        let mut tokens = vec![0; self.members.len()];
        let mut give = |order: &[usize], mut left: u64| {
            for &member in order {
                let most = self.members[member].1.remaining.min(self.cap);
                let more = left.min(most - tokens[member]);
                tokens[member] += more;
                left -= more;
            }
            left
        };
        let unspent = give(one, first);
        give(other, self.tokens - first + unspent);
        tokens
    }

    /// The blend that comes nearest to the target from below.
    fn blend_to(&self, one: &[usize], other: &[usize], target: u64) -> Tokens {
        let (mut low, mut high) = (0, self.tokens + 1);
        while high - low > 1 {
            let middle = low.midpoint(high);
            let above = self.attention(&self.blend(one, middle, other)) > target;
            if above { high = middle } else { low = middle }
        }
        self.blend(one, low, other)
    }

    /// The most attention that the rank can have in this round.
    pub(super) fn reach(&self) -> u64 {
        self.attention(&self.blend(&self.sorted(|p| std::cmp::Reverse(p.context)), self.tokens, &[]))
    }

    /// Tokens per member: on target, and full if that can be.
    pub(super) fn split(&mut self, target: &Target) -> Tokens {
        let cap = std::env::var("CAP").map_or(0.5, |s| s.parse().unwrap());
        self.cap = (self.tokens as f64 * cap) as u64;
        let tokens = self.split_within(target);
        let attention = self.attention(&tokens) as f64;
        if tokens.iter().sum::<u64>() == self.tokens && attention > 0.98 * target.attention && attention < 1.001 * target.attention {
            return tokens;
        }
        self.cap = u64::MAX;
        self.split_within(target)
    }

    fn split_within(&self, target: &Target) -> Tokens {
        let aim = target.attention as u64;
        let small_first = self.sorted(|p| Work::of(p.context, p.remaining).attention);
        let is_heavy = |&m: &usize| target.is_heavy(&self.members[m].1);
        let heavy: Vec<usize> = small_first.iter().copied().filter(is_heavy).collect();
        let light: Vec<usize> = (0..self.members.len()).filter(|m| !is_heavy(m)).collect();
        let lights = self.blend(&light, self.tokens, &[]);
        if self.attention(&lights) > aim {
            return self.within(aim, &light);
        }
        let heavies = self.blend(&heavy, self.tokens, &light);
        if self.attention(&heavies) >= aim {
            return self.blend_to(&heavy, &light, aim);
        }
        // The small ones would take all tokens and leave attention short: the long ones come first.
        let long_first = self.sorted(|p| std::cmp::Reverse(p.context));
        let rest: Vec<usize> = heavy.iter().chain(&light).copied().collect();
        self.blend_to(&long_first, &rest, aim)
    }

    /// Lights alone are above the target: the shortest contexts first, as far as it goes.
    fn within(&self, aim: u64, light: &[usize]) -> Tokens {
        let short_first = self.sorted(|p| p.context);
        if self.attention(&self.blend(&short_first, self.tokens, &[])) <= aim {
            return self.blend_to(light, &short_first, aim);
        }
        self.blend(&short_first, self.tokens, &[])
    }
}

/// The rank's chunks, half 0 before half 1.
pub(super) fn chunks_of(candidates: &mut Candidates, rank: usize, target: &Target) -> Vec<Chunk> {
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
