//! A whole prompt, whose work depends on where it runs.

use super::chunks::Prompt;
use super::work::Work;

/// A prefix that a rank has cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// Index of the rank.
    pub rank: usize,
    /// Leading tokens of the prompt that need not run there. More than the prompt has less one counts as
    /// that: the last token always runs.
    pub tokens: u64,
}

/// A whole prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// As it is on a rank that has none of it; the context is what every rank has (a shared cache).
    pub prompt: Prompt,
    /// Ranks that have more, each at most once, in any order. A rank that the cohort lacks is passed over.
    pub hits: Vec<Hit>,
}

impl Item {
    /// Work on a rank.
    pub fn work_on(&self, rank: usize) -> Work {
        let hit = self.hits.iter().find(|hit| hit.rank == rank).map_or(0, |hit| hit.tokens);
        self.work_with(hit)
    }

    /// Work when so many leading tokens need not run.
    pub(super) fn work_with(&self, hit: u64) -> Work {
        let Prompt { context, remaining } = self.prompt;
        let more = hit.saturating_sub(context).min(remaining.saturating_sub(1));
        Work::of(context + more, remaining - more)
    }

    /// Work without any rank's own hit.
    pub(super) fn work_anywhere(&self) -> Work {
        Work::of(self.prompt.context, self.prompt.remaining)
    }
}

impl From<Prompt> for Item {
    fn from(prompt: Prompt) -> Self {
        Self { prompt, hits: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(hit: u64, expected: (u64, u64)) {
        let prompt = Prompt { context: 100, remaining: 50 };
        let item = Item { prompt, hits: vec![Hit { rank: 3, tokens: hit }] };
        assert_eq!(item.work_on(3), Work::of(expected.0, expected.1));
        assert_eq!(item.work_on(2), Work::of(100, 50));
    }

    #[test]
    fn a_hit_takes_the_place_of_what_every_rank_has() {
        check(0, (100, 50));
        check(100, (100, 50));
        check(120, (120, 30));
        check(150, (149, 1));
        check(u64::MAX, (149, 1));
    }
}
