//! The admission rule: fill up to a level, the fullest rank that fits first.

/// How far above the mean a rank is filled without looking further, in mean requests (of KV, and in number).
///
/// A rank below the level costs nothing: the barrier waits for the fullest. So a request goes to the rank that it fills best, and
/// what is free stays free in large pieces on few ranks, where a heavy request finds room. A lower level leaves fewer requests
/// that fit anywhere, a higher one is itself the imbalance. Tuned on seeds 1 to 3; 1.0 to 1.5 are within 0.3 % in step time.
const LEVEL_REQUESTS: f64 = 1.25;

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

/// Ranks that requests are admitted to, one batch of arrivals or one request at a time.
#[derive(Debug, Clone, PartialEq)]
pub struct Admission {
    /// (rank, KV tokens, requests) of the ranks that are up.
    ranks: Vec<(usize, f64, f64)>,
    kv_sum: f64,
    requests_sum: f64,
}

impl Admission {
    /// The ranks' loads now; those that are not up get nothing and do not count.
    pub fn new(loads: impl IntoIterator<Item = RankLoad>) -> Self {
        let up = loads.into_iter().enumerate().filter(|(_, load)| load.up);
        let ranks: Vec<_> = up.map(|(rank, l)| (rank, l.kv_tokens as f64, l.requests as f64)).collect();
        let kv_sum = ranks.iter().map(|&(_, kv, _)| kv).sum();
        let requests_sum = ranks.iter().map(|&(.., requests)| requests).sum();
        Self { ranks, kv_sum, requests_sum }
    }

    /// The rank that a request with `kv_tokens` joins; its load counts from now on. `None` when no rank is up.
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

    /// One pass: of the ranks that stay below the level in both dimensions the one with most KV; if there is none, argmin of
    /// max(KV over mean KV, requests over mean requests). Ties go to the lower rank. All after adding.
    fn place(&mut self, kv_tokens: f64) -> Option<usize> {
        let ranks = self.ranks.len() as f64;
        let (kv_mean, requests_mean) = ((self.kv_sum / ranks).max(1.0), self.requests_sum / ranks);
        let level = 1.0 + LEVEL_REQUESTS / requests_mean;
        let (kv_level, requests_level) = (kv_mean * level, requests_mean * level);
        let (kv_scale, requests_scale) = (1.0 / kv_mean, 1.0 / requests_mean);
        let (mut fullest, mut least): (Option<usize>, Option<usize>) = (None, None);
        let (mut fullest_kv, mut least_worse) = (f64::NEG_INFINITY, f64::INFINITY);
        for (index, &(_, kv, requests)) in self.ranks.iter().enumerate() {
            let (kv, requests) = (kv + kv_tokens, requests + 1.0);
            if kv <= kv_level && requests <= requests_level && kv > fullest_kv {
                (fullest, fullest_kv) = (Some(index), kv);
            }
            let worse = (kv * kv_scale).max(requests * requests_scale);
            if worse < least_worse {
                (least, least_worse) = (Some(index), worse);
            }
        }
        let (rank, kv, requests) = &mut self.ranks[fullest.or(least)?];
        *kv += kv_tokens;
        *requests += 1.0;
        Some(*rank)
    }
}

/// The rank that a single request joins: [`Admission::admit`] without keeping anything.
pub fn admit(loads: impl IntoIterator<Item = RankLoad>, kv_tokens: u64) -> Option<usize> {
    Admission::new(loads).admit(kv_tokens)
}
