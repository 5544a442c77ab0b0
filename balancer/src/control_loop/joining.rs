//! Nodes that join: admitted or refused, welcomed, and the unit formed once all are there.

use super::plans::{on_disk, unix_ms};
use super::{ControlLoop, Stream};
use crate::metrics as m;
use crate::push::AgentLink;
use crate::store::{StoreError, Stored};
use crate::unit::{Formed, Presence, StreamId, Unit};
use evenkeel_core::ids::{NodeId, Rank, UnitId};
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::membership::{Claim, Membership};
use evenkeel_core::protocol::unit::{self as protocol, PlanRef, UnitControl};
use evenkeel_proto::{ConvertError, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, choose_protocol, v1};
use std::sync::Arc;

/// A refusal on its way to an agent.
struct Refused {
    code: String,
    message: String,
}

impl Refused {
    fn new(code: &str, message: impl ToString) -> Self {
        Self { code: code.to_owned(), message: message.to_string() }
    }
}

impl From<ConvertError> for Refused {
    fn from(e: ConvertError) -> Self {
        Self::new("invalid_hello", e)
    }
}

/// An admitted node.
struct Admitted {
    unit: UnitId,
    node: NodeId,
    /// The plan it serves.
    applied: Option<PlanRef>,
    /// The version to speak with it.
    protocol: u32,
    /// It took the place of other nodes.
    replaced_others: bool,
}

impl ControlLoop {
    pub(super) async fn hello(
        &mut self,
        stream: StreamId,
        hello: &v1::Hello,
        link: AgentLink,
    ) -> Result<(), StoreError> {
        match self.admit(stream, hello) {
            Ok(admitted) => self.welcome(stream, admitted, hello, link).await,
            Err(refused) => {
                tracing::warn!(node = hello.node, unit = hello.unit, code = refused.code, "agent refused");
                let Refused { code, message } = refused;
                let _ = link.send(v1::sync_response::Message::Refusal(v1::Refusal { code, message }));
                Ok(())
            }
        }
    }

    /// Takes the node into its unit's membership, or says why not. A refusal changes nothing.
    fn admit(&mut self, stream: StreamId, hello: &v1::Hello) -> Result<Admitted, Refused> {
        if hello.cluster != self.config.cluster {
            let ours = &self.config.cluster;
            let text = format!("the agent belongs to cluster {}, this is {ours}", hello.cluster);
            return Err(Refused::new("cluster_mismatch", text));
        }
        let (min, max) = (hello.protocol_min, hello.protocol_max);
        let Some(protocol) = choose_protocol(min, max) else {
            let text = format!(
                "the agent speaks protocol {min} to {max}, this balancer {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}"
            );
            return Err(Refused::new("protocol_unsupported", text));
        };
        if self.streams.len() >= self.config.control.agents_max as usize {
            let text = format!("{} agents are connected: raise control.agents_max", self.streams.len());
            return Err(Refused::new("too_many_agents", text));
        }
        let invalid = |e: &dyn std::fmt::Display| Refused::new("invalid_hello", e);
        let id = UnitId::new(hello.unit.as_str()).map_err(|e| invalid(&e))?;
        let node = NodeId::new(hello.node.as_str()).map_err(|e| invalid(&e))?;
        let shape = hello.shape.as_ref().ok_or_else(|| invalid(&"shape is required"))?;
        let claim = Claim {
            shape: shape.try_into()?,
            ranks: ranks_of(&hello.ranks)?,
            weights_digest: hello.weights_digest.clone(),
        };
        let applied = hello.applied.as_ref().map(TryInto::try_into).transpose()?;
        let known = self.units.remove(&id);
        let mut unit = known.unwrap_or_else(|| {
            let weights = claim.weights_digest.clone();
            Unit::new(id.clone(), Membership::new(id.clone(), claim.shape.clone(), weights))
        });
        let admitted = admit_node(&mut unit, &node, &claim, applied);
        if admitted.is_ok() || !unit.membership.claims().is_empty() {
            self.units.insert(id.clone(), unit);
        }
        let replaced = admitted?;
        for old in &replaced {
            tracing::info!(unit = %id, %old, by = %node, "node replaced");
            self.forget(&id, old);
        }
        tracing::debug!(stream, unit = %id, %node, "agent admitted");
        Ok(Admitted { unit: id, node, applied, protocol, replaced_others: !replaced.is_empty() })
    }

    /// A replaced node's ranks have another home now.
    fn forget(&mut self, id: &UnitId, old: &NodeId) {
        let now = self.now();
        let unit = self.units.get_mut(id).expect("just admitted to");
        unit.present.remove(old);
        if let Some(formed) = &mut unit.formed {
            // The node was away, so nothing is being prepared and no action follows.
            formed.control.step(now, protocol::Event::Forgotten(old.clone()));
            if let Ok(topology) = unit.membership.topology() {
                formed.topology = topology;
                formed.prepared = Default::default();
            }
        }
    }

