//! DeepSeek's expert-parallelism load balancer (EPLB): the placement that vLLM and SGLang use as well.
//!
//! Written anew after github.com/deepseek-ai/EPLB (`eplb.py`); it reproduces that project's published example.
//! Arithmetic is `f32`, as there. Three steps: groups of experts are packed to nodes; within each node the
//! redundant slots go one by one to the expert with the largest load per replica; the replicas are packed to
//! the node's GPUs. When the groups do not divide over the nodes, the whole unit counts as one node and one
//! group. Replicas share their expert's load evenly, and two of them may land on one GPU.

use evenkeel_core::plan::max_over_mean;

/// Why no placement exists for such a deployment. `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EplbError {
    /// A count that has to divide another does not.
    #[error(
        "{what} is {value}: must be a multiple of {divisor_name}, which is {divisor}; choose another {what}"
    )]
    NotDivisible {
        /// The count.
        what: &'static str,
        /// Its value.
        value: usize,
        /// What has to divide it.
        divisor_name: &'static str,
        /// The divisor.
        divisor: usize,
    },
    /// Fewer slots than experts.
    #[error("replicas is {replicas}: must be at least {experts}, the number of experts")]
    TooFewReplicas {
        /// Slots.
        replicas: usize,
        /// Experts.
        experts: usize,
    },
    /// A layer with another number of loads than the first.
    #[error("layer {layer} has {have} loads: the first layer has {need}")]
    UnevenLayers {
        /// The layer.
        layer: usize,
        /// Its loads.
        have: usize,
        /// Loads of the first layer.
        need: usize,
    },
}

impl EplbError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            EplbError::NotDivisible { .. } => "eplb_not_divisible",
            EplbError::TooFewReplicas { .. } => "eplb_too_few_replicas",
            EplbError::UnevenLayers { .. } => "eplb_uneven_layers",
        }
    }
}

/// The deployment, named as in EPLB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deployment {
    /// Physical slots of a layer, a multiple of `gpus`.
    pub replicas: usize,
    /// Expert groups of the model; 1 when there are none.
    pub groups: usize,
    /// Nodes.
    pub nodes: usize,
    /// GPUs, a multiple of `nodes`.
    pub gpus: usize,
}

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
pub fn rebalance_experts(loads: &[Vec<u64>], deployment: Deployment) -> Result<EplbPlacement, EplbError> {
    let experts = loads.first().map_or(0, Vec::len);
    if let Some((layer, row)) = loads.iter().enumerate().find(|(_, row)| row.len() != experts) {
        return Err(EplbError::UnevenLayers { layer, have: row.len(), need: experts });
    }
    // Groups that do not divide over the nodes: EPLB's global policy.
    let effective = match deployment.nodes > 0 && deployment.groups.is_multiple_of(deployment.nodes) {
        true => deployment,
        false => Deployment { groups: 1, nodes: 1, ..deployment },
    };
    validate(experts, effective)?;
    let place = |row: &Vec<u64>| {
        let weights: Vec<f32> = row.iter().map(|&load| load as f32).collect();
        place_layer(&weights, effective)
    };
    Ok(EplbPlacement { physical_to_logical: loads.iter().map(place).collect(), gpus: deployment.gpus })
}

fn validate(experts: usize, d: Deployment) -> Result<(), EplbError> {
    let divides = |what, value: usize, divisor_name, divisor: usize| {
        if divisor > 0 && value.is_multiple_of(divisor) {
            Ok(())
        } else {
            Err(EplbError::NotDivisible { what, value, divisor_name, divisor })
        }
    };
    divides("experts", experts, "groups", d.groups)?;
    divides("gpus", d.gpus, "nodes", d.nodes)?;
    divides("replicas", d.replicas, "gpus", d.gpus)?;
    if d.replicas < experts {
        return Err(EplbError::TooFewReplicas { replicas: d.replicas, experts });
    }
    Ok(())
}

/// Packs items into packs of equally many: the heaviest next item goes to the lightest pack with room.
/// Returns (pack, position in the pack) of every item.
fn balanced_packing(weights: &[f32], packs: usize) -> Vec<(usize, usize)> {
    let per_pack = weights.len() / packs;
    if per_pack == 1 {
        return (0..weights.len()).map(|item| (item, 0)).collect();
    }
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    let mut placed = vec![(0, 0); weights.len()];
    let mut load = vec![0f32; packs];
    let mut items = vec![0; packs];
    for item in order {
        let pack = (0..packs)
            .filter(|&pack| items[pack] < per_pack)
            .min_by(|&a, &b| load[a].total_cmp(&load[b]))
            .expect("packs have room for all items");
        placed[item] = (pack, items[pack]);
        load[pack] += weights[item];
        items[pack] += 1;
    }
    placed
}

