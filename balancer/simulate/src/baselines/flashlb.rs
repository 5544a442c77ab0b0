//! vLLM-Ascend's FlashLB: replica counts and placement searched together, then laid onto the running placement.
//!
//! Written anew after github.com/vllm-project/vllm-ascend (`eplb/core/policy/policy_flashlb.py`), for one window of
//! statistics: with a single sample the original's variances are zero, and risk is load. Experts fall into
//! [`DEPTH`] tiers by load. Tier by tier, the number of redundant slots that the tier gets is searched around the
//! greedy one, [`WIDTH`] to each side, by placing everything anew (longest first into the least loaded device that
//! has room and not yet the expert) and comparing max over mean. The result's devices are matched to the running
//! ones so that the most experts stay. A layer is planned again only when its balance has become poor.
//! "FlashLB-like", then: what it does over many windows, weighing variances and covariances, is not here.

use super::assignment::cheapest_assignment;
use super::deployment::{Deployment, DeploymentError};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The original's tiers of experts.
pub const DEPTH: usize = 4;
/// The original's reach of the search, in slots to each side.
pub const WIDTH: usize = 8;
/// Below this many devices the original plans again earlier.
const SMALL: usize = 32;

/// Places one layer after another.
#[derive(Debug, Clone)]
pub struct FlashLb {
    experts: usize,
    deployment: Deployment,
}

impl FlashLb {
    /// For layers of `experts` experts, at least [`DEPTH`].
    pub fn new(experts: usize, deployment: Deployment) -> Result<Self, DeploymentError> {
        let deployment = deployment.global();
        deployment.validate(experts)?;
        Ok(Self { experts, deployment })
    }

    /// Whether a layer that was balanced to `planned` (max over mean, when it was planned) and now stands at
    /// `current` is planned again.
    pub fn is_due(&self, planned: f64, current: f64) -> bool {
        let (ratio, value) = if self.deployment.gpus < SMALL { (0.95, 0.9) } else { (0.9, 0.85) };
        1.0 / current < ratio / planned || 1.0 / current < value
    }

    /// Plans a layer and lays it onto `current`; both are `[replicas]`, device after device. `None` when the
    /// search leaves a slot empty (an expert with more replicas than devices with room), as the original then
    /// keeps what runs.
    pub fn place(&self, loads: &[f64], current: &[u16]) -> Option<Vec<u16>> {
        assert_eq!((loads.len(), current.len()), (self.experts, self.deployment.replicas));
        let search = Search::new(loads, self.deployment);
        let counts = search.counts();
        let mut found = Layout::new(self.deployment);
        found.fill(&search.loads, &counts)?;
        Some(lay_onto(current, &found.slots, self.deployment))
    }
}

/// Max over mean of the devices' loads as the original scores it.
fn score(most: f64, total: f64, devices: usize) -> f32 {
    ((most * devices as f64 + 1e-2) / (total + 1e-2)) as f32
}

struct Search {
    deployment: Deployment,
    /// `[experts]`: as the original, one more each, so that none is zero.
    loads: Vec<f64>,
    /// `[experts]`: heaviest first.
    order: Vec<usize>,
}

impl Search {
    fn new(loads: &[f64], deployment: Deployment) -> Self {
        let loads: Vec<f64> = loads.iter().map(|load| load + 1.0).collect();
        let mut order: Vec<usize> = (0..loads.len()).collect();
        order.sort_by(|&a, &b| loads[b].total_cmp(&loads[a]));
        Self { deployment, loads, order }
    }

    /// `[experts]`: replicas, tier by tier.
    fn counts(&self) -> Vec<u32> {
        let experts = self.loads.len();
        let size = experts.div_ceil(DEPTH);
        let mut free = self.deployment.replicas - experts;
        let mut counts = vec![1; experts];
        let mut layout = Layout::new(self.deployment);
        for tier in 0..DEPTH - 1 {
            let rest = &self.order[(tier * size).min(experts)..];
            let (here, below) = rest.split_at(size.min(rest.len()));
            let greedy = self.hottest_first(rest, free).iter().filter(|&&at| at < here.len()).count();
            let (of_here, of_below) = (self.hottest_first(here, free), self.hottest_first(below, free));
            let mut try_with = |redundant: usize| {
                let mut counts = counts.clone();
                of_here[..redundant].iter().for_each(|&at| counts[here[at]] += 1);
                of_below[..(free - redundant).min(of_below.len())]
                    .iter()
                    .for_each(|&at| counts[below[at]] += 1);
                layout.fill(&self.loads, &counts).unwrap_or(f32::INFINITY)
            };
            let best = nearest_best(greedy, free, &mut try_with);
            of_here[..best].iter().for_each(|&at| counts[here[at]] += 1);
            free -= best;
            if free == 0 || tier == DEPTH - 2 {
                of_below[..free.min(of_below.len())].iter().for_each(|&at| counts[below[at]] += 1);
                break;
            }
        }
        counts
    }

