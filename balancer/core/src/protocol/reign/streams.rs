//! Streams: who may open one, what each is told, and when it is given up.

use super::{Action, Introduction, Message, Notice, Now, Reign, Role, StreamId, Unit};
use crate::ids::{NodeId, UnitId};
use crate::plan::Plan;
use crate::planted;
use crate::protocol::membership::Claim;
use crate::protocol::unit::{self, PlanRef};
use crate::units::Millis;

/// An agent's open stream.
#[derive(Debug, Clone)]
pub struct Stream {
    pub(super) unit: UnitId,
    pub(super) node: NodeId,
    incarnation: u64,
    claim: Claim,
    pub(super) applied: Option<PlanRef>,
    reintroduces: bool,
    heard: Millis,
    pinged: Millis,
    /// When it last got a Welcome; a member of its unit only once it has said again what it serves.
    welcomed: Millis,
    pub(super) joined: bool,
}

impl Stream {
    /// The unit it belongs to.
    pub fn unit(&self) -> &UnitId {
        &self.unit
    }

    /// The node at the other end.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The plan it serves, as it last said.
    pub fn applied(&self) -> Option<PlanRef> {
        self.applied
    }
}

/// Why a node is not admitted.
struct Refused {
    code: &'static str,
    text: String,
}

impl Refused {
    fn new(code: &'static str, text: impl ToString) -> Self {
        Self { code, text: text.to_string() }
    }
}

impl Reign {
    pub(super) fn hello(&mut self, now: Now, stream: StreamId, hello: Introduction) {
        if hello.term > self.last_term {
            self.notice(Notice::TermSeen(hello.term));
        }
        if self.streams.contains_key(&stream) {
            return self.hello_again(now, stream, hello);
        }
        if let Err(refused) = self.check_stream(now, &hello) {
            return self.refuse(stream, &hello.unit, &hello.node, refused);
        }
        if let Some(old) = self.stream_of(&hello.node) {
            self.drop_stream(now, old, "displaced", true);
        }
        let Introduction { node, incarnation, unit, claim, applied, reintroduces, .. } = hello;
        let entry = Stream {
            unit: unit.clone(),
            node: node.clone(),
            incarnation,
            claim,
            applied,
            reintroduces,
            heard: now.at,
            pinged: now.at,
            welcomed: now.at,
            joined: false,
        };
        if self.lead.is_some()
            && let Err(refused) = self.admit(now, &entry)
        {
            return self.refuse(stream, &unit, &node, refused);
        }
        self.nodes.insert(node, stream);
        self.streams.insert(stream, entry);
        self.welcome(now, stream);
        self.join(now, stream);
    }

    /// The same agent says again what it serves.
    fn hello_again(&mut self, now: Now, stream: StreamId, hello: Introduction) {
        let entry = self.streams.get_mut(&stream).expect("checked by the caller");
        let same = entry.node == hello.node
            && entry.unit == hello.unit
            && entry.incarnation == hello.incarnation
            && entry.claim == hello.claim;
        if !same {
            return self.drop_stream(now, stream, "changed_hello", true);
        }
        entry.heard = now.at;
        let changed = entry.applied != hello.applied;
        entry.applied = hello.applied;
        if entry.joined && !changed {
            return;
        }
        let entry = entry.clone();
        self.held.retain(|(of, _)| *of != stream);
        if self.lead.is_some()
            && let Err(refused) = self.admit(now, &entry)
        {
            let Refused { code, text } = refused;
            self.out.push(Action::Send { stream, message: Message::Refuse { code, text } });
            return self.drop_stream(now, stream, code, true);
        }
        self.join(now, stream);
    }

    fn check_stream(&self, now: Now, hello: &Introduction) -> Result<(), Refused> {
        if self.lead.is_some() && hello.term > self.last_term {
            let text = format!(
                "the agent has seen term {}, this balancer leads in term {}: another leads, or its store was restored and has to be adopted, see `evenkeel leader adopt`",
                hello.term, self.last_term
            );
            return Err(Refused::new("not_leader", text));
        }
        let Some(old) = self.stream_of(&hello.node) else {
            if self.streams.len() < self.settings.streams_max {
                return Ok(());
            }
            let text = format!("{} agents are connected: raise control.agents_max", self.streams.len());
            return Err(Refused::new("too_many_agents", text));
        };
        let old = &self.streams[&old];
        let heard_ms = now.at.since(old.heard);
        if old.incarnation != hello.incarnation && heard_ms <= self.settings.suspect_ms {
            let text = format!(
                "another agent is connected as node {}, heard {heard_ms} ms ago: give each its own name; one that was restarted is admitted once the old stream has ended or been silent for {} ms",
                hello.node, self.settings.suspect_ms
            );
            return Err(Refused::new("node_conflict", text));
        }
        Ok(())
    }

