//! The order of the stages under each overlap: one sequence in which every stage comes after what it needs, and in which the
//! stages of either resource stand in the order in which that resource runs them.

use super::{Overlap, Stage};
use Stage::{AttentionBefore, AttentionCore, Combine, Dispatch, Experts, Shared};

/// A stage of a microbatch in a layer; the layer is relative to the turn, -1 or 0 or 1.
type Turn = (Stage, usize, isize);

/// One after the other.
const SERIAL: [Turn; 6] = [
    (AttentionBefore, 0, 0),
    (AttentionCore, 0, 0),
    (Dispatch, 0, 0),
    (Shared, 0, 0),
    (Experts, 0, 0),
    (Combine, 0, 0),
];

/// Cores: ATTN 1, SHARED 0, ATTN 0, MLP 1, MLP 0, SHARED 1. Network: COMBINE 0, DISPATCH 1, DISPATCH 0, COMBINE 1. Microbatch 0
/// is half a layer behind: its shared expert and its combine are the layer's before.
const DUAL_BATCH: [Turn; 12] = [
    (Combine, 0, -1),
    (AttentionBefore, 1, 0),
    (AttentionCore, 1, 0),
    (Shared, 0, -1),
    (Dispatch, 1, 0),
    (AttentionBefore, 0, 0),
    (AttentionCore, 0, 0),
    (Experts, 1, 0),
    (Dispatch, 0, 0),
    (Experts, 0, 0),
    (Combine, 1, 0),
    (Shared, 1, 0),
];

/// Cores: SHARED 0, ATTN-0 1, MLP 0, ATTN-1 1, SHARED 1, ATTN-0 0, MLP 1, ATTN-1 0. Network: DISPATCH 0, COMBINE 0, DISPATCH 1,
/// COMBINE 1. Microbatch 0 is half a layer ahead: its attention is the next layer's.
const FIVE_STAGE: [Turn; 12] = [
    (Dispatch, 0, 0),
    (Shared, 0, 0),
    (AttentionBefore, 1, 0),
    (Experts, 0, 0),
    (Combine, 0, 0),
    (AttentionCore, 1, 0),
    (Dispatch, 1, 0),
    (Shared, 1, 0),
    (AttentionBefore, 0, 1),
    (Experts, 1, 0),
    (Combine, 1, 0),
    (AttentionCore, 0, 1),
];

/// Stages of `layers` layers with their microbatch and layer. `microbatches` is 1 or 2, and 2 under an overlap.
pub(super) fn order(
    overlap: Overlap,
    microbatches: usize,
    layers: usize,
) -> impl Iterator<Item = (Stage, usize, usize)> {
    assert!((1..=2).contains(&microbatches), "a rank runs one or two microbatches");
    assert!(overlap == Overlap::None || microbatches == 2, "an overlap takes two microbatches");
    let (turn, copies): (&'static [Turn], usize) = match overlap {
        Overlap::None => (&SERIAL, microbatches),
        Overlap::DualBatch => (&DUAL_BATCH, 1),
        Overlap::FiveStage => (&FIVE_STAGE, 1),
    };
    // One turn before and one after the layers hold what is half a layer ahead or behind.
    (-1..=layers as isize).flat_map(move |at| {
        (0..copies).flat_map(move |copy| {
            turn.iter().filter_map(move |&(stage, microbatch, shift)| {
                let layer = usize::try_from(at + shift).ok().filter(|&layer| layer < layers)?;
                Some((stage, microbatch + copy, layer))
            })
        })
    })
}
