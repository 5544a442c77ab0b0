//! The demo's three units.

use evenkeel_core::topology::{Role, UnitShape};

/// One unit of the demo.
#[derive(Debug, Clone)]
pub(super) struct DemoUnit {
    /// Its name.
    pub name: &'static str,
    /// Nodes; ranks are spread evenly over them.
    pub nodes: u16,
    /// Its shape.
    pub shape: UnitShape,
    /// Seed of the experts' bytes: other units hold other weights.
    pub weights_seed: u64,
    /// What its expert routing is.
    pub routing: &'static str,
}

impl DemoUnit {
    /// Name of one of its nodes.
    pub(super) fn node_name(&self, node: u16) -> String {
        format!("{}-{node}", self.name)
    }
}

/// Index of each unit in [`units`].
pub(super) const PREFILL: usize = 0;
/// See [`PREFILL`].
pub(super) const DECODE: usize = 1;
/// See [`PREFILL`].
pub(super) const V2_LITE: usize = 2;

/// DeepSeek's published deployment: prefill EP32 on 4 nodes, decode EP144 on 18; and 8 ranks of one node for
/// the recorded routing of DeepSeek-V2-Lite.
pub(super) fn units(expert_bytes: u64) -> Vec<DemoUnit> {
    let shape = |role, layers, experts, top_k, ranks, slots_per_rank| UnitShape {
        role,
        layers,
        experts,
        top_k,
        ranks,
        slots_per_rank,
        spare_per_rank: 1,
        expert_bytes,
    };
    let synthetic = "synthetic log-normal, sigma 0.5, 2 % drift from window to window";
    vec![
        DemoUnit {
            name: "prefill",
            nodes: 4,
            shape: shape(Role::Prefill, 58, 256, 8, 32, 9),
            weights_seed: 1,
            routing: synthetic,
        },
        DemoUnit {
            name: "decode",
            nodes: 18,
            shape: shape(Role::Decode, 58, 256, 8, 144, 2),
            weights_seed: 2,
            routing: synthetic,
        },
        DemoUnit {
            name: "v2-lite",
            nodes: 1,
            shape: shape(Role::Mixed, 26, 64, 6, 8, 9),
            weights_seed: 3,
            routing: "recorded top-k ids of DeepSeek-V2-Lite, intent then law",
        },
    ]
}
