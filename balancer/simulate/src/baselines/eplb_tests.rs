use super::*;
use proptest::prelude::*;

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
    check_refused(&loads, Deployment { replicas: 4, ..good }, "baseline_too_few_replicas");
    check_refused(&loads, Deployment { replicas: 10, ..good }, "baseline_not_divisible");
    check_refused(&loads, Deployment { groups: 4, ..good }, "baseline_not_divisible");
    check_refused(&loads, Deployment { gpus: 3, replicas: 9, ..good }, "baseline_not_divisible");
    check_refused(&loads, Deployment { gpus: 0, ..good }, "baseline_not_divisible");
    check_refused(&[vec![1; 6], vec![1; 5]], good, "baseline_uneven_layers");
}

/// The steps as the original takes them: scans, one after another.
mod scans {
    pub(super) fn pack(weights: &[f32], packs: usize) -> Vec<(usize, usize)> {
        let per_pack = weights.len() / packs;
        if per_pack == 1 {
            return (0..weights.len()).map(|item| (item, 0)).collect();
        }
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
        let mut placed = vec![(0, 0); weights.len()];
        let (mut load, mut items) = (vec![0f32; packs], vec![0; packs]);
        for item in order {
            let open = (0..packs).filter(|&pack| items[pack] < per_pack);
            let pack = open.min_by(|&a, &b| load[a].total_cmp(&load[b])).unwrap();
            placed[item] = (pack, items[pack]);
            load[pack] += weights[item];
            items[pack] += 1;
        }
        placed
    }

    pub(super) fn replicate(weights: &[f32], replicas: usize) -> Vec<u16> {
        let mut physical: Vec<u16> = (0..weights.len() as u16).collect();
        let mut count = vec![1; weights.len()];
        while physical.len() < replicas {
            let (mut hottest, mut most) = (0, f32::NEG_INFINITY);
            for (expert, &weight) in weights.iter().enumerate() {
                let per_replica = weight / count[expert] as f32;
                if per_replica > most {
                    (hottest, most) = (expert, per_replica);
                }
            }
            physical.push(hottest as u16);
            count[hottest] += 1;
        }
        physical
    }
}

proptest! {
    /// Small whole numbers, so that equal loads are frequent.
    #[test]
    fn heaps_take_equal_loads_in_the_order_of_scans(
        weights in prop::collection::vec((0u32..6).prop_map(|load| load as f32), 1..40),
        redundant in 0usize..30,
    ) {
        let replicas = weights.len() + redundant;
        let deployment = Deployment { replicas, groups: 1, nodes: 1, gpus: 1 };
        let mut eplb = Eplb::new(weights.len(), deployment).unwrap();
        eplb.weights = weights.clone();
        eplb.replicate(replicas);
        prop_assert_eq!(&eplb.physical, &scans::replicate(&weights, replicas));
        for packs in (1..=weights.len()).filter(|packs| weights.len().is_multiple_of(*packs)) {
            let mut placed = vec![(0, 0); weights.len()];
            Packing::default().pack(&weights, packs, |item, pack, at| placed[item] = (pack, at));
            prop_assert_eq!(placed, scans::pack(&weights, packs));
        }
    }
}
