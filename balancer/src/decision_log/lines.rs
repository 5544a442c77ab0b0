//! Lines in and out.

use super::event::{self, EventLine, fields, take_name};
use super::outcome::DecisionLine;
use super::{BUILD, LINE_BYTES_MAX, LogError, VERSION};
use crate::config;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use evenkeel_core::ids::UnitId;
use evenkeel_core::routing::{Decision, EVENTS_MAX, Router, RoutingError, RoutingEvent};
use evenkeel_core::topology::Role;
use evenkeel_core::units::Millis;
use flate2::Compression;
use flate2::read::{DeflateDecoder, DeflateEncoder};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::io::{self, BufRead, Read as _, Write};

/// Longest state, unpacked: what a line may hold, packed to a quarter.
const STATE_BYTES_MAX: u64 = 4 * LINE_BYTES_MAX;

/// What a line says.
pub(super) enum Line {
    Header,
    Unit(UnitLine),
    State { unit: String, router: Box<Router> },
    Gap { unit: String },
    Batch { at: Millis, unit: String, events: Vec<RoutingEvent> },
    Decision(DecisionLine),
}

/// Introduces a unit; all its ranks are up and empty.
pub(super) struct UnitLine {
    pub(super) unit: String,
    pub(super) role: Role,
    pub(super) ranks: u16,
    pub(super) policy: config::Routing,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UnitFields {
    role: RoleName,
    ranks: u16,
    #[serde(default)]
    policy: config::Routing,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RoleName {
    Prefill,
    Decode,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFields {
    build: String,
    sha256: String,
    router: String,
}

/// Reads lines; knows where it is.
pub(crate) struct Lines<R> {
    file: String,
    input: R,
    line: u64,
    text: Vec<u8>,
    began: bool,
}

impl<R: BufRead> Lines<R> {
    /// `file` is its name in messages.
    pub(crate) fn new(file: String, input: R) -> Self {
        Self { file, input, line: 0, text: Vec::new(), began: false }
    }

    pub(super) fn place(&self) -> (String, u64) {
        (self.file.clone(), self.line)
    }

    fn malformed(&self, reason: impl Into<String>) -> LogError {
        LogError::Malformed { file: self.file.clone(), line: self.line, reason: reason.into() }
    }

    /// The next line; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Line>, LogError> {
        loop {
            self.line += 1;
            self.text.clear();
            let read = (&mut self.input).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut self.text);
            let (file, line) = self.place();
            let read = read.map_err(|source| LogError::Read { file: file.clone(), line, source })?;
            if read == 0 {
                return if self.began { Ok(None) } else { Err(LogError::Header { file, line }) };
            }
            if read as u64 > LINE_BYTES_MAX {
                return Err(LogError::LineTooLong { file, line });
            }
            if self.text.last() != Some(&b'\n') {
                return Err(LogError::Truncated { file, line });
            }
            if self.text.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if !self.began {
                self.header()?;
                self.began = true;
                return Ok(Some(Line::Header));
            }
            return self.parse().map(Some);
        }
    }

    fn header(&self) -> Result<(), LogError> {
        #[derive(Deserialize)]
        struct Header {
            evenkeel: String,
            version: u64,
        }
        let (file, line) = self.place();
        let header = serde_json::from_slice::<Header>(&self.text).ok();
        match header.filter(|header| header.evenkeel == "decisions") {
            None => Err(LogError::Header { file, line }),
            Some(Header { version, .. }) if !(1..=u64::from(VERSION)).contains(&version) => {
                Err(LogError::Version { file, line, found: version })
            }
            Some(_) => Ok(()),
        }
    }

    fn state(&self, unit: String, object: Map<String, Value>) -> Result<Line, LogError> {
        let (file, line) = self.place();
        let state: StateFields = fields(object).map_err(|reason| self.malformed(reason))?;
        if state.build != BUILD {
            return Err(LogError::StateBuild { file, line, found: state.build });
        }
        if sum(&state.router) != state.sha256 {
            return Err(LogError::StateDamaged { file, line });
        }
        let router = unpack(&state.router).map_err(|reason| self.malformed(format!("router: {reason}")))?;
        Ok(Line::State { unit, router: Box::new(router) })
    }

    fn parse(&self) -> Result<Line, LogError> {
        let object: Map<String, Value> = serde_json::from_slice(self.text.trim_ascii_end())
            .map_err(|error| self.malformed(not_json(&error)))?;
        if object.contains_key("decision") {
            return fields(object).map(Line::Decision).map_err(|reason| self.malformed(reason));
        }
        match read(object).map_err(|reason| self.malformed(reason))? {
            Read::Line(line) => Ok(line),
            Read::State { unit, fields } => self.state(unit, fields),
        }
    }
}

/// A line, but for a state, which is checked further.
enum Read {
    Line(Line),
    State { unit: String, fields: Map<String, Value> },
}

/// The parser's reason without the line, which is always its first.
fn not_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    format!("column {}: {}", error.column(), text.strip_suffix(place.as_str()).unwrap_or(&text))
}

