//! A whole plan. The tables of all layers are flat lists: what comes in takes at most four times the memory
//! that it has on the wire, however it is made.

use super::{ContentError, PlanId, malformed};
use crate::v1;
use evenkeel_core::ids::{ExpertId, UnitId};
use evenkeel_core::plan::{LayerPlan, Plan};
use evenkeel_core::topology::{EXPERTS_MAX, LAYERS_MAX};

pub(super) fn write(plan: &Plan) -> v1::PlanContent {
    let slots = plan.layers.iter().flat_map(|layer| &layer.physical_to_logical);
    v1::PlanContent {
        unit: plan.unit.to_string(),
        parent: plan.parent.map(Into::into),
        layers: u32::try_from(plan.layers.len()).expect("layers fit 16 bits"),
        expert_plus_one: slots.map(|expert| plus_one(*expert)).collect(),
        share: plan.layers.iter().flat_map(|layer| layer.share.iter().copied()).collect(),
    }
}

/// The plan of that name; whether its content has the digest is checked by the caller.
pub(super) fn read(content: &v1::PlanContent, id: PlanId) -> Result<Plan, ContentError> {
    let unit = UnitId::new(content.unit.as_str()).map_err(|e| malformed("unit", e.to_string()))?;
    let parent = content.parent.as_ref().map(TryInto::try_into).transpose();
    let parent = parent.map_err(ContentError::Malformed)?;
    let (slots, shares) = (content.expert_plus_one.len(), content.share.len());
    let layers = content.layers as usize;
    if layers == 0 || layers > LAYERS_MAX.into() {
        return Err(malformed("layers", format!("is {layers}: must be 1 to {LAYERS_MAX}")));
    }
    if slots == 0 || !slots.is_multiple_of(layers) {
        return Err(malformed("expert_plus_one", format!("has {slots} entries for {layers} layers")));
    }
    if shares != slots {
        return Err(malformed("share", format!("has {shares} entries for {slots} slots")));
    }
    let tables = content.expert_plus_one.chunks(slots / layers).zip(content.share.chunks(slots / layers));
    let layers = tables.map(|(experts, share)| {
        let experts = experts.iter().map(|&plus_one| expert(plus_one)).collect::<Result<_, _>>()?;
        Ok(LayerPlan { physical_to_logical: experts, share: share.to_vec() })
    });
    Ok(Plan { unit, epoch: id.0, parent, layers: layers.collect::<Result<_, _>>()? })
}

pub(super) fn plus_one(expert: Option<ExpertId>) -> u32 {
    expert.map_or(0, |expert| u32::from(expert.0) + 1)
}

pub(super) fn expert(plus_one: u32) -> Result<Option<ExpertId>, ContentError> {
    let Some(expert) = plus_one.checked_sub(1) else { return Ok(None) };
    match u16::try_from(expert) {
        Ok(expert) if expert < EXPERTS_MAX => Ok(Some(ExpertId(expert))),
        _ => {
            let reason = format!("{plus_one} is above {EXPERTS_MAX}, the most experts of a layer");
            Err(malformed("expert_plus_one", reason))
        }
    }
}
