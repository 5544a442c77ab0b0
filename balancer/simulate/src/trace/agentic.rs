//! Recorded coding sessions: JSON lines, the turns of a session together, with ranges of 64-token prefix
//! blocks whose ids count within the session.
//!
//! A session's times count from its own beginning, and when it began is not recorded. So the trace is one user
//! who has one session after the other, and copies of it are users who work at the same time. A sub-agent
//! (`d` above 0) has a clock of its own too: it begins when the request before it was answered, and the session
//! goes on when it is done. It shares the session's blocks.

use super::lines::Place;
use super::reader::Parse;
use super::{BLOCK_TOKENS, BlockRange, Blocks, TIMESTAMP_MS_MAX, TOKENS_MAX, TraceError, TraceRequest};
use serde::Deserialize;
use std::collections::HashSet;

/// Bits of a block's id within its session; the session's number stands above them.
const ID_BITS: u32 = 24;
const ID_MAX: u64 = (1 << ID_BITS) - 1;
/// Sessions of one file: what is left of the ids of a trace.
const SESSIONS_MAX: u64 = (1 << (super::ID_BITS - ID_BITS)) - 1;
/// Longest name of a session: they are all remembered.
const NAME_BYTES_MAX: usize = 256;
/// Deepest sub-agent.
const DEPTH_MAX: u32 = 64;
const EXPECTED: &str = "an object with s, d, t, in, out, h";

#[derive(Deserialize)]
struct Line {
    s: String,
    d: u32,
    t: f64,
    r#in: i64,
    out: i64,
    h: Vec<(u64, u32)>,
    /// Seconds until it was answered.
    api: Option<f64>,
}

/// A session, or a sub-agent in it.
struct Run {
    depth: u32,
    /// Of its last request, by the session's clock and by the user's.
    last_s: f64,
    last_ms: u64,
    turn: u32,
    number: u32,
}

/// The parser; remembers the names of the sessions that were.
pub(super) struct Agentic {
    idle_max_ms: u64,
    names: HashSet<String>,
    name: String,
    /// The session, and the sub-agents of each depth that are at work in it.
    stack: Vec<Run>,
    runs: u32,
    /// The user's clock, and until when the last request was answered.
    at_ms: u64,
    answered_ms: u64,
}

impl Agentic {
    /// Times between two requests of a user that are longer are cut to this.
    pub(super) fn new(idle_max_ms: u64) -> Self {
        let (names, name) = (HashSet::new(), String::new());
        Self { idle_max_ms, names, name, stack: Vec::new(), runs: 0, at_ms: 0, answered_ms: 0 }
    }

    /// Advances the user's clock to a request at `t` seconds of its session.
    fn advance(&mut self, place: &Place, line: &Line) -> Result<(), TraceError> {
        if line.s != self.name {
            let first = self.name.is_empty();
            self.begin_session(place, &line.s)?;
            self.stack.clear();
            self.answered_ms = self.at_ms + if first { 0 } else { self.idle_max_ms };
        }
        // Whatever is deeper than this request is done.
        while self.stack.last().is_some_and(|run| run.depth > line.d) {
            self.stack.pop();
        }
        match self.stack.last_mut().filter(|run| run.depth == line.d) {
            Some(run) if line.t >= run.last_s => {
                let gap_ms = seconds((line.t - run.last_s).min(self.idle_max_ms as f64 / 1000.0));
                self.at_ms = self.at_ms.max(run.last_ms + gap_ms);
                (run.last_s, run.last_ms) = (line.t, self.at_ms);
                run.turn += 1;
            }
            // A sub-agent after another begins at 0 again.
            Some(run) if line.d == 0 || line.t > 0.0 => {
                return Err(place.unsorted("t", line.t, run.last_s));
            }
            earlier => {
                self.at_ms = self.answered_ms;
                self.runs += 1;
                let run =
                    Run { depth: line.d, last_s: line.t, last_ms: self.at_ms, turn: 0, number: self.runs };
                match earlier {
                    Some(earlier) => *earlier = run,
                    None => self.stack.push(run),
                }
            }
        }
        let answer_ms = seconds(line.api.unwrap_or(0.0)).min(self.idle_max_ms);
        self.answered_ms = self.at_ms + answer_ms;
        Ok(())
    }

    fn begin_session(&mut self, place: &Place, name: &str) -> Result<(), TraceError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            let value = format!("{} bytes long", name.len());
            return Err(place.out_of_range("s", value, format!("names of 1 to {NAME_BYTES_MAX} bytes")));
        }
        if !self.names.insert(name.to_owned()) {
            let (path, line, session) = (place.path.clone(), place.line, name.to_owned());
            return Err(TraceError::SessionAgain { path, line, session });
        }
        if self.names.len() as u64 > SESSIONS_MAX {
            return Err(place.out_of_range("s", "one more name", format!("{SESSIONS_MAX} sessions")));
        }
        name.clone_into(&mut self.name);
        Ok(())
    }

    fn blocks(&self, place: &Place, ranges: &[(u64, u32)], input_tokens: u64) -> Result<Blocks, TraceError> {
        for &(first, count) in ranges {
            if count == 0 || first.saturating_add(count.into()) > ID_MAX {
                let value = format!("[{first},{count}]");
                return Err(place.out_of_range(
                    "h",
                    value,
                    format!("[first, count] with ids up to {ID_MAX}"),
                ));
            }
        }
        let total: u64 = ranges.iter().map(|&(_, count)| u64::from(count)).sum();
        let whole = input_tokens / BLOCK_TOKENS;
        if total != whole {
            let accepted = format!("{whole}, the whole blocks of {BLOCK_TOKENS} in {input_tokens} tokens");
            return Err(place.out_of_range("h", format!("{total} blocks"), accepted));
        }
        let session = (self.names.len() as u64) << ID_BITS;
        let range = |&(first, count): &(u64, u32)| BlockRange { first: session | first, count };
        Ok(Blocks::of_ranges(ranges.iter().map(range)))
    }
}

/// Seconds that were checked, in ms.
fn seconds(seconds: f64) -> u64 {
    (seconds * 1000.0).round() as u64
}

impl Parse for Agentic {
    fn parse(&mut self, place: &Place, text: &[u8]) -> Result<Option<TraceRequest>, TraceError> {
        let line: Line = serde_json::from_slice(text).map_err(|error| place.not_json(&error, EXPECTED))?;
        let latest_s = TIMESTAMP_MS_MAX / 1000;
        if !(0.0..=latest_s as f64).contains(&line.t) {
            return Err(place.out_of_range("t", line.t, format!("0 to {latest_s}")));
        }
        place.within("d", line.d.into(), 0, DEPTH_MAX.into())?;
        let input_tokens = place.within("in", line.r#in, 1, TOKENS_MAX)?;
        // A request that was stopped before it generated anything was prefilled all the same, and that gives a token.
        let output_tokens = place.within("out", line.out, 0, TOKENS_MAX)?.max(1);
        if let Some(api) = line.api.filter(|api| !(0.0..=latest_s as f64).contains(api)) {
            return Err(place.out_of_range("api", api, format!("0 to {latest_s}")));
        }
        self.advance(place, &line)?;
        let at_ms = place.within("t", self.at_ms as i64, 0, TIMESTAMP_MS_MAX)?;
        let blocks = self.blocks(place, &line.h, input_tokens)?;
        let run = self.stack.last().expect("advanced to a run");
        let (session, turn) = (run.number, run.turn);
        Ok(Some(TraceRequest { at_ms, input_tokens, output_tokens, blocks, session, turn, client: 0 }))
    }
}
