//! Plans and loads as they come from files, brought to one shape.

use super::{Failure, layers, refused};
use crate::expert_files::{PlanTable, read_loads, read_plan};
use evenkeel_core::experts::ExpertLoads;
use std::path::Path;

/// Loads of the layers that have experts; `moe_layers`: as `--moe-layers` has them.
pub(super) fn loads(path: &Path, moe_layers: Option<&[usize]>) -> Result<ExpertLoads, Failure> {
    let name = path.display().to_string();
    let mut rows = read_loads(path)?;
    if let Some(moe_layers) = moe_layers {
        let keep = layers::rows_of(moe_layers, rows.len(), &name)?;
        rows = keep.into_iter().map(|row| std::mem::take(&mut rows[row])).collect();
    }
    ExpertLoads::new(&rows).map_err(|error| in_file(&name, error.into()))
}

/// A plan for these loads. Experts may be missing.
pub(super) fn plan_for(
    path: &Path,
    loads: &ExpertLoads,
    moe_layers: Option<&[usize]>,
) -> Result<PlanTable, Failure> {
    let name = path.display().to_string();
    let mut plan = read_plan(path, None)?;
    if let Some(moe_layers) = moe_layers {
        let keep = layers::rows_of(moe_layers, plan.layers(), &name)?;
        plan.keep_rows(&keep);
    }
    let shape = |what: &str, have: usize, need: usize| {
        let problem = format!("{name}: the plan has {have} {what}, and the loads have {need}");
        refused("experts_plan_shape", problem)
    };
    if plan.layers() != loads.layers() {
        let mut failure = shape("layers", plan.layers(), loads.layers());
        failure.message += ": if one of them has the dense layers as well, add --moe-layers";
        return Err(failure);
    }
    if plan.experts() > loads.experts() {
        return Err(shape("experts or more", plan.experts(), loads.experts()));
    }
    Ok(plan)
}

/// Says in which file something was wrong.
pub(super) fn in_file(path: &str, failure: Failure) -> Failure {
    Failure { message: format!("{path}: {}", failure.message), ..failure }
}
