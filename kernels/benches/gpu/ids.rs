//! Synthetic routing: log-normal experts (sigma 1), top-k without repetition, the same for every side of a comparison.

use evenkeel_simulate::expert_loads::SplitMix64;

/// `[tokens][top_k]`. An exponential race: the `top_k` first arrivals are a draw without replacement by weight.
pub(crate) fn ids(tokens: usize, experts: usize, top_k: usize, seed: u64) -> Vec<i32> {
    let mut draw = SplitMix64::new(seed);
    let weights: Vec<f64> = (0..experts).map(|_| draw.log_normal(1.0)).collect();
    let mut ids = Vec::with_capacity(tokens * top_k);
    let mut arrivals: Vec<(f64, i32)> = Vec::with_capacity(experts);
    for _ in 0..tokens {
        arrivals.clear();
        arrivals
            .extend((0i32..).zip(&weights).map(|(expert, weight)| (-draw.uniform().ln() / weight, expert)));
        arrivals.select_nth_unstable_by(top_k - 1, |a, b| a.0.total_cmp(&b.0));
        ids.extend(arrivals[..top_k].iter().map(|(_, expert)| expert));
    }
    ids
}
