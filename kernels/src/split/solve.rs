//! The split, on the CPU.

use super::pack::{Segment, SlotKind, SplitPlan};

/// The over-relaxation that converged in the fewest sweeps on the placements of the benchmark.
pub const RELAXATION: f32 = 1.65;
/// The load of a rank that is none.
const FAR: f32 = 1e30;
/// Whole tokens are cut from running sums in sixteenths.
const STEPS: u32 = 16;
/// Bound of Newton's method; sets of lanes only shrink after its first step.
const NEWTON_MAX: u32 = 12;

/// Divides `counts`, `[experts]`, into whole tokens for every slot. `sweeps` of 0 count as 1, and one is exact where
/// the plan has at most one colour. Counts up to 2^24 are taken exactly, larger ones to single precision; in every
/// case the quotas of an expert sum to its count. Counts of up to 2^28 are supported.
pub fn split(plan: &SplitPlan, counts: &[u32], sweeps: u32, relaxation: f32) -> Vec<u32> {
    assert_eq!(counts.len(), plan.experts(), "a count for each expert");
    let mut quotas: Vec<u32> = Vec::with_capacity(plan.slots());
    let mut base = vec![0u32; plan.ranks()];
    let slots_per_rank = plan.slots() / plan.ranks();
    for (slot, kind) in plan.slots.iter().enumerate() {
        let count = if let SlotKind::Single(expert) = kind { counts[usize::from(*expert)] } else { 0 };
        quotas.push(count);
        base[slot / slots_per_rank] += count;
    }
    let mut x: Vec<Vec<Vec<f32>>> = Vec::new();
    for colour in &plan.colours {
        x.push(colour.iter().map(|segment| start(segment, counts, &mut base)).collect());
    }
    let mut loads: Vec<f32> = base.iter().map(|&load| load as f32).collect();
    for sweep in 1..=sweeps.max(1) {
        for (colour, x) in plan.colours.iter().zip(&mut x) {
            for (segment, x) in colour.iter().zip(x) {
                let whole = segment.part.of(counts[usize::from(segment.expert)]);
                let count = whole as f32;
                let others: Vec<f32> = segment
                    .lanes
                    .iter()
                    .zip(&*x)
                    .map(|(lane, x)| loads[usize::from(lane.rank)] - x)
                    .collect();
                let level = level(segment, &others, count, x);
                let plain: Vec<f32> = others.iter().map(|load| (level - load).max(0.0)).collect();
                let next = if sweep < sweeps.max(1) {
                    relaxed(x, &plain, relaxation)
                } else {
                    let cut = whole_tokens(&plain, whole);
                    for (lane, &quota) in segment.lanes.iter().zip(&cut) {
                        quotas[usize::from(lane.slot)] = quota;
                    }
                    cut.into_iter().map(|quota| quota as f32).collect()
                };
                for ((lane, load), next) in segment.lanes.iter().zip(&others).zip(&next) {
                    loads[usize::from(lane.rank)] = load + next;
                }
                *x = next;
            }
        }
    }
    quotas
}

/// What the lanes start with, added to their ranks.
fn start(segment: &Segment, counts: &[u32], base: &mut [u32]) -> Vec<f32> {
    let count = segment.part.of(counts[usize::from(segment.expert)]) as f32;
    let part = segment.lanes.iter().map(|lane| {
        let tokens = (lane.start * count).round_ties_even() as u32;
        base[usize::from(lane.rank)] += tokens;
        tokens as f32
    });
    part.collect()
}

/// The water level of `count` over `loads`.
fn level(segment: &Segment, loads: &[f32], count: f32, x: &[f32]) -> f32 {
    if segment.warp_log <= 3 { sorted_level(loads, count) } else { newton_level(segment, loads, count, x) }
}

/// The least mean over prefixes of the sorted loads.
fn sorted_level(loads: &[f32], count: f32) -> f32 {
    let mut sorted = loads.to_vec();
    sorted.sort_by(f32::total_cmp);
    let mut sum = sorted[0];
    let mut level = count + sum;
    for (n, load) in (2u8..).zip(&sorted[1..]) {
        sum += load;
        level = level.min((count + sum) * (1.0 / f32::from(n)));
    }
    level
}

/// Newton's method on the set of lanes below the level, with the sums of a butterfly over the segment.
fn newton_level(segment: &Segment, loads: &[f32], count: f32, x: &[f32]) -> f32 {
    let mut below: Vec<bool> = x.iter().map(|&x| x > 0.0).collect();
    let mut level = FAR;
    for _ in 0..NEWTON_MAX {
        let members = below.iter().filter(|&&below| below).count();
        let mut sums = vec![0.0f32; 1 << segment.log];
        for ((sum, load), _) in sums.iter_mut().zip(loads).zip(&below).filter(|(_, below)| **below) {
            *sum = *load;
        }
        for q in 0..segment.log {
            sums = (0..sums.len()).map(|lane| sums[lane] + sums[lane ^ (1 << q)]).collect();
        }
        level = if members > 0 { (count + sums[0]) * (1.0 / members as f32) } else { FAR };
        let next: Vec<bool> = loads.iter().map(|&load| load < level).collect();
        if next == below {
            break;
        }
        below = next;
    }
    level
}

/// An over-relaxed step that keeps every part at or above zero. Where that cuts a part, their sum is off until the next
/// steps, which aim at parts that sum to the count; the last step is plain.
fn relaxed(x: &[f32], plain: &[f32], relaxation: f32) -> Vec<f32> {
    x.iter().zip(plain).map(|(x, plain)| (x + relaxation * (plain - x)).max(0.0)).collect()
}

