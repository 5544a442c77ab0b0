//! Properties of [`assign`], and how even generated cohorts come out.

use super::*;
use crate::prefill::{Hit, Prompt};
use proptest::prelude::*;

/// Numbers that look random and are the same for the same seed (splitmix64).
struct Draws(u64);

impl Draws {
    /// Uniform over [0, 1).
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normal with mean 0 and deviation 1 (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Log-normal prompt of median 1500 and sigma 1, clipped to 16 ... 8192; every other one with a cached
    /// prefix of up to 95 %.
    fn prompt(&mut self, index: usize) -> Item {
        let length = (1500.0 * self.normal().exp()).clamp(16.0, 8192.0);
        let cached = if index.is_multiple_of(2) { self.uniform() * 0.95 * length } else { 0.0 };
        item(cached as u64, length as u64 - cached as u64)
    }
}

fn item(context: u64, remaining: u64) -> Item {
    Item::from(Prompt { context, remaining })
}

#[track_caller]
fn check_generated(ranks: usize, seed: u64, bound: f64) {
    let bins = 2 * ranks;
    let mut draws = Draws(seed);
    let items = (0..16 * bins).map(|index| draws.prompt(index)).collect();
    let assignment = assign(&Cohort { carried: vec![Work::default(); bins], items });
    for imbalance in [assignment.tokens, assignment.attention] {
        assert!((1.0..=bound).contains(&imbalance.over_bound), "seed {seed}: {assignment:?}");
    }
}

#[test]
fn generated_prompts_come_out_even_in_both_dimensions() {
    for seed in 4..12 {
        check_generated(32, seed, 1.01);
    }
    check_generated(128, 4, 1.01);
}

/// Items as (cached, new) tokens on two bins.
#[track_caller]
fn check(carried: [(u64, u64); 2], items: &[(u64, u64)], expected: &[usize]) {
    let carried = carried.iter().map(|&(cached, new)| Work::of(cached, new)).collect();
    let items = items.iter().map(|&(cached, new)| item(cached, new)).collect();
    let assignment = assign(&Cohort { carried, items });
    assert_eq!(assignment.bin_of, expected, "{assignment:?}");
}

#[test]
fn small_cohorts() {
    let empty = [(0, 0); 2];
    check(empty, &[], &[]);
    check(empty, &[(0, 9)], &[0]);
    check(empty, &[(0, 9), (0, 9)], &[0, 1]);
    check(empty, &[(0, 10), (0, 90), (0, 20), (0, 80)], &[0, 0, 1, 1]);
    // Equal in tokens: the cached prefixes make the difference.
    check(empty, &[(900, 10), (0, 10), (900, 10), (0, 10)], &[0, 0, 1, 1]);
    // What a bin carries counts.
    check([(0, 100), (0, 0)], &[(0, 40), (0, 50)], &[1, 1]);
}

#[test]
fn the_bound_is_the_largest_item_when_one_is_above_the_mean() {
    let items = vec![item(0, 1000), item(0, 10), item(0, 10)];
    let assignment = assign(&Cohort { carried: vec![Work::default(); 4], items });
    assert_eq!((assignment.tokens.over_bound, assignment.attention.over_bound), (1.0, 1.0));
    assert!(assignment.tokens.over_mean > 3.9, "{assignment:?}");
}

/// `count` prompts of 1000 tokens, of which rank `hot` has so many.
fn hot_prompts(count: usize, hot: usize, tokens: u64) -> Vec<Item> {
    let prompt = Prompt { context: 0, remaining: 1000 };
    vec![Item { prompt, hits: vec![Hit { rank: hot, tokens }] }; count]
}

/// Of 64 prompts on 4 ranks that rank 2 has so many tokens of: how many go there.
fn sent_to_hot(tokens: u64) -> usize {
    let cohort = Cohort { carried: vec![Work::default(); 8], items: hot_prompts(64, 2, tokens) };
    let assignment = assign(&cohort);
    // Without hits every bin has eight of them. Fewer tokens may cost a little attention.
    let (fullest, blind) = (totals(&cohort, &assignment.bin_of), Work::of(0, 1000));
    let fullest = fullest.into_iter().fold(Work::default(), Work::max_each);
    assert!(fullest.tokens <= 8 * blind.tokens, "{fullest:?}");
    assert!(20 * fullest.attention <= 21 * 8 * blind.attention, "{fullest:?}");
    assignment.bin_of.iter().filter(|&&bin| bin / MICROBATCHES == 2).count()
}

#[test]
fn a_prefix_draws_its_prompts_until_the_rank_is_hot() {
    let sent = [0, 500, 800, 950].map(sent_to_hot);
    assert_eq!(sent[0], 16);
    assert!(sent.is_sorted() && sent[1] > 20 && sent[3] > 40 && sent[3] < 64, "{sent:?}");
}

#[test]
fn among_equals_a_prompt_goes_where_its_prefix_is() {
    for hot in 0..4 {
        let cohort = Cohort { carried: vec![Work::of(0, 5000); 8], items: hot_prompts(1, hot, 700) };
        assert_eq!(assign(&cohort).bin_of[0] / MICROBATCHES, hot);
    }
}

fn work() -> impl Strategy<Value = Work> {
    (0..5000u64, 0..5000u64).prop_map(|(context, new)| Work::of(context, new))
}

/// What up to 6 ranks carry.
fn carried() -> impl Strategy<Value = Vec<Work>> {
    prop::collection::vec([work(), work()], 1..6).prop_map(|ranks| ranks.concat())
}

fn cold_items() -> impl Strategy<Value = Vec<Item>> {
    prop::collection::vec((0..5000u64, 1..5000u64).prop_map(|(c, r)| item(c, r)), 0..60)
}

/// Items of which many have hits, some on ranks that are not there, some longer than the prompt.
fn warm_items() -> impl Strategy<Value = Vec<Item>> {
    let hits = prop::collection::btree_map(0..8usize, 0..9000u64, 0..4)
        .prop_map(|hits| hits.into_iter().map(|(rank, tokens)| Hit { rank, tokens }).collect());
    let item = (0..5000u64, 1..5000u64, hits)
        .prop_map(|(context, remaining, hits)| Item { prompt: Prompt { context, remaining }, hits });
    prop::collection::vec(item, 0..60)
}

/// Work by bin.
fn totals(cohort: &Cohort, bin_of: &[usize]) -> Vec<Work> {
    let mut total = cohort.carried.clone();
    for (&bin, item) in bin_of.iter().zip(&cohort.items) {
        total[bin] += item.work_on(bin / MICROBATCHES);
    }
    total
}

fn worst(totals: &[Work]) -> f64 {
    let tokens = Imbalance::of(totals.iter().map(|w| w.tokens as f64), 0.0);
    let attention = Imbalance::of(totals.iter().map(|w| w.attention as f64), 0.0);
    tokens.over_mean.max(attention.over_mean)
}

proptest! {
    #[test]
    fn every_item_is_in_exactly_one_bin(carried in carried(), items in warm_items()) {
        let cohort = Cohort { carried, items };
        let assignment = assign(&cohort);
        prop_assert_eq!(assignment.bin_of.len(), cohort.items.len());
        prop_assert!(assignment.bin_of.iter().all(|&bin| bin < cohort.carried.len()));
        let total = totals(&cohort, &assignment.bin_of);
        let placed = cohort.items.iter().zip(&assignment.bin_of);
        let works = placed.map(|(item, &bin)| item.work_on(bin / MICROBATCHES));
        let largest = works.chain(cohort.carried.iter().copied()).fold(Work::default(), Work::max_each);
        let tokens = Imbalance::of(total.iter().map(|w| w.tokens as f64), largest.tokens as f64);
        let attention = Imbalance::of(total.iter().map(|w| w.attention as f64), largest.attention as f64);
        prop_assert_eq!((assignment.tokens, assignment.attention), (tokens, attention));
        prop_assert_eq!(assign(&cohort), assignment);
    }

    /// Nothing says how good a cohort can get, but filling one bin after the other must never be better.
    #[test]
    fn taking_turns_is_not_better(ranks in 1..4usize, items in cold_items()) {
        let bins = MICROBATCHES * ranks;
        let cohort = Cohort { carried: vec![Work::default(); bins], items };
        let turns: Vec<usize> = (0..cohort.items.len()).map(|index| index % bins).collect();
        let turns = worst(&totals(&cohort, &turns));
        let assignment = assign(&cohort);
        prop_assert!(worst(&totals(&cohort, &assignment.bin_of)) <= turns * 1.1);
    }
}
