//! DeepSeek's expert-parallelism load balancer (EPLB): the placement that vLLM and SGLang use as well.
//!
//! Written anew after github.com/deepseek-ai/EPLB (`eplb.py`); it reproduces that project's published example.
//! Arithmetic is `f32`, as there. Three steps: groups of experts are packed to nodes; within each node the
//! redundant slots go one by one to the expert with the largest load per replica; the replicas are packed to
//! the node's GPUs. When the groups do not divide over the nodes, the whole unit counts as one node and one
//! group. Replicas share their expert's load evenly, and two of them may land on one GPU.
//!
//! Where the original scans for the largest or the least, this keeps heaps; equal values are taken in the
//! same order, lowest number first, so the placement is the same.

pub use super::deployment::{Deployment, DeploymentError};
use evenkeel_core::plan::max_over_mean;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A placement by EPLB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EplbPlacement {
    /// `[layers][replicas]`: the expert in each slot; GPU `g` owns the block `[g * n, (g + 1) * n)` with
    /// `n = replicas / gpus`. EPLB's `phy2log`.
    pub physical_to_logical: Vec<Vec<u16>>,
    gpus: usize,
}

impl EplbPlacement {
    /// Max over mean of the GPU loads of one layer when experts carry `loads` and replicas share evenly.
    pub fn imbalance(&self, layer: usize, loads: &[u64]) -> f64 {
        let slots = &self.physical_to_logical[layer];
        let mut count = vec![0u32; loads.len()];
        slots.iter().for_each(|&expert| count[usize::from(expert)] += 1);
        let part = |&expert: &u16| loads[usize::from(expert)] as f64 / f64::from(count[usize::from(expert)]);
        let gpus: Vec<f64> =
            slots.chunks(slots.len() / self.gpus).map(|held| held.iter().map(part).sum()).collect();
        max_over_mean(&gpus)
    }
}

/// Places the experts of every layer: `loads` is `[layers][experts]`.
pub fn rebalance_experts(
    loads: &[Vec<u64>],
    deployment: Deployment,
) -> Result<EplbPlacement, DeploymentError> {
    let experts = loads.first().map_or(0, Vec::len);
    if let Some((layer, row)) = loads.iter().enumerate().find(|(_, row)| row.len() != experts) {
        return Err(DeploymentError::UnevenLayers { layer, have: row.len(), need: experts });
    }
    let mut eplb = Eplb::new(experts, deployment)?;
    let mut weights = Vec::with_capacity(experts);
    let mut place = |row: &Vec<u64>| {
        weights.clear();
        weights.extend(row.iter().map(|&load| load as f32));
        let mut slots = vec![0; deployment.replicas];
        eplb.place(&weights, &mut slots);
        slots
    };
    Ok(EplbPlacement { physical_to_logical: loads.iter().map(&mut place).collect(), gpus: deployment.gpus })
}

/// Places one layer after another, in the same memory.
#[derive(Debug, Clone)]
pub struct Eplb {
    experts: usize,
    deployment: Deployment,
    packing: Packing,
    /// `[groups]`: load.
    group_load: Vec<f32>,
    /// `[experts]`: the experts in the order of their nodes, whole groups together.
    node_order: Vec<u16>,
    /// `[experts of a node]`.
    weights: Vec<f32>,
    /// `[replicas of a node]`: the node's own number of the expert, and what one replica carries.
    physical: Vec<u16>,
    replica_load: Vec<f32>,
    count: Vec<u32>,
    hottest: BinaryHeap<u64>,
}

impl Eplb {
    /// For layers of `experts` experts.
    pub fn new(experts: usize, deployment: Deployment) -> Result<Self, DeploymentError> {
        let deployment = deployment.effective();
        deployment.validate(experts)?;
        Ok(Self {
            experts,
            deployment,
            packing: Packing::default(),
            group_load: Vec::new(),
            node_order: Vec::new(),
            weights: Vec::new(),
            physical: Vec::new(),
            replica_load: Vec::new(),
            count: Vec::new(),
            hottest: BinaryHeap::new(),
        })
    }