    fn refuse(&mut self, stream: StreamId, unit: &UnitId, node: &NodeId, refused: Refused) {
        let Refused { code, text } = refused;
        self.notice(Notice::Refused { unit: unit.clone(), node: node.clone(), code });
        self.out.push(Action::Send { stream, message: Message::Refuse { code, text } });
        self.out.push(Action::Close { stream, code });
    }

    /// Takes a node into its unit's membership, or says why not. A refusal changes nothing.
    fn admit(&mut self, now: Now, entry: &Stream) -> Result<(), Refused> {
        let known = self.units.remove(&entry.unit);
        let mut unit =
            known.unwrap_or_else(|| Unit::forming(&entry.unit, &entry.claim, self.settings.limits));
        let found_lost = entry.applied.is_some_and(|(epoch, _)| unit.note_served(epoch));
        if unit.formed().is_none() {
            unit.lost_epoch = unit.lost_epoch.max(self.lost_epoch);
            self.lost_epoch = unit.lost_epoch;
        }
        let admitted = admit_node(&mut unit, entry);
        if admitted.is_ok() || !unit.membership.claims().is_empty() {
            self.units.insert(entry.unit.clone(), unit);
        }
        // At once: who reads of the refusal may start the node without its state, and then nobody serves that plan any more.
        if found_lost && self.units.contains_key(&entry.unit) {
            self.keep_record(&entry.unit);
        }
        for old in admitted? {
            let (unit, by) = (entry.unit.clone(), entry.node.clone());
            self.notice(Notice::Replaced { unit: unit.clone(), old: old.clone(), by });
            self.loss.returned(&old);
            let known = self.units.get_mut(&unit).expect("just admitted to");
            known.replaced();
            self.drive(now, &unit, unit::Event::Forgotten(old));
        }
        Ok(())
    }

    /// To a node without weights a leader's Welcome is an order: boot with this plan. A leader that may not command may not
    /// know of a newer one.
    fn welcome(&mut self, now: Now, stream: StreamId) {
        let entry = &self.streams[&stream];
        let head = self.units.get(&entry.unit).and_then(Unit::head);
        let boot_plan = head.filter(|_| entry.applied.is_none()).cloned();
        let role = if self.lead.is_some() { Role::Leader } else { Role::Standby };
        let boot_plan = boot_plan.filter(|_| role == Role::Leader);
        let orders = role == Role::Leader && entry.applied.is_none();
        let message = Message::Welcome { role, term: self.last_term, boot_plan };
        if orders && !self.commands_at(now.at) {
            self.held.push_back((stream, message));
        } else {
            self.out.push(Action::Send { stream, message });
        }
    }

    /// Role or term have changed: whatever the agent said before is of the past.
    pub(super) fn welcome_again(&mut self, now: Now, stream: StreamId) {
        let entry = self.streams.get_mut(&stream).expect("listed by the caller");
        entry.joined = false;
        entry.welcomed = now.at;
        if entry.reintroduces {
            self.welcome(now, stream);
        } else {
            self.drop_stream(now, stream, "leader_changed", true);
        }
    }

    fn join(&mut self, now: Now, stream: StreamId) {
        let entry = self.streams.get_mut(&stream).expect("just admitted");
        entry.joined = self.lead.is_some();
        let (unit, node, applied) = (entry.unit.clone(), entry.node.clone(), entry.applied);
        self.notice(Notice::Joined { unit: unit.clone(), node: node.clone(), stream, applied });
        if self.lead.is_none() {
            return;
        }
        self.loss.returned(&node);
        let known = self.units.get_mut(&unit).expect("just admitted to");
        known.present.insert(node.clone(), stream);
        self.drive(now, &unit, unit::Event::Joined(node, applied));
        self.draft(now, &unit);
    }

    pub(super) fn heard(&mut self, now: Now, stream: StreamId) {
        if let Some(entry) = self.streams.get_mut(&stream) {
            entry.heard = now.at;
        }
    }

