//! The operator's wishes, as plain values. Each default carries its reason.

use crate::fair_queue::{FairPolicy, TenantId};
use crate::prefix::PrefixPolicy;
use std::collections::BTreeMap;

/// The loads that splits are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SplitFor {
    /// The last window.
    Window,
    /// The forecast, where there is one.
    Forecast,
}

/// How eagerly expert placement is changed. Ratios are relative: 0.01 is one percent.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertPolicy {
    /// How far (as a ratio above the optimum) a split may stay from the best one in order to be nearer to
    /// the even split. An optimum from a vertex of the polytope fits its own window and fails in the next.
    pub split_tolerance: f64,
    /// What splits are made for. Placements are made for the forecast in either case.
    pub split_for: SplitFor,
    /// Relative standard deviation that every expert's load has by itself from one window to the next, beyond
    /// what the parts of the window show, while no forecast states it. The larger it is, the more a placement levels the number of heavy
    /// experts per rank at the expense of their load.
    pub load_drift: f64,
    /// Predicted relative gain in imbalance below which a weights-only plan is not worth a table flip.
    pub weights_gain_min: f64,
    /// Predicted relative gain in imbalance of a layer, over what new weights alone reach, below which none of
    /// its experts is moved: moves cost bandwidth that inference also wants.
    pub moves_gain_min: f64,
    /// Predicted relative gain in imbalance, mean over the layers that would move, from which on experts are moved
    /// at once. A smaller gain must show in the window before as well: a placement made for one window always looks
    /// better in it.
    pub moves_gain_at_once: f64,
    /// A layer below this imbalance, after reweighting, is left as it is.
    pub imbalance_target: f64,
    /// How long a placement is expected to serve before loads call for another, in milliseconds. A layer is
    /// moved only when what it gains in this time exceeds what its transfers cost.
    pub placement_life_ms: u64,
    /// Bytes per millisecond that one rank may receive while it serves.
    pub transfer_bytes_per_ms: u64,
    /// Part of a rank's speed that is lost while it receives expert weights.
    pub transfer_slowdown: f64,
}

impl Default for ExpertPolicy {
    fn default() -> Self {
        Self {
            // Well below what the next window differs by, and below what a step's time shows.
            split_tolerance: 0.003,
            // A new split costs nothing, so it can follow every window, and a plan then does in its window what its
            // report says. Where windows scatter, the forecast is the better choice for the next one.
            split_for: SplitFor::Window,
            // Small: nothing is known of it, and a level load is worth more than a guess.
            load_drift: 0.005,
            weights_gain_min: 0.002,
            moves_gain_min: 0.01,
            // Two slots a rank, the placement that fits its window most closely, lose 5 to 8 % of their balance
            // in the next window of the same domain; a change of domain costs 30 % and more.
            moves_gain_at_once: 0.1,
            // Above the split tolerance, which the even split may use up.
            imbalance_target: 1.004,
            // Traffic of one service keeps its mix for minutes, not hours.
            placement_life_ms: 300_000,
            // 10 GB/s: a fifth of a 400 Gbit/s port.
            transfer_bytes_per_ms: 10_000_000,
            // Copies take memory bandwidth and a few SMs.
            transfer_slowdown: 0.05,
        }
    }
}

/// How a unit's load windows are averaged into a forecast. See [`crate::load_history`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryPolicy {
    /// Time in which a window loses half its weight, in milliseconds. 0 keeps no history: weights are placed for the last
    /// window.
    pub half_life_ms: u64,
    /// Length of the rhythm that loads are expected to have, in milliseconds; 0 expects none.
    pub season_ms: u64,
    /// Parts of the season whose loads are told apart; at least 1.
    pub season_buckets: u16,
}

impl Default for HistoryPolicy {
    fn default() -> Self {
        Self {
            // What a placement is expected to live: it is made for the mean of that time.
            half_life_ms: 300_000,
            // People sleep at night.
            season_ms: 86_400_000,
            // An hour: traffic of a day turns over a few of them.
            season_buckets: 24,
        }
    }
}

/// How requests are held, batched and bounded.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RoutingPolicy {
    /// Longest time a prompt is held for company before its cohort goes out without a tick. Late binding
    /// pays as long as the ranks are busy anyhow; two seconds is the fixed part of the TTFT objective.
    pub cohort_wait_max_ms: u64,
    /// New tokens that a prefill rank runs in one round. `Some` lets the balancer cut prompts into chunks
    /// so that every rank gets equal tokens *and* equal attention; the engine must then run exactly the
    /// tokens it was given. `None` dispatches whole prompts and leaves the cutting to the engine.
    pub round_tokens: Option<u64>,
    /// Whole prompts: new tokens that a rank has to run, on the mean of the ranks, above which prompts stay
    /// held; what is held can still be put in order by urgency and tenant, and meets the cohort that suits it.
    /// Gateways must then say when a prompt has run (first token or finish). `None`: all held prompts go out.
    pub cohort_tokens: Option<u64>,
    /// KV tokens that fit a decode rank; a request that fits nowhere is held. `None`: the engine's own concern.
    pub kv_capacity_tokens: Option<u64>,
    /// Running requests that may move in one step of a decode unit. 0: the engine cannot move any.
    pub migrations_per_step: u32,
    /// Tokens of a prefix block, as the engine and whoever names the blocks have them.
    pub block_tokens: u64,
    /// Bounds of the index of prefixes of a prefill unit.
    pub prefix: PrefixPolicy,
    /// Requests that may be held at once. Above it a gateway sends faster than any unit drains.
    pub held_max: usize,
    /// Of those, of one tenant. See [`FairPolicy::tenant_held_max`].
    pub tenant_held_max: usize,
    /// See [`FairPolicy::batch_share`].
    pub batch_share: f64,
    /// Weights of tenants, 1 to 65536; of all others, 1.
    pub tenant_weights: BTreeMap<TenantId, u32>,
    /// Requests, held and running, of the unit. At most [`crate::routing::LIVE_MAX`].
    pub live_max: usize,
}

impl RoutingPolicy {
    /// The part of it that is about tenants.
    pub fn fairness(&self) -> FairPolicy {
        FairPolicy {
            held_max: self.held_max,
            tenant_held_max: self.tenant_held_max.min(self.held_max),
            batch_share: self.batch_share,
            weights: self.tenant_weights.clone(),
        }
    }
}

impl Default for RoutingPolicy {
    fn default() -> Self {
        let fairness = FairPolicy::default();
        Self {
            cohort_wait_max_ms: 2000,
            round_tokens: None,
            cohort_tokens: None,
            kv_capacity_tokens: None,
            migrations_per_step: 0,
            // Of SGLang's and vLLM's page sizes the one that long prompts are cached in with V3's attention kernels.
            block_tokens: 64,
            prefix: PrefixPolicy::default(),
            held_max: fairness.held_max,
            tenant_held_max: fairness.tenant_held_max,
            batch_share: fairness.batch_share,
            tenant_weights: fairness.weights,
            live_max: crate::routing::LIVE_MAX,
        }
    }
}
