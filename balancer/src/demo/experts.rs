//! The expert half of the demo: feeds the simulated engines of a unit with routing, step by step, and keeps
//! what it fed, so that every planner can be compared on the same windows.

use super::DemoError;
use super::cluster::{Agent, POLL};
use super::requests::Gauges;
use super::units::DemoUnit;
use evenkeel_core::snapshot::LoadTable;
use evenkeel_proto::v1::admin_service_client::AdminServiceClient;
use evenkeel_proto::v1::simulated_engine_service_client::SimulatedEngineServiceClient;
use evenkeel_proto::{MESSAGE_BYTES_MAX, v1};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

/// Steps of one load window.
pub(super) const WINDOW_STEPS: u64 = 4;
/// A step must be answered within this time on a busy machine of two cores.
const STEP_DEADLINE: Duration = Duration::from_secs(30);

/// What is routed in one step.
#[derive(Debug, Clone)]
pub(super) enum StepRouting {
    /// Tokens per logical expert.
    Counts(LoadTable),
    /// The ids themselves, and what they count to.
    TopK(v1::TopK, LoadTable),
}

impl StepRouting {
    fn counts(&self) -> &LoadTable {
        match self {
            StepRouting::Counts(counts) | StepRouting::TopK(_, counts) => counts,
        }
    }

    fn wire(&self) -> v1::step_request::Routing {
        match self {
            StepRouting::Counts(counts) => v1::step_request::Routing::Counts(counts.into()),
            StepRouting::TopK(ids, _) => v1::step_request::Routing::TopKIds(ids.clone()),
        }
    }
}

/// Feeds one unit.
pub(super) struct Feed {
    unit: DemoUnit,
    engines: Vec<SimulatedEngineServiceClient<Channel>>,
    gauges: watch::Receiver<Gauges>,
    /// Number of the next step.
    step: u64,
    /// Loads of every window fed so far.
    pub windows: Vec<LoadTable>,
}

impl Feed {
    /// Connects to the simulated engines of a unit's agents. `gauges` is what the ranks report of themselves.
    pub(super) async fn connect(
        unit: &DemoUnit,
        agents: &[Agent],
        gauges: watch::Receiver<Gauges>,
    ) -> Result<Self, DemoError> {
        let mut engines = Vec::new();
        for agent in agents {
            let channel = channel(&agent.ports.engine, STEP_DEADLINE).await?;
            let client = SimulatedEngineServiceClient::new(channel);
            engines.push(client.max_encoding_message_size(MESSAGE_BYTES_MAX));
        }
        Ok(Self { unit: unit.clone(), engines, gauges, step: 0, windows: Vec::new() })
    }

    /// Runs one window of steps on every node, `pace` apart.
    pub(super) async fn window(&mut self, steps: &[StepRouting], pace: Duration) -> Result<(), DemoError> {
        assert_eq!(steps.len() as u64, WINDOW_STEPS, "a window has its steps");
        let (layers, experts) = (self.unit.shape.layers.into(), self.unit.shape.experts.into());
        let mut counts = vec![0; layers * experts];
        for routing in steps {
            let due = Instant::now() + pace;
            self.run_step(routing.wire()).await?;
            counts.iter_mut().zip(routing.counts().counts()).for_each(|(sum, count)| *sum += count);
            tokio::time::sleep_until(due).await;
        }
        let loads = LoadTable::new(layers, experts, counts).expect("counts of a few steps are small");
        self.windows.push(loads);
        Ok(())
    }

    async fn run_step(&mut self, routing: v1::step_request::Routing) -> Result<(), DemoError> {
        let step = self.step;
        self.step += 1;
        let per_node = usize::from(self.unit.shape.ranks / self.unit.nodes);
        let gauges = self.gauges.borrow().clone();
        let mut calls = JoinSet::new();
        for (node, engine) in self.engines.iter().enumerate() {
            let mut engine = engine.clone();
            let gauges = gauges.iter().skip(node * per_node).take(per_node).copied().collect();
            let request = v1::StepRequest { step, routing: Some(routing.clone()), gauges };
            calls.spawn(async move { engine.step(request).await });
        }
        while let Some(call) = calls.join_next().await {
            call.expect("a call does not panic").map_err(DemoError::Engine)?;
        }
        Ok(())
    }

