//! The attention that every rank shall run in a round.

use super::chunks::{Prompt, RankBacklog, RoundBudget};
use super::work::Work;

/// What all ranks of a round aim at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    /// Attention pairs of a rank.
    pub(super) attention: f64,
    /// The mean context of a rank that runs all its tokens at this attention: above it a prompt is heavy,
    /// below it light.
    pub(super) context: f64,
    /// Time of a round that has all its tokens and this attention, in tokens.
    pub(super) time: f64,
    tokens: f64,
    pair_cost: f64,
}

/// Stock of heavy prompts, pinned and held, that a rank shall have: in e-folds, so that a prompt of 1.7
/// rounds' attention counts 1 and one of 150 rounds counts 5. Anything from 3 to 8 does alike in simulation.
const STOCK: f64 = 5.0;
/// Attention that a rank may have whatever waits, in the time of the round's tokens. All wait for the rank with the longest contexts:
/// in simulation (Mooncake at 20 and 60 % load, seed 2) the median first token comes after 2.0 s with a quarter, 2.3 s with a half and
/// 2.9 s with one. Shorter still and a prompt of long context alone would run in slivers.
const RELAXED: f64 = 0.25;
/// Unless a prompt needs less than that to be through in so many rounds, however few there are beside it.
const ROUNDS_MAX: f64 = 256.0;
/// Steps of the bisection: from the range of all attentions to within 1 %.
const BISECTIONS: usize = 24;

impl Target {
    /// The attention at which the heavy prompts at hand are as many as wanted: more of them and it rises, so that
    /// the stock stays level and every rank has some that are ripe.
    pub(super) fn of(ranks: &[RankBacklog], held: &[Prompt], budget: &RoundBudget) -> Self {
        let prompts: Vec<(f64, f64)> = ranks
            .iter()
            .flat_map(|rank| &rank.pinned)
            .chain(held)
            .map(|p| (attention(p), mean_context(p)))
            .collect();
        let longest =
            ranks.iter().flat_map(|rank| &rank.pinned).chain(held).map(|p| p.context + p.remaining).max();
        let longest = longest.unwrap_or(0) as f64;
        let tokens = budget.tokens.max(1) as f64;
        let least = (longest * longest / 2.0 / ROUNDS_MAX).min(relaxed(tokens, budget.pair_cost)).max(1.0);
        let wanted = STOCK * ranks.len() as f64;
        let stock_at = |target: f64| -> f64 {
            let heavy = prompts.iter().filter(|(_, context)| *context > target / tokens);
            heavy.map(|(attention, _)| (attention / target).ln_1p()).sum()
        };
        let (mut low, mut high) = (least.ln(), (tokens * longest).max(least).ln());
        if stock_at(least) > wanted {
            for _ in 0..BISECTIONS {
                let middle = f64::midpoint(low, high);
                if stock_at(middle.exp()) > wanted { low = middle } else { high = middle }
            }
        }
        Self::at(low.exp(), tokens, budget.pair_cost)
    }

    fn at(attention: f64, tokens: f64, pair_cost: f64) -> Self {
        Self {
            attention,
            context: attention / tokens,
            time: tokens + pair_cost * attention,
            tokens,
            pair_cost,
        }
    }

    /// Twice the attention.
    pub(super) fn doubled(&self) -> Self {
        Self::at(2.0 * self.attention, self.tokens, self.pair_cost)
    }

    /// Where no prompt waits a round need not be as short as can be: cut shorter than the work, it would only
    /// make one more.
    pub(super) fn relaxed(&self) -> Self {
        Self::at(self.attention.max(relaxed(self.tokens, self.pair_cost)), self.tokens, self.pair_cost)
    }

    /// Time of a round's work, in tokens.
    pub(super) fn time_of(&self, work: Work) -> f64 {
        work.tokens as f64 + self.pair_cost * work.attention as f64
    }

    /// Whether the prompt, run whole, lifts a rank's mean context above what is aimed at.
    pub(super) fn is_heavy(&self, prompt: &Prompt) -> bool {
        mean_context(prompt) > self.context
    }

    /// Whether each of the prompt's tokens lifts the mean context.
    pub(super) fn is_ripe(&self, prompt: &Prompt) -> bool {
        prompt.context as f64 > self.context
    }

    /// Rounds that the prompt's attention fills on one rank.
    pub(super) fn rounds(&self, prompt: &Prompt) -> f64 {
        attention(prompt) / self.attention
    }
}

fn relaxed(tokens: f64, pair_cost: f64) -> f64 {
    if pair_cost > 0.0 { RELAXED * tokens / pair_cost } else { 0.0 }
}

fn mean_context(prompt: &Prompt) -> f64 {
    prompt.context as f64 + prompt.remaining as f64 / 2.0
}

fn attention(prompt: &Prompt) -> f64 {
    Work::of(prompt.context, prompt.remaining).attention as f64
}
