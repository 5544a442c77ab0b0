//! Gates that hold prefill back inside an engine until it disturbs least: asked once per iteration, they let the ranks' prefill
//! run or not.

/// A rank, as TensorRT-LLM's gate sees it.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Requests that wait for prefill.
    pub context: u32,
    /// Requests that decode.
    pub generation: u32,
}

/// TensorRT-LLM's `_balance_adp_context_requests` (NVIDIA/TensorRT-LLM 02385f29, the scheduler's base; `enable_balance` of
/// `attention_dp_config`): prefill waits until all ranks have some.
#[derive(Debug, Clone)]
pub struct AdpWaitGate {
    timeout: u32,
    batching: u32,
    most_generation: u32,
    waited: u32,
    batched: u32,
}

impl AdpWaitGate {
    /// `timeout_iters` of the documentation's examples.
    pub const TIMEOUT: u32 = 50;
    /// `batching_wait_iters` of the documentation's examples.
    pub const BATCHING: u32 = 10;

    /// Waits at most `timeout` iterations for all ranks, and `batching` more for fuller batches while all of them decode. A rank takes
    /// at most `most_generation` decoding requests, by default without bound.
    pub fn new(timeout: u32, batching: u32, most_generation: Option<u32>) -> Self {
        let most_generation = most_generation.unwrap_or(u32::MAX);
        Self { timeout, batching, most_generation, waited: 0, batched: 0 }
    }

    /// Whether prefill runs in this iteration.
    pub fn allows(&mut self, ranks: &[Work]) -> bool {
        let all_decode = ranks.iter().all(|rank| rank.generation > 0);
        if !ranks.iter().all(|rank| rank.context > 0 && rank.generation < self.most_generation) {
            self.waited += 1;
            let enough = self.waited >= self.timeout || !all_decode;
            if enough {
                self.waited = 0;
            }
            return enough;
        }
        self.waited = 0;
        if all_decode {
            self.batched = if self.batched < self.batching { self.batched + 1 } else { 0 };
            return self.batched == 0;
        }
        true
    }
}

/// A rank, as SGLang's delayer sees it.
#[derive(Debug, Clone, Copy)]
pub struct Prefillable {
    /// Whether it has a prompt that it could run.
    pub prefillable: bool,
    /// KV usage, 0 to 1.
    pub kv_usage: f64,
}

/// SGLang's delayer (sglang 0.5.23, `managers/prefill_delayer.py`, `--enable-prefill-delayer`; off by default), of which the branch
/// for mixed ranks is here: prefill waits while only some ranks could, unless one of these has little KV in use.
#[derive(Debug, Clone)]
pub struct PrefillDelayer {
    most_passes: u32,
    watermark: Option<f64>,
    delayed: u32,
}

impl PrefillDelayer {
    /// `max_delay_passes`, the default.
    pub const MOST_PASSES: u32 = 30;

    /// Delays fewer than `most_passes` (at least 1) times in a row; a rank under the `watermark` of KV usage does not wait.
    pub fn new(most_passes: u32, watermark: Option<f64>) -> Self {
        assert!(most_passes > 0, "a prefill is delayed by passes");
        Self { most_passes, watermark, delayed: 0 }
    }

    /// Whether prefill runs in this iteration.
    pub fn allows(&mut self, ranks: &[Prefillable]) -> bool {
        let mixed = ranks.iter().any(|rank| rank.prefillable) && ranks.iter().any(|rank| !rank.prefillable);
        let starved = |rank: &Prefillable| {
            rank.prefillable && self.watermark.is_some_and(|watermark| rank.kv_usage < watermark)
        };
        if !mixed || ranks.iter().any(starved) || self.delayed >= self.most_passes - 1 {
            self.delayed = 0;
            return true;
        }
        self.delayed += 1;
        false
    }
}

/// vLLM's cadence (vllm 0.33.0, `v1/engine/core.py`, `_should_throttle_prefills`): with `prefill_schedule_interval` over 1, by default
/// 1, prefill runs in every so many steps; all ranks count the same steps. SGLang's `--prefill-decode-interval` is alike.
pub fn prefill_cadence_allows(interval: u64, step: u64) -> bool {
    interval <= 1 || step.is_multiple_of(interval)
}