    /// Index of the window that begins at this step of the balancer's count.
    pub(super) fn window_at(&self, window: &v1::Window) -> Option<usize> {
        let index = window.from_step / WINDOW_STEPS;
        usize::try_from(index).ok().filter(|w| *w < self.windows.len())
    }

    /// Waits until the balancer has carried out its decision on the last window fed, or on a later one.
    /// `false` when it has not within `patience`: it is still busy, or plans were applied within the window,
    /// which makes it unfit to be decided on.
    pub(super) async fn settled(&self, admin: &mut Admin, patience: Duration) -> Result<bool, DemoError> {
        let last = (self.windows.len() as u64 - 1) * WINDOW_STEPS;
        let deadline = Instant::now() + patience;
        loop {
            let unit = admin.unit(self.unit.name).await?;
            if unit.and_then(|u| u.settled).is_some_and(|w| w.from_step >= last) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Splits a window's loads into its steps, to the token.
pub(super) fn split_window(loads: &LoadTable) -> Vec<StepRouting> {
    let part = |step: u64| {
        let upto = |count: u64, step: u64| count * step / WINDOW_STEPS;
        let counts = loads.counts().iter().map(|&c| upto(c, step + 1) - upto(c, step)).collect();
        let table = LoadTable::new(loads.layers(), loads.experts(), counts);
        StepRouting::Counts(table.expect("a part of a valid table"))
    };
    (0..WINDOW_STEPS).map(part).collect()
}

/// The balancer's admin service.
#[derive(Clone)]
pub(super) struct Admin(AdminServiceClient<Channel>);

impl Admin {
    /// Connects.
    pub(super) fn new(channel: Channel) -> Self {
        Self(AdminServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// The cluster at a glance.
    pub(super) async fn status(&mut self) -> Result<v1::GetStatusResponse, DemoError> {
        Ok(self.0.get_status(v1::GetStatusRequest {}).await.map_err(DemoError::Admin)?.into_inner())
    }

    /// One unit's status.
    pub(super) async fn unit(&mut self, unit: &str) -> Result<Option<v1::UnitStatus>, DemoError> {
        Ok(self.status().await?.units.into_iter().find(|u| u.unit == unit))
    }

    /// A committed plan of a unit; the last one when `epoch` is unset.
    pub(super) async fn plan(
        &mut self,
        unit: &str,
        epoch: Option<u64>,
    ) -> Result<v1::GetPlanResponse, DemoError> {
        let request = v1::GetPlanRequest { unit: unit.to_owned(), epoch };
        Ok(self.0.get_plan(request).await.map_err(DemoError::Admin)?.into_inner())
    }

    /// Accounts of a unit's plans, newest first.
    pub(super) async fn plans(&mut self, unit: &str) -> Result<Vec<v1::PlanSummary>, DemoError> {
        let request = v1::ListPlansRequest { unit: unit.to_owned(), limit: 500 };
        Ok(self.0.list_plans(request).await.map_err(DemoError::Admin)?.into_inner().plans)
    }

    /// No new plan for the unit.
    pub(super) async fn pause(&mut self, unit: &str) -> Result<(), DemoError> {
        let request = v1::PauseRequest { unit: unit.to_owned(), ..Default::default() };
        self.0.pause(request).await.map(drop).map_err(DemoError::Admin)
    }
}

/// A channel to one of the demo's own processes.
pub(super) async fn channel(address: &str, deadline: Duration) -> Result<Channel, DemoError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| DemoError::Connect { address: address.to_owned(), reason: e.to_string() })?;
    let endpoint = endpoint.connect_timeout(deadline).timeout(deadline).tcp_nodelay(true);
    endpoint
        .connect()
        .await
        .map_err(|e| DemoError::Connect { address: address.to_owned(), reason: e.to_string() })
}
