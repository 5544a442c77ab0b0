//! Mooncake's traces: JSON lines with the ids of 512-token prefix blocks. An id is a hash of the block and of
//! all before it, numbered by first sight (FAST'25, "Mooncake", section 4).

use super::blocks::SYSTEM_PROMPT_BLOCKS;
use super::lines::Place;
use super::reader::Parse;
use super::{BLOCK_TOKENS, BlockRange, Blocks, TIMESTAMP_MS_MAX, TOKENS_MAX, TraceError, TraceRequest};
use serde::Deserialize;

/// Prompt tokens of a block as recorded.
const RECORDED_TOKENS: u64 = 512;
/// Blocks of ours in one of theirs.
const PARTS: u64 = RECORDED_TOKENS / BLOCK_TOKENS;
/// Highest recorded id: eight times that and a copy's number fit into 64 bits.
const ID_MAX: u64 = u32::MAX as u64;
const EXPECTED: &str = "an object with timestamp, input_length, output_length, hash_ids";

#[derive(Deserialize)]
struct Line {
    timestamp: i64,
    input_length: i64,
    output_length: i64,
    hash_ids: Vec<u64>,
}

/// The parser; remembers the last stamp.
#[derive(Default)]
pub(super) struct Mooncake {
    last_ms: u64,
}

impl Parse for Mooncake {
    fn parse(&mut self, place: &Place, text: &[u8]) -> Result<Option<TraceRequest>, TraceError> {
        let line: Line = serde_json::from_slice(text).map_err(|error| place.not_json(&error, EXPECTED))?;
        let at_ms = place.within("timestamp", line.timestamp, 0, TIMESTAMP_MS_MAX)?;
        let input_tokens = place.within("input_length", line.input_length, 1, TOKENS_MAX)?;
        let output_tokens = place.within("output_length", line.output_length, 1, TOKENS_MAX)?;
        let blocks = blocks(place, &line.hash_ids, input_tokens)?;
        if at_ms < self.last_ms {
            return Err(place.unsorted("timestamp", at_ms, self.last_ms));
        }
        self.last_ms = at_ms;
        Ok(Some(TraceRequest { at_ms, input_tokens, output_tokens, blocks, ..TraceRequest::default() }))
    }
}

/// A recorded block is eight of ours: its own id is known only at its end, but whoever has the block has its
/// parts. The last recorded block of a prompt may not be full; only whole blocks of ours are kept.
fn blocks(place: &Place, ids: &[u64], input_tokens: u64) -> Result<Blocks, TraceError> {
    if let Some(&id) = ids.iter().find(|&&id| id > ID_MAX) {
        return Err(place.out_of_range("hash_ids", id, format!("0 to {ID_MAX}")));
    }
    let needed = input_tokens.div_ceil(RECORDED_TOKENS);
    if !ids.is_empty() && (ids.len() as u64) < needed {
        let value = format!("a list of {}", ids.len());
        let accepted = format!("{needed} ids, one for each {RECORDED_TOKENS} tokens begun, or none");
        return Err(place.out_of_range("hash_ids", value, accepted));
    }
    // Ids below SYSTEM_PROMPT_BLOCKS are given only to what is known to be a system prompt.
    let parts = |&id: &u64| BlockRange { first: SYSTEM_PROMPT_BLOCKS + id * PARTS, count: PARTS as u32 };
    Ok(Blocks::of_ranges(ids.iter().map(parts)).within(input_tokens))
}

/// When at least half of the requests begin with the same recorded block, that is a system prompt.
pub(super) fn share_system_prompt(requests: &mut [TraceRequest]) -> bool {
    let firsts = || requests.iter().filter_map(|request| request.blocks.ranges().first());
    // The majority candidate: whatever is not it cancels it out.
    let candidate = firsts().fold((0, 0usize), |(id, votes), range| match votes {
        0 => (range.first, 1),
        _ if range.first == id => (id, votes + 1),
        _ => (id, votes - 1),
    });
    let first = candidate.0;
    let (begin, all) = (firsts().filter(|range| range.first == first).count(), firsts().count());
    // One request shares nothing with anybody.
    let shared = begin > 1 && 2 * begin >= all;
    if shared {
        requests.iter_mut().for_each(|request| request.blocks.share_from(first));
    }
    shared
}
