//! A weighted split on engines that take the replica of a token from a table, entry after entry or at random: an
//! expert's row is filled with several entries per replica, in proportion to the shares.

use super::error::{FileError, Place};
use super::plan_table::PlanTable;

/// Expanded tables.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Expanded {
    /// `[layers][experts][entries]`: physical slots.
    pub(crate) rows: Vec<Vec<Vec<i64>>>,
    /// Largest difference between a share and the part of the entries that the slot got.
    pub(crate) error_max: f64,
    /// The mean over replicated experts of each one's largest difference.
    pub(crate) error_mean: f64,
}

impl Expanded {
    /// All rows equally long, filled up by -1.
    pub(super) fn padded(&self) -> Vec<Vec<Vec<i64>>> {
        let longest = self.rows.iter().flatten().map(Vec::len).max().unwrap_or(0);
        let mut rows = self.rows.clone();
        rows.iter_mut().flatten().for_each(|row| row.resize(longest, -1));
        rows
    }
}

/// Fills at most `entries` entries for every expert: as few as come nearest to its shares. 3:1 needs four.
pub(crate) fn expand(table: &PlanTable, entries: usize) -> Expanded {
    let experts = table.experts();
    let share = table.effective_share();
    let (mut error_max, mut error_sum, mut replicated) = (0f64, 0.0, 0usize);
    let mut layer = |(held, share): (&Vec<Option<evenkeel_core::ids::ExpertId>>, &Vec<f64>)| {
        let mut parts: Vec<Vec<(i64, f64)>> = vec![Vec::new(); experts];
        for (slot, (held, part)) in (0..).zip(held.iter().zip(share)) {
            if let Some(expert) = held {
                parts[expert.index()].push((slot, *part));
            }
        }
        let mut row = |parts: &Vec<(i64, f64)>| {
            if parts.len() < 2 {
                return parts.iter().map(|(slot, _)| *slot).collect();
            }
            let (counts, error) = nearest(parts, entries);
            error_max = error_max.max(error);
            error_sum += error;
            replicated += 1;
            interleave(parts, &counts)
        };
        parts.iter().map(&mut row).collect()
    };
    let rows = table.physical_to_logical.iter().zip(&share).map(&mut layer).collect();
    Expanded { rows, error_max, error_mean: error_sum / replicated.max(1) as f64 }
}

/// Counts per replica, of at most `entries` together, whose parts come nearest to the shares; and how far the worst
/// is. A finer row is taken only if it is nearer by more than rounding.
fn nearest(parts: &[(i64, f64)], entries: usize) -> (Vec<usize>, f64) {
    let error = |counts: &[usize], of: usize| {
        parts
            .iter()
            .zip(counts)
            .map(|((_, part), count)| (*count as f64 / of as f64 - part).abs())
            .fold(0.0, f64::max)
    };
    let mut best = (Vec::new(), f64::INFINITY);
    for of in 1..=entries {
        let counts = apportion(parts, of);
        let error = error(&counts, of);
        if error < best.1 - 1e-9 {
            best = (counts, error);
        }
    }
    best
}

/// Whole entries that sum to `entries`: rounded down, and the rest to the largest remainders (the first of equals).
fn apportion(parts: &[(i64, f64)], entries: usize) -> Vec<usize> {
    let exact: Vec<f64> = parts.iter().map(|(_, part)| part * entries as f64).collect();
    let mut counts: Vec<usize> = exact.iter().map(|value| value.floor() as usize).collect();
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()).then(a.cmp(&b)));
    let given: usize = counts.iter().sum();
    // Shares sum to 1 up to rounding, so the floors may be one too many as well.
    for at in 0..entries.saturating_sub(given) {
        counts[order[at % order.len()]] += 1;
    }
    for _ in entries..given {
        *counts.iter_mut().max().expect("there are replicas") -= 1;
    }
    counts
}

/// The entries of every replica at equal distances, so that any stretch of the row has nearly the wanted parts.
fn interleave(parts: &[(i64, f64)], counts: &[usize]) -> Vec<i64> {
    let mut entries: Vec<(f64, usize)> = Vec::new();
    for (replica, &count) in counts.iter().enumerate() {
        entries.extend((0..count).map(|at| ((at as f64 + 0.5) / count as f64, replica)));
    }
    entries.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    entries.into_iter().map(|(_, replica)| parts[replica].0).collect()
}

/// The shares that tables make, `[layers][slots]`. `tables` may have a row for every layer of the model;
/// `rows[layer]` is the one that belongs to a layer of the plan.
pub(crate) fn shares_of_tables(
    path: &str,
    table: &PlanTable,
    tables: &[Vec<Vec<i64>>],
    rows: &[usize],
) -> Result<Vec<Vec<f64>>, FileError> {
    let mut share = vec![vec![0.0; table.slots()]; table.layers()];
    for (layer, (&row, share)) in rows.iter().zip(&mut share).enumerate() {
        let held = &table.physical_to_logical[layer];
        let experts = tables.get(row).ok_or_else(|| {
            FileError::plan(
                path,
                Place::Whole,
                format!("the tables have {} layers, and layer {row} is needed", tables.len()),
            )
        })?;
        for (expert, entries) in experts.iter().enumerate() {
            let slots: Vec<i64> = entries.iter().copied().filter(|slot| *slot != -1).collect();
            for &slot in &slots {
                let here = usize::try_from(slot).ok().and_then(|slot| held.get(slot).copied().flatten());
                if here.is_none_or(|held| held.index() != expert) {
                    let problem =
                        format!("an entry leads to slot {slot}, which does not hold the expert in the plan");
                    return Err(FileError::plan(path, Place::LayerExpert(row, expert), problem));
                }
                share[slot as usize] += 1.0 / slots.len() as f64;
            }
        }
    }
    Ok(share)
}
