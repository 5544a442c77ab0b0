//! What goes wrong. Each run draws a random part of all kinds of trouble ("swarm"), so that some runs are full of one kind,
//! and none is always crowded by another.

use super::clock::DRIFT_MAX;
use super::random::Random;
use super::store::Reach;
use super::world::{Event, World};

/// Trouble that comes at random times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    KillBalancer,
    BalancerLosesPower,
    PauseBalancer,
    KillAgent,
    AgentLosesPower,
    BreakLink,
    Partition,
    CutFromStore,
    ReplaceAgent,
    StoreRefuses,
    StoreSilent,
    Compact,
    BackUp,
    Restore,
    Drift,
    DiskFull,
    WorkerHangs,
    HandOver,
}

/// Each kind with the mean milliseconds between two of its kind, where it is in the draw.
const KINDS: [(Fault, u64); 18] = [
    (Fault::KillBalancer, 9_000),
    (Fault::BalancerLosesPower, 20_000),
    (Fault::PauseBalancer, 7_000),
    (Fault::KillAgent, 5_000),
    (Fault::AgentLosesPower, 10_000),
    (Fault::BreakLink, 3_000),
    (Fault::Partition, 9_000),
    (Fault::CutFromStore, 9_000),
    (Fault::ReplaceAgent, 20_000),
    (Fault::StoreRefuses, 15_000),
    (Fault::StoreSilent, 15_000),
    (Fault::Compact, 6_000),
    (Fault::BackUp, 4_000),
    (Fault::Restore, 30_000),
    (Fault::Drift, 8_000),
    (Fault::DiskFull, 12_000),
    (Fault::WorkerHangs, 12_000),
    (Fault::HandOver, 10_000),
];

/// The trouble of one run.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    pub(super) kinds: Vec<(Fault, u64)>,
    /// Calls to the store that never reach it, in 1000.
    pub(super) requests_lost: u64,
    /// Calls that reach it late, even after the caller has given up, in 1000.
    pub(super) requests_late: u64,
    /// Calls that are refused before anything is done, in 1000.
    pub(super) requests_refused: u64,
    /// Answers that come late, but before the caller gives up, in 1000.
    pub(super) answers_late: u64,
    /// Answers that get lost, in 1000.
    pub(super) answers_lost: u64,
    /// News that reach a watcher late, in 1000.
    pub(super) watch_slow: u64,
    pub(super) slow_network: bool,
    pub(super) slow_staging: bool,
    pub(super) staging_fails: bool,
}

impl Faults {
    pub(super) fn draw(random: &mut Random) -> Self {
        // From hardly any kind to nearly all.
        let share = random.within(100, 700);
        let kinds = KINDS.into_iter().filter(|(fault, _)| {
            // A restore ends a history: most runs should be long ones.
            let share = if *fault == Fault::Restore { share / 4 } else { share };
            random.permille(share)
        });
        let kinds = kinds.collect();
        let mut rate = |most: u64| if random.permille(share) { random.within(5, most) } else { 0 };
        Self {
            kinds,
            requests_lost: rate(80),
            requests_late: rate(80),
            requests_refused: rate(80),
            answers_late: rate(120),
            answers_lost: rate(120),
            watch_slow: rate(300),
            slow_network: random.permille(share),
            slow_staging: random.permille(share),
            staging_fails: random.permille(share),
        }
    }
}

