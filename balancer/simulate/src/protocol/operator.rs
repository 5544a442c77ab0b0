//! The operator: gives orders, gives them again when it got no answer (and now and then when it got one), puts a store in
//! order that was restored, and takes back what would stand in the way once trouble is over.

use super::balancer::Input;
use super::reigning::Asked;
use super::world::{Event, Ordered, World};
use evenkeel_core::ids::{Digest, Epoch, ExpertId, LayerId, Rank};
use evenkeel_core::protocol::election::State;
use evenkeel_core::protocol::reign::Order;
use evenkeel_core::records::{Key, Pin, RequestId};

/// How often the operator acts, on average.
const ORDER_MS: u64 = 2_500;

/// After a restore, whoever led before it leads no more when this time is over.
const WIPE_MS: u64 = 6_000;

/// A node that finds its sources without the weights this often in a row is started without its state, and boots with the
/// head: a host that lost power took the last bytes of a slot that the head has given up.
const LOST_MAX: u32 = 8;

impl World {
    pub(super) fn operate(&mut self) {
        let wait = self.random.gap(ORDER_MS);
        self.queue.at(self.now + wait, Event::Operator);
        self.adopt_if_needed();
        if self.restores > 0 && !self.to_adopt && self.now > self.restored_at + WIPE_MS {
            (0..self.units.len()).for_each(|unit| self.wipe_if_ahead(unit));
        }
        for a in 0..self.agents.len() {
            if self.agents[a].sources_lost() >= LOST_MAX {
                self.start_without_state(a);
            }
        }
        let Some(b) = self.leading() else { return };
        let Some(asked) = self.next_order() else { return };
        self.trace.note(
            self.now,
            format_args!("the operator asks b{b}: {} {:?}", asked.request.as_str(), asked.order.verb()),
        );
        let life = self.balancers[b].life;
        let input = Input::Order(asked);
        self.queue.at(self.now + 1, Event::Balancer { balancer: b, life, input });
    }

    fn next_order(&mut self) -> Option<Asked> {
        let open = self.asked.iter().rev().position(|ordered| !ordered.answered);
        let again = open.filter(|_| self.random.permille(500)).map(|back| self.asked.len() - 1 - back);
        // An answer may have been lost on its way to the operator.
        let repeat = (!self.asked.is_empty() && self.random.permille(200))
            .then(|| self.asked.len() - 1 - self.random.index(self.asked.len().min(4)));
        if let Some(i) = again.or(repeat).filter(|_| self.faulty) {
            return Some(self.asked[i].asked.clone());
        }
        let order = if self.faulty { self.new_order()? } else { self.taken_back()? };
        self.orders += 1;
        let request = RequestId::new(format!("order-{}", self.orders)).expect("a plain name");
        let mut content = [0; 32];
        content[..8].copy_from_slice(&self.orders.to_le_bytes());
        let asked = Asked { request, content: Digest(content), order };
        self.asked.push(Ordered { asked: asked.clone(), answered: false });
        Some(asked)
    }

    fn new_order(&mut self) -> Option<Order> {
        let u = self.random.index(self.units.len());
        let unit = self.units[u].id.clone();
        let shape = self.units[u].shape.clone();
        let node = *self.random.of(&self.units[u].agents)?;
        let pin = Pin {
            layer: LayerId(self.random.below(shape.layers.into()) as u16),
            expert: ExpertId(self.random.below(shape.experts.into()) as u16),
            rank: Rank(self.random.below(shape.ranks.into()) as u16),
        };
        Some(match self.random.below(12) {
            0 => Order::Pause { unit, for_ms: None },
            1 => Order::Pause { unit, for_ms: Some(self.random.within(500, 8_000)) },
            2..=4 => Order::Resume(unit),
            5 => Order::Drain(self.agents[node].node.clone()),
            6 => Order::Undrain(self.agents[node].node.clone()),
            7 => Order::Pin(unit, pin),
            8 => Order::Unpin(unit, pin),
            9 => Order::Abort { unit, epoch: None },
            _ => {
                let (head, _) = self.head_in_store(&unit)?;
                let back = self.random.within(1, 6);
                let epoch = Epoch(head.0.saturating_sub(back));
                Order::Rollback { to: self.committed_plan(&unit, epoch)? }
            }
        })
    }

    /// What would keep a unit from new plans.
    fn taken_back(&self) -> Option<Order> {
        self.units.iter().find_map(|unit| {
            if self.store.memory.get(&Key::Pause(unit.id.clone())).is_some() {
                return Some(Order::Resume(unit.id.clone()));
            }
            let drains = self.store.memory.get(&Key::Drains(unit.id.clone()))?;
            match &drains.record {
                evenkeel_core::records::Record::Drains(nodes) => nodes.first().cloned().map(Order::Undrain),
                _ => None,
            }
        })
    }

    pub(super) fn order_answered(&mut self, request: &RequestId, done: bool) {
        for ordered in &mut self.asked {
            ordered.answered |= done && ordered.asked.request == *request;
        }
    }

    /// A balancer that holds the key in a term that is not above all that were seen says so; the operator adopts the store. A
    /// careful one does so after every restore.
    fn adopt_if_needed(&mut self) {
        for b in 0..self.balancers.len() {
            let Some(election) = self.balancers[b].election() else { continue };
            let needed = match election.state() {
                State::Behind { .. } => true,
                State::Leading { term, .. } => self.to_adopt || election.highest() > term,
                _ => false,
            };
            if needed {
                self.note(format_args!("the operator has b{b} adopt the store"));
                let life = self.balancers[b].life;
                self.queue.at(self.now + 1, Event::Balancer { balancer: b, life, input: Input::Adopt });
            }
        }
    }
}
