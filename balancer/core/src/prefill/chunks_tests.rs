//! Properties of [`plan_round`].

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn prompt(context: u64, remaining: u64) -> Prompt {
    Prompt { context, remaining }
}

/// Ranks by their pinned prompts, with nothing outstanding.
fn ranks(pinned: &[&[Prompt]]) -> Vec<RankBacklog> {
    let rank = |p: &&[Prompt]| RankBacklog { pinned: p.to_vec(), outstanding: Work::default() };
    pinned.iter().map(rank).collect()
}

/// Checks what every round must keep to; returns the new tokens by rank.
fn check_round(ranks: &[RankBacklog], held: &[Prompt], round_tokens: u64, round: &Round) -> Vec<u64> {
    let mut tokens = vec![0; ranks.len()];
    let mut seen = BTreeSet::new();
    for chunk in &round.chunks {
        let (prompt, name) = match chunk.prompt {
            Source::Pinned(index) => (ranks[chunk.rank].pinned[index], (chunk.rank, chunk.prompt)),
            Source::Held(index) => (held[index], (usize::MAX, chunk.prompt)),
        };
        assert!(seen.insert(name), "{name:?} runs twice in a round");
        assert!((1..=prompt.remaining).contains(&chunk.tokens), "{chunk:?} of {prompt:?}");
        assert!(chunk.microbatch < 2);
        tokens[chunk.rank] += chunk.tokens;
    }
    for (rank, &tokens) in ranks.iter().zip(&tokens) {
        assert!(tokens == 0 || tokens + rank.outstanding.tokens <= round_tokens, "{tokens} tokens");
    }
    tokens
}

/// Tokens by rank of a round of 1000.
#[track_caller]
fn check(ranks: &[RankBacklog], held: &[Prompt], expected: &[u64]) {
    let round = plan_round(ranks, held, 1000);
    assert_eq!(check_round(ranks, held, 1000, &round), expected, "{round:?}");
}

#[test]
fn small_rounds() {
    check(&ranks(&[&[], &[]]), &[], &[0, 0]);
    check(&ranks(&[&[], &[]]), &[prompt(0, 9), prompt(0, 9)], &[9, 9]);
    check(&ranks(&[&[], &[]]), &[prompt(0, 3000), prompt(0, 2000)], &[1000, 1000]);
    // The long context stops at a ceiling that leaves out 4 % of the round.
    check(&ranks(&[&[prompt(5000, 3000)], &[]]), &[prompt(0, 1000)], &[921, 1000]);
    check(&ranks(&[&[prompt(5000, 300)], &[]]), &[], &[300, 0]);
    check(&[], &[], &[]);
}

#[test]
fn a_lone_prompt_is_not_cut_thinner_than_a_round_is_worth() {
    let mut idle = vec![RankBacklog::default(); 32];
    check(&idle[..2], &[prompt(0, 400)], &[400, 0]);
    idle[0].pinned.push(prompt(0, 2000));
    assert_eq!(plan_round(&idle, &[], 4096).chunks.iter().map(|c| c.tokens).sum::<u64>(), 512);
}

#[test]
fn outstanding_work_takes_part_of_the_round() {
    let mut busy = ranks(&[&[prompt(0, 5000)], &[prompt(0, 5000)], &[prompt(0, 5000)]]);
    busy[0].outstanding = Work::of(0, 400);
    busy[1].outstanding = Work::of(0, 1700);
    check(&busy, &[], &[600, 0, 1000]);
}

#[test]
fn long_and_short_contexts_are_mixed_to_one_attention() {
    // Two ranks can fill up with a context of 40k, the other two only with one of 20k: the first two must
    // come down to them with what has no context.
    let (long, middle, short) = (prompt(40_000, 9000), prompt(20_000, 9000), prompt(0, 9000));
    let pinned: [&[Prompt]; 4] = [&[long, short], &[short, long], &[middle, short], &[middle]];
    let round = plan_round(&ranks(&pinned), &[], 1000);
    assert_eq!(round.tokens.over_mean, 1.0);
    assert!(round.attention.over_mean < 1.01, "{round:?}");
}

#[test]
fn the_halves_of_a_rank_are_even() {
    let pinned = [prompt(900, 250), prompt(0, 250), prompt(900, 250), prompt(0, 250)];
    let round = plan_round(&ranks(&[&pinned]), &[], 1000);
    let half = |microbatch| {
        let chunks = round.chunks.iter().filter(|c| c.microbatch == microbatch);
        chunks.map(|c| c.tokens).sum::<u64>()
    };
    assert_eq!((half(0), half(1)), (500, 500));
}

fn prompts(tokens: u64, count: usize) -> impl Strategy<Value = Vec<Prompt>> {
    prop::collection::vec((0..20_000u64, 1..tokens).prop_map(|(c, r)| prompt(c, r)), 0..count)
}

fn backlogs(outstanding: u64) -> impl Strategy<Value = Vec<RankBacklog>> {
    let rank = (prompts(4000, 5), 0..20_000u64, 0..=outstanding)
        .prop_map(|(pinned, context, tokens)| RankBacklog { pinned, outstanding: Work::of(context, tokens) });
    prop::collection::vec(rank, 1..8)
}

proptest! {
    #[test]
    fn no_round_breaks_a_prompt_or_a_rank(
        ranks in backlogs(1500),
        held in prompts(4000, 30),
        round_tokens in 1..2000u64,
    ) {
        let round = plan_round(&ranks, &held, round_tokens);
        check_round(&ranks, &held, round_tokens, &round);
        prop_assert_eq!(plan_round(&ranks, &held, round_tokens), round);
    }

    #[test]
    fn idle_ranks_make_progress_and_leave_out_little(
        ranks in backlogs(0),
        held in prompts(4000, 30),
        round_tokens in 1..2000u64,
    ) {
        let round = plan_round(&ranks, &held, round_tokens);
        let tokens = check_round(&ranks, &held, round_tokens, &round);
        let pinned = |rank: &RankBacklog| rank.pinned.iter().map(|p| p.remaining).sum::<u64>();
        let left = ranks.iter().map(pinned).sum::<u64>() + held.iter().map(|p| p.remaining).sum::<u64>();
        prop_assert_eq!(round.chunks.is_empty(), left == 0);
        // Not more than its even part of what is left, so that thin rounds are even too.
        let whole = round_tokens.min(left.div_ceil(ranks.len() as u64));
        for (rank, &tokens) in ranks.iter().zip(&tokens) {
            prop_assert!(tokens >= whole.min(pinned(rank)) / PROGRESS_PART, "{} tokens of {:?}", tokens, rank);
        }
        let could = ranks.iter().map(|rank| whole.min(pinned(rank))).sum::<u64>();
        let (run, least) = (tokens.iter().sum::<u64>() as f64, could as f64 * (1.0 - TOKENS_LEFT_OUT));
        prop_assert!(run >= least - 1.0, "{} of {} tokens", run, could);
    }

    #[test]
    fn tokens_are_equal_while_enough_short_work_is_held(ranks in backlogs(0), held in short_prompts()) {
        let round = plan_round(&ranks, &held, 1000);
        let bound = 1.0 / (1.0 - TOKENS_LEFT_OUT);
        prop_assert!(round.tokens.over_mean <= bound + 1e-9, "{:?}", round.tokens);
    }
}

/// At least twice what 7 ranks run in a round of 1000.
fn short_prompts() -> impl Strategy<Value = Vec<Prompt>> {
    prop::collection::vec((0..1000u64, 50..100u64).prop_map(|(c, r)| prompt(c, r)), 280..300)
}
