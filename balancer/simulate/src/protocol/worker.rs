//! A node's workers, modelled: slots that hold experts, tables in service, steps that go on whatever happens around them.

use evenkeel_core::ids::{ExpertId, Rank};
use evenkeel_core::plan::{Move, Plan};
use evenkeel_core::planted;
use evenkeel_core::topology::UnitShape;
use std::sync::Arc;

/// See the module. Weights and tables live in the memory of the GPUs: they outlive the agent, not the host.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    /// `[layers][physical slots]`: what lies in the slots of this node's ranks, as far as known to be whole.
    slots: Vec<Vec<Option<ExpertId>>>,
    /// The tables in service; `None`: no weights yet.
    tables: Option<Arc<Plan>>,
    /// Goes into service at the end of the step.
    armed: Option<Arc<Plan>>,
    /// Since it last served what the others serve it has booted without knowing which plans they serve besides.
    pub(super) rejoins: bool,
    /// Until when it hangs within a step.
    hangs_until: u64,
    /// When the tables were last replaced.
    pub(super) flipped_at: u64,
    /// End of the last step.
    pub(super) stepped_at: u64,
    /// Grows with all that changes slots or tables.
    pub(super) changes: u64,
}

impl Worker {
    /// Without weights.
    pub(super) fn new(shape: &UnitShape) -> Self {
        let slots = vec![vec![None; shape.physical_per_layer()]; shape.layers.into()];
        Self {
            slots,
            tables: None,
            armed: None,
            rejoins: false,
            hangs_until: 0,
            flipped_at: 0,
            stepped_at: 0,
            changes: 0,
        }
    }

    /// The GPUs forget everything.
    pub(super) fn lose(&mut self, shape: &UnitShape) {
        let changes = self.changes + 1;
        *self = Self { changes, ..Self::new(shape) };
    }

    /// An agent attaches and finds the tables in service. What an agent before it has armed, and is not in service yet,
    /// never will be: the new one may stage over the slots it needs.
    pub(super) fn attach(&mut self) -> Option<Arc<Plan>> {
        if !planted!(ArmOutlivesAgent) {
            self.armed = None;
        }
        self.tables.clone()
    }

    /// The tables in service.
    pub(super) fn tables(&self) -> Option<&Arc<Plan>> {
        self.tables.as_ref()
    }

    /// What lies in a slot.
    pub(super) fn holds(&self, layer: usize, slot: usize) -> Option<ExpertId> {
        self.slots[layer][slot]
    }

    /// Loads the weights that a plan wants on these ranks, those of another plan into slots that it leaves empty, and serves
    /// the first.
    pub(super) fn boot(
        &mut self,
        plan: &Arc<Plan>,
        beside: Option<&Plan>,
        shape: &UnitShape,
        ranks: &[Rank],
        now: u64,
    ) {
        self.changes += 1;
        for (layer, slots) in self.slots.iter_mut().enumerate() {
            let of = |plan: &Plan, slot: usize| plan.layers[layer].physical_to_logical[slot];
            for slot in ranks.iter().flat_map(|&rank| shape.slots_of_rank(rank)) {
                slots[slot] = of(plan, slot).or_else(|| beside.and_then(|beside| of(beside, slot)));
            }
        }
        self.tables = Some(Arc::clone(plan));
        self.armed = None;
        self.stepped_at = now;
    }

    /// Takes the tables out of service while weights are loaded anew.
    pub(super) fn stop(&mut self) {
        self.changes += 1;
        self.tables = None;
        self.armed = None;
    }

    /// Puts bytes into a slot.
    pub(super) fn write(&mut self, slot: &Move, content: Option<ExpertId>) {
        self.changes += 1;
        self.slots[slot.layer.index()][slot.destination as usize] = content;
    }

    /// The tables of this plan go into service at the end of the step.
    pub(super) fn arm(&mut self, plan: Arc<Plan>, now: u64) {
        if planted!(TablesFlipWithinStep) {
            (self.tables, self.flipped_at) = (Some(Arc::clone(&plan)), now);
        }
        self.armed = Some(plan);
    }

    pub(super) fn hang(&mut self, until: u64) {
        self.hangs_until = self.hangs_until.max(until);
    }

    pub(super) fn hangs(&self, now: u64) -> bool {
        now < self.hangs_until
    }

    /// Whether it hangs, or has only just come back.
    pub(super) fn hung_lately(&self, now: u64, step_ms: u64) -> bool {
        now < self.hangs_until + 2 * step_ms
    }

    pub(super) fn recover(&mut self, now: u64) {
        self.hangs_until = self.hangs_until.min(now);
    }

    /// Empties the slots that a plan gives up.
    fn clear_released(&mut self, plan: &Plan) {
        for (slots, layer) in self.slots.iter_mut().zip(&plan.layers) {
            for (slot, kept) in slots.iter_mut().zip(&layer.physical_to_logical) {
                *slot = slot.filter(|_| kept.is_some());
            }
        }
    }

    /// The end of a step, if weights are there: an armed plan goes into service.
    pub(super) fn step(&mut self, now: u64, staging: bool, prepared: bool) {
        let waits_for_staging = staging && planted!(StepsWaitForStaging);
        let waits_for_commit = prepared && planted!(StepsWaitForCommit);
        if self.tables.is_none() || self.hangs(now) || waits_for_staging || waits_for_commit {
            return;
        }
        self.stepped_at = now;
        if let Some(plan) = self.armed.take() {
            self.changes += 1;
            self.flipped_at = now;
            self.rejoins = false;
            if planted!(ReleasedSlotsCleared) {
                self.clear_released(&plan);
            }
            self.tables = Some(plan);
        }
    }
}
