//! The plan in service, seen from GPUs that may have changed since it was made.

use crate::expert_files::{PlanTable, Ranks};
use evenkeel_core::ids::ExpertId;

/// `[layers][slots]` of the GPUs as they are now: GPU by GPU what the plan has there. A GPU that the plan does not know
/// begins empty; what a GPU has no slot for any more is gone. Where the file does not tell the plan's GPUs, its slots
/// are taken as they are.
pub(super) fn on_gpus(plan: &PlanTable, now: &Ranks) -> Vec<Vec<Option<ExpertId>>> {
    match &plan.ranks {
        Some(then) if then.slots != now.slots => {
            plan.physical_to_logical.iter().map(|row| layer_on_gpus(row, &then.slots, &now.slots)).collect()
        }
        _ => plan.physical_to_logical.clone(),
    }
}

fn layer_on_gpus(row: &[Option<ExpertId>], then: &[u16], now: &[u16]) -> Vec<Option<ExpertId>> {
    let mut rest = row;
    let mut held = Vec::new();
    for (rank, &slots) in now.iter().enumerate() {
        let (old, after) = rest.split_at(then.get(rank).copied().unwrap_or(0).into());
        rest = after;
        held.extend(fitted(old, slots.into()));
    }
    held
}

/// Experts keep their slots; those beyond the last slot take empty ones, the first ones first.
fn fitted(old: &[Option<ExpertId>], slots: usize) -> Vec<Option<ExpertId>> {
    let (stay, beyond) = old.split_at(slots.min(old.len()));
    let mut held = stay.to_vec();
    held.resize(slots, None);
    let empty = held.iter_mut().filter(|slot| slot.is_none());
    empty.zip(beyond.iter().flatten()).for_each(|(slot, expert)| *slot = Some(*expert));
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(row: &[i32], then: &[u16], now: &[u16], expected: &[i32]) {
        let held = |row: &[i32]| -> Vec<Option<ExpertId>> {
            row.iter().map(|&e| u16::try_from(e).ok().map(ExpertId)).collect()
        };
        assert_eq!(layer_on_gpus(&held(row), then, now), held(expected));
    }

    #[test]
    fn gpus_keep_what_they_hold_as_far_as_it_fits() {
        check(&[0, 1, 2, 3], &[2, 2], &[2, 2, 2], &[0, 1, 2, 3, -1, -1]);
        check(&[0, 1, 2, 3], &[2, 2], &[0, 2], &[2, 3]);
        check(&[0, 1, 2, 3], &[2, 2], &[2], &[0, 1]);
        check(&[0, 1, 2, 3], &[2, 2], &[3, 1], &[0, 1, -1, 2]);
        check(&[0, -1, 5, 3], &[3, 1], &[2, 2], &[0, 5, 3, -1]);
    }
}