impl World {
    pub(super) fn plan_fault(&mut self, fault: Fault, mean: u64) {
        let wait = self.random.gap(mean);
        self.queue.at(self.now + wait, Event::Fault { fault, mean });
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        let b = self.random.index(self.balancers.len());
        let a = self.random.index(self.agents.len());
        match fault {
            Fault::KillBalancer | Fault::BalancerLosesPower => {
                // The leader's death is the interesting one.
                let b = self.leading().filter(|_| self.random.permille(600)).unwrap_or(b);
                self.stop_balancer(b, fault == Fault::BalancerLosesPower);
                let wait = self.random.within(50, 8_000);
                self.queue.at(self.now + wait, Event::StartBalancer(b));
            }
            Fault::PauseBalancer => {
                let b = self.leading().filter(|_| self.random.permille(700)).unwrap_or(b);
                self.pause(b);
            }
            Fault::KillAgent | Fault::AgentLosesPower => {
                let power = fault == Fault::AgentLosesPower;
                self.stop_agent(a, power);
                let wait = self.random.within(20, if power { 12_000 } else { 4_000 });
                self.queue.at(self.now + wait, Event::StartAgent(a));
            }
            Fault::BreakLink => {
                let links: Vec<u64> = self.links.keys().copied().collect();
                let half_open = self.random.permille(300);
                if let Some(link) = self.random.of(&links).copied() {
                    self.break_link(link, half_open);
                }
            }
            Fault::Partition => {
                let until = self.now + self.random.within(500, 25_000);
                let all = self.random.permille(500);
                self.note(format_args!("b{b} and {} are cut off", if all { "all" } else { "one" }));
                for agent in 0..self.agents.len() {
                    if all || agent == a {
                        self.partitions.insert((agent, b), until);
                        self.queue.at(until, Event::Heal { agent, balancer: b });
                    }
                }
            }
            Fault::CutFromStore => {
                let b = self.leading().filter(|_| self.random.permille(700)).unwrap_or(b);
                let time = self.random.within(300, 9_000);
                self.note(format_args!("b{b} is cut off from the store for {time} ms"));
                self.balancers[b].cut_until = self.now + time;
            }
            Fault::ReplaceAgent => self.start_without_state(a),
            Fault::StoreRefuses => self.store_away(Reach::Refusing),
            Fault::StoreSilent => self.store_away(Reach::Silent),
            Fault::Compact => self.store.compact(),
            Fault::BackUp => self.store.back_up(),
            Fault::Restore => self.restore(),
            Fault::Drift => {
                let drift = i64::try_from(self.random.below(2 * DRIFT_MAX as u64 + 1)).expect("small");
                let (drift, now) = (drift - DRIFT_MAX, self.now);
                self.balancers[b].clock.set_drift(now, drift);
                self.agents[a].clock.set_drift(now, drift);
            }
            Fault::DiskFull => {
                self.agents[a].disk_full_until = self.now + self.random.within(100, 6_000);
            }
            Fault::WorkerHangs => {
                let until = self.now + self.random.within(500, 12_000);
                self.agents[a].worker.hang(until);
            }
            Fault::HandOver => self.hand_over(b),
        }
    }

    /// The process stands still and then goes on as if nothing had been: perhaps between a decision and its deeds.
    fn pause(&mut self, b: usize) {
        // One that stands still already, perhaps with deeds held back, is not woken by that.
        if !self.balancers[b].is_up() || self.balancers[b].paused_until > self.now {
            return;
        }
        let time = self.random.within(100, 14_000);
        self.note(format_args!("b{b} stands still for {time} ms"));
        self.balancers[b].paused_until = self.now + time;
        self.peer_falls_silent(b, time);
    }

    /// The balancer's next decision that has deeds is carried out only after a pause.
    pub(super) fn pause_before_deeds(&mut self, b: usize) {
        self.balancers[b].hold_ms = Some(self.random.within(3_000, 12_000));
    }

    fn store_away(&mut self, reach: Reach) {
        if self.store.reach != Reach::Up {
            return;
        }
        self.note(format_args!("the store is away: {reach:?}"));
        self.store.reach = reach;
        let wait = self.random.within(200, 9_000);
        self.queue.at(self.now + wait, Event::StoreBack);
    }

    /// Everything works again.
    pub(super) fn heal(&mut self) {
        self.note(format_args!("trouble is over"));
        self.faulty = false;
        self.store.reach = Reach::Up;
        self.partitions.clear();
        let now = self.now;
        for b in 0..self.balancers.len() {
            self.balancers[b].clock.set_drift(self.now, 0);
            (self.balancers[b].cut_until, self.balancers[b].hold_ms) = (0, None);
            self.start_balancer(b);
        }
        for a in 0..self.agents.len() {
            self.agents[a].disk_full_until = 0;
            self.agents[a].worker.recover(now);
            self.agents[a].clock.set_drift(self.now, 0);
            self.power_on(a);
            self.start_agent(a);
        }
    }
}