fn read(mut object: Map<String, Value>) -> Result<Read, String> {
    #[derive(Deserialize)]
    struct Place {
        at_ms: u64,
        unit: String,
    }
    let place = ["at_ms", "unit"].into_iter().filter_map(|key| object.remove_entry(key)).collect();
    let Place { at_ms, unit } = fields(place)?;
    UnitId::new(&unit).map_err(|error| format!("unit: {error}"))?;
    let at = Millis(at_ms);
    if let Some(events) = object.remove("events") {
        if let Some(key) = object.keys().next() {
            return Err(format!("{key}: is not taken beside events"));
        }
        return Ok(Read::Line(Line::Batch { at, unit, events: read_events(events)? }));
    }
    let line = match take_name(&mut object)?.as_str() {
        "state" => return Ok(Read::State { unit, fields: object }),
        "unit" => {
            let UnitFields { role, ranks, policy } = fields(object)?;
            let role = match role {
                RoleName::Prefill => Role::Prefill,
                RoleName::Decode => Role::Decode,
            };
            Line::Unit(UnitLine { unit, role, ranks, policy })
        }
        "gap" => Line::Gap { unit },
        name => Line::Batch { at, unit, events: vec![event::read(name, object)?] },
    };
    Ok(Read::Line(line))
}

fn read_events(events: Value) -> Result<Vec<RoutingEvent>, String> {
    let Value::Array(events) = events else { return Err("events: is no list".to_owned()) };
    if events.len() > EVENTS_MAX {
        return Err(format!("events: are {}: at most {EVENTS_MAX}", events.len()));
    }
    let read = |(index, event): (usize, Value)| {
        let Value::Object(mut event) = event else { return Err(format!("events[{index}]: is no object")) };
        let name = take_name(&mut event).map_err(|reason| format!("events[{index}]: {reason}"))?;
        event::read(&name, event).map_err(|reason| format!("events[{index}].{reason}"))
    };
    events.into_iter().enumerate().map(read).collect()
}

fn sum(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A router as text: postcard, deflated, in base64.
fn pack(router: &Router) -> io::Result<String> {
    let bytes = postcard::to_stdvec(router).map_err(io::Error::other)?;
    let mut packed = Vec::new();
    DeflateEncoder::new(&bytes[..], Compression::fast()).read_to_end(&mut packed)?;
    Ok(BASE64.encode(packed))
}

fn unpack(text: &str) -> Result<Router, String> {
    let packed = BASE64.decode(text).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let mut unpacked = DeflateDecoder::new(&packed[..]).take(STATE_BYTES_MAX);
    unpacked.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    postcard::from_bytes(&bytes).map_err(|error| error.to_string())
}

fn write_json(out: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// The first line of a file.
pub(super) fn write_header(out: &mut impl Write) -> io::Result<()> {
    write_json(out, &json!({"evenkeel": "decisions", "version": VERSION}))
}

/// A unit with its role, ranks and policy; `policy` is the section `routing` of the configuration.
pub(super) fn write_unit(
    out: &mut impl Write,
    unit: &str,
    router: &Router,
    policy: &Value,
) -> io::Result<()> {
    let role = if router.role() == Role::Prefill { RoleName::Prefill } else { RoleName::Decode };
    let ranks = router.ranks();
    let line =
        json!({"at_ms": 0, "unit": unit, "event": "unit", "role": role, "ranks": ranks, "policy": policy});
    write_json(out, &line)
}

/// All that a router knows.
pub(super) fn write_state(out: &mut impl Write, at: Millis, unit: &str, router: &Router) -> io::Result<()> {
    let router = pack(router)?;
    let sha256 = sum(&router);
    let line = json!({"at_ms": at.0, "unit": unit, "event": "state", "build": BUILD, "sha256": sha256, "router": router});
    write_json(out, &line)
}

/// Batches that were not recorded.
pub(super) fn write_gap(out: &mut impl Write, at: Millis, unit: &str, dropped: u64) -> io::Result<()> {
    write_json(out, &json!({"at_ms": at.0, "unit": unit, "event": "gap", "dropped": dropped}))
}

/// A batch, and what became of it.
pub(super) fn write_batch(
    out: &mut impl Write,
    at: Millis,
    unit: &str,
    events: &[RoutingEvent],
    decided: &Result<Vec<Decision>, RoutingError>,
) -> io::Result<()> {
    #[derive(Serialize)]
    struct Batch<'a> {
        at_ms: u64,
        unit: &'a str,
        events: Vec<EventLine>,
    }
    write_json(out, &Batch { at_ms: at.0, unit, events: events.iter().map(Into::into).collect() })?;
    DecisionLine::all(at, unit, decided).iter().try_for_each(|decision| write_json(out, decision))
}
