//! Events as lines have them.

use evenkeel_core::ids::Rank;
use evenkeel_core::routing::{
    BLOCKS_MAX, BlockHash, DispatchNumber, KvChange, Priority, RequestId, RoutingEvent, StepReport, TenantId,
};
use evenkeel_core::units::Tokens;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;

/// The names of all events, for messages.
const NAMES: &str = "arrive, first_token, finish, steps, rank_report, rank_down, rank_up, drain, kv_stored, kv_removed, \
                     kv_cleared, tick";

/// An event; the field `event` names which.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum EventLine {
    Arrive(Arrive),
    FirstToken(Request),
    Finish(Request),
    Steps(Steps),
    RankReport(Report),
    RankDown(OfRank),
    RankUp(OfRank),
    Drain(OfRank),
    KvStored(KvStored),
    KvRemoved(KvRemoved),
    KvCleared(KvCleared),
    Tick(Tick),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Arrive {
    request: u64,
    prompt_tokens: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    cached_tokens: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    tenant: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    priority: PriorityName,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    blocks: Vec<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expected_output: Option<u64>,
}

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PriorityName {
    #[default]
    Interactive,
    Batch,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    request: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Steps {
    count: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Report {
    rank: u16,
    sequence: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    as_of: Option<u64>,
    kv_used_tokens: u64,
    requests: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    step: Option<Step>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    tokens: u64,
    pairs: u64,
    requests: u32,
    kv_tokens: u64,
    micros: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfRank {
    rank: u16,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KvStored {
    rank: u16,
    sequence: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<u64>,
    blocks: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KvRemoved {
    rank: u16,
    sequence: u64,
    blocks: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KvCleared {
    rank: u16,
    sequence: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tick {}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Reads fields; the reason names the one that is wrong.
pub(super) fn fields<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<T, String> {
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(|error| {
        let path = error.path().to_string();
        if path == "." { error.inner().to_string() } else { format!("{path}: {}", error.inner()) }
    })
}

/// The name of an event, taken out of its fields.
pub(super) fn take_name(object: &mut Map<String, Value>) -> Result<String, String> {
    match object.remove("event") {
        Some(Value::String(name)) => Ok(name),
        Some(other) => Err(format!("event is {other}: accepted are unit, {NAMES}")),
        None => Err(format!("event is missing: accepted are unit, {NAMES}; or events, a list of them")),
    }
}

/// Reads an event of this name.
pub(super) fn read(name: &str, object: Map<String, Value>) -> Result<RoutingEvent, String> {
    let line = match name {
        "arrive" => EventLine::Arrive(fields(object)?),
        "first_token" => EventLine::FirstToken(fields(object)?),
        "finish" => EventLine::Finish(fields(object)?),
        "steps" => EventLine::Steps(fields(object)?),
        "rank_report" => EventLine::RankReport(fields(object)?),
        "rank_down" => EventLine::RankDown(fields(object)?),
        "rank_up" => EventLine::RankUp(fields(object)?),
        "drain" => EventLine::Drain(fields(object)?),
        "kv_stored" => EventLine::KvStored(fields(object)?),
        "kv_removed" => EventLine::KvRemoved(fields(object)?),
        "kv_cleared" => EventLine::KvCleared(fields(object)?),
        "tick" => EventLine::Tick(fields(object)?),
        _ => return Err(format!("event is {name:?}: accepted are unit, {NAMES}")),
    };
    line.try_into()
}

fn hashes(blocks: &[u64]) -> Result<Arc<[BlockHash]>, String> {
    if blocks.len() > BLOCKS_MAX {
        return Err(format!("blocks: are {}: at most {BLOCKS_MAX}", blocks.len()));
    }
    Ok(blocks.iter().copied().map(BlockHash).collect())
}

fn names(blocks: &[BlockHash]) -> Vec<u64> {
    blocks.iter().map(|block| block.0).collect()
}

impl TryFrom<EventLine> for RoutingEvent {
    type Error = String;

    fn try_from(line: EventLine) -> Result<Self, String> {
        let request = |of: Request| RequestId(of.request);
        let rank = |of: OfRank| Rank(of.rank);
        Ok(match line {
            EventLine::Arrive(arrive) => RoutingEvent::Arrive {
                request: RequestId(arrive.request),
                prompt_tokens: Tokens(arrive.prompt_tokens),
                cached_tokens: Tokens(arrive.cached_tokens),
                tenant: TenantId(arrive.tenant),
                priority: match arrive.priority {
                    PriorityName::Interactive => Priority::Interactive,
                    PriorityName::Batch => Priority::Batch,
                },
                blocks: hashes(&arrive.blocks)?,
                expected_output: arrive.expected_output.map(Tokens),
            },
            EventLine::FirstToken(of) => RoutingEvent::FirstToken { request: request(of) },
            EventLine::Finish(of) => RoutingEvent::Finish { request: request(of) },
            EventLine::Steps(steps) => RoutingEvent::Steps { count: steps.count },
            EventLine::RankReport(report) => RoutingEvent::Report {
                rank: Rank(report.rank),
                sequence: report.sequence,
                as_of: report.as_of.map(DispatchNumber),
                kv_used_tokens: Tokens(report.kv_used_tokens),
                requests: report.requests,
                step: report.step.map(|step| StepReport {
                    tokens: Tokens(step.tokens),
                    pairs: step.pairs,
                    requests: step.requests,
                    kv_tokens: Tokens(step.kv_tokens),
                    micros: step.micros,
                }),
            },
            EventLine::RankDown(of) => RoutingEvent::RankDown { rank: rank(of) },
            EventLine::RankUp(of) => RoutingEvent::RankUp { rank: rank(of) },
            EventLine::Drain(of) => RoutingEvent::Drain { rank: rank(of) },
            EventLine::KvStored(KvStored { rank, sequence, parent, blocks }) => {
                let change = KvChange::Stored { parent: parent.map(BlockHash), blocks: hashes(&blocks)? };
                RoutingEvent::Kv { rank: Rank(rank), sequence, change }
            }
            EventLine::KvRemoved(KvRemoved { rank, sequence, blocks }) => {
                let change = KvChange::Removed { blocks: hashes(&blocks)? };
                RoutingEvent::Kv { rank: Rank(rank), sequence, change }
            }
            EventLine::KvCleared(KvCleared { rank, sequence }) => {
                RoutingEvent::Kv { rank: Rank(rank), sequence, change: KvChange::Cleared }
            }
            EventLine::Tick(Tick {}) => RoutingEvent::Tick,
        })
    }
}

impl From<&RoutingEvent> for EventLine {
    fn from(event: &RoutingEvent) -> Self {
        let of_rank = |rank: &Rank| OfRank { rank: rank.0 };
        match event {
            RoutingEvent::Arrive {
                request,
                prompt_tokens,
                cached_tokens,
                tenant,
                priority,
                blocks,
                expected_output,
            } => EventLine::Arrive(Arrive {
                request: request.0,
                prompt_tokens: prompt_tokens.0,
                cached_tokens: cached_tokens.0,
                tenant: tenant.0,
                priority: match priority {
                    Priority::Interactive => PriorityName::Interactive,
                    Priority::Batch => PriorityName::Batch,
                },
                blocks: names(blocks),
                expected_output: expected_output.map(|tokens| tokens.0),
            }),
            RoutingEvent::FirstToken { request } => EventLine::FirstToken(Request { request: request.0 }),
            RoutingEvent::Finish { request } => EventLine::Finish(Request { request: request.0 }),
            RoutingEvent::Steps { count } => EventLine::Steps(Steps { count: *count }),
            RoutingEvent::Report { rank, sequence, as_of, kv_used_tokens, requests, step } => {
                EventLine::RankReport(Report {
                    rank: rank.0,
                    sequence: *sequence,
                    as_of: as_of.map(|number| number.0),
                    kv_used_tokens: kv_used_tokens.0,
                    requests: *requests,
                    step: step.map(|step| Step {
                        tokens: step.tokens.0,
                        pairs: step.pairs,
                        requests: step.requests,
                        kv_tokens: step.kv_tokens.0,
                        micros: step.micros,
                    }),
                })
            }
            RoutingEvent::RankDown { rank } => EventLine::RankDown(of_rank(rank)),
            RoutingEvent::RankUp { rank } => EventLine::RankUp(of_rank(rank)),
            RoutingEvent::Drain { rank } => EventLine::Drain(of_rank(rank)),
            RoutingEvent::Kv { rank, sequence, change } => {
                let (rank, sequence) = (rank.0, *sequence);
                match change {
                    KvChange::Stored { parent, blocks } => {
                        let parent = parent.map(|block| block.0);
                        EventLine::KvStored(KvStored { rank, sequence, parent, blocks: names(blocks) })
                    }
                    KvChange::Removed { blocks } => {
                        EventLine::KvRemoved(KvRemoved { rank, sequence, blocks: names(blocks) })
                    }
                    KvChange::Cleared => EventLine::KvCleared(KvCleared { rank, sequence }),
                }
            }
            RoutingEvent::Tick => EventLine::Tick(Tick {}),
        }
    }
}
