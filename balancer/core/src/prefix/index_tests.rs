//! The index against sets of blocks per rank, and one test per behaviour.

use super::*;
use crate::ids::Rank;
use crate::units::Millis;
use proptest::prelude::*;
use std::collections::HashSet;

/// Ranks at both ends of words of the bit sets, and their unit.
const RANKS: [u16; 4] = [0, 63, 64, 129];
const UNIT: u16 = 130;

const ROOMY: PrefixPolicy = PrefixPolicy { blocks_max: 1000, expected_max: 1000, expected_ms: 100 };
const TIGHT: PrefixPolicy = PrefixPolicy { blocks_max: 9, expected_max: 5, expected_ms: 100 };

/// Blocks of prompts that begin alike: two families share their first two blocks.
fn prompt(family: u64, length: usize) -> Vec<BlockHash> {
    (0..length as u64).map(|i| BlockHash(if i < 2 { i } else { family * 1000 + i })).collect()
}

fn stored(parent: Option<BlockHash>, blocks: &[BlockHash]) -> KvChange {
    KvChange::Stored { parent, blocks: blocks.into() }
}

fn removed(blocks: &[BlockHash]) -> KvChange {
    KvChange::Removed { blocks: blocks.into() }
}

fn index(policy: PrefixPolicy) -> PrefixIndex {
    PrefixIndex::new(UNIT, policy).unwrap()
}

fn hits(index: &PrefixIndex, blocks: &[BlockHash]) -> Vec<u32> {
    let mut hits = vec![99; 3];
    index.hits(blocks, &mut hits);
    hits
}

// ---- Any events ------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Op {
    /// The next event of a rank; `skip` numbers are missing before it.
    Event {
        rank: Rank,
        skip: u64,
        change: KvChange,
    },
    /// An event that was there before.
    Repeat {
        rank: Rank,
        back: u64,
        change: KvChange,
    },
    Expect {
        rank: Rank,
        blocks: Vec<BlockHash>,
    },
    Forget {
        rank: Rank,
    },
    Advance {
        ms: u64,
    },
}

fn rank() -> impl Strategy<Value = Rank> {
    (0..RANKS.len()).prop_map(|i| Rank(RANKS[i]))
}

