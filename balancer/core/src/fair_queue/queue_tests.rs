//! What the queue promises, under any order of arrivals and departures.

use super::class::{Tag, WEIGHT_MAX, duration};
use super::*;
use crate::routing::{LIVE_MAX, RequestId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const TENANTS: u32 = 4;
const COST_MAX: u64 = 50;
const PRIORITIES: [Priority; 2] = [Priority::Interactive, Priority::Batch];

/// Tenant 1 has three times the weight of the others but 2, who has seven times it.
fn policy() -> FairPolicy {
    let weights = BTreeMap::from([(TenantId(1), 3), (TenantId(2), 7)]);
    FairPolicy { held_max: 24, tenant_held_max: 16, batch_share: 0.1, weights }
}

/// Room for everything.
fn roomy() -> FairPolicy {
    FairPolicy { held_max: 1000, tenant_held_max: 1000, ..policy() }
}

#[derive(Debug, Clone)]
enum Op {
    Push(HeldRequest),
    Pop,
    /// Of the requests that are held, one in its place or out of it.
    Serve(usize),
    Remove(usize),
}

fn request(number: u64, tenant: u32, priority: Priority, cost: u64) -> HeldRequest {
    HeldRequest { request: RequestId(number), tenant: TenantId(tenant), priority, cost }
}

/// Operations of these weights: push, pop, serve, remove. Requests are numbered from 1.
fn ops(weights: [u32; 4]) -> impl Strategy<Value = Vec<Op>> {
    let push = (0..TENANTS, 0..2usize, 0..=COST_MAX)
        .prop_map(|(tenant, priority, cost)| Op::Push(request(0, tenant, PRIORITIES[priority], cost)));
    let op = prop_oneof![
        weights[0] => push,
        weights[1] => Just(Op::Pop),
        weights[2] => any::<usize>().prop_map(Op::Serve),
        weights[3] => any::<usize>().prop_map(Op::Remove),
    ];
    proptest::collection::vec(op, 0..150).prop_map(|mut ops| {
        for (number, op) in ops.iter_mut().enumerate() {
            if let Op::Push(request) = op {
                request.request = RequestId(number as u64 + 1);
            }
        }
        ops
    })
}

/// A queue and who should be in it.
struct Play {
    queue: FairQueue,
    held: BTreeMap<RequestId, HeldRequest>,
}

impl Play {
    fn new(policy: FairPolicy) -> Self {
        Self { queue: FairQueue::new(policy).unwrap(), held: BTreeMap::new() }
    }

    /// Does it to both; what was served.
    fn step(&mut self, op: &Op) -> Option<HeldRequest> {
        let nth = |n: usize| self.held.keys().nth(n % self.held.len().max(1)).copied();
        match op {
            Op::Push(request) => {
                self.push(*request);
                None
            }
            Op::Pop => {
                let served = self.queue.pop();
                assert_eq!(served.is_none(), self.held.is_empty());
                served.inspect(|served| assert_eq!(self.held.remove(&served.request), Some(*served)))
            }
            Op::Serve(n) => {
                let request = nth(*n)?;
                assert_eq!(self.queue.serve(request), self.held.remove(&request));
                assert_eq!(self.queue.serve(request), None);
                None
            }
            Op::Remove(n) => {
                let request = nth(*n)?;
                assert_eq!(self.queue.remove(request), self.held.remove(&request));
                assert_eq!(self.queue.remove(request), None);
                None
            }
        }
    }

    fn push(&mut self, request: HeldRequest) {
        let admission = self.queue.push(request);
        self.held.insert(request.request, request);
        let (loser, refusal) = match admission {
            Admission::Held => return,
            Admission::Displaced { request: loser, refusal } => (loser, refusal),
            Admission::Refused(refusal) => (request.request, refusal),
        };
        self.check_loser(request, loser, refusal);
        self.held.remove(&loser);
    }

    /// With the new request in it, the queue was over a bound, and the right one lost.
    fn check_loser(&self, new: HeldRequest, loser: RequestId, refusal: Refusal) {
        let policy = policy();
        let weight = |tenant: TenantId| policy.weights.get(&tenant).copied().unwrap_or(1) as usize;
        let of = |tenant: TenantId| self.held.values().filter(move |held| held.tenant == tenant);
        let loser = self.held[&loser];
        match refusal {
            Refusal::TenantFull => {
                assert_eq!((loser.tenant, of(new.tenant).count()), (new.tenant, policy.tenant_held_max + 1));
            }
            Refusal::QueueFull => {
                assert_eq!(self.held.len(), policy.held_max + 1);
                for tenant in (0..TENANTS).map(TenantId) {
                    let (count, most) = (of(tenant).count(), of(loser.tenant).count());
                    assert!(
                        count * weight(loser.tenant) <= most * weight(tenant),
                        "{tenant:?} holds more for its weight"
                    );
                }
            }
        }
        let newest = of(loser.tenant).max_by_key(|held| (held.priority, held.request));
        assert_eq!(newest, Some(&loser));
    }

    fn waits(&self, tenant: TenantId, priority: Priority) -> bool {
        self.held.values().any(|held| held.tenant == tenant && held.priority == priority)
    }
}

/// Widest spread of a sum over the spans in which something holds.
#[derive(Default)]
struct Spread {
    span: Option<(i128, i128)>,
    widest: i128,
}

impl Spread {
    /// The sum now, after a change during which the condition held or not.
    fn see(&mut self, holds: bool, before: i128, after: i128) {
        if !holds {
            self.span = None;
            return;
        }
        let (least, most) = self.span.unwrap_or((before, before));
        let (least, most) = (least.min(after), most.max(after));
        self.span = Some((least, most));
        self.widest = self.widest.max(most - least);
    }
}

proptest! {
    #[test]
    fn nothing_is_lost_or_served_twice_and_bounds_are_kept(ops in ops([8, 1, 1, 1])) {
        let mut play = Play::new(policy());
        for op in &ops {
            play.step(op);
            prop_assert_eq!(play.queue.len(), play.held.len());
            prop_assert!(play.queue.len() <= policy().held_max);
            for tenant in (0..TENANTS).map(TenantId) {
                let held = play.held.values().filter(|held| held.tenant == tenant).count();
                prop_assert_eq!(play.queue.held_by(tenant), held);
                prop_assert!(held <= policy().tenant_held_max);
            }
            let all: BTreeSet<RequestId> = play.queue.in_order().map(|held| held.request).collect();
            prop_assert!(all.iter().eq(play.held.keys()));
        }
    }

    #[test]
    fn the_order_that_is_shown_is_the_order_of_service(ops in ops([8, 2, 1, 1])) {
        let mut play = Play::new(roomy());
        ops.iter().for_each(|op| _ = play.step(op));
        let shown: Vec<HeldRequest> = play.queue.in_order().collect();
        let served: Vec<HeldRequest> = std::iter::from_fn(|| play.queue.pop()).collect();
        prop_assert_eq!(shown, served);
    }

    #[test]
    fn the_same_events_make_the_same_queue(ops in ops([8, 2, 1, 1])) {
        let run = || {
            let mut play = Play::new(policy());
            let served: Vec<_> = ops.iter().map(|op| play.step(op)).collect();
            (served, play.queue)
        };
        prop_assert_eq!(run(), run());
    }

    /// No tenant starves another: over any time in which two tenants have requests of one priority waiting, what each was
    /// served by its weight differs by no more than one of the largest requests of each.
    #[test]
    fn tenants_are_served_by_their_weights(ops in ops([6, 5, 0, 1])) {
        let mut play = Play::new(roomy());
        let mut served = BTreeMap::<(TenantId, Priority), Tag>::new();
        let mut spreads = BTreeMap::<(Priority, u32, u32), Spread>::new();
        let weight = |tenant: u32| policy().weights.get(&TenantId(tenant)).copied().unwrap_or(1);
        for op in &ops {
            let waited: BTreeSet<(u32, Priority)> = (0..TENANTS)
                .flat_map(|tenant| PRIORITIES.map(|priority| (tenant, priority)))
                .filter(|&(tenant, priority)| play.waits(TenantId(tenant), priority))
                .collect();
            let before = served.clone();
            if let Some(request) = play.step(op) {
                let time = duration(request.cost, weight(request.tenant.0));
                *served.entry((request.tenant, request.priority)).or_default() += time;
            }
            for priority in PRIORITIES {
                for (a, b) in (0..TENANTS).flat_map(|a| (0..a).map(move |b| (a, b))) {
                    let lead = |served: &BTreeMap<(TenantId, Priority), Tag>| {
                        let of = |tenant| served.get(&(TenantId(tenant), priority)).map_or(0, |&time| time as i128);
                        of(a) - of(b)
                    };
                    let both = waited.contains(&(a, priority)) && waited.contains(&(b, priority));
                    spreads.entry((priority, a, b)).or_default().see(both, lead(&before), lead(&served));
                }
            }
        }
        for ((priority, a, b), spread) in &spreads {
            let largest = duration(COST_MAX, weight(*a)) + duration(COST_MAX, weight(*b));
            prop_assert!(spread.widest <= largest as i128, "{a} and {b}, {priority:?}: {} of {largest}", spread.widest);
        }
    }

    /// Over any time in which both priorities wait, batch gets its share to within one of the largest requests of each.
    #[test]
    fn batch_requests_get_their_share_and_no_more(ops in ops([6, 5, 0, 1]), parts in 1..10u32) {
        let share = f64::from(parts) / 16.0;
        let mut play = Play::new(FairPolicy { batch_share: share, ..roomy() });
        let (mut owed, mut spread) = (0i128, Spread::default());
        for op in &ops {
            let waits = |priority| play.held.values().any(|held| held.priority == priority);
            let (both, before) = (waits(Priority::Interactive) && waits(Priority::Batch), owed);
            match play.step(op) {
                Some(HeldRequest { priority: Priority::Interactive, cost, .. }) => {
                    owed += i128::from(cost.max(1)) * i128::from(parts);
                }
                Some(HeldRequest { cost, .. }) => owed -= i128::from(cost.max(1)) * i128::from(16 - parts),
                None => {}
            }
            spread.see(both, before, owed);
        }
        prop_assert!(spread.widest <= i128::from(COST_MAX) * 16, "{} of {}", spread.widest, COST_MAX * 16);
    }
}

// ---- One behaviour each ----------------------------------------------------------------------------

/// Pushes (tenant, priority, cost), numbered from 1; compares the order of service.
#[track_caller]
fn check_order(policy: FairPolicy, requests: &[(u32, Priority, u64)], order: &[u64]) {
    let mut play = Play::new(policy);
    for (number, &(tenant, priority, cost)) in requests.iter().enumerate() {
        play.push(request(number as u64 + 1, tenant, priority, cost));
    }
    let served: Vec<u64> = std::iter::from_fn(|| play.step(&Op::Pop)).map(|held| held.request.0).collect();
    assert_eq!(served, order);
}

#[test]
fn requests_are_served_in_turn() {
    let (i, b) = (Priority::Interactive, Priority::Batch);
    // One tenant: as they came.
    check_order(roomy(), &[(0, i, 9), (0, i, 1), (0, i, 5)], &[1, 2, 3]);
    // Two: in turn, whoever sends more.
    check_order(roomy(), &[(0, i, 5), (0, i, 5), (0, i, 5), (3, i, 5)], &[1, 4, 2, 3]);
    // By cost, not by number.
    check_order(roomy(), &[(0, i, 9), (0, i, 9), (3, i, 3), (3, i, 3), (3, i, 3)], &[1, 3, 4, 5, 2]);
    // By weight: tenant 1 has three.
    check_order(
        roomy(),
        &[(0, i, 2), (0, i, 2), (1, i, 2), (1, i, 2), (1, i, 2), (1, i, 2)],
        &[1, 3, 4, 5, 2, 6],
    );
    // Batch waits, and gets a tenth.
    check_order(roomy(), &[(0, b, 1), (0, i, 5), (0, i, 4), (0, i, 1)], &[2, 3, 1, 4]);
    check_order(FairPolicy { batch_share: 0.0, ..roomy() }, &[(0, b, 1), (0, i, 50), (0, i, 50)], &[2, 3, 1]);
    check_order(FairPolicy { batch_share: 1.0, ..roomy() }, &[(0, i, 1), (0, b, 50), (0, b, 50)], &[2, 3, 1]);
}

#[test]
fn a_flood_is_turned_away_from_its_own_tenant() {
    let mut play = Play::new(policy());
    (1..=30).for_each(|number| play.push(request(number, 0, Priority::Interactive, 1)));
    assert_eq!(play.queue.held_by(TenantId(0)), 16);
    // The queue fills up with others; the flood gives way, from its end.
    (31..=38).for_each(|number| play.push(request(number, 3, Priority::Interactive, 1)));
    let late = |number| request(number, 2, Priority::Batch, 1);
    let displaced = Admission::Displaced { request: RequestId(16), refusal: Refusal::QueueFull };
    assert_eq!(play.queue.push(late(40)), displaced);
    assert_eq!(
        play.queue.push(request(41, 0, Priority::Interactive, 1)),
        Admission::Refused(Refusal::QueueFull)
    );
    assert_eq!((play.queue.len(), play.queue.held_by(TenantId(3))), (24, 8));
}

#[test]
fn a_tenants_batch_gives_way_to_its_interactive_requests() {
    let mut queue = FairQueue::new(policy()).unwrap();
    (1..=16).for_each(|number| _ = queue.push(request(number, 0, Priority::Batch, 1)));
    let displaced = Admission::Displaced { request: RequestId(16), refusal: Refusal::TenantFull };
    assert_eq!(queue.push(request(17, 0, Priority::Interactive, 1)), displaced);
    assert_eq!(queue.push(request(18, 0, Priority::Batch, 1)), Admission::Refused(Refusal::TenantFull));
}

#[test]
fn tenants_that_have_had_their_share_are_forgotten() {
    let mut queue = FairQueue::new(roomy()).unwrap();
    for number in 1..=900u64 {
        queue.push(request(number, number as u32, PRIORITIES[number as usize % 2], 1));
    }
    assert_eq!(queue.tenants(), 900);
    while queue.pop().is_some() {}
    assert_eq!(queue.tenants(), 0);
}

#[test]
#[should_panic(expected = "request 1 is held already")]
fn a_request_is_held_once() {
    let mut queue = FairQueue::new(roomy()).unwrap();
    (0..2).for_each(|_| _ = queue.push(request(1, 0, Priority::Batch, 1)));
}

#[track_caller]
fn check_policy(policy: FairPolicy, text: &str) {
    let error = FairQueue::new(policy).unwrap_err().to_string();
    assert!(error.contains(text), "{error}");
}

#[test]
fn bounds_out_of_range_are_named() {
    check_policy(FairPolicy { held_max: 0, ..policy() }, "fairness held_max is 0: accepted are 1 to 262144");
    check_policy(FairPolicy { held_max: LIVE_MAX + 1, ..policy() }, "held_max is 262145");
    check_policy(
        FairPolicy { tenant_held_max: 25, ..policy() },
        "tenant_held_max is 25: accepted are 1 to 24",
    );
    check_policy(FairPolicy { batch_share: 1.5, ..policy() }, "batch_share is 1.5: accepted are 0 to 1");
    check_policy(FairPolicy { batch_share: f64::NAN, ..policy() }, "batch_share is NaN");
    let weights = |weight| BTreeMap::from([(TenantId(5), weight)]);
    check_policy(FairPolicy { weights: weights(0), ..policy() }, "weight is 0: accepted are 1 to 65536");
    check_policy(FairPolicy { weights: weights(WEIGHT_MAX + 1), ..policy() }, "weight is 65537");
}
