//! Which rank gets which held prompt.

use super::chunks::{Prompt, Source};
use super::fill::Candidates;
use super::target::Target;
use std::cmp::Reverse;

/// Rounds of heavy prompts that a rank shall have at hand, so that the next is ripe before the last ends. 5
/// is no better in simulation, and binds prompts earlier.
const ROUNDS_AHEAD: f64 = 3.0;

/// Gives heavy prompts to the ranks that run out of them, and light ones to those that cannot fill up.
pub(super) fn supply(candidates: &mut [Candidates], held: &[Prompt], target: &Target) {
    let mut given = vec![false; held.len()];
    supply_heavy(candidates, held, target, &mut given);
    supply_light(candidates, held, target, &mut given);
}

/// Oldest first, to the rank that has least; a rank that cannot reach the target gets one that is ripe.
fn supply_heavy(candidates: &mut [Candidates], held: &[Prompt], target: &Target, given: &mut [bool]) {
    let rounds = |c: &Candidates| -> f64 {
        let heavy = c.members.iter().filter(|(_, p)| target.is_heavy(p));
        heavy.map(|(_, p)| target.rounds(p)).sum()
    };
    let mut stock: Vec<f64> = candidates.iter().map(rounds).collect();
    let mut waiting: Vec<usize> = (0..held.len()).filter(|&index| target.is_heavy(&held[index])).collect();
    while !waiting.is_empty() {
        let poorest = (0..stock.len()).min_by(|&x, &y| stock[x].total_cmp(&stock[y]));
        let Some(rank) = poorest.filter(|&rank| stock[rank] < ROUNDS_AHEAD) else { return };
        let lacks = (candidates[rank].reach() as f64) < target.attention;
        let ripe = waiting.iter().position(|&index| lacks && target.is_ripe(&held[index]));
        let index = waiting.remove(ripe.unwrap_or(0));
        given[index] = true;
        candidates[rank].members.push((Source::Held(index), held[index]));
        stock[rank] += target.rounds(&held[index]);
    }
}

/// Oldest first, to the rank that lacks most tokens.
fn supply_light(candidates: &mut [Candidates], held: &[Prompt], target: &Target, given: &mut [bool]) {
    let mut lack: Vec<u64> = candidates.iter().map(|c| c.lacking(target)).collect();
    for (index, &prompt) in held.iter().enumerate() {
        if given[index] || target.is_heavy(&prompt) {
            continue;
        }
        let Some(rank) = (0..lack.len()).max_by_key(|&rank| (lack[rank], Reverse(rank))) else { return };
        if lack[rank] == 0 {
            return;
        }
        given[index] = true;
        candidates[rank].members.push((Source::Held(index), prompt));
        // What it brings in tokens is not all that it takes: exact where the rank seems to be full.
        lack[rank] = lack[rank].saturating_sub(prompt.remaining);
        if lack[rank] == 0 {
            lack[rank] = candidates[rank].lacking(target);
        }
    }
}
