//! Cuts a rank's round into two microbatches equal in tokens and in attention.

use super::work::Work;

/// A part of a prompt: new tokens after visible ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) context: u64,
    pub(super) tokens: u64,
}

impl Span {
    fn work(self) -> Work {
        Work::of(self.context, self.tokens)
    }
}

/// Difference of the halves over the rank's work at which no cut is looked for any more: a quarter of the
/// 2 % of a half that are asked for.
const EVEN_ENOUGH: f64 = 0.005;
/// Spans that are tried as the ones to be cut: with the largest nearly always one pair does.
const CUT_CHOICES: usize = 6;
/// A rank with fewer tokens runs no two microbatches in the engines that have them (vLLM's threshold), so
/// nothing is cut for their sake.
const TOKENS_MIN: u64 = 512;

/// Leading tokens of each span that run in half 0; the rest run in half 1. At most two spans run in both.
pub(super) fn halve(spans: &[Span]) -> Vec<u64> {
    let whole = spans.iter().fold(Work::default(), |sum, span| sum + span.work());
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_by(|&x, &y| share(spans[y].work(), whole).total_cmp(&share(spans[x].work(), whole)));
    let mut best = place(spans, &order, whole, None);
    let mut least = unevenness(spans, &best, whole);
    let choices = if whole.tokens < TOKENS_MIN { &[] } else { &order[..order.len().min(CUT_CHOICES)] };
    for (number, &one) in choices.iter().enumerate() {
        for &other in &choices[..=number] {
            if least <= EVEN_ENOUGH {
                return best;
            }
            let cut = place(spans, &order, whole, Some((one, other)));
            let uneven = unevenness(spans, &cut, whole);
            if uneven < least {
                (best, least) = (cut, uneven);
            }
        }
    }
    best
}

/// The larger part of the whole, in tokens or attention.
fn share(work: Work, whole: Work) -> f64 {
    let part = |value: u64, of: u64| value as f64 / of.max(1) as f64;
    part(work.tokens, whole.tokens).max(part(work.attention, whole.attention))
}

/// Half 0 less half 1, over the whole; the larger of tokens and attention.
fn unevenness(spans: &[Span], zero: &[u64], whole: Work) -> f64 {
    let zero = spans.iter().zip(zero).fold(Work::default(), |sum, (s, &t)| sum + Work::of(s.context, t));
    let part = |value: u64, of: u64| (2.0 * value as f64 - of as f64).abs() / of.max(1) as f64;
    part(zero.tokens, whole.tokens).max(part(zero.attention, whole.attention))
}

/// Places the spans, largest first, into the half with less; then cuts the two that were left out (the same
/// one twice is one cut) so that the halves are equal, if that can be.
fn place(spans: &[Span], order: &[usize], whole: Work, cut: Option<(usize, usize)>) -> Vec<u64> {
    let mut zero = vec![0; spans.len()];
    let mut halves = [Work::default(); 2];
    for &index in order {
        if cut.is_some_and(|(one, other)| index == one || index == other) {
            continue;
        }
        let work = spans[index].work();
        let half = usize::from(share(halves[1] + work, whole) < share(halves[0] + work, whole));
        halves[half] += work;
        if half == 0 {
            zero[index] = spans[index].tokens;
        }
    }
    if let Some((one, other)) = cut {
        let tokens = (whole.tokens / 2) as f64 - halves[0].tokens as f64;
        let attention = whole.attention as f64 / 2.0 - halves[0].attention as f64;
        if one == other {
            zero[one] = cut_one(spans[one], tokens, attention, whole);
        } else {
            (zero[one], zero[other]) = cut_two(spans[one], spans[other], tokens, attention);
        }
    }
    zero
}

/// Leading tokens of a span that come nearest to both, in parts of the whole.
fn cut_one(span: Span, tokens: f64, attention: f64, whole: Work) -> u64 {
    // Both differences grow with the cut: between their zeros the larger is least where they cancel.
    let surplus = |cut: u64| {
        (cut as f64 - tokens) / whole.tokens.max(1) as f64
            + (Work::of(span.context, cut).attention as f64 - attention) / whole.attention.max(1) as f64
    };
    let (mut low, mut high) = (0, span.tokens);
    while high > low {
        let middle = low.midpoint(high);
        if surplus(middle) < 0.0 { low = middle + 1 } else { high = middle }
    }
    low
}

/// Leading tokens `x` of one span and `y` of the other with `x + y = tokens` and so much attention; clamped to
/// what the spans have. With `p`, `q` visible tokens: `x p + x^2 / 2 + y q + y^2 / 2 = attention`, to within
/// half a pair a token.
fn cut_two(one: Span, other: Span, tokens: f64, attention: f64) -> (u64, u64) {
    let (p, q) = (one.context as f64, other.context as f64);
    let attention = attention - tokens / 2.0;
    let (b, c) = (p - q - tokens, tokens * q + tokens * tokens / 2.0 - attention);
    let root = (b * b - 4.0 * c).max(0.0).sqrt();
    let (least, most) = ((tokens - other.tokens as f64).max(0.0), (one.tokens as f64).min(tokens));
    let roots = [(-b + root) / 2.0, (-b - root) / 2.0];
    let x = roots.into_iter().find(|&x| x >= least && x <= most).unwrap_or(roots[0]);
    let x = x.min(most).max(least).round();
    let whole = |value: f64, span: Span| (value.max(0.0) as u64).min(span.tokens);
    (whole(x, one), whole((tokens - x).round(), other))
}

#[cfg(test)]
#[path = "cut_tests.rs"]
mod tests;
