//! The operator's wishes, as plain values. Each default carries its reason.

/// How eagerly expert placement is changed.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertPolicy {
    /// How far (as a ratio above the optimum) a split may stay from the best one in order to be nearer to
    /// the even split. An optimum from a vertex of the polytope fits its own window and fails in the next.
    pub split_tolerance: f64,
    /// Predicted relative gain in imbalance below which a weights-only plan is not worth a table flip.
    pub weights_gain_min: f64,
    /// Predicted relative gain in imbalance, over what new weights alone reach, below which no weights are
    /// moved: moves cost bandwidth that inference also wants.
    pub moves_gain_min: f64,
    /// A layer below this imbalance, after reweighting, is left as it is.
    pub imbalance_target: f64,
}

impl Default for ExpertPolicy {
    fn default() -> Self {
        Self {
            split_tolerance: 0.002,
            weights_gain_min: 0.002,
            moves_gain_min: 0.01,
            imbalance_target: 1.002,
        }
    }
}

/// How requests are held, batched and bounded.
#[derive(Debug, Clone, PartialEq)]
pub struct RoutingPolicy {
    /// Longest time a prompt is held for company before its cohort goes out without a tick. Late binding
    /// pays as long as the ranks are busy anyhow; two seconds is the fixed part of the TTFT objective.
    pub cohort_wait_max_ms: u64,
    /// New tokens that a prefill rank runs in one round. `Some` lets the balancer cut prompts into chunks
    /// so that every rank gets equal tokens *and* equal attention; the engine must then run exactly the
    /// tokens it was given. `None` dispatches whole prompts and leaves the cutting to the engine.
    pub round_tokens: Option<u64>,
    /// Prompts that may be held at once. Above it a gateway sends faster than any unit drains.
    pub held_max: usize,
    /// Requests, held and running, of the unit. At most [`crate::routing::LIVE_MAX`].
    pub live_max: usize,
}

impl Default for RoutingPolicy {
    fn default() -> Self {
        Self {
            cohort_wait_max_ms: 2000,
            round_tokens: None,
            held_max: 65_536,
            live_max: crate::routing::LIVE_MAX,
        }
    }
}
