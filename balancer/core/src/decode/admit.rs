//! The admission rule: fill up to a level, the fullest rank that fits first.

/// How far above the mean ranks are filled without looking further, in mean requests.
///
/// A lower level leaves fewer requests that fit anywhere, a higher one is itself the imbalance. Both pairs are tuned on seeds
/// 1 to 3 of the bench's decode workloads; a quarter of a request either way changes the step time by less than 0.5 %.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Level {
    kv: f64,
    requests: f64,
}

/// The level's most, over the mean. With less than some 25 requests a rank one of them is more than that, and ranks that were
/// filled by whole requests above the mean would be the imbalance. Of agentic sessions (seeds 1 to 3, 4.5 and 9.5 requests a rank) 3 %
/// is slower in both, 8 % is faster only where contexts reach 800k tokens, and with no level tokens take 2 % longer.
const LEVEL_MAX: f64 = 0.05;

/// Requests of a rank, on average, with which their number counts as much as their KV. Fewer rows take an expert no longer to multiply
/// than its weights take to read, so that one request more than the mean, which is then much above it, costs next to nothing; the KV of
/// few long contexts is most of a step. Even numbers at six contexts of 100k a rank cost 1 to 2 % of the time per token in simulation.
const MANY_REQUESTS: f64 = 50.0;

/// What a rank's requests over their mean count beside its KV over its mean, if that is how many it has on average: at most 1.
pub(super) fn weight_of_requests(mean: f64) -> f64 {
    (mean / MANY_REQUESTS).min(1.0)
}

/// When nothing moves later: what does not fit today stands out for as long as it runs.
const FOR_GOOD: Level = Level { kv: 1.25, requests: 1.5 };
/// When a migration can bring down what stands out.
const FOR_NOW: Level = Level { kv: 0.5, requests: 1.0 };

/// What a decode rank has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RankLoad {
    /// KV tokens in use.
    pub kv_tokens: u64,
    /// Running requests.
    pub requests: u64,
    /// Whether it may be given requests.
    pub up: bool,
}

/// Loads of ranks to which requests are admitted, one by one or those that arrived together at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Admission {
    level: Level,
    /// (rank, KV tokens, requests) of the ranks that are up. Doubles: sums of any loads fit.
    ranks: Vec<(usize, f64, f64)>,
    kv_sum: f64,
    requests_sum: f64,
}

impl Admission {
    /// The ranks' loads now; those that are not up get nothing and do not count. For units whose running requests stay where
    /// they are.
    pub fn new(loads: impl IntoIterator<Item = RankLoad>) -> Self {
        Self::with_level(FOR_GOOD, loads)
    }

    /// The same for units in which [`plan_migrations`](super::plan_migrations) moves some later.
    pub fn before_migrations(loads: impl IntoIterator<Item = RankLoad>) -> Self {
        Self::with_level(FOR_NOW, loads)
    }

    fn with_level(level: Level, loads: impl IntoIterator<Item = RankLoad>) -> Self {
        let up = loads.into_iter().enumerate().filter(|(_, load)| load.up);
        let ranks: Vec<_> = up.map(|(rank, l)| (rank, l.kv_tokens as f64, l.requests as f64)).collect();
        let kv_sum = ranks.iter().map(|&(_, kv, _)| kv).sum();
        let requests_sum = ranks.iter().map(|&(.., requests)| requests).sum();
        Self { level, ranks, kv_sum, requests_sum }
    }

    /// The index of the rank that a request with `kv_tokens` joins; its load counts from now on. `None` when no rank is up.
    /// O(ranks), no allocation.
    pub fn admit(&mut self, kv_tokens: u64) -> Option<usize> {
        self.kv_sum += kv_tokens as f64;
        self.requests_sum += 1.0;
        self.place(kv_tokens as f64)
    }

    /// The ranks of requests that arrived together, in their order; `None` for all when no rank is up.
    ///
    /// The largest is placed first, while there is most choice, and all are measured against the means that the unit has with
    /// all of them. Equal ones keep their order.
    pub fn admit_all(&mut self, kv_tokens: &[u64]) -> Vec<Option<usize>> {
        self.kv_sum += kv_tokens.iter().map(|&kv| kv as f64).sum::<f64>();
        self.requests_sum += kv_tokens.len() as f64;
        let mut order: Vec<usize> = (0..kv_tokens.len()).collect();
        order.sort_by_key(|&request| std::cmp::Reverse(kv_tokens[request]));
        let mut placed = vec![None; kv_tokens.len()];
        for request in order {
            placed[request] = self.place(kv_tokens[request] as f64);
        }
        placed
    }

    /// Of the ranks that stay below the level in both dimensions the one with most KV; if there is none, argmin over ranks of
    /// max(KV over mean KV, requests over mean requests by their weight), then the one with less KV, then fewer requests. All after
    /// adding; ties go to the lower rank.
    fn place(&mut self, kv_tokens: f64) -> Option<usize> {
        let ranks = self.ranks.len() as f64;
        let (kv_mean, requests_mean) = ((self.kv_sum / ranks).max(1.0), self.requests_sum / ranks);
        let level = |requests: f64| 1.0 + (requests / requests_mean).min(LEVEL_MAX);
        let (kv_scale, requests_scale) = (1.0 / kv_mean, weight_of_requests(requests_mean) / requests_mean);
        let (kv_level, requests_level) =
            (level(self.level.kv) / kv_scale, level(self.level.requests) / requests_scale);
        let (mut fits, mut fits_kv) = (None, f64::NEG_INFINITY);
        let (mut least, mut least_worse) = (None, (f64::INFINITY, f64::INFINITY, f64::INFINITY));
        for (index, &(_, kv, requests)) in self.ranks.iter().enumerate() {
            let (kv, requests) = (kv + kv_tokens, requests + 1.0);
            if kv <= kv_level && requests <= requests_level && kv > fits_kv {
                (fits, fits_kv) = (Some(index), kv);
            }
            let worse = ((kv * kv_scale).max(requests * requests_scale), kv, requests);
            if worse < least_worse {
                (least, least_worse) = (Some(index), worse);
            }
        }
        let (rank, kv, requests) = &mut self.ranks[fits.or(least)?];
        *kv += kv_tokens;
        *requests += 1.0;
        Some(*rank)
    }
}

/// The rank that a single request joins: [`Admission::admit`] without keeping anything.
pub fn admit(loads: impl IntoIterator<Item = RankLoad>, kv_tokens: u64) -> Option<usize> {
    Admission::new(loads).admit(kv_tokens)
}

#[cfg(test)]
#[path = "admit_tests.rs"]
mod tests;
