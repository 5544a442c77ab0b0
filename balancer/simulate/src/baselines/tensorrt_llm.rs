//! TensorRT-LLM's MoE load balancer: the fastest planner in use, and the yardstick of time.
//!
//! Written anew after github.com/NVIDIA/TensorRT-LLM (`cpp/tensorrt_llm/runtime/moeLoadBalancer`,
//! `doReplication` and `doPlacement`). Redundant slots go one by one to the largest slot (among equals the
//! higher expert); then the slots, largest first (among equals the lower expert), go to the rank with the least
//! load that has room (among equals the lower rank). Without any load the slots are dealt evenly. There are no
//! nodes and no groups, replicas share evenly, and two of them may land on one rank.

use super::deployment::{Deployment, DeploymentError};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

/// Places one layer after another, in the same memory.
#[derive(Debug, Clone)]
pub struct TensorRtLlm {
    experts: usize,
    deployment: Deployment,
    /// `[experts]`: replicas.
    count: Vec<u32>,
    largest: BinaryHeap<u128>,
    /// `[experts]`, by the size of their slots.
    order: Vec<u128>,
    lightest: BinaryHeap<Reverse<u128>>,
    /// `[ranks]`: slots taken.
    filled: Vec<usize>,
}

impl TensorRtLlm {
    /// For layers of `experts` experts.
    pub fn new(experts: usize, deployment: Deployment) -> Result<Self, DeploymentError> {
        let deployment = deployment.global();
        deployment.validate(experts)?;
        Ok(Self {
            experts,
            deployment,
            count: Vec::new(),
            largest: BinaryHeap::new(),
            order: Vec::new(),
            lightest: BinaryHeap::new(),
            filled: Vec::new(),
        })
    }

    /// Writes the expert of every slot; `loads` is `[experts]`, not negative; `slots` is `[replicas]`.
    pub fn place(&mut self, loads: &[f64], slots: &mut [u16]) {
        assert_eq!((loads.len(), slots.len()), (self.experts, self.deployment.replicas));
        self.replicate(loads);
        self.fill(loads, slots);
    }

    fn replicate(&mut self, loads: &[f64]) {
        let (experts, replicas) = (loads.len(), self.deployment.replicas);
        self.count.clear();
        if loads.iter().sum::<f64>() == 0.0 {
            let (all, some) = ((replicas / experts) as u32, replicas % experts);
            self.count.extend((0..experts).map(|expert| all + u32::from(expert < some)));
            return;
        }
        self.count.resize(experts, 1);
        self.largest.clear();
        self.largest.extend((0u32..).zip(loads).map(|(expert, &load)| key(load, expert)));
        for _ in experts..replicas {
            let mut top = self.largest.peek_mut().expect("there are experts");
            let expert = *top as u32;
            let count = &mut self.count[expert as usize];
            *count += 1;
            *top = key(loads[expert as usize] / f64::from(*count), expert);
        }
    }

    fn fill(&mut self, loads: &[f64], slots: &mut [u16]) {
        let (ranks, per_rank) = (self.deployment.gpus, self.deployment.slots_per_gpu());
        self.order.clear();
        let sized = (0u32..).zip(loads.iter().zip(&self.count));
        // The complement of the size: largest first, equal ones by number.
        self.order.extend(sized.map(|(expert, (&load, &count))| {
            key(load / f64::from(count), 0) ^ (u128::from(u64::MAX) << 32) | u128::from(expert)
        }));
        self.order.sort_unstable();
        self.filled.clear();
        self.filled.resize(ranks, 0);
        self.lightest.clear();
        self.lightest.extend((0..ranks as u32).map(|rank| Reverse(key(0.0, rank))));
        for &sized in &self.order {
            let expert = sized as u32;
            let size = f64::from_bits(!((sized >> 32) as u64));
            for _ in 0..self.count[expert as usize] {
                let mut top = self.lightest.peek_mut().expect("ranks have room for all slots");
                let rank = top.0 as u32;
                let filled = &mut self.filled[rank as usize];
                slots[rank as usize * per_rank + *filled] = expert as u16;
                *filled += 1;
                if *filled == per_rank {
                    PeekMut::pop(top);
                } else {
                    top.0 = key(f64::from_bits((top.0 >> 32) as u64) + size, rank);
                }
            }
        }
    }
}

/// Ordered by load (not negative: its bits are ordered as it is), then by number.
fn key(load: f64, number: u32) -> u128 {
    u128::from(load.to_bits()) << 32 | u128::from(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(loads: &[f64], gpus: usize, replicas: usize, expected: &[u16]) {
        let deployment = Deployment { replicas, groups: 1, nodes: 1, gpus };
        let mut slots = vec![0; replicas];
        TensorRtLlm::new(loads.len(), deployment).unwrap().place(loads, &mut slots);
        assert_eq!(slots, expected);
    }

    #[test]
    fn slots_go_largest_first_to_the_lightest_rank_with_room() {
        // 6, 5, 4, 3: rank 0 gets 6, rank 1 gets 5 and 4, rank 0 the rest.
        check(&[3.0, 6.0, 5.0, 4.0], 2, 4, &[1, 0, 2, 3]);
        // The first expert is halved: slots of 5, 5, 3, 2.
        check(&[10.0, 3.0, 2.0], 2, 4, &[0, 1, 0, 2]);
        check(&[9.0, 8.0], 2, 4, &[0, 1, 0, 1]);
    }

    #[test]
    fn equal_slots_are_replicated_from_the_last_and_placed_from_the_first() {
        check(&[2.0, 2.0, 2.0], 2, 4, &[0, 2, 1, 2]);
    }

    #[test]
    fn without_load_slots_are_dealt_evenly() {
        check(&[0.0, 0.0, 0.0], 2, 4, &[0, 0, 1, 2]);
        check(&[1.0, 1.0], 2, 2, &[0, 1]);
    }

    #[test]
    fn two_replicas_may_land_on_one_rank() {
        // Thrice 8/3 and thrice 2.
        check(&[8.0, 6.0], 2, 6, &[0, 0, 1, 0, 1, 1]);
        check(&[9.0, 0.0, 0.0], 2, 6, &[0, 0, 1, 0, 0, 2]);
    }
}
