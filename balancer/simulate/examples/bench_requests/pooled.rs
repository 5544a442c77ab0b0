//! Several runs of one policy as one: a percentile wants more prompts than one run of a few long sessions has.

use evenkeel_simulate::cluster::{Figures, Spread};

/// What the tables show of requests.
#[derive(Default)]
pub(crate) struct Pooled {
    runs: usize,
    requests: f64,
    good: f64,
    good_per_s: f64,
    hit_tokens: u64,
    prompt_tokens: u64,
    arrived_prompt_tokens: u64,
    ttft_ms: Vec<f32>,
    tpot_ms: Vec<f32>,
    idle: f64,
    decode_kv: f64,
    decode_requests: f64,
}

impl Pooled {
    pub(crate) fn of(runs: Vec<Figures>) -> Self {
        let mut pooled = Self { runs: runs.len(), ..Self::default() };
        runs.into_iter().for_each(|figures| pooled.add(figures));
        pooled
    }

    fn add(&mut self, figures: Figures) {
        let requests = figures.measured.arrived as f64;
        self.requests += requests;
        self.good += figures.goodput_part * requests;
        self.good_per_s += figures.goodput_per_s;
        self.hit_tokens += figures.hit_tokens;
        self.prompt_tokens += figures.prompt_tokens;
        self.arrived_prompt_tokens += figures.arrived_prompt_tokens;
        self.ttft_ms.extend(figures.ttft_each_ms);
        self.tpot_ms.extend(figures.tpot_each_ms);
        let decode = figures.decode.expect("decode units are simulated");
        self.idle += figures.prefill.map_or(decode.idle_at_barrier, |prefill| prefill.idle_at_barrier);
        self.decode_kv += decode.tokens_imbalance.mean;
        self.decode_requests += decode.second_imbalance.mean;
    }

    pub(crate) fn goodput(&self) -> f64 {
        self.good / self.requests.max(1.0)
    }

    /// Of the prompt tokens that arrived.
    pub(crate) fn hit_part_of_all(&self) -> f64 {
        self.hit_tokens as f64 / self.arrived_prompt_tokens.max(1) as f64
    }

    /// Of the prompt tokens that ran.
    pub(crate) fn hit_part(&self) -> f64 {
        self.hit_tokens as f64 / self.prompt_tokens.max(1) as f64
    }

    pub(crate) fn ttft_ms(&self) -> Spread {
        Spread::of(self.ttft_ms.clone())
    }

    pub(crate) fn tpot_ms(&self) -> Spread {
        Spread::of(self.tpot_ms.clone())
    }

    /// Means over the runs: good requests a second, idle at the barrier, and max over mean of KV and of requests on decode ranks.
    pub(crate) fn means(&self) -> [f64; 4] {
        let sums = [self.good_per_s, self.idle, self.decode_kv, self.decode_requests];
        sums.map(|sum| sum / self.runs.max(1) as f64)
    }
}