    /// Writes the expert of every slot; `weights` is `[experts]`, not negative; `slots` is `[replicas]`.
    pub fn place(&mut self, weights: &[f32], slots: &mut [u16]) {
        assert_eq!((weights.len(), slots.len()), (self.experts, self.deployment.replicas));
        let Deployment { replicas, nodes, gpus, .. } = self.deployment;
        self.order_by_node(weights);
        let (per_node, per_gpu) = (weights.len() / nodes, replicas / gpus);
        for (node, slots) in slots.chunks_mut(replicas / nodes).enumerate() {
            let experts = node * per_node..(node + 1) * per_node;
            self.weights.clear();
            self.weights
                .extend(self.node_order[experts.clone()].iter().map(|&expert| weights[usize::from(expert)]));
            self.replicate(replicas / nodes);
            let (physical, experts) = (&self.physical, &self.node_order[experts]);
            self.packing.pack(&self.replica_load, gpus / nodes, |item, pack, position| {
                slots[pack * per_gpu + position] = experts[usize::from(physical[item])];
            });
        }
    }

    /// Whole groups are packed to nodes by their load.
    fn order_by_node(&mut self, weights: &[f32]) {
        let Deployment { groups, nodes, .. } = self.deployment;
        let (size, per_node) = (weights.len() / groups, groups / nodes);
        self.group_load.clear();
        self.group_load.extend(weights.chunks(size).map(|group| group.iter().sum::<f32>()));
        self.node_order.resize(weights.len(), 0);
        let order = &mut self.node_order;
        self.packing.pack(&self.group_load, nodes, |group, node, position| {
            let start = (node * per_node + position) * size;
            for at in 0..size {
                order[start + at] = (group * size + at) as u16;
            }
        });
    }

    /// The expert of every one of `replicas` slots (each expert once, then the redundant ones), and the
    /// load of each.
    fn replicate(&mut self, replicas: usize) {
        let experts = self.weights.len();
        self.count.clear();
        self.count.resize(experts, 1);
        self.physical.clear();
        self.physical.extend((0..).take(experts));
        self.hottest.clear();
        // The largest load first, among equals the lowest number.
        let key = |load: f32, expert: u32| ascending(load) | u64::from(!expert);
        self.hottest.extend((0u32..).zip(&self.weights).map(|(expert, &load)| key(load, expert)));
        for _ in experts..replicas {
            let mut top = self.hottest.peek_mut().expect("a node has experts");
            let expert = !(*top as u32);
            let at = expert as usize;
            self.physical.push(expert as u16);
            self.count[at] += 1;
            *top = key(self.weights[at] / self.count[at] as f32, expert);
        }
        let load = |&expert: &u16| {
            let at = usize::from(expert);
            self.weights[at] / self.count[at] as f32
        };
        self.replica_load.clear();
        self.replica_load.extend(self.physical.iter().map(load));
    }
}

/// The bits of a load that is not negative are ordered as the load; they leave the lower half for a number.
fn ascending(load: f32) -> u64 {
    u64::from(load.to_bits()) << 32
}

/// Packs items into packs of equally many: the heaviest next item goes to the lightest pack with room.
#[derive(Debug, Clone, Default)]
struct Packing {
    order: Vec<u64>,
    lightest: BinaryHeap<Reverse<u64>>,
    filled: Vec<usize>,
}

impl Packing {
    /// Calls `put(item, pack, position in the pack)` for every item.
    fn pack(&mut self, weights: &[f32], packs: usize, mut put: impl FnMut(usize, usize, usize)) {
        let per_pack = weights.len() / packs;
        if per_pack == 1 {
            (0..weights.len()).for_each(|item| put(item, item, 0));
            return;
        }
        self.order.clear();
        // Heaviest first, equal ones by number: the number makes every key unique.
        let heaviest = |load: f32| !ascending(load) & !u64::from(u32::MAX);
        self.order.extend((0u64..).zip(weights).map(|(item, &load)| heaviest(load) | item));
        self.order.sort_unstable();
        self.filled.clear();
        self.filled.resize(packs, 0);
        self.lightest.clear();
        self.lightest.extend((0..packs as u64).map(Reverse));
        for &key in &self.order {
            let item = key as u32 as usize;
            let mut top = self.lightest.peek_mut().expect("packs have room for all items");
            let pack = top.0 as u32;
            let filled = &mut self.filled[pack as usize];
            put(item, pack as usize, *filled);
            *filled += 1;
            if *filled == per_pack {
                std::collections::binary_heap::PeekMut::pop(top);
            } else {
                let load = f32::from_bits((top.0 >> 32) as u32) + weights[item];
                top.0 = ascending(load) | u64::from(pack);
            }
        }
    }
}

#[cfg(test)]
#[path = "eplb_tests.rs"]
mod tests;
