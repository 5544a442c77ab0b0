//! Which unit of several a request goes to: the same rule whatever the policies at the units, so that only these differ. Prompts go by
//! their prefix, as a gateway sends them that asks [`UnitChoice`]; outputs to the unit with the fewest open tokens.

use super::request::Request;
use crate::dispatch::BLOCK_TOKENS;
use evenkeel_core::prefill::RoundBudget;
use evenkeel_core::prefix::{BLOCKS_MAX, BlockHash};
use evenkeel_core::unit_choice::{Chosen, UnitChoice};
use std::collections::HashMap;

/// In front of prefill units.
#[derive(Debug)]
pub(super) struct PrefillFront {
    choice: UnitChoice,
    /// Requests that are in a unit.
    open: HashMap<u64, Chosen>,
}

impl PrefillFront {
    /// In front of `units` units of `ranks` ranks with room for `kv_tokens` tokens each.
    pub(super) fn new((units, ranks): (u16, u16), kv_tokens: u64) -> Self {
        let blocks = u64::from(units) * u64::from(ranks) * (kv_tokens / BLOCK_TOKENS);
        let blocks_max = blocks.clamp(1, BLOCKS_MAX as u64) as usize;
        // Gateways have no fitted cost.
        let pair_cost = RoundBudget::of(1).pair_cost;
        let choice = UnitChoice::new((units, ranks), blocks_max, BLOCK_TOKENS, pair_cost);
        Self { choice: choice.expect("a validated setup is within the bounds"), open: HashMap::new() }
    }

    /// The unit of a request; counts it.
    pub(super) fn choose(&mut self, id: u64, request: &Request) -> u16 {
        let blocks = request.blocks.iter().copied().map(BlockHash).collect();
        let chosen = self.choice.choose(request.prompt_tokens, &blocks);
        self.open.insert(id, chosen);
        chosen.unit
    }

    /// A request has left its unit.
    pub(super) fn leave(&mut self, id: u64) {
        self.choice.leave(self.open.remove(&id).expect("requests leave once"));
    }
}

/// In front of decode units: open prompt tokens by unit.
#[derive(Debug)]
pub(super) struct DecodeFront {
    open: Vec<u64>,
}

impl DecodeFront {
    /// In front of `units` units.
    pub(super) fn new(units: u16) -> Self {
        Self { open: vec![0; units.into()] }
    }

    /// The unit with the fewest open tokens; counts the request.
    pub(super) fn choose(&mut self, request: &Request) -> u16 {
        let least = (0..self.open.len()).min_by_key(|&unit| self.open[unit]).expect("there are units");
        self.open[least] += request.prompt_tokens;
        least as u16
    }

    /// A request has left its unit.
    pub(super) fn leave(&mut self, unit: u16, request: &Request) {
        self.open[usize::from(unit)] -= request.prompt_tokens;
    }
}

/// Splitmix64's mixing.
pub(super) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