/// Cuts `whole` tokens where the running sums of `parts` round to.
fn whole_tokens(parts: &[f32], whole: u32) -> Vec<u32> {
    let mut sum = 0u32;
    let mut before = 0;
    let last = parts.len() - 1;
    let cut = parts.iter().enumerate().map(|(place, part)| {
        sum = sum.wrapping_add((part * STEPS as f32).round_ties_even() as u32);
        let cut = if place == last { whole } else { ((sum.wrapping_add(STEPS / 2)) / STEPS).min(whole) };
        cut - std::mem::replace(&mut before, cut)
    });
    cut.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SWEEPS: u32 = 20;

    /// Ranks of two slots: `pairs` says which two experts each holds.
    fn plan(experts: usize, pairs: &[(usize, usize)]) -> SplitPlan {
        let mut replicas = vec![0u32; experts];
        pairs.iter().for_each(|&(a, b)| {
            replicas[a] += 1;
            replicas[b] += 1;
        });
        let slot = |expert: usize| (Some(expert), 65536 / replicas[expert]);
        let slots: Vec<_> = pairs.iter().flat_map(|&(a, b)| [slot(a), slot(b)]).collect();
        SplitPlan::new(experts, pairs.len(), &slots).unwrap()
    }

    fn loads(plan: &SplitPlan, quotas: &[u32]) -> Vec<u32> {
        quotas.chunks(plan.slots() / plan.ranks()).map(|rank| rank.iter().sum()).collect()
    }

    #[track_caller]
    fn check(pairs: &[(usize, usize)], counts: &[u32], sweeps: u32, expected: &[u32]) {
        let plan = plan(counts.len(), pairs);
        let quotas = split(&plan, counts, sweeps, RELAXATION);
        assert_eq!(loads(&plan, &quotas), expected, "{quotas:?}");
    }

    #[test]
    fn one_replicated_expert_is_filled_exactly_in_one_sweep() {
        check(&[(0, 1), (0, 2)], &[10, 4, 8], 1, &[11, 11]);
        check(&[(0, 1), (0, 2)], &[10, 0, 20], 1, &[10, 20]);
        check(&[(0, 1), (0, 2), (0, 3)], &[9, 3, 0, 6], 1, &[6, 6, 6]);
        check(&[(0, 1), (0, 2)], &[0, 0, 0], 1, &[0, 0]);
    }

    #[test]
    fn chains_of_experts_reach_the_common_level() {
        // Expert 0 is on ranks 0 and 1, expert 1 on ranks 1 and 2, expert 2 on ranks 2 and 0.
        check(&[(0, 2), (0, 1), (1, 2)], &[300, 0, 0], SWEEPS, &[150, 150, 0]);
        check(&[(0, 2), (0, 1), (1, 2)], &[200, 50, 50], SWEEPS, &[100, 100, 100]);
    }

    #[test]
    fn a_rank_above_the_level_gets_nothing_more() {
        let plan = plan(3, &[(0, 1), (0, 2)]);
        assert_eq!(split(&plan, &[5, 100, 0], 3, RELAXATION), [0, 100, 5, 0]);
    }

    /// Ranks, the expert and share of each slot, counts.
    type Layer = (usize, Vec<(Option<usize>, u32)>, Vec<u32>);

    /// A random layer: the slots of each rank, every expert somewhere.
    fn layer() -> impl Strategy<Value = Layer> {
        (2usize..40, 2usize..40, 0usize..60).prop_flat_map(|(ranks, experts, extra)| {
            let slots_per_rank = (experts + extra).div_ceil(ranks);
            let slots = ranks * slots_per_rank;
            let held = prop::collection::vec(0..experts, slots);
            (Just(ranks), held, prop::collection::vec(0u32..5000, experts)).prop_map(
                |(ranks, mut held, counts)| {
                    (0..counts.len()).for_each(|expert| held[expert] = expert);
                    let slots = held.into_iter().map(|expert| (Some(expert), 1000)).collect();
                    (ranks, slots, counts)
                },
            )
        })
    }

    proptest! {
        #[test]
        fn every_token_gets_a_slot_of_its_expert((ranks, slots, counts) in layer(), sweeps in 1u32..12) {
            let Ok(plan) = SplitPlan::new(counts.len(), ranks, &slots) else { return Ok(()) };
            let quotas = split(&plan, &counts, sweeps, RELAXATION);
            let mut given = vec![0; counts.len()];
            for ((expert, _), quota) in slots.iter().zip(&quotas) {
                given[expert.unwrap()] += quota;
            }
            prop_assert_eq!(given, counts);
        }

        #[test]
        fn more_sweeps_are_no_worse_and_none_beats_the_bound((ranks, slots, counts) in layer()) {
            // No split is better than the mean, and none better than the load that a single rank cannot give away.
            let Ok(plan) = SplitPlan::new(counts.len(), ranks, &slots) else { return Ok(()) };
            let most = |sweeps| loads(&plan, &split(&plan, &counts, sweeps, RELAXATION)).into_iter().max().unwrap();
            let slots_per_rank = slots.len() / ranks;
            let ranks_of = |expert: usize| {
                let held = slots.iter().enumerate().filter(move |(_, slot)| slot.0 == Some(expert));
                held.map(|(slot, _)| slot / slots_per_rank).collect::<std::collections::BTreeSet<_>>()
            };
            let mut own = vec![0u32; ranks];
            for (expert, &count) in counts.iter().enumerate() {
                if let [only] = ranks_of(expert).into_iter().collect::<Vec<_>>()[..] {
                    own[only] += count;
                }
            }
            let bound = counts.iter().sum::<u32>().div_ceil(ranks as u32).max(own.into_iter().max().unwrap());
            prop_assert!(most(200) >= bound);
            // Rounding costs less than a token a replica.
            prop_assert!(most(200) <= most(1) + slots_per_rank as u32);
        }
    }
}
