//! Wire to core by `TryFrom`, core to wire by `From`. Everything that arrives is checked here for form;
//! whether a plan is allowed is [`evenkeel_core::invariants`]' business.

use crate::v1;
use evenkeel_core::ids::{Digest, Epoch, ExpertId, LayerId, Rank, Term, UnitId};
use evenkeel_core::plan::{LayerPlan, Move, Plan, PlanKind};
use evenkeel_core::records::Pin;
use evenkeel_core::snapshot::{LoadTable, Window};
use evenkeel_core::topology::{EXPERTS_MAX, Role, UnitShape};

/// A message whose form is wrong. `code` is stable; the text names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct ConvertError {
    /// The field, as in the .proto file.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl ConvertError {
    /// A new error for `field`.
    pub fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self { field, reason: reason.into() }
    }

    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        "malformed_message"
    }
}

fn narrow(field: &'static str, value: u32) -> Result<u16, ConvertError> {
    u16::try_from(value).map_err(|_| ConvertError::new(field, format!("{value} is above {}", u16::MAX)))
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, ConvertError> {
    value.ok_or_else(|| ConvertError::new(field, "is required"))
}

impl From<Role> for v1::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Prefill => v1::Role::Prefill,
            Role::Decode => v1::Role::Decode,
            Role::Mixed => v1::Role::Mixed,
        }
    }
}

impl TryFrom<v1::Role> for Role {
    type Error = ConvertError;

    fn try_from(role: v1::Role) -> Result<Self, ConvertError> {
        match role {
            v1::Role::Prefill => Ok(Role::Prefill),
            v1::Role::Decode => Ok(Role::Decode),
            v1::Role::Mixed => Ok(Role::Mixed),
            v1::Role::Unspecified => Err(ConvertError::new("role", "is required")),
        }
    }
}

impl From<&UnitShape> for v1::UnitShape {
    fn from(shape: &UnitShape) -> Self {
        Self {
            role: v1::Role::from(shape.role).into(),
            layers: shape.layers.into(),
            experts: shape.experts.into(),
            top_k: shape.top_k.into(),
            ranks: shape.ranks.into(),
            slots_per_rank: shape.slots_per_rank.into(),
            spare_per_rank: shape.spare_per_rank.into(),
            expert_bytes: shape.expert_bytes,
        }
    }
}

impl TryFrom<&v1::UnitShape> for UnitShape {
    type Error = ConvertError;

    fn try_from(shape: &v1::UnitShape) -> Result<Self, ConvertError> {
        let shape = UnitShape {
            role: shape.role().try_into()?,
            layers: narrow("layers", shape.layers)?,
            experts: narrow("experts", shape.experts)?,
            top_k: narrow("top_k", shape.top_k)?,
            ranks: narrow("ranks", shape.ranks)?,
            slots_per_rank: narrow("slots_per_rank", shape.slots_per_rank)?,
            spare_per_rank: narrow("spare_per_rank", shape.spare_per_rank)?,
            expert_bytes: shape.expert_bytes,
        };
        shape.validate().map_err(|e| ConvertError::new("shape", e.to_string()))?;
        Ok(shape)
    }
}

impl From<Pin> for v1::PinnedExpert {
    fn from(pin: Pin) -> Self {
        Self { layer: pin.layer.0.into(), expert: pin.expert.0.into(), rank: pin.rank.0.into() }
    }
}

impl TryFrom<v1::PinnedExpert> for Pin {
    type Error = ConvertError;

    fn try_from(pin: v1::PinnedExpert) -> Result<Self, ConvertError> {
        Ok(Pin {
            layer: LayerId(narrow("layer", pin.layer)?),
            expert: ExpertId(narrow("expert", pin.expert)?),
            rank: Rank(narrow("rank", pin.rank)?),
        })
    }
}

impl From<Term> for v1::Term {
    fn from(term: Term) -> Self {
        Self { generation: term.generation, revision: term.revision }
    }
}

impl From<v1::Term> for Term {
    fn from(term: v1::Term) -> Self {
        Self { generation: term.generation, revision: term.revision }
    }
}

impl From<(Epoch, Digest)> for v1::PlanId {
    fn from((epoch, digest): (Epoch, Digest)) -> Self {
        Self { epoch: epoch.0, digest: digest.0.to_vec() }
    }
}

impl TryFrom<&v1::PlanId> for (Epoch, Digest) {
    type Error = ConvertError;

    fn try_from(id: &v1::PlanId) -> Result<Self, ConvertError> {
        let digest = <[u8; 32]>::try_from(id.digest.as_slice()).map_err(|_| {
            ConvertError::new("digest", format!("has {} bytes, must have 32", id.digest.len()))
        })?;
        Ok((Epoch(id.epoch), Digest(digest)))
    }
}

impl From<&LayerPlan> for v1::LayerPlan {
    fn from(layer: &LayerPlan) -> Self {
        let expert_plus_one =
            layer.physical_to_logical.iter().map(|slot| slot.map_or(0, |e| u32::from(e.0) + 1)).collect();
        Self { expert_plus_one, share: layer.share.clone() }
    }
}

impl TryFrom<&v1::LayerPlan> for LayerPlan {
    type Error = ConvertError;

