//! Streams between agents and balancers: each in order, several of them in any order; they break, stall, and keep one end
//! believing that they stand.

use super::random::Random;
use super::world::{Event, World};
use evenkeel_core::ids::{NodeId, Rank, Term, UnitId};
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::agent::{BalancerRole, Command, PlanId, Reply};
use evenkeel_core::topology::UnitShape;
use std::sync::Arc;

/// What an agent says.
#[derive(Debug, Clone)]
pub(super) enum ToBalancer {
    Hello(Hello),
    Result(Reply),
    Report,
}

/// The first message of a stream.
#[derive(Debug, Clone)]
pub(super) struct Hello {
    pub(super) node: NodeId,
    pub(super) unit: UnitId,
    pub(super) shape: UnitShape,
    pub(super) ranks: Vec<Rank>,
    pub(super) incarnation: u64,
    pub(super) applied: Option<PlanId>,
    pub(super) term: Term,
}

/// What a balancer says.
#[derive(Debug, Clone)]
pub(super) enum ToAgent {
    Welcome { role: BalancerRole, term: Term, boot_plan: Option<Arc<Plan>> },
    Refusal { code: String },
    Ping,
    Command(Command),
}

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    Agent,
    Balancer,
}

impl End {
    fn other(self) -> Self {
        match self {
            End::Agent => End::Balancer,
            End::Balancer => End::Agent,
        }
    }
}

/// One stream.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) agent: usize,
    pub(super) balancer: usize,
    /// Which lives of the two processes it connects.
    pub(super) lives: [u64; 2],
    /// Which ends take it for open.
    open: [bool; 2],
    /// When the last message to an end arrives: the next does not come before.
    arrives: [u64; 2],
    /// Nothing gets through any more.
    broken: bool,
    /// When the end heard something last.
    pub(super) heard: [u64; 2],
}

impl Link {
    pub(super) fn is_open(&self, end: End) -> bool {
        self.open[end as usize]
    }
}

/// Milliseconds on the way: loopback to a busy rack, with a rare slow one.
fn delay(random: &mut Random, slow: bool) -> u64 {
    if slow && random.permille(30) { random.within(50, 1500) } else { random.within(1, 12) }
}

impl World {
    /// A stream between processes that are both there.
    pub(super) fn open_link(&mut self, agent: usize, balancer: usize) -> u64 {
        self.links_made += 1;
        let id = self.links_made;
        let lives = [self.agents[agent].life, self.balancers[balancer].life];
        let link = Link {
            agent,
            balancer,
            lives,
            open: [true; 2],
            arrives: [self.now; 2],
            broken: false,
            heard: [self.now; 2],
        };
        self.links.insert(id, link);
        id
    }

    fn arrival(&mut self, id: u64, to: End) -> Option<u64> {
        let slow = self.faults.slow_network && self.faulty;
        let wait = delay(&mut self.random, slow);
        let link = self.links.get_mut(&id)?;
        let healed = self.partitions.get(&(link.agent, link.balancer)).copied().unwrap_or(0);
        let at = (self.now + wait).max(link.arrives[to as usize]).max(healed);
        link.arrives[to as usize] = at;
        Some(at)
    }

    pub(super) fn send_to_balancer(&mut self, id: u64, message: ToBalancer) {
        if !self.links.get(&id).is_some_and(|link| link.is_open(End::Agent) && !link.broken) {
            return;
        }
        if let Some(at) = self.arrival(id, End::Balancer) {
            self.queue.at(at, Event::ToBalancer { link: id, message });
        }
    }

    pub(super) fn send_to_agent(&mut self, id: u64, message: ToAgent) {
        if !self.links.get(&id).is_some_and(|link| link.is_open(End::Balancer) && !link.broken) {
            return;
        }
        if let Some(at) = self.arrival(id, End::Agent) {
            self.queue.at(at, Event::ToAgent { link: id, message });
        }
    }

    /// Whether what arrives at an end is taken there; marks that it was heard.
    pub(super) fn arrives(&mut self, id: u64, end: End) -> bool {
        let now = self.now;
        let Some(link) = self.links.get_mut(&id) else { return false };
        link.heard[end as usize] = now;
        link.is_open(end)
    }

    /// One end closes the stream, and the other learns of it unless the network is broken.
    pub(super) fn close_link(&mut self, id: u64, end: End) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.open[end as usize] = false;
        let other = end.other();
        if link.open[other as usize]
            && !link.broken
            && let Some(at) = self.arrival(id, other)
        {
            self.queue.at(at, Event::LinkClosed { link: id, end: other });
        }
        self.forget_link(id);
    }

    /// Nothing gets through any more. Each end learns of it soon, or only by the silence. What is on its way may still
    /// arrive.
    pub(super) fn break_link(&mut self, id: u64, half_open: bool) {
        for end in [End::Agent, End::Balancer] {
            let told = !half_open || self.random.permille(300);
            if told && let Some(at) = self.arrival(id, end) {
                self.queue.at(at, Event::LinkClosed { link: id, end });
            }
        }
        if let Some(link) = self.links.get_mut(&id) {
            link.broken = true;
        }
    }

    /// The end has seen the stream end: `false` when it knew.
    pub(super) fn link_closed(&mut self, id: u64, end: End) -> bool {
        let Some(link) = self.links.get_mut(&id) else { return false };
        let known = !std::mem::replace(&mut link.open[end as usize], false);
        let other = end.other();
        let tell = link.open[other as usize] && !link.broken;
        if tell && let Some(at) = self.arrival(id, other) {
            self.queue.at(at, Event::LinkClosed { link: id, end: other });
        }
        self.forget_link(id);
        !known
    }

    fn forget_link(&mut self, id: u64) {
        if self.links.get(&id).is_some_and(|link| link.open == [false; 2]) {
            self.links.remove(&id);
        }
    }

    /// A process is gone: its ends are closed, and the other ends learn of it at once (the machine resets connections) or
    /// not at all (the machine is gone too).
    pub(super) fn drop_links_of(&mut self, end: End, process: usize, silently: bool) {
        let mine = |link: &&Link| match end {
            End::Agent => link.agent == process,
            End::Balancer => link.balancer == process,
        };
        let ids: Vec<u64> = self.links.iter().filter(|(_, link)| mine(link)).map(|(id, _)| *id).collect();
        for id in ids {
            if silently && let Some(link) = self.links.get_mut(&id) {
                link.broken = true;
            }
            self.close_link(id, end);
        }
    }
}
