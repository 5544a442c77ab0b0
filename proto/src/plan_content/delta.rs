//! The difference of a plan to its parent: of the layers that differ, the slots that differ.

use super::full::{expert, plus_one};
use super::{ContentError, PlanId, malformed};
use crate::v1;
use evenkeel_core::plan::{LayerPlan, Plan};

/// `None` when `base` is not the parent, or has another shape.
pub(super) fn write(plan: &Plan, base: &Plan) -> Option<v1::PlanDelta> {
    let is_parent = plan.unit == base.unit && plan.parent == Some((base.epoch, base.digest()));
    let slots = |plan: &Plan| plan.layers.iter().map(|l| l.share.len()).collect::<Vec<_>>();
    if !is_parent || slots(plan) != slots(base) {
        return None;
    }
    let mut delta = v1::PlanDelta::default();
    for (layer, (new, old)) in (0u32..).zip(plan.layers.iter().zip(&base.layers)) {
        let before = delta.gap.len();
        write_layer(new, old, &mut delta);
        let changes = u32::try_from(delta.gap.len() - before).expect("slots of a layer fit 32 bits");
        if changes > 0 {
            delta.layer.push(layer);
            delta.changes.push(changes);
        }
    }
    Some(delta)
}

fn write_layer(new: &LayerPlan, old: &LayerPlan, delta: &mut v1::PlanDelta) {
    let mut last = 0;
    let tables = new.physical_to_logical.iter().zip(&new.share);
    let before = old.physical_to_logical.iter().zip(&old.share);
    for (slot, (after, before)) in (0u32..).zip(tables.zip(before)) {
        if after != before {
            delta.gap.push(slot - last);
            delta.expert_plus_one.push(plus_one(*after.0));
            delta.share.push(*after.1);
            last = slot;
        }
    }
}

/// The child of `base` that the difference leads to; whether it has the digest is checked by the caller.
pub(super) fn read(delta: &v1::PlanDelta, base: &Plan, id: PlanId) -> Result<Plan, ContentError> {
    let (layers, counts) = (delta.layer.len(), delta.changes.len());
    if layers != counts {
        return Err(malformed("changes", format!("has {counts} entries for {layers} layers")));
    }
    let changes: u64 = delta.changes.iter().map(|&changes| u64::from(changes)).sum();
    for (field, length) in [
        ("gap", delta.gap.len()),
        ("expert_plus_one", delta.expert_plus_one.len()),
        ("share", delta.share.len()),
    ] {
        if length as u64 != changes {
            return Err(malformed(field, format!("has {length} entries for {changes} changes")));
        }
    }
    let mut tables = base.layers.clone();
    let (mut from, mut next_layer) = (0, 0);
    for (&layer, &changes) in delta.layer.iter().zip(&delta.changes) {
        let Some(table) = tables.get_mut(layer as usize).filter(|_| layer >= next_layer) else {
            return Err(malformed(
                "layer",
                format!("{layer} is none of {}, or not ascending", base.layers.len()),
            ));
        };
        next_layer = layer + 1;
        let to = from + changes as usize;
        read_layer(delta, from..to, table)?;
        from = to;
    }
    Ok(Plan {
        unit: base.unit.clone(),
        epoch: id.0,
        parent: Some((base.epoch, base.digest())),
        layers: tables,
    })
}

fn read_layer(
    delta: &v1::PlanDelta,
    changes: std::ops::Range<usize>,
    table: &mut LayerPlan,
) -> Result<(), ContentError> {
    let slots = table.share.len();
    let mut slot = 0usize;
    for (ordinal, at) in changes.enumerate() {
        let gap = delta.gap[at] as usize;
        slot = slot.saturating_add(gap);
        if slot >= slots || (ordinal > 0 && gap == 0) {
            return Err(malformed("gap", format!("{gap} leads to slot {slot} of {slots}, or nowhere")));
        }
        table.physical_to_logical[slot] = expert(delta.expert_plus_one[at])?;
        table.share[slot] = delta.share[at];
    }
    Ok(())
}
