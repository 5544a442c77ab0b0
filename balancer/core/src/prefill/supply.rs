//! Which rank gets which held prompt.

use super::chunks::{Prompt, Source};
use super::fill::Candidates;
use super::target::Target;
use std::cmp::Reverse;

/// Rounds of heavy prompts that a rank shall have at hand, so that the next is ripe before the last ends. 5
/// is no better in simulation, and binds prompts earlier.
const ROUNDS_AHEAD: f64 = 3.0;

/// Held prompts that no rank was given yet, oldest first.
pub(super) struct Waiting<'a> {
    held: &'a [Prompt],
    left: Vec<usize>,
}

impl<'a> Waiting<'a> {
    pub(super) fn of(held: &'a [Prompt]) -> Self {
        Self { held, left: (0..held.len()).collect() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }
}

/// Gives heavy prompts to the ranks that run out of them, and light ones to those that cannot fill up.
pub(super) fn supply(candidates: &mut [Candidates], waiting: &mut Waiting, target: &Target) {
    let held = waiting.held;
    let is_heavy = |&index: &usize| target.is_heavy(&held[index]);
    let (mut heavy, mut light): (Vec<usize>, Vec<usize>) = waiting.left.iter().partition(|i| is_heavy(i));
    supply_heavy(candidates, held, &mut heavy, target);
    supply_light(candidates, held, &mut light, target);
    waiting.left = [heavy, light].concat();
    waiting.left.sort_unstable();
}

fn give(candidates: &mut Candidates, held: &[Prompt], index: usize) {
    candidates.members.push((Source::Held(index), held[index]));
}

/// Oldest first, to the rank that has least; a rank that cannot reach the target gets one that is ripe.
fn supply_heavy(candidates: &mut [Candidates], held: &[Prompt], heavy: &mut Vec<usize>, target: &Target) {
    let rounds = |members: &[(Source, Prompt)]| -> f64 {
        let heavy = members.iter().filter(|(_, p)| target.is_heavy(p));
        heavy.map(|(_, p)| target.rounds(p)).sum()
    };
    let mut stock: Vec<f64> = candidates.iter().map(|c| rounds(&c.members)).collect();
    if heavy.first() == Some(&0) && stock.iter().all(|&stock| stock >= ROUNDS_AHEAD) {
        // Prompts that came later fill the ranks because their prefix is there: else the oldest would wait for ever.
        let older = |&rank: &usize| rounds(candidates[rank].older());
        let least = (0..stock.len()).min_by(|x, y| older(x).total_cmp(&older(y)));
        if let Some(rank) = least.filter(|rank| older(rank) < ROUNDS_AHEAD) {
            give(&mut candidates[rank], held, heavy.remove(0));
        }
    }
    while !heavy.is_empty() {
        let poorest = (0..stock.len()).min_by(|&x, &y| stock[x].total_cmp(&stock[y]));
        let Some(rank) = poorest.filter(|&rank| stock[rank] < ROUNDS_AHEAD) else { return };
        let lacks = (candidates[rank].reach() as f64) < target.attention;
        let ripe = heavy.iter().position(|&index| lacks && target.is_ripe(&held[index]));
        let index = heavy.remove(ripe.unwrap_or(0));
        give(&mut candidates[rank], held, index);
        stock[rank] += target.rounds(&held[index]);
    }
}

/// Oldest first, to the rank that lacks most tokens.
fn supply_light(candidates: &mut [Candidates], held: &[Prompt], light: &mut Vec<usize>, target: &Target) {
    let mut lack: Vec<u64> = candidates.iter().map(|c| c.lacking(target)).collect();
    let mut given = 0;
    for &index in &*light {
        let most = (0..lack.len()).max_by_key(|&rank| (lack[rank], Reverse(rank)));
        let Some(rank) = most.filter(|&rank| lack[rank] > 0) else { break };
        given += 1;
        give(&mut candidates[rank], held, index);
        // What it brings in tokens is not all that it takes: exact where the rank seems to be full.
        lack[rank] = lack[rank].saturating_sub(held[index].remaining);
        if lack[rank] == 0 {
            lack[rank] = candidates[rank].lacking(target);
        }
    }
    light.drain(..given);
}
