//! A part of a trace in memory, and its arrivals.

use super::mooncake::share_system_prompt;
use super::{Jitter, TraceError, TraceFormat, TraceOptions, TraceReader, TraceRequest};
use crate::replicate::Replicated;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Most requests of one trace: half a gigabyte, two days of what ServeGen's clients of DeepSeek-R1 send.
pub(super) const REQUESTS_MAX: usize = 4 << 20;
/// Fewer stamps do not show whether they come in ticks.
const STAMPS_MIN: usize = 10;
/// Ticks are longer than this, ms: clocks that are read in ms, or in the 10 ms of old kernels, are no ticks.
const TICK_MS_MIN: u64 = 100;

/// A part of a trace, with its times from 0 and at the speed of the replay.
#[derive(Debug, Clone)]
pub struct Trace {
    /// In the order of time; not empty.
    pub requests: Arc<[TraceRequest]>,
    /// The source.
    pub format: TraceFormat,
    /// Copies that arrive at the same time.
    pub copies: u32,
    /// Arrivals are moved by less than this, ms of the replay.
    pub jitter_ms: u64,
    /// Whether the requests were drawn from distributions and not recorded.
    pub drawn: bool,
    /// What a reader of figures must know, a sentence each.
    pub notes: Vec<String>,
    seed: u64,
}

impl Trace {
    /// The arrivals of all copies.
    pub fn arrivals(&self) -> Replicated {
        Replicated::with_jitter(self.requests.clone(), self.copies, self.jitter_ms, self.seed)
    }
}

/// Reads what the options take of a trace.
pub fn load(path: &Path, options: &TraceOptions) -> Result<Trace, TraceError> {
    options.check()?;
    let mut reader = TraceReader::open_with(path, options)?;
    let format = reader.format();
    let mut requests = Vec::new();
    let mut end_ms = 0;
    while let Some(request) = reader.next().transpose()? {
        end_ms = request.at_ms;
        if options.until_ms.is_some_and(|until_ms| request.at_ms >= until_ms) {
            break;
        }
        if request.at_ms < options.from_ms {
            continue;
        }
        if requests.len() == REQUESTS_MAX {
            return Err(TraceError::TooMany { path: path.to_owned(), line: reader.line() });
        }
        requests.push(request);
    }
    if requests.is_empty() {
        let (from_ms, until_ms) = (options.from_ms, options.until_ms);
        return Err(TraceError::NoneLeft { path: path.to_owned(), from_ms, until_ms, end_ms });
    }
    let shared = format == TraceFormat::Mooncake && share_system_prompt(&mut requests);
    let tick_ms = tick_ms(&requests);
    let jitter_ms = match options.jitter {
        Jitter::Auto => tick_ms.unwrap_or(0),
        Jitter::Ms(ms) => ms,
    };
    for request in &mut requests {
        request.at_ms = replayed(request.at_ms - options.from_ms, options.speed);
    }
    // ServeGen's clients send more already.
    let drawn = format == TraceFormat::ServeGen;
    let copies = if drawn { 1 } else { options.copies };
    let notes = notes(options, format, shared, tick_ms, jitter_ms);
    let jitter_ms = replayed(jitter_ms, options.speed);
    let requests = requests.into();
    Ok(Trace { requests, format, copies, jitter_ms, drawn, notes, seed: options.seed })
}

fn replayed(ms: u64, speed: f64) -> u64 {
    (ms as f64 / speed).round() as u64
}

/// The distance of the stamps, if nine of ten are as far from the next as most are, give or take a hundredth.
fn tick_ms(requests: &[TraceRequest]) -> Option<u64> {
    let mut stamps: Vec<u64> = requests.iter().map(|request| request.at_ms).collect();
    stamps.dedup();
    if stamps.len() < STAMPS_MIN {
        return None;
    }
    let mut gaps: BTreeMap<u64, usize> = BTreeMap::new();
    for pair in stamps.windows(2) {
        *gaps.entry(pair[1] - pair[0]).or_default() += 1;
    }
    let (&tick, _) = gaps.iter().max_by_key(|(_, count)| **count)?;
    let near = tick.saturating_sub(tick / 100)..=tick + tick / 100;
    let regular: usize = gaps.range(near).map(|(_, count)| count).sum();
    (tick >= TICK_MS_MIN && 10 * regular >= 9 * (stamps.len() - 1)).then_some(tick)
}

fn notes(
    options: &TraceOptions,
    format: TraceFormat,
    shared: bool,
    tick_ms: Option<u64>,
    jitter_ms: u64,
) -> Vec<String> {
    let mut notes = Vec::new();
    match format {
        TraceFormat::Mooncake if shared => notes.push(
            "most requests begin with the same block, a system prompt that all copies share: hit tokens say more than hit requests"
                .to_owned(),
        ),
        TraceFormat::Mooncake => notes.push("no prompt is shared between copies".to_owned()),
        TraceFormat::Agentic => notes.push(format!(
            "a copy is one user who has the recorded sessions one after the other; idle times are cut to {} s, and \
             no prompt is shared between sessions, for the recording does not say which were",
            options.idle_max_ms as f64 / 1000.0
        )),
        TraceFormat::Azure => notes.push("has no prefix information: nothing is cached".to_owned()),
        TraceFormat::ServeGen => notes.push(format!(
            "synthetic from distributions: requests are drawn (seed {}) from recorded rates and lengths of clients, prompt and output \
             independently; has no prefix information: nothing is cached",
            options.seed
        )),
    }
    match (tick_ms, jitter_ms) {
        (Some(tick), 0) => notes.push(format!("stamps come in ticks of {tick} ms, and are left in them")),
        (Some(tick), jitter) => notes
            .push(format!("stamps come in ticks of {tick} ms: arrivals are moved by less than {jitter} ms")),
        (None, 0) => {}
        (None, jitter) => notes.push(format!("arrivals are moved by less than {jitter} ms")),
    }
    if options.speed != 1.0 {
        notes.push(format!("replayed at {} times the recorded speed", options.speed));
    }
    match (options.copies, format) {
        (1, _) => {}
        (copies, TraceFormat::ServeGen) => {
            notes.push(format!("every client sends {copies} times what was recorded"));
        }
        (copies, _) => notes.push(format!(
            "{copies} copies, each from its own point of the trace on and with prefixes of its own (seed {})",
            options.seed
        )),
    }
    notes
}