    /// Who of `among` gets the first, second ... of `free` slots: the largest load per replica.
    fn hottest_first(&self, among: &[usize], free: usize) -> Vec<usize> {
        let key = |load: f64, at: u32| u128::from(load.to_bits()) << 32 | u128::from(!at);
        let mut hottest: BinaryHeap<u128> =
            (0u32..).zip(among).map(|(at, &expert)| key(self.loads[expert], at)).collect();
        let mut count = vec![1u32; among.len()];
        let mut chosen = Vec::with_capacity(free);
        while chosen.len() < free {
            let Some(mut top) = hottest.peek_mut() else { break };
            let at = !(*top as u32);
            chosen.push(at as usize);
            count[at as usize] += 1;
            *top = key(self.loads[among[at as usize]] / f64::from(count[at as usize]), at);
        }
        chosen
    }
}

/// The best of `start` and what lies within [`WIDTH`] of it; among equals the nearest, the lower one first.
fn nearest_best(start: usize, most: usize, score: &mut impl FnMut(usize) -> f32) -> usize {
    let (mut best, mut least) = (start, score(start));
    for reach in 1..=start.max(most - start).min(WIDTH) {
        let lower = start.checked_sub(reach);
        let higher = Some(start + reach).filter(|&higher| higher <= most);
        for candidate in [lower, higher].into_iter().flatten() {
            let scored = score(candidate);
            if scored < least {
                (best, least) = (candidate, scored);
            }
        }
    }
    best
}

/// A placement being filled, longest first.
struct Layout {
    devices: usize,
    per_device: usize,
    slots: Vec<u16>,
    order: Vec<u128>,
    lightest: BinaryHeap<Reverse<u64>>,
    filled: Vec<usize>,
    /// Devices that took a replica of the expert at hand.
    taken: Vec<u64>,
}

impl Layout {
    fn new(deployment: Deployment) -> Self {
        Self {
            devices: deployment.gpus,
            per_device: deployment.slots_per_gpu(),
            slots: vec![0; deployment.replicas],
            order: Vec::new(),
            lightest: BinaryHeap::new(),
            filled: Vec::new(),
            taken: Vec::new(),
        }
    }

    /// Places every replica and scores the result; `None` when one finds no device or a slot stays empty.
    fn fill(&mut self, loads: &[f64], counts: &[u32]) -> Option<f32> {
        if counts.iter().sum::<u32>() as usize != self.slots.len() {
            return None;
        }
        self.order.clear();
        let sized = (0u32..).zip(loads.iter().zip(counts));
        self.order.extend(sized.map(|(expert, (&load, &count))| {
            u128::from(!(load / f64::from(count)).to_bits()) << 32 | u128::from(expert)
        }));
        self.order.sort_unstable();
        self.filled.clear();
        self.filled.resize(self.devices, 0);
        self.lightest.clear();
        self.lightest.extend((0..self.devices as u64).map(Reverse));
        let (mut most, mut total) = (0f64, 0f64);
        for &sized in &self.order {
            let expert = sized as u32 as usize;
            let size = loads[expert] / f64::from(counts[expert]);
            self.taken.clear();
            for _ in 0..counts[expert] {
                let Reverse(lightest) = self.lightest.pop()?;
                let device = lightest as u32 as usize;
                self.slots[device * self.per_device + self.filled[device]] = expert as u16;
                self.filled[device] += 1;
                // A device's load is kept in 32 bits, as in the original.
                let load = (f64::from(f32::from_bits((lightest >> 32) as u32)) + size) as f32;
                most = most.max(f64::from(load));
                total += size;
                if self.filled[device] < self.per_device {
                    self.taken.push(u64::from(load.to_bits()) << 32 | device as u64);
                }
            }
            self.lightest.extend(self.taken.iter().copied().map(Reverse));
        }
        Some(score(most, total, self.devices))
    }
}

