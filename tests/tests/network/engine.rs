//! The inference engines of the simulation: every node runs the same step at the same time, under loads that change.

use evenkeel_agent::simulated_engine::SimulatedEngine;
use evenkeel_core::topology::UnitShape;
use evenkeel_proto::v1;
use evenkeel_proto::v1::simulated_engine_service_server::SimulatedEngineService as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tonic::Request;

/// Time of a step.
const STEP: Duration = Duration::from_millis(50);
/// Steps of a load window.
pub(crate) const WINDOW_STEPS: u32 = 4;
/// Windows for which the same expert is hot.
const WINDOWS_ALIKE: u64 = 5;

/// What is asked of the engines. Until the load is made steady, another expert is hot every second.
pub(crate) struct Traffic {
    steady_from: AtomicU64,
}

impl Default for Traffic {
    fn default() -> Self {
        Self { steady_from: AtomicU64::new(u64::MAX) }
    }
}

impl Traffic {
    /// From soon on, the same expert is hot.
    pub(crate) fn steady(&self, now: Duration) {
        self.steady_from.store(step_at(now) + 2, Ordering::Relaxed);
    }

    fn tokens(&self, step: u64, experts: u16) -> Vec<u64> {
        let step = step.min(self.steady_from.load(Ordering::Relaxed));
        let hot = step / (u64::from(WINDOW_STEPS) * WINDOWS_ALIKE) % u64::from(experts);
        (0..u64::from(experts)).map(|expert| if expert == hot { 600 } else { 60 + expert }).collect()
    }

    /// Runs steps for ever.
    pub(crate) async fn drive(self: Arc<Self>, engine: SimulatedEngine, shape: UnitShape) {
        loop {
            let step = step_at(turmoil::sim_elapsed().expect("within the simulation"));
            let counts = v1::LoadTable {
                layers: shape.layers.into(),
                experts: shape.experts.into(),
                counts: self.tokens(step, shape.experts).repeat(shape.layers.into()),
            };
            let routing = Some(v1::step_request::Routing::Counts(counts));
            let request = v1::StepRequest { step, routing, gauges: Vec::new() };
            // It fails until the workers hold weights.
            let _ = engine.step(Request::new(request)).await;
            let now = turmoil::sim_elapsed().expect("within the simulation");
            let next = STEP * u32::try_from(step_at(now) + 1).expect("short");
            tokio::time::sleep(next.saturating_sub(now)).await;
        }
    }
}

fn step_at(time: Duration) -> u64 {
    u64::try_from(time.as_millis() / STEP.as_millis()).expect("short")
}
