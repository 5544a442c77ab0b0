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
