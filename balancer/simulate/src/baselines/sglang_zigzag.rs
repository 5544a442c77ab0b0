//! SGLang's vectorised planner (`deepseek_vec`): replication with two candidates in view, then a zig-zag deal.
//!
//! Written anew after github.com/sgl-project/sglang (`srt/eplb/eplb_algorithms/deepseek_vec.py`), for one step
//! of statistics; arithmetic is `f32`, as there. Groups are packed to nodes as in EPLB. A redundant slot goes
//! to the expert whose replication leaves the lowest maximum; sums that the original makes unique by a small
//! addend can be equal after rounding, and then it takes the node's first expert, and so does this. Slots are
//! sorted by load and dealt to the GPUs forth and back: the first round in order, the second in reverse.

use super::deployment::{Deployment, DeploymentError, divides};

/// The original's addend by which equal loads differ.
const DISTINCT: f32 = 1e-4;

/// Places one layer after another, in the same memory.
#[derive(Debug, Clone)]
pub struct SglangZigzag {
    experts: usize,
    deployment: Deployment,
    node_order: Vec<u16>,
    /// `[experts]` in the order of nodes.
    weights: Vec<f32>,
    count: Vec<u32>,
    /// `[experts of a node]`: what one replica carries, made unique.
    score: Vec<f32>,
    /// `[replicas of a node]`, heaviest first: complement of the load's bits, then the slot before the deal.
    order: Vec<u64>,
    physical: Vec<u16>,
}

impl SglangZigzag {
    /// For layers of `experts` experts.
    pub fn new(experts: usize, deployment: Deployment) -> Result<Self, DeploymentError> {
        let deployment = deployment.effective();
        deployment.validate(experts)?;
        divides("redundant experts", deployment.replicas - experts, "nodes", deployment.nodes)?;
        Ok(Self {
            experts,
            deployment,
            node_order: Vec::new(),
            weights: Vec::new(),
            count: Vec::new(),
            score: Vec::new(),
            order: Vec::new(),
            physical: Vec::new(),
        })
    }

    /// Writes the expert of every slot; `loads` is `[experts]`, not negative; `slots` is `[replicas]`.
    pub fn place(&mut self, loads: &[f32], slots: &mut [u16]) {
        assert_eq!((loads.len(), slots.len()), (self.experts, self.deployment.replicas));
        let Deployment { replicas, nodes, gpus, .. } = self.deployment;
        self.order_by_node(loads);
        let per_node = loads.len() / nodes;
        for (node, slots) in slots.chunks_mut(replicas / nodes).enumerate() {
            let first = node * per_node;
            self.replicate(first, per_node, replicas / nodes);
            let experts = &self.node_order[first..first + per_node];
            let expert = |slot: u64| experts[usize::from(self.physical[slot as u32 as usize])];
            let (on_node, per_gpu) = (gpus / nodes, replicas / gpus);
            for (round, dealt) in self.order.chunks(on_node).enumerate() {
                for (at, &slot) in dealt.iter().enumerate() {
                    let gpu = if round % 2 == 0 { at } else { on_node - 1 - at };
                    slots[gpu * per_gpu + round] = expert(slot);
                }
            }
        }
    }

    /// Whole groups, heaviest first, to the node with the least load that has room.
    fn order_by_node(&mut self, loads: &[f32]) {
        let Deployment { groups, nodes, .. } = self.deployment;
        let (size, per_node) = (loads.len() / groups, groups / nodes);
        let group_load: Vec<f32> = loads.chunks(size).map(|group| group.iter().sum()).collect();
        let mut heaviest: Vec<usize> = (0..groups).collect();
        heaviest.sort_by(|&a, &b| group_load[b].total_cmp(&group_load[a]));
        let (mut load, mut filled) = (vec![0f32; nodes], vec![0; nodes]);
        self.node_order.resize(loads.len(), 0);
        for group in heaviest {
            let open = (0..nodes).filter(|&node| filled[node] < per_node);
            let node =
                open.min_by(|&a, &b| load[a].total_cmp(&load[b])).expect("nodes have room for all groups");
            let start = (node * per_node + filled[node]) * size;
            for at in 0..size {
                self.node_order[start + at] = (group * size + at) as u16;
            }
            load[node] += group_load[group];
            filled[node] += 1;
        }
        self.weights.clear();
        self.weights.extend(self.node_order.iter().map(|&expert| loads[usize::from(expert)]));
    }

    /// The slots of one node before the deal, sorted by load into `order`.
    fn replicate(&mut self, first: usize, experts: usize, replicas: usize) {
        let weights = &self.weights[first..first + experts];
        // The addend counts experts over all nodes.
        let distinct = |at: usize| weights[at] + (first + at) as f32 * DISTINCT;
        self.count.clear();
        self.count.resize(experts, 1);
        self.score.clear();
        self.score.extend((0..experts).map(distinct));
        self.physical.clear();
        self.physical.extend((0..).take(experts));
        for _ in experts..replicas {
            let (mut top, mut most, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
            for (at, &score) in self.score.iter().enumerate() {
                if score > most {
                    (top, second, most) = (at, most, score);
                } else if score > second {
                    second = score;
                }
            }
            let after = second.max(weights[top] / (self.count[top] + 1) as f32);
            let chosen = if after < most { top } else { 0 };
            self.physical.push(chosen as u16);
            self.count[chosen] += 1;
            self.score[chosen] = distinct(chosen) / self.count[chosen] as f32;
        }
        self.order.clear();
        let load = |&at: &u16| weights[usize::from(at)] / self.count[usize::from(at)] as f32;
        let key = |(slot, at): (u64, &u16)| u64::from(!load(at).to_bits()) << 32 | slot;
        self.order.extend((0u64..).zip(&self.physical).map(key));
        self.order.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(loads: &[f32], deployment: Deployment, expected: &[u16]) {
        let mut slots = vec![0; deployment.replicas];
        SglangZigzag::new(loads.len(), deployment).unwrap().place(loads, &mut slots);
        assert_eq!(slots, expected);
    }

    fn one_node(gpus: usize, replicas: usize) -> Deployment {
        Deployment { replicas, groups: 1, nodes: 1, gpus }
    }

    #[test]
    fn slots_are_dealt_forth_and_back() {
        // 6 5 | 4 3 | 2 1: the first GPU gets 6, 3, 2.
        check(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], one_node(2, 6), &[5, 2, 1, 4, 3, 0]);
        // Four slots of 9 / 4, then 2 and 1: the third round is in order again.
        check(&[9.0, 2.0, 1.0], one_node(2, 6), &[0, 0, 1, 0, 0, 2]);
    }

    #[test]
    fn groups_stay_on_a_node() {
        let two = Deployment { replicas: 8, groups: 2, nodes: 2, gpus: 4 };
        // Group 1 is the heavier one and goes to node 0.
        check(&[1.0, 2.0, 3.0, 4.0, 5.0, 9.0], two, &[4, 3, 5, 5, 1, 0, 2, 2]);
    }

    #[test]
    fn a_node_without_distinct_loads_replicates_its_first_expert() {
        // So large that the addend is lost in rounding: replicating either leaves the same maximum.
        check(&[1e7, 1e7], one_node(1, 3), &[1, 0, 0]);
        check(&[1.0, 1e7, 1e7], one_node(1, 4), &[1, 2, 0, 0]);
        // Here it is not: the higher number is taken to be the larger load.
        check(&[1.0, 1.0], one_node(1, 3), &[0, 1, 1]);
    }
}