/// The new placement with its devices renumbered, and the experts of each device reordered, so that the most
/// experts stay where they are.
fn lay_onto(current: &[u16], new: &[u16], deployment: Deployment) -> Vec<u16> {
    let (devices, per_device) = (deployment.gpus, deployment.slots_per_gpu());
    let experts = usize::from(*current.iter().chain(new).max().expect("there are slots")) + 1;
    let mut on_device = vec![0u8; experts];
    let mut cost = Vec::with_capacity(devices * devices);
    for old in current.chunks(per_device) {
        // No device holds an expert twice here.
        old.iter().for_each(|&expert| on_device[usize::from(expert)] = 1);
        let stay =
            |new: &[u16]| new.iter().map(|&expert| i32::from(on_device[usize::from(expert)])).sum::<i32>();
        cost.extend(new.chunks(per_device).map(|new| per_device as i32 - stay(new)));
        old.iter().for_each(|&expert| on_device[usize::from(expert)] = 0);
    }
    let mut slots = Vec::with_capacity(new.len());
    for (old, from) in current.chunks(per_device).zip(cheapest_assignment(&cost, devices)) {
        slots.extend(keep_slots(old, &new[from * per_device..(from + 1) * per_device]));
    }
    slots
}

/// The experts of `new`, those that `old` has in their old slots, the others in the free ones in order.
pub(super) fn keep_slots(old: &[u16], new: &[u16]) -> Vec<u16> {
    let mut arriving: Vec<u16> = new.to_vec();
    let mut kept: Vec<Option<u16>> = vec![None; old.len()];
    for (kept, expert) in kept.iter_mut().zip(old) {
        if let Some(at) = arriving.iter().position(|new| new == expert) {
            *kept = Some(arriving.remove(at));
        }
    }
    let mut arriving = arriving.into_iter();
    kept.into_iter().map(|kept| kept.or_else(|| arriving.next()).expect("as many experts as slots")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(gpus: usize, replicas: usize) -> Deployment {
        Deployment { replicas, groups: 1, nodes: 1, gpus }
    }

    #[test]
    fn experts_that_stay_keep_their_slots() {
        assert_eq!(keep_slots(&[1, 2, 3], &[3, 4, 1]), [1, 4, 3]);
        assert_eq!(keep_slots(&[1, 1, 3], &[3, 4, 1]), [1, 4, 3]);
    }

    #[test]
    fn devices_are_renumbered_so_that_most_experts_stay() {
        let two = deployment(2, 6);
        assert_eq!(lay_onto(&[0, 1, 2, 3, 4, 5], &[5, 4, 3, 2, 1, 0], two), [0, 1, 2, 3, 4, 5]);
        assert_eq!(lay_onto(&[0, 1, 2, 3, 4, 5], &[3, 4, 0, 1, 2, 5], two), [5, 1, 2, 3, 4, 0]);
    }

    #[test]
    fn the_search_prefers_the_nearest_and_stays_in_range() {
        assert_eq!(nearest_best(3, 9, &mut |at| at.abs_diff(5) as f32), 5);
        assert_eq!(nearest_best(3, 9, &mut |_| 1.0), 3);
        assert_eq!(nearest_best(0, 2, &mut |at| -(at as f32)), 2);
        assert_eq!(nearest_best(0, 100, &mut |at| -(at as f32)), WIDTH);
    }

    #[test]
    fn a_layer_is_due_when_its_balance_is_poor_or_has_fallen() {
        let large = FlashLb::new(8, deployment(32, 32)).unwrap();
        assert!(!large.is_due(1.0, 1.1));
        assert!(large.is_due(1.0, 1.12));
        assert!(large.is_due(1.2, 1.2));
        let small = FlashLb::new(8, deployment(4, 8)).unwrap();
        assert!(small.is_due(1.0, 1.06));
    }

    #[track_caller]
    fn check(loads: &[f64], current: &[u16], gpus: usize, expected: Option<&[u16]>) {
        let flash = FlashLb::new(loads.len(), deployment(gpus, current.len())).unwrap();
        assert_eq!(flash.place(loads, current).as_deref(), expected);
    }

    #[test]
    fn no_device_gets_an_expert_twice() {
        // The greedy counts are 6, 1, 1, 1 and fit on no two devices.
        check(&[90.0, 10.0, 10.0, 10.0], &[0, 1, 2, 3, 0, 1, 2, 3], 2, Some(&[0, 1, 2, 3, 0, 1, 2, 3]));
        check(&[30.0, 10.0, 10.0, 10.0], &[0, 1, 2, 3, 0, 1], 2, Some(&[0, 1, 2, 3, 0, 1]));
    }

    #[test]
    fn slots_that_no_expert_can_fill_leave_what_runs() {
        check(&[9.0, 1.0, 1.0, 1.0], &[0; 12], 2, None);
    }
}
