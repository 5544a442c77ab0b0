//! The admission rule: the rank that is least above the mean in its worse dimension.

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

/// The index of the rank that a request with `kv_tokens` joins: argmin over ranks of
/// max(kv / mean kv, requests / mean requests), both after adding; ties go to the lower KV, then to the
/// lower index. `None` when no rank is up.
///
/// Both step-time terms of a decode rank (KV read by attention, rows of the dense layers) are barriers of
/// their own, so the worse of the two counts. O(ranks), no allocation.
pub fn admit(loads: impl Iterator<Item = RankLoad> + Clone, kv_tokens: u64) -> Option<usize> {
    let (mut kv_sum, mut requests_sum) = (kv_tokens as f64, 1.0);
    for load in loads.clone().filter(|load| load.up) {
        kv_sum += load.kv_tokens as f64;
        requests_sum += load.requests as f64;
    }
    // Means over the same ranks: the number of ranks cancels in the comparison.
    let (kv_scale, requests_scale) = (1.0 / kv_sum.max(1.0), 1.0 / requests_sum);
    let mut best: Option<(f64, u64, usize)> = None;
    for (index, load) in loads.enumerate().filter(|(_, load)| load.up) {
        let kv = (load.kv_tokens + kv_tokens) as f64 * kv_scale;
        let requests = (load.requests + 1) as f64 * requests_scale;
        let worse = kv.max(requests);
        if best.is_none_or(|(value, lower, _)| worse < value || (worse == value && load.kv_tokens < lower)) {
            best = Some((worse, load.kv_tokens, index));
        }
    }
    best.map(|(_, _, index)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loads as (KV, requests); a request count of -1 marks a rank that is down.
    #[track_caller]
    fn check(loads: &[(u64, i64)], kv_tokens: u64, expected: Option<usize>) {
        let loads = loads.iter().map(|&(kv_tokens, requests)| RankLoad {
            kv_tokens,
            requests: requests.max(0) as u64,
            up: requests >= 0,
        });
        assert_eq!(admit(loads, kv_tokens), expected);
    }

    #[test]
    fn the_worse_dimension_decides() {
        check(&[(100, 1), (200, 1)], 10, Some(0));
        check(&[(100, 9), (200, 1)], 10, Some(1));
        check(&[(100, 2), (100, 1)], 10, Some(1));
        // The rank with least KV has most requests and the other way round: the middle one is best.
        check(&[(10, 30), (600, 1), (200, 10)], 10, Some(2));
    }

    #[test]
    fn ties_go_to_the_lower_kv_and_then_to_the_lower_rank() {
        check(&[(0, 0), (0, 0)], 1, Some(0));
        check(&[(90, 30), (10, 30)], 1, Some(1));
    }

    #[test]
    fn a_rank_that_is_down_gets_nothing() {
        check(&[(0, -1), (500, 7)], 1, Some(1));
        check(&[(0, -1)], 1, None);
        check(&[], 1, None);
    }
}