    pub(super) fn result(&mut self, now: Now, stream: StreamId, plan: PlanRef, answer: unit::Answer) {
        self.heard(now, stream);
        // A stream that was displaced or refused has nothing to say any more.
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        if answer == unit::Answer::Applied {
            entry.applied = Some(plan);
        }
        if !entry.joined {
            return;
        }
        let (id, node) = (entry.unit.clone(), entry.node.clone());
        if answer == unit::Answer::Refused("stale_term".to_owned()) {
            self.notice(Notice::WriteRefused);
        }
        self.drive(now, &id, unit::Event::Answered(node, plan, answer));
        self.draft(now, &id);
    }

    /// Forgets a stream; `close`: and ends it. Its unit's plan may be given up by that.
    pub(super) fn drop_stream(&mut self, now: Now, stream: StreamId, code: &'static str, close: bool) {
        if let Some((unit, node)) = self.release(now, stream, code, close) {
            self.drive(now, &unit, unit::Event::Left(node));
        }
    }

    /// Forgets a stream, without a word to its unit's plans yet. Returns a node that was part of its unit.
    pub(super) fn release(
        &mut self,
        now: Now,
        stream: StreamId,
        code: &'static str,
        close: bool,
    ) -> Option<(UnitId, NodeId)> {
        let Stream { unit, node, joined, .. } = if planted!(StreamsKept) {
            let entry = self.streams.get_mut(&stream)?;
            let ended = entry.clone();
            entry.joined = false;
            ended
        } else {
            self.streams.remove(&stream)?
        };
        self.held.retain(|(of, _)| *of != stream);
        if self.nodes.get(&node) == Some(&stream) {
            self.nodes.remove(&node);
        }
        if close {
            self.out.push(Action::Close { stream, code });
        }
        self.notice(Notice::Left { unit: unit.clone(), node: node.clone(), stream, code });
        let known = self.units.get_mut(&unit).filter(|_| joined)?;
        known.present.remove(&node);
        if known.formed().is_some() {
            self.note_loss(now, &unit, &node);
            return Some((unit, node));
        }
        // A unit that never formed is made of those who are there; nothing of it may pile up.
        if known.leave(&node) {
            self.units.remove(&unit);
        }
        None
    }

    pub(super) fn tick_streams(&mut self, now: Now) {
        let (settings, leads) = (self.settings, self.lead.is_some());
        let mut dead = Vec::new();
        for (&stream, entry) in &mut self.streams {
            if now.at.since(entry.heard) > settings.silence_ms {
                dead.push((stream, "silent"));
            } else if leads && !entry.joined && now.at.since(entry.welcomed) > settings.silence_ms {
                dead.push((stream, "not_introduced"));
            } else if now.at.since(entry.pinged) >= settings.ping_ms {
                entry.pinged = now.at;
                self.out.push(Action::Send { stream, message: Message::Ping });
            }
        }
        for (stream, code) in dead {
            self.drop_stream(now, stream, code, true);
        }
    }
}

/// Checks a node against its unit. Only when everything fits does the membership change. Returns the nodes it replaces.
fn admit_node(unit: &mut Unit, entry: &Stream) -> Result<Vec<NodeId>, Refused> {
    match unit.formed() {
        Some(formed) => formed.control.admit(entry.applied).map_err(|e| Refused::new(e.code(), e))?,
        None => {
            let boot = Plan::boot(entry.unit.clone(), unit.membership.shape());
            if let Some(id) = entry.applied.filter(|&id| id != (boot.epoch, boot.digest())) {
                let text = format!(
                    "the node serves plan {}, but this balancer has committed none for the unit: restore its store, or restart the node without its state",
                    id.0
                );
                return Err(Refused::new("epoch_ahead", text));
            }
        }
    }
    let present = &unit.present;
    let mut members = unit.membership.clone();
    let replaced = members.join(&entry.node, &entry.claim, |other| present.contains_key(other));
    let replaced = replaced.map_err(|e| Refused::new(e.code(), e))?;
    if unit.is_fixed() {
        // A node of a formed unit may be replaced whole, but ranks may not be left without a node.
        members.topology().map_err(|e| Refused::new("rank_conflict", e))?;
    }
    unit.membership = members;
    Ok(replaced)
}