    fn try_from(layer: &v1::LayerPlan) -> Result<Self, ConvertError> {
        let expert = |&plus_one: &u32| match plus_one.checked_sub(1) {
            None => Ok(None),
            Some(expert) if expert >= u32::from(EXPERTS_MAX) => {
                let reason = format!("{plus_one} is above {EXPERTS_MAX}, the most experts of a layer");
                Err(ConvertError::new("expert_plus_one", reason))
            }
            Some(expert) => narrow("expert_plus_one", expert).map(|e| Some(ExpertId(e))),
        };
        let physical_to_logical = layer.expert_plus_one.iter().map(expert).collect::<Result<Vec<_>, _>>()?;
        if layer.share.len() != physical_to_logical.len() {
            let reason = format!("has {} entries for {} slots", layer.share.len(), physical_to_logical.len());
            return Err(ConvertError::new("share", reason));
        }
        Ok(Self { physical_to_logical, share: layer.share.clone() })
    }
}

impl From<&Plan> for v1::Plan {
    fn from(plan: &Plan) -> Self {
        Self {
            unit: plan.unit.to_string(),
            id: Some((plan.epoch, plan.digest()).into()),
            parent: plan.parent.map(Into::into),
            layers: plan.layers.iter().map(Into::into).collect(),
        }
    }
}

/// The content must match the digest it came with.
impl TryFrom<&v1::Plan> for Plan {
    type Error = ConvertError;

    fn try_from(plan: &v1::Plan) -> Result<Self, ConvertError> {
        let (epoch, digest) = required("id", plan.id.as_ref())?.try_into()?;
        let plan = Plan {
            unit: UnitId::new(plan.unit.as_str()).map_err(|e| ConvertError::new("unit", e.to_string()))?,
            epoch,
            parent: plan.parent.as_ref().map(TryInto::try_into).transpose()?,
            layers: plan.layers.iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        };
        let found = plan.digest();
        if found != digest {
            let reason = format!("is {} but the content has {}", digest.short(), found.short());
            return Err(ConvertError::new("digest", reason));
        }
        Ok(plan)
    }
}

impl From<PlanKind> for v1::PlanKind {
    fn from(kind: PlanKind) -> Self {
        match kind {
            PlanKind::Boot => v1::PlanKind::Boot,
            PlanKind::WeightsOnly => v1::PlanKind::WeightsOnly,
            PlanKind::Moves => v1::PlanKind::Moves,
        }
    }
}

impl TryFrom<&v1::SlotMove> for Move {
    type Error = ConvertError;

    fn try_from(slot_move: &v1::SlotMove) -> Result<Self, ConvertError> {
        Ok(Self {
            layer: LayerId(narrow("layer", slot_move.layer)?),
            destination: slot_move.destination,
            expert: ExpertId(narrow("expert", slot_move.expert)?),
            source: slot_move.source,
        })
    }
}

impl From<&LoadTable> for v1::LoadTable {
    fn from(table: &LoadTable) -> Self {
        Self {
            layers: u32::try_from(table.layers()).expect("layers of a unit fit 16 bits"),
            experts: u32::try_from(table.experts()).expect("experts of a unit fit 16 bits"),
            counts: table.counts().to_vec(),
        }
    }
}

impl TryFrom<v1::LoadTable> for LoadTable {
    type Error = ConvertError;

    fn try_from(table: v1::LoadTable) -> Result<Self, ConvertError> {
        LoadTable::new(table.layers as usize, table.experts as usize, table.counts)
            .map_err(|e| ConvertError::new("counts", e.to_string()))
    }
}

impl From<Window> for v1::Window {
    fn from(window: Window) -> Self {
        Self { from_step: window.from_step, to_step: window.to_step }
    }
}

impl From<v1::Window> for Window {
    fn from(window: v1::Window) -> Self {
        Self { from_step: window.from_step, to_step: window.to_step }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let shape = UnitShape {
            role: Role::Decode,
            layers: 2,
            experts: 6,
            top_k: 2,
            ranks: 4,
            slots_per_rank: 2,
            spare_per_rank: 1,
            expert_bytes: 8,
        };
        let boot = Plan::boot(UnitId::new("u").expect("valid"), &shape);
        boot.child(boot.layers.clone())
    }

    #[test]
    fn a_plan_survives_the_wire() {
        let plan = plan();
        assert_eq!(Plan::try_from(&v1::Plan::from(&plan)), Ok(plan));
    }

    #[track_caller]
    fn check_refused(field: &str, break_it: impl Fn(&mut v1::Plan)) {
        let mut wire = v1::Plan::from(&plan());
        break_it(&mut wire);
        assert_eq!(Plan::try_from(&wire).map_err(|e| e.field), Err(field));
    }

    #[test]
    fn a_malformed_plan_is_refused_by_field() {
        check_refused("unit", |p| p.unit = "Ü".into());
        check_refused("id", |p| p.id = None);
        check_refused("digest", |p| p.id.as_mut().unwrap().digest.truncate(31));
        check_refused("digest", |p| p.layers[0].share[0] += 1);
        check_refused("share", |p| p.layers[1].share.truncate(3));
        check_refused("expert_plus_one", |p| p.layers[1].expert_plus_one[0] = 70_000);
        // Expert 65535 fits 16 bits, but its number plus one, which the digest covers, does not.
        check_refused("expert_plus_one", |p| p.layers[1].expert_plus_one[0] = 65_536);
    }
}
