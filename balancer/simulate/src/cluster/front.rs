//! Which unit of several a request goes to: the same rule whatever the policies at the units, so that only these differ.

use super::request::Request;

/// Prefix blocks by which a request's unit is chosen: past the system prompt (512 tokens in the Mooncake traces) that nearly all share,
/// so that the turns of a session and the requests of one application meet.
const PREFIX_BLOCKS: usize = 16;
/// A unit this much above the mean of the open tokens is passed over: consistent hashing with bounded loads, and its usual
/// factor.
const LOAD_MAX: f64 = 1.25;

/// Open prompt tokens by unit.
#[derive(Debug, Clone)]
pub struct Front {
    open: Vec<u64>,
}

impl Front {
    /// In front of `units` units.
    pub fn new(units: u16) -> Self {
        Self { open: vec![0; units.into()] }
    }

    /// The unit of a request, by its prefix unless that unit has too much; counts it.
    pub fn choose(&mut self, id: u64, request: &Request) -> u16 {
        let units = self.open.len();
        let key = request.blocks.get(PREFIX_BLOCKS - 1).or(request.blocks.last()).copied().unwrap_or(id);
        let all: u64 = self.open.iter().sum::<u64>() + request.prompt_tokens;
        let bound = LOAD_MAX * all as f64 / units as f64;
        let first = (mix(key) % units as u64) as usize;
        let order = (0..units).map(|step| (first + step) % units);
        let fits = |&unit: &usize| {
            (self.open[unit] + request.prompt_tokens) as f64 <= bound.max(request.prompt_tokens as f64)
        };
        let unit = order.clone().find(fits);
        let unit =
            unit.unwrap_or_else(|| order.min_by_key(|&unit| self.open[unit]).expect("there are units"));
        self.open[unit] += request.prompt_tokens;
        unit as u16
    }

    /// The unit with the fewest open tokens; counts the request.
    pub fn choose_least(&mut self, request: &Request) -> u16 {
        let least = (0..self.open.len()).min_by_key(|&unit| self.open[unit]).expect("there are units");
        self.open[least] += request.prompt_tokens;
        least as u16
    }

    /// A request has left its unit.
    pub fn leave(&mut self, unit: u16, request: &Request) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn request(family: u64, tokens: u64) -> Request {
        let blocks: Arc<[u64]> = (0..tokens / 64).map(|depth| family << 32 | depth).collect();
        Request { at_us: 0, prompt_tokens: tokens, output_tokens: 1, blocks, turn: 0, tenant: 0 }
    }

    #[test]
    fn turns_of_a_session_meet_while_the_load_allows_it() {
        let mut front = Front::new(4);
        let crowd: Vec<u16> = (0..64).map(|family| front.choose(family, &request(family, 4096))).collect();
        for unit in 0..4 {
            assert!(crowd.iter().filter(|&&u| u == unit).count() >= 8, "{crowd:?}");
        }
        let mut quiet = Front::new(4);
        let first = quiet.choose(1, &request(7, 2048));
        quiet.leave(first, &request(7, 2048));
        assert_eq!(quiet.choose(2, &request(7, 9999)), first);
    }

    #[test]
    fn a_session_that_fills_its_unit_goes_elsewhere() {
        let mut front = Front::new(2);
        let units: Vec<u16> = (0..10).map(|id| front.choose(id, &request(7, 4096))).collect();
        assert!(units.contains(&0) && units.contains(&1), "{units:?}");
    }
}