    async fn welcome(
        &mut self,
        stream: StreamId,
        admitted: Admitted,
        hello: &v1::Hello,
        link: AgentLink,
    ) -> Result<(), StoreError> {
        let Admitted { unit: id, node, applied, protocol, replaced_others } = admitted;
        link.speak(protocol);
        let unit = self.units.get_mut(&id).expect("just admitted to");
        let head = unit.formed.as_ref().map(|f| Arc::clone(f.control.head()));
        let control = &self.config.control;
        let welcome = v1::Welcome {
            term: Some(self.term.into()),
            protocol,
            window_steps: control.window_steps,
            report_interval_ms: control.report_interval_ms,
            ping_interval_ms: control.ping_interval_ms,
            silence_limit_ms: control.silence_limit_ms,
            boot_plan: if applied.is_none() { head.as_deref().map(Into::into) } else { None },
            role: v1::BalancerRole::Leader.into(),
            leader: String::new(),
        };
        let now = self.now();
        if !link.send(v1::sync_response::Message::Welcome(welcome)) {
            return Ok(());
        }
        let unit = self.units.get_mut(&id).expect("just admitted to");
        let presence = Presence { stream, applied, transfer_address: hello.transfer_address.clone() };
        if let Some(old) = unit.present.insert(node.clone(), presence) {
            self.streams.remove(&old.stream);
        }
        tracing::info!(unit = %id, %node, applied = ?applied.map(|a| a.0.0), "agent connected");
        let entry = Stream { unit: id.clone(), node: node.clone(), link, heard: now, pinged: now };
        self.streams.insert(stream, entry);
        if self.units[&id].formed.is_some() {
            // A node that returns as it was changes nothing: no write, however many return at once.
            if replaced_others {
                self.store_unit(&id).await?;
            }
            self.step(&id, protocol::Event::Joined(node, applied)).await
        } else {
            self.try_form(&id).await
        }
    }

    pub(super) async fn store_unit(&self, id: &UnitId) -> Result<(), StoreError> {
        let record = self.units[id].record();
        let (store, term) = (Arc::clone(&self.store), self.term);
        on_disk("put_unit", move || store.put_unit(term, &record)).await
    }

    /// Commits the boot plan once every node serves it.
    pub(super) async fn try_form(&mut self, id: &UnitId) -> Result<(), StoreError> {
        let Some(topology) = self.units[id].ready_to_form() else { return Ok(()) };
        let boot = Plan::boot(id.clone(), topology.shape());
        let boot_id = (boot.epoch, boot.digest());
        let summary = v1::PlanSummary {
            id: Some(boot_id.into()),
            kind: v1::PlanKind::Boot.into(),
            committed_ms: unix_ms(),
            ..v1::PlanSummary::default()
        };
        self.store_unit(id).await?;
        let (store, term) = (Arc::clone(&self.store), self.term);
        let stored = Stored { plan: boot.clone(), summary, loads: None };
        on_disk("commit", move || store.commit(term, &stored)).await?;
        metrics::counter!(m::PLANS_COMMITTED, "unit" => id.to_string(), "kind" => "boot").increment(1);
        metrics::gauge!(m::PLAN_EPOCH, "unit" => id.to_string()).set(0.0);
        self.routers.form(id, topology.shape());
        let nodes = topology.nodes().to_vec();
        let control = UnitControl::new(Arc::new(boot), None, nodes.clone(), self.limits());
        let unit = self.units.get_mut(id).expect("exists");
        unit.formed = Some(Formed::new(topology, control, self.config.experts.history()));
        unit.last_decision = "waiting for the first load window".to_owned();
        tracing::info!(unit = %id, nodes = nodes.len(), "unit formed");
        for node in nodes {
            self.step(id, protocol::Event::Joined(node, Some(boot_id))).await?;
        }
        Ok(())
    }
}

/// Checks a node against its unit. Only when everything fits does the membership change.
fn admit_node(
    unit: &mut Unit,
    node: &NodeId,
    claim: &Claim,
    applied: Option<PlanRef>,
) -> Result<Vec<NodeId>, Refused> {
    let admitted = match &unit.formed {
        Some(formed) => formed.control.admit(applied).map_err(|e| Refused::new(e.code(), e)),
        None => {
            let boot = Plan::boot(unit.id.clone(), unit.membership.shape());
            match applied {
                Some(id) if id != (boot.epoch, boot.digest()) => {
                    let text = format!(
                        "the node serves plan {}, but this balancer has committed none for the unit: restore its store, or restart the node without its state",
                        id.0
                    );
                    Err(Refused::new("epoch_ahead", text))
                }
                _ => Ok(()),
            }
        }
    };
    admitted?;
    let present = &unit.present;
    let mut members = unit.membership.clone();
    let replaced = members.join(node, claim, |other| present.contains_key(other));
    let replaced = replaced.map_err(|e| Refused::new(e.code(), e))?;
    if unit.formed.is_some() {
        // A node of a formed unit may be replaced whole, but ranks may not be left without a node.
        members.topology().map_err(|e| Refused::new("rank_conflict", e))?;
    }
    unit.membership = members;
    Ok(replaced)
}

pub(super) fn ranks_of(ranks: &[u32]) -> Result<Vec<Rank>, ConvertError> {
    let narrow = |&r: &u32| {
        let rank = u16::try_from(r).map_err(|_| ConvertError::new("ranks", format!("{r} is no rank")))?;
        Ok(Rank(rank))
    };
    ranks.iter().map(narrow).collect()
}
