//! The queue of one unit.

use super::class::{Class, WEIGHT_MAX, duration};
use super::lines::{Line, Lines, Place};
use super::order::{InOrder, Turn};
use super::{Priority, TenantId};
use crate::routing::{LIVE_MAX, RequestId};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};

/// Bounds and shares of a [`FairQueue`].
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FairPolicy {
    /// Requests that are held at once, 1 to [`LIVE_MAX`].
    pub held_max: usize,
    /// Of those, of one tenant; 1 to `held_max`.
    pub tenant_held_max: usize,
    /// Share of the served cost that batch requests get while interactive ones wait too, 0 to 1. At 0 they wait until no
    /// interactive request does.
    pub batch_share: f64,
    /// Weights of tenants, 1 to 65536; of all others, 1. Twice the weight is twice the service and twice the room.
    pub weights: BTreeMap<TenantId, u32>,
}

impl Default for FairPolicy {
    fn default() -> Self {
        Self {
            // Above it a gateway sends faster than any unit drains.
            held_max: 65_536,
            // A quarter: four tenants that flood are needed before anybody else's requests are touched.
            tenant_held_max: 16_384,
            // Enough that a batch job ends some day, too little to be felt by who waits.
            batch_share: 0.05,
            weights: BTreeMap::new(),
        }
    }
}

/// A bound or share that cannot be had.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("fairness {field} is {value}: accepted are {min} to {max}")]
pub struct InvalidFairPolicy {
    /// The field.
    pub field: &'static str,
    /// As given.
    pub value: f64,
    /// Lowest accepted.
    pub min: f64,
    /// Highest accepted.
    pub max: f64,
}

/// A request in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HeldRequest {
    /// Its name.
    pub request: RequestId,
    /// Whose it is.
    pub tenant: TenantId,
    /// How urgent it is.
    pub priority: Priority,
    /// What serving it takes, in any one unit: uncached tokens, or microseconds. 0 counts as 1.
    pub cost: u64,
}

/// Why a request is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its tenant holds as many as one tenant may.
    TenantFull,
    /// The queue is full, and its tenant holds the most for its weight.
    QueueFull,
}

/// What became of a request that wanted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is held.
    Held,
    /// It is held, and another was turned away for it: the newest of the tenant that holds the most for its weight, or, of its
    /// own tenant, one that is less urgent.
    Displaced {
        /// The one that was turned away.
        request: RequestId,
        /// Why.
        refusal: Refusal,
    },
    /// It is turned away.
    Refused(Refusal),
}

/// What the queue counts of one tenant while it holds requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct Tenant {
    weight: u32,
    /// By priority.
    lines: [Line; 2],
}

/// The held requests of one unit.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FairQueue {
    policy: FairPolicy,
    lines: Lines,
    tenants: FxHashMap<TenantId, Tenant>,
    /// Tenants by requests held per weight, while the queue is about full: nobody asks before, and to keep it takes as long as all
    /// else that is done for a request.
    fullness: Option<BTreeSet<(u64, TenantId)>>,
    interactive: Class,
    batch: Class,
    turn: Turn,
}