/// The expert of every one of `replicas` slots (each expert once, then the redundant ones), and every
/// expert's number of replicas.
fn replicate_experts(weights: &[f32], replicas: usize) -> (Vec<usize>, Vec<usize>) {
    let mut physical: Vec<usize> = (0..weights.len()).collect();
    let mut count = vec![1usize; weights.len()];
    while physical.len() < replicas {
        let (mut hottest, mut most) = (0, f32::NEG_INFINITY);
        for (expert, &weight) in weights.iter().enumerate() {
            let per_replica = weight / count[expert] as f32;
            if per_replica > most {
                (hottest, most) = (expert, per_replica);
            }
        }
        physical.push(hottest);
        count[hottest] += 1;
    }
    (physical, count)
}

fn place_layer(weights: &[f32], d: Deployment) -> Vec<u16> {
    let group_size = weights.len() / d.groups;
    let groups_per_node = d.groups / d.nodes;
    // Experts in the order of their node: whole groups, packed by load.
    let group_load: Vec<f32> = weights.chunks(group_size).map(|group| group.iter().sum()).collect();
    let mut node_order = vec![0; weights.len()];
    for (group, (node, position)) in balanced_packing(&group_load, d.nodes).into_iter().enumerate() {
        let start = (node * groups_per_node + position) * group_size;
        for at in 0..group_size {
            node_order[start + at] = group * group_size + at;
        }
    }
    let mut slots = Vec::with_capacity(d.replicas);
    for experts in node_order.chunks(weights.len() / d.nodes) {
        let on_node: Vec<f32> = experts.iter().map(|&expert| weights[expert]).collect();
        let held = place_node(&on_node, d.replicas / d.nodes, d.gpus / d.nodes);
        slots.extend(held.into_iter().map(|at| u16::try_from(experts[at]).expect("experts fit 16 bits")));
    }
    slots
}

/// The expert (of the node's own numbering) in each slot of one node.
fn place_node(weights: &[f32], replicas: usize, gpus: usize) -> Vec<usize> {
    let (physical, count) = replicate_experts(weights, replicas);
    let load: Vec<f32> = physical.iter().map(|&expert| weights[expert] / count[expert] as f32).collect();
    let mut slots = vec![0; replicas];
    for (at, (gpu, position)) in balanced_packing(&load, gpus).into_iter().enumerate() {
        slots[gpu * (replicas / gpus) + position] = physical[at];
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_example_is_reproduced() {
        let loads = vec![
            vec![90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
            vec![20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
        ];
        let placement =
            rebalance_experts(&loads, Deployment { replicas: 16, groups: 4, nodes: 2, gpus: 8 }).unwrap();
        assert_eq!(
            placement.physical_to_logical,
            [
                [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
                [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]
            ]
        );
    }

    #[test]
    fn groups_that_do_not_divide_over_nodes_are_ignored() {
        let loads = vec![vec![5, 1, 1, 1, 1, 1]];
        let global = Deployment { replicas: 8, groups: 1, nodes: 1, gpus: 4 };
        let undivided = Deployment { groups: 3, nodes: 2, ..global };
        assert_eq!(rebalance_experts(&loads, undivided), rebalance_experts(&loads, global));
    }

    #[test]
    fn imbalance_counts_both_replicas_on_one_gpu() {
        let placement = EplbPlacement { physical_to_logical: vec![vec![0, 0, 1, 2]], gpus: 2 };
        assert_eq!(placement.imbalance(0, &[6, 1, 1]), 1.5);
        assert_eq!(placement.imbalance(0, &[0, 0, 0]), 1.0);
    }

    #[track_caller]
    fn check_refused(loads: &[Vec<u64>], deployment: Deployment, code: &str) {
        assert_eq!(rebalance_experts(loads, deployment).unwrap_err().code(), code);
    }

    #[test]
    fn impossible_deployments_are_refused() {
        let good = Deployment { replicas: 8, groups: 2, nodes: 2, gpus: 4 };
        let loads = vec![vec![1; 6]];
        check_refused(&loads, Deployment { replicas: 4, ..good }, "eplb_too_few_replicas");
        check_refused(&loads, Deployment { replicas: 10, ..good }, "eplb_not_divisible");
        check_refused(&loads, Deployment { groups: 4, ..good }, "eplb_not_divisible");
        check_refused(&loads, Deployment { gpus: 3, replicas: 9, ..good }, "eplb_not_divisible");
        check_refused(&loads, Deployment { gpus: 0, ..good }, "eplb_not_divisible");
        check_refused(&[vec![1; 6], vec![1; 5]], good, "eplb_uneven_layers");
    }
}
