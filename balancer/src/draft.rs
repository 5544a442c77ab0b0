//! A plan written down: its account, and its content as it is stored.

use crate::records::plan_content::{PlanContent, TooLarge, encode};
use crate::telemetry::CleanWindow;
use evenkeel_core::plan::Plan;
use evenkeel_core::records::Opaque;
use evenkeel_core::report::SolveReport;
use evenkeel_core::topology::UnitTopology;
use evenkeel_proto::v1;
use prost::Message as _;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A plan that can be proposed.
#[derive(Debug)]
pub struct Drafted {
    /// The plan.
    pub plan: Arc<Plan>,
    /// Its account.
    pub summary: v1::PlanSummary,
    /// Its content, in chunks as they are stored.
    pub chunks: Result<Vec<Opaque>, TooLarge>,
}

impl Drafted {
    /// `loads` are the counts that it was solved on.
    pub fn new(plan: Arc<Plan>, summary: v1::PlanSummary, loads: Option<v1::LoadTable>) -> Self {
        let content = PlanContent { plan: (*plan).clone(), summary, loads };
        let chunks = encode(&content);
        Self { plan, summary: content.summary, chunks }
    }

    /// Of a plan that no solve has made.
    pub fn unsolved(plan: Arc<Plan>, base: Option<&Plan>, topology: &UnitTopology) -> Self {
        let summary = match base {
            Some(base) => account(&plan, base, topology, None),
            None => v1::PlanSummary {
                id: Some((plan.epoch, plan.digest()).into()),
                kind: v1::PlanKind::Boot.into(),
                committed_ms: unix_ms(),
                ..v1::PlanSummary::default()
            },
        };
        Self::new(plan, summary, None)
    }

    /// The account as it stands in the plan's manifest.
    pub fn account(&self) -> Opaque {
        self.summary.encode_to_vec().into()
    }
}

/// What a plan changes in `base`, and what it is to gain, if a solve has made it.
pub fn account(
    plan: &Plan,
    base: &Plan,
    topology: &UnitTopology,
    solve: Option<(&SolveReport, &CleanWindow)>,
) -> v1::PlanSummary {
    let diff = plan.diff(base, topology);
    let moves = diff.moves.len() as u64;
    let changes = v1::PlanSummary {
        id: Some((plan.epoch, plan.digest()).into()),
        kind: v1::PlanKind::from(plan.kind(Some(base))).into(),
        committed_ms: unix_ms(),
        moves,
        bytes: moves * topology.shape().expert_bytes,
        layers_reweighted: u32::try_from(diff.layers_reweighted).expect("layers fit 32 bits"),
        ..v1::PlanSummary::default()
    };
    let Some((report, window)) = solve else { return changes };
    v1::PlanSummary {
        imbalance_before: report.before_mean(),
        imbalance_after: report.after_mean(),
        imbalance_bound: report.bound_mean(),
        window: Some(window.window.into()),
        limits: report.layers.iter().fold(Default::default(), |mut limits: HashMap<_, _>, layer| {
            *limits.entry(layer.binding.as_str().to_owned()).or_default() += 1;
            limits
        }),
        not_placed: u32::try_from(report.not_placed.len()).expect("replicas of a unit fit 32 bits"),
        ..changes
    }
}

/// Unix time in milliseconds.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    u64::try_from(since.as_millis()).expect("fits 64 bits for 500 million years")
}