fn change() -> impl Strategy<Value = KvChange> {
    let part = || (0..3u64, 0..8usize, 0..8usize);
    prop_oneof![
        8 => part().prop_map(|(family, from, more)| {
            let blocks = prompt(family, from + more);
            stored(from.checked_sub(1).map(|parent| blocks[..from][parent]), &blocks[from..])
        }),
        4 => part().prop_map(|(family, from, more)| removed(&prompt(family, from + more)[from..])),
        1 => Just(KvChange::Cleared),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let skip = prop_oneof![9 => Just(0u64), 1 => 1..4u64];
    let op = prop_oneof![
        10 => (rank(), skip, change()).prop_map(|(rank, skip, change)| Op::Event { rank, skip, change }),
        1 => (rank(), 0..3u64, change()).prop_map(|(rank, back, change)| Op::Repeat { rank, back, change }),
        4 => (rank(), 0..3u64, 0..9usize)
            .prop_map(|(rank, family, length)| Op::Expect { rank, blocks: prompt(family, length) }),
        1 => rank().prop_map(|rank| Op::Forget { rank }),
        2 => (0..250u64).prop_map(|ms| Op::Advance { ms }),
    ];
    proptest::collection::vec(op, 0..60)
}

/// What the index should know, if it forgot nothing for want of room.
#[derive(Default)]
struct Model {
    now: Millis,
    sequences: std::collections::HashMap<Rank, u64>,
    stored: HashSet<(Rank, BlockHash)>,
    /// Two generations; the younger first.
    expected: [HashSet<(Rank, BlockHash)>; 2],
    since: Millis,
}

impl Model {
    fn forget(&mut self, rank: Rank) {
        self.stored.retain(|(r, _)| *r != rank);
        self.expected.iter_mut().for_each(|set| set.retain(|(r, _)| *r != rank));
    }

    fn event(&mut self, rank: Rank, sequence: u64, change: &KvChange) {
        if self.sequences.insert(rank, sequence).is_some_and(|last| sequence > last + 1) {
            self.forget(rank);
        }
        match change {
            KvChange::Stored { blocks, .. } => self.stored.extend(blocks.iter().map(|&block| (rank, block))),
            KvChange::Removed { blocks } => {
                for &block in blocks.iter() {
                    self.stored.remove(&(rank, block));
                    self.expected.iter_mut().for_each(|set| _ = set.remove(&(rank, block)));
                }
            }
            KvChange::Cleared => self.forget(rank),
        }
    }

    fn advance(&mut self, ms: u64) {
        self.now = self.now.after(ms);
        let elapsed = self.now.since(self.since);
        if elapsed >= 100 {
            self.expected.swap(0, 1);
            self.expected[0].clear();
            if elapsed >= 200 {
                self.expected[1].clear();
            }
            self.since = self.now;
        }
    }

    fn hits(&self, rank: Rank, blocks: &[BlockHash]) -> u32 {
        let sets = [&self.stored, &self.expected[0], &self.expected[1]];
        let there = |block: &&BlockHash| sets.iter().any(|set| set.contains(&(rank, **block)));
        blocks.iter().take_while(there).count() as u32
    }
}

/// Plays the same to both.
fn play(index: &mut PrefixIndex, model: &mut Model, op: &Op) {
    match op {
        Op::Event { rank, skip, change } => {
            let next = model.sequences.get(rank).map_or(7, |last| last + 1 + skip);
            index.apply(*rank, next, change);
            model.event(*rank, next, change);
        }
        // A repeated `Cleared` starts anew only if it is not the last event itself.
        Op::Repeat { rank, back, change } => {
            let Some(last) = model.sequences.get(rank).copied() else { return };
            let sequence = last.saturating_sub(*back);
            let outcome = index.apply(*rank, sequence, change);
            if *change == KvChange::Cleared && *back > 0 {
                model.event(*rank, sequence, change);
            } else {
                assert_eq!(outcome, KvOutcome::Stale);
            }
        }
        Op::Expect { rank, blocks } => {
            index.expect(*rank, blocks);
            let missing: Vec<_> = blocks.iter().map(|&block| (*rank, block)).collect();
            model.expected[0].extend(missing.into_iter().filter(|entry| !model.stored.contains(entry)));
        }
        Op::Forget { rank } => {
            index.forget(*rank);
            model.forget(*rank);
            model.sequences.remove(rank);
        }
        Op::Advance { ms } => {
            model.advance(*ms);
            index.advance(model.now);
        }
    }
}

/// Every prompt, cut anywhere: on each rank as many hits as `expected` allows, and never more than the prompt cut earlier.
#[track_caller]
fn check_hits(index: &PrefixIndex, allowed: impl Fn(Rank, &[BlockHash], u32) -> bool) {
    for family in 0..3 {
        let whole = prompt(family, 16);
        let of_whole = hits(index, &whole);
        assert_eq!(of_whole.len(), usize::from(UNIT));
        for length in 0..whole.len() {
            let found = hits(index, &whole[..length]);
            for (rank, &found) in found.iter().enumerate() {
                let rank = Rank(rank as u16);
                assert_eq!(found, of_whole[rank.index()].min(length as u32), "rank {rank}, family {family}");
                assert!(allowed(rank, &whole[..length], found), "rank {rank}, family {family}: {found}");
            }
        }
    }
}

proptest! {
    #[test]
    fn hits_are_those_of_sets_of_blocks(ops in ops()) {
        let (mut index, mut model) = (index(ROOMY), Model::default());
        for op in &ops {
            play(&mut index, &mut model, op);
            check_hits(&index, |rank, blocks, found| found == model.hits(rank, blocks));
        }
        prop_assert_eq!(index.counters().evicted_blocks, 0);
    }

    #[test]
    fn a_full_index_says_too_little_and_never_too_much(ops in ops()) {
        let (mut index, mut model) = (index(TIGHT), Model::default());
        for op in &ops {
            play(&mut index, &mut model, op);
            check_hits(&index, |rank, blocks, found| found <= model.hits(rank, blocks));
            prop_assert!(index.blocks() <= TIGHT.blocks_max + 2 * TIGHT.expected_max);
            prop_assert!(index.bytes() <= index.bytes_max(), "{} of {}", index.bytes(), index.bytes_max());
        }
    }

    #[test]
    fn kept_hits_are_never_too_low_and_too_high_only_while_the_last_is_there(ops in ops()) {
        let (mut index, mut model, mut kept) = (index(TIGHT), Model::default(), KeptPrompts::default());
        for op in &ops {
            play(&mut index, &mut model, op);
            kept.check(&index, |rank, blocks, found, looked_up| {
                let last = || hits(&index, &blocks[found as usize - 1..found as usize])[rank];
                found == looked_up || (found > looked_up && last() == 1)
            });
        }
    }

    #[test]
    fn kept_hits_are_right_where_engines_give_up_the_ends_first(ops in ops()) {
        let (mut index, mut model, mut kept) = (index(ROOMY), Model::default(), KeptPrompts::default());
        for op in &ops {
            match op {
                // All that may follow goes with it.
                Op::Event { rank, skip, change: KvChange::Removed { blocks } } if !blocks.is_empty() => {
                    let before = blocks[0].0 % 1000;
                    for family in 0..3 {
                        let change = removed(&prompt(family, 16)[before as usize..]);
                        play(&mut index, &mut model, &Op::Event { rank: *rank, skip: *skip, change });
                    }
                }
                // An end may be announced of which the beginning is only expected, and that ends before it.
                Op::Expect { .. } => {}
                op => play(&mut index, &mut model, op),
            }
            kept.check(&index, |_, _, found, looked_up| found == looked_up);
        }
    }

    #[test]
    fn the_same_events_make_the_same_index(ops in ops()) {
        let run = || {
            let (mut index, mut model) = (index(TIGHT), Model::default());
            ops.iter().for_each(|op| play(&mut index, &mut model, op));
            index
        };
        prop_assert_eq!(run(), run());
    }
}

fn by_rank(kept: &KeptHits) -> Vec<u32> {
    let mut hits = vec![0; usize::from(UNIT)];
    for (rank, blocks) in kept.above(0) {
        assert_eq!(std::mem::replace(&mut hits[rank.index()], blocks), 0, "rank {rank} comes once");
    }
    hits
}

/// A held prompt of each family, and what was kept of it.
#[derive(Default)]
struct KeptPrompts([KeptHits; 3]);

impl KeptPrompts {
    /// Looks again; `allowed` says of each rank's hits, as kept and as looked up from the beginning, whether that may be.
    #[track_caller]
    fn check(&mut self, index: &PrefixIndex, allowed: impl Fn(usize, &[BlockHash], u32, u32) -> bool) {
        for (family, kept) in self.0.iter_mut().enumerate() {
            let blocks = prompt(family as u64, 16);
            index.keep_hits(&blocks, kept);
            let found = by_rank(kept);
            // Ranks 0 and 64.
            let of_both = kept.of_all(&[1, 1, 0]);
            assert_eq!(of_both, found[0].min(found[64]));
            assert!(kept.above(of_both).all(|(rank, hits)| hits > of_both && hits == found[rank.index()]));
            assert_eq!(kept.above(of_both).count(), found.iter().filter(|&&hits| hits > of_both).count());
            let looked_up = hits(index, &blocks);
            for (rank, (&found, &looked_up)) in found.iter().zip(&looked_up).enumerate() {
                assert!(
                    allowed(rank, &blocks, found, looked_up),
                    "rank {rank}, family {family}: {found}, {looked_up}"
                );
            }
        }
    }
}

// ---- One behaviour each ----------------------------------------------------------------------------

const RANK: Rank = Rank(64);

/// Applies events of one rank by number; compares the last outcome, and the hits of a prompt of eight blocks.
#[track_caller]
fn check(events: &[(u64, KvChange)], outcome: KvOutcome, hits_of_prompt: u32) {
    let mut index = index(ROOMY);
    let outcomes: Vec<KvOutcome> =
        events.iter().map(|(sequence, change)| index.apply(RANK, *sequence, change)).collect();
    assert_eq!(outcomes.last(), Some(&outcome), "{outcomes:?}");
    let all = hits(&index, &prompt(0, 8));
    assert_eq!(all[RANK.index()], hits_of_prompt);
    assert!(all.iter().enumerate().all(|(rank, &hits)| rank == RANK.index() || hits == 0));
}

#[test]
fn events_out_of_order_are_stale_or_a_gap() {
    let p = prompt(0, 8);
    let (first, second) = (stored(None, &p[..2]), stored(Some(p[1]), &p[2..4]));
    check(&[(5, first.clone())], KvOutcome::Applied, 2);
    check(&[(5, first.clone()), (6, second.clone())], KvOutcome::Applied, 4);
    check(&[(5, first.clone()), (5, second.clone())], KvOutcome::Stale, 2);
    check(&[(5, first.clone()), (4, removed(&p))], KvOutcome::Stale, 2);
    // What is stored after a gap counts, what was stored before it does not.
    check(&[(5, first.clone()), (7, second.clone())], KvOutcome::Gap { missed: 1 }, 0);
    check(&[(5, second.clone()), (9, first.clone())], KvOutcome::Gap { missed: 3 }, 2);
    check(&[(5, first.clone()), (7, second.clone()), (8, first.clone())], KvOutcome::Applied, 4);
    check(&[(0, first.clone()), (u64::MAX, first)], KvOutcome::Gap { missed: u64::MAX - 1 }, 2);
}

#[test]
fn a_cleared_cache_starts_the_numbering_again() {
    let p = prompt(0, 8);
    let (all, cleared) = (stored(None, &p), KvChange::Cleared);
    check(&[(5, all.clone()), (6, cleared.clone())], KvOutcome::Applied, 0);
    check(&[(5, all.clone()), (90, cleared.clone()), (91, all.clone())], KvOutcome::Applied, 8);
    check(&[(5, all.clone()), (0, cleared.clone()), (1, all.clone())], KvOutcome::Applied, 8);
    check(&[(5, cleared.clone()), (5, cleared)], KvOutcome::Stale, 0);
}

#[test]
fn blocks_without_their_parent_are_no_hits_until_it_is_there() {
    let p = prompt(0, 8);
    let tail = stored(Some(p[1]), &p[2..4]);
    check(&[(0, tail.clone())], KvOutcome::UnknownParent, 0);
    check(&[(0, tail), (1, stored(None, &p[..2]))], KvOutcome::Applied, 4);
}

#[test]
fn a_removed_block_ends_the_hits_before_it() {
    let p = prompt(0, 8);
    check(&[(0, stored(None, &p)), (1, removed(&p[3..4]))], KvOutcome::Applied, 3);
    check(&[(0, stored(None, &p)), (1, removed(&prompt(7, 9)[4..]))], KvOutcome::Applied, 8);
}

#[test]
fn an_unknown_rank_is_counted_and_dropped() {
    let mut index = index(ROOMY);
    assert_eq!(index.apply(Rank(UNIT), 0, &KvChange::Cleared), KvOutcome::UnknownRank);
    assert_eq!(index.counters(), PrefixCounters { unknown_ranks: 1, ..PrefixCounters::default() });
}

#[test]
fn a_rank_that_starts_again_may_number_as_it_likes() {
    let (mut index, p) = (index(ROOMY), prompt(0, 8));
    index.apply(RANK, 900, &stored(None, &p));
    index.forget(RANK);
    assert_eq!(hits(&index, &p)[RANK.index()], 0);
    assert_eq!(index.apply(RANK, 3, &stored(None, &p[..1])), KvOutcome::Applied);
    assert_eq!(hits(&index, &p)[RANK.index()], 1);
}

#[test]
fn what_is_dispatched_is_a_hit_at_once_and_for_one_to_two_lives() {
    let (mut index, p) = (index(ROOMY), prompt(0, 8));
    index.advance(Millis(1000));
    index.expect(RANK, &p[..5]);
    index.apply(RANK, 0, &stored(None, &p[..2]));
    for (now, found) in [(1000, 5), (1099, 5), (1100, 5), (1199, 5), (1200, 2)] {
        index.advance(Millis(now));
        assert_eq!(hits(&index, &p)[RANK.index()], found, "at {now} ms");
    }
    index.expect(RANK, &p);
    index.apply(RANK, 1, &removed(&p[6..]));
    assert_eq!(hits(&index, &p)[RANK.index()], 6);
}

#[test]
fn the_blocks_unused_for_longest_are_forgotten_first_and_the_ends_of_prompts_before_their_beginnings() {
    let policy = PrefixPolicy { blocks_max: 8, ..ROOMY };
    let (mut index, p, other) = (index(policy), prompt(0, 8), prompt(5, 6));
    index.apply(RANK, 0, &stored(None, &p[..6]));
    index.apply(RANK, 1, &stored(None, &other));
    // Ten distinct blocks for eight rows: the last two of the first prompt went.
    assert_eq!(hits(&index, &p)[RANK.index()], 4);
    assert_eq!(hits(&index, &other)[RANK.index()], 6);
    // A dispatch is a use.
    index.expect(RANK, &p[..4]);
    index.apply(RANK, 2, &stored(Some(p[3]), &[BlockHash(70), BlockHash(71)]));
    assert_eq!(hits(&index, &p)[RANK.index()], 4);
    assert_eq!(hits(&index, &other)[RANK.index()], 4);
    assert_eq!(index.counters().evicted_blocks, 4);
}

#[test]
fn expected_blocks_are_forgotten_from_the_ends_of_prompts_too() {
    let (mut index, p) = (index(PrefixPolicy { expected_max: 5, ..ROOMY }), prompt(0, 8));
    index.expect(RANK, &p);
    assert_eq!(hits(&index, &p)[RANK.index()], 5);
}

#[test]
fn rows_are_used_again() {
    let mut index = index(PrefixPolicy { blocks_max: 64, ..ROOMY });
    for round in 0..200u64 {
        let blocks: Vec<BlockHash> = (0..64).map(|i| BlockHash(round * 64 + i)).collect();
        index.apply(RANK, 2 * round, &stored(None, &blocks));
        assert_eq!(hits(&index, &blocks)[RANK.index()], 64);
        index.apply(RANK, 2 * round + 1, &removed(&blocks));
        assert_eq!(index.blocks(), 0);
    }
    assert_eq!(index.counters().evicted_blocks, 0);
}

#[test]
fn a_full_index_has_the_stated_size() {
    // 130 ranks are three words: 20 + 24 bytes a block, and 2048, 8 and 8 buckets of 4.
    let policy = PrefixPolicy { blocks_max: 1500, expected_max: 5, ..ROOMY };
    let mut index = index(policy);
    assert_eq!(index.bytes_max(), 1510 * 44 + (2048 + 8 + 8) * 4);
    for number in 0..5000 {
        index.apply(RANK, number, &stored(None, &[BlockHash(number)]));
        index.expect(RANK, &[BlockHash(!number)]);
        index.advance(Millis(number));
        assert!(index.bytes() <= index.bytes_max());
    }
    assert_eq!((index.blocks(), index.bytes()), (1510, index.bytes_max()));
    assert_eq!(index.counters().evicted_blocks, 3500 + 4750);
}

#[track_caller]
fn check_policy(ranks: u16, policy: PrefixPolicy, text: &str) {
    let error = PrefixIndex::new(ranks, policy).unwrap_err().to_string();
    assert!(error.contains(text), "{error}");
}

#[test]
fn bounds_out_of_range_are_named() {
    check_policy(0, ROOMY, "prefix ranks is 0: accepted are 1 to 2048");
    check_policy(
        9,
        PrefixPolicy { blocks_max: 0, ..ROOMY },
        "prefix blocks_max is 0: accepted are 1 to 67108864",
    );
    check_policy(9, PrefixPolicy { expected_max: BLOCKS_MAX + 1, ..ROOMY }, "expected_max is 67108865");
    check_policy(9, PrefixPolicy { expected_ms: 3_600_001, ..ROOMY }, "expected_ms is 3600001");
}

#[test]
fn the_blocks_of_each_rank_are_counted() {
    let mut index = index(TIGHT);
    let (one, other) = (Rank(0), Rank(64));
    let counts = |index: &PrefixIndex| (index.blocks_of(one), index.blocks_of(other));
    index.apply(one, 1, &stored(None, &prompt(1, 6)));
    index.apply(one, 2, &stored(None, &prompt(1, 6)));
    index.apply(other, 1, &stored(None, &prompt(1, 3)));
    assert_eq!(counts(&index), (6, 3));
    index.apply(one, 3, &removed(&prompt(1, 6)[4..]));
    assert_eq!(counts(&index), (4, 3));
    // There is room for nine: all but the two that both families begin with are forgotten.
    index.apply(other, 2, &stored(None, &prompt(2, 9)));
    assert_eq!(counts(&index), (2, 9));
    index.apply(other, 3, &KvChange::Cleared);
    index.forget(one);
    assert_eq!(counts(&index), (0, 0));
}

#[test]
fn of_many_different_hits_the_most_are_kept_and_the_fewest() {
    let (mut index, p) = (index(ROOMY), prompt(0, 40));
    for rank in 0..30 {
        index.apply(Rank(rank), 1, &stored(None, &p[..usize::from(rank) + 1]));
    }
    let mut kept = KeptHits::default();
    let mut look = |index: &PrefixIndex| {
        index.keep_hits(&p, &mut kept);
        by_rank(&kept)
    };
    // Sixteen numbers of hits: 1, and 16 to 30.
    let expected = |rank: u32| if rank < 15 { 1 } else { rank + 1 };
    assert_eq!(look(&index)[..30], (0..30).map(expected).collect::<Vec<_>>());
    // What is not kept is looked up again.
    index.apply(Rank(5), 2, &stored(Some(p[5]), &p[6..35]));
    let found = look(&index);
    assert_eq!((found[4], found[5], found[29]), (1, 35, 30));
}