impl FairQueue {
    /// An empty queue.
    pub fn new(policy: FairPolicy) -> Result<Self, InvalidFairPolicy> {
        let check = |field, value: f64, min: f64, max: f64| {
            // Not a number is in no range.
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(InvalidFairPolicy { field, value, min, max })
            }
        };
        check("held_max", policy.held_max as f64, 1.0, LIVE_MAX as f64)?;
        check("tenant_held_max", policy.tenant_held_max as f64, 1.0, policy.held_max as f64)?;
        check("batch_share", policy.batch_share, 0.0, 1.0)?;
        for &weight in policy.weights.values() {
            check("weight", f64::from(weight), 1.0, f64::from(WEIGHT_MAX))?;
        }
        let turn = Turn::new(policy.batch_share);
        Ok(Self {
            policy,
            lines: Lines::default(),
            tenants: FxHashMap::default(),
            fullness: None,
            interactive: Class::default(),
            batch: Class::default(),
            turn,
        })
    }

    /// Requests that are held.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Requests that a tenant holds.
    pub fn held_by(&self, tenant: TenantId) -> usize {
        self.tenants.get(&tenant).map_or(0, |tenant| tenant.total() as usize)
    }

    /// Tenants that hold requests or are ahead of their share.
    pub fn tenants(&self) -> usize {
        self.tenants.len().max(self.interactive.tenants()).max(self.batch.tenants())
    }

    /// Takes a request that is not held, and turns away one if there are too many then.
    pub fn push(&mut self, request: HeldRequest) -> Admission {
        self.insert(request);
        let (tenant, refusal) = if self.held_by(request.tenant) > self.policy.tenant_held_max {
            (request.tenant, Refusal::TenantFull)
        } else if self.len() > self.policy.held_max {
            (self.fullest(request.tenant), Refusal::QueueFull)
        } else {
            return Admission::Held;
        };
        let newest = self.newest(tenant);
        self.remove(newest);
        if newest == request.request {
            Admission::Refused(refusal)
        } else {
            Admission::Displaced { request: newest, refusal }
        }
    }

    /// The held requests in the order in which they should be served; nothing is taken or counted.
    pub fn in_order(&self) -> InOrder<'_> {
        InOrder::new(self)
    }

    /// Takes the next request out to be served.
    pub fn pop(&mut self) -> Option<HeldRequest> {
        let next = self.in_order().next()?;
        self.serve(next.request)
    }

    /// Takes a request out to be served, in its turn or not; its tenant is charged. `None` if it is not held.
    pub fn serve(&mut self, request: RequestId) -> Option<HeldRequest> {
        let place = self.lines.strike_off(request)?;
        let served = self.lines.at(place);
        let weight = self.weight(served.tenant);
        self.turn.serve(
            served.priority,
            served.cost,
            self.has(Priority::Interactive),
            self.has(Priority::Batch),
        );
        self.class_mut(served.priority).serve(served.tenant, duration(served.cost, weight));
        self.take_out(&served, place);
        Some(served)
    }

    /// Takes a request out that is not wanted any more; nobody is charged. `None` if it is not held.
    pub fn remove(&mut self, request: RequestId) -> Option<HeldRequest> {
        let place = self.lines.strike_off(request)?;
        let removed = self.lines.at(place);
        self.take_out(&removed, place);
        Some(removed)
    }

    pub(super) fn lines(&self) -> &Lines {
        &self.lines
    }

    /// The line of a tenant that holds requests of this priority.
    pub(super) fn line(&self, tenant: TenantId, priority: Priority) -> Line {
        self.tenants[&tenant].lines[priority as usize]
    }

    pub(super) fn turn(&self) -> Turn {
        self.turn
    }

    pub(super) fn class(&self, priority: Priority) -> &Class {
        match priority {
            Priority::Interactive => &self.interactive,
            Priority::Batch => &self.batch,
        }
    }

    pub(super) fn weight(&self, tenant: TenantId) -> u32 {
        self.policy.weights.get(&tenant).copied().unwrap_or(1)
    }

    fn class_mut(&mut self, priority: Priority) -> &mut Class {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Batch => &mut self.batch,
        }
    }

    fn has(&self, priority: Priority) -> bool {
        !self.class(priority).waiting().is_empty()
    }

    fn insert(&mut self, request: HeldRequest) {
        let HeldRequest { tenant, priority, .. } = request;
        let length = self.change_line(tenant, priority, |lines, line| lines.push(line, request));
        if length == 1 {
            self.class_mut(priority).enter(tenant);
        }
    }

    fn take_out(&mut self, taken: &HeldRequest, place: Place) {
        let &HeldRequest { tenant, priority, .. } = taken;
        let length = self.change_line(tenant, priority, |lines, line| lines.leave(line, place));
        if length == 0 {
            self.class_mut(priority).leave(tenant);
            if priority == Priority::Batch && !self.has(Priority::Batch) {
                self.turn.batch_is_empty();
            }
        }
    }

    /// Changes a tenant's line and what is counted of the tenant; returns the line's length then.
    fn change_line(
        &mut self,
        id: TenantId,
        priority: Priority,
        change: impl FnOnce(&mut Lines, &mut Line),
    ) -> u32 {
        let weight = self.weight(id);
        let tenant = self.tenants.entry(id).or_insert(Tenant { weight, lines: [Line::EMPTY; 2] });
        let before = tenant.fullness();
        let line = &mut tenant.lines[priority as usize];
        change(&mut self.lines, line);
        let length = line.length();
        let after = tenant.fullness();
        if after == 0 {
            self.tenants.remove(&id);
        }
        if self.lines.len() < self.policy.held_max / 2 {
            self.fullness = None;
        }
        if let Some(fullness) = &mut self.fullness {
            fullness.remove(&(before, id));
            if after > 0 {
                fullness.insert((after, id));
            }
        }
        length
    }

    /// The tenant that holds the most for its weight; `preferred` if it is one of several: a request that is held
    /// already is not turned away for nothing.
    fn fullest(&mut self, preferred: TenantId) -> TenantId {
        let all = || self.tenants.iter().map(|(&id, tenant)| (tenant.fullness(), id)).collect();
        let &(most, fullest) =
            self.fullness.get_or_insert_with(all).last().expect("a full queue holds something");
        if self.tenants[&preferred].fullness() == most { preferred } else { fullest }
    }

    /// The least urgent of a tenant's requests, of those the newest.
    fn newest(&self, tenant: TenantId) -> RequestId {
        let [interactive, batch] = self.tenants[&tenant].lines;
        let line = if batch.length() > 0 { batch } else { interactive };
        self.lines.at(line.last()).request
    }
}

impl Tenant {
    /// Requests held, of both priorities.
    fn total(&self) -> u32 {
        self.lines[0].length() + self.lines[1].length()
    }

    /// Requests held per weight, in 2^-32.
    fn fullness(&self) -> u64 {
        (u64::from(self.total()) << 32) / u64::from(self.weight)
    }
}
