//! Where engines cut a rank's batch into microbatches that overlap: along the order they were given, by tokens.

/// A cut before the token `tokens` of the batch, which lies in or before request `request`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Requests that are whole on the left.
    pub request: usize,
    /// Tokens on the left.
    pub tokens: u64,
}

/// SGLang's two-batch overlap of a prefill (sglang 0.5.23, `batch_overlap/two_batch_overlap.py`): between the requests where both
/// sides differ least in tokens; if one side has less than `threshold` of all, a request is cut in two at half of the tokens.
/// Attention does not count. (A decode batch is cut at half of its requests.)
pub fn two_batch_overlap(prompts: &[u64], threshold: f64) -> Cut {
    let all: u64 = prompts.iter().sum();
    let whole = between_requests(prompts, all);
    let (least, most) = (all as f64 * threshold, all as f64 * (1.0 - threshold));
    if (least..=most).contains(&(whole.tokens as f64)) {
        return whole;
    }
    let halved = Cut { request: request_over(prompts, all / 2), tokens: all / 2 };
    if (halved.request as u64) < halved.tokens { halved } else { whole }
}

/// SGLang's `threshold`.
pub const TWO_BATCH_THRESHOLD: f64 = 0.48;

/// Along the requests, as long as the sides come no further apart.
fn between_requests(prompts: &[u64], all: u64) -> Cut {
    let mut cut = Cut { request: 0, tokens: 0 };
    let (mut left, mut closest) = (0, u64::MAX);
    for (before, tokens) in prompts[..prompts.len().saturating_sub(1)].iter().enumerate() {
        left += tokens;
        let apart = (2 * left).abs_diff(all);
        if apart > closest {
            break;
        }
        (cut, closest) = (Cut { request: before + 1, tokens: left }, apart);
    }
    cut
}

/// The first request whose end is over so many tokens; 0 if there is none.
fn request_over(prompts: &[u64], tokens: u64) -> usize {
    let mut end = 0;
    let over = |prompt: &u64| {
        end += prompt;
        end > tokens
    };
    prompts.iter().position(over).unwrap_or(0)
}

/// vLLM's dual-batch overlap (vllm 0.33.0, `v1/worker/ubatch_utils.py`): cuts after equal numbers of tokens, through requests where
/// need be. All ranks must agree to split, and pad to the largest.
pub fn dual_batch_overlap(prompts: &[u64], microbatches: u64) -> Vec<u64> {
    let each = prompts.iter().sum::<u64>() / microbatches;
    (1..microbatches).map(|cut| each * cut).collect()
}
