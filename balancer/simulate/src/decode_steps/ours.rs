//! The core's own rules, on the loads as they are: what its ledger knows.

use super::{Move, StepPolicy, Unit};
use evenkeel_core::decode::{
    Admission, MigrationPolicy, RankLoad, Running, RunningRequests, plan_migrations,
};

/// Admission, with or without migrations afterwards.
pub struct Ours {
    migration: MigrationPolicy,
}

impl Ours {
    /// Admission alone.
    pub fn admission() -> Self {
        Self { migration: MigrationPolicy::default() }
    }

    /// Admission and migrations, for an engine that can.
    pub fn migrating(migration: MigrationPolicy) -> Self {
        Self { migration }
    }
}

impl StepPolicy for Ours {
    fn place(&mut self, unit: &Unit<'_>, arrived: &[u32], _now_s: f64) -> Vec<(u32, usize)> {
        let loads = (0..unit.ranks()).map(|rank| unit.load(rank));
        let mut admission = match self.migration.per_step {
            0 => Admission::new(loads),
            _ => Admission::before_migrations(loads),
        };
        let kv: Vec<u64> = arrived.iter().map(|&request| unit.request(request).kv_at_start()).collect();
        let ranks = admission.admit_all(&kv).into_iter().map(|rank| rank.expect("all ranks are up"));
        arrived.iter().copied().zip(ranks).collect()
    }

    fn migrate(&mut self, unit: &Unit<'_>) -> Vec<Move> {
        let moves = plan_migrations(unit, &self.migration);
        moves.into_iter().map(|m| Move { request: m.id, from: m.from, to: m.to }).collect()
    }
}

impl RunningRequests for Unit<'_> {
    type Id = u32;

    fn ranks(&self) -> usize {
        self.ranks()
    }

    fn load(&self, rank: usize) -> RankLoad {
        self.load(rank)
    }

    fn drains(&self, _rank: usize) -> bool {
        false
    }

    fn running(&self, rank: usize) -> impl Iterator<Item = Running<u32>> {
        let running = self.rank(rank).running().iter();
        running.map(|&id| Running { id, kv_tokens: self.kv_of(id), since_move: self.since_move(id) })
    }
}
