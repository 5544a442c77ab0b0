use super::*;
use proptest::prelude::*;

/// Runs prompts one after the other; compares the hits of the last and what had to go for it.
#[track_caller]
fn check(capacity: usize, prompts: &[&[u64]], hits: usize, gone: &[u64]) {
    let mut cache = RankCache::new(capacity);
    let mut last = (0, Vec::new());
    for blocks in prompts {
        let mut removed = Vec::new();
        let found = cache.begin(blocks, blocks.len(), &mut removed).expect("there is room for one prompt");
        for &block in &blocks[found..] {
            cache.store(block);
        }
        cache.release(blocks, 0);
        last = (found, removed);
    }
    assert_eq!(last, (hits, gone.to_vec()), "{prompts:?}");
}

#[test]
fn a_prefix_hits_as_far_as_it_is_unbroken() {
    check(9, &[&[1, 2, 3]], 0, &[]);
    check(9, &[&[1, 2, 3], &[1, 2, 4]], 2, &[]);
    check(9, &[&[1, 2, 3], &[9, 2, 3]], 0, &[]);
}

#[test]
fn the_least_recently_used_prefix_goes_first_and_its_end_before_its_beginning() {
    check(4, &[&[1, 2], &[3, 4], &[5]], 0, &[2]);
    check(4, &[&[1, 2], &[3, 4], &[1, 2], &[5]], 0, &[4]);
    check(4, &[&[1, 2], &[3, 4], &[1, 5, 6]], 1, &[2, 4]);
}

#[test]
fn what_a_prompt_holds_is_not_taken() {
    let (mut cache, mut removed) = (RankCache::new(4), Vec::new());
    assert_eq!(cache.begin(&[1, 2], 3, &mut removed), Some(0));
    assert_eq!(cache.begin(&[7, 8], 2, &mut removed), None);
    assert!(cache.store(1) && cache.store(2));
    cache.release(&[1, 2], 1);
    assert_eq!(cache.begin(&[7, 8, 9], 3, &mut removed), Some(0));
    assert_eq!(removed, [2]);
}

#[test]
fn two_prompts_that_compute_the_same_block_share_it() {
    let (mut cache, mut removed) = (RankCache::new(4), Vec::new());
    cache.begin(&[1], 1, &mut removed);
    cache.begin(&[1], 1, &mut removed);
    assert!(cache.store(1));
    assert!(!cache.store(1));
    assert_eq!((cache.used(), cache.held()), (1, 1));
    cache.release(&[1], 0);
    assert_eq!(cache.held(), 1);
    cache.release(&[1], 0);
    assert_eq!((cache.used(), cache.held()), (1, 0));
}

proptest! {
    #[test]
    fn no_order_of_prompts_overfills_it(
        capacity in 1..12usize,
        prompts in prop::collection::vec((0..4u64, 0..6usize, 0..3usize, any::<bool>()), 0..60),
    ) {
        let (mut cache, mut removed) = (RankCache::new(capacity), Vec::new());
        let mut open: Vec<(Vec<u64>, usize)> = Vec::new();
        for (family, length, extra, end) in prompts {
            let blocks: Vec<u64> = (0..length as u64).map(|depth| depth << 8 | family.min(depth)).collect();
            if let Some(hits) = cache.begin(&blocks, length + extra, &mut removed) {
                for &block in &blocks[hits..] {
                    cache.store(block);
                }
                open.push((blocks, extra));
            }
            prop_assert!(cache.used() <= capacity && cache.held() <= cache.used());
            if end && !open.is_empty() {
                let (blocks, extra) = open.remove(0);
                cache.release(&blocks, extra);
            }
        }
        for (blocks, extra) in open.drain(..) {
            cache.release(&blocks, extra);
        }
        prop_assert_eq!(cache.held(), 0);
    }
}
