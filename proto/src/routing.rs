//! Routing events and decisions, wire to core and back.

use crate::{ConvertError, v1};
use evenkeel_core::ids::Rank;
use evenkeel_core::routing::{
    BLOCKS_MAX, BlockHash, Decision, DispatchNumber, KvChange, Priority, RequestId, RoutingEvent, StepReport,
    TenantId,
};
use evenkeel_core::units::Tokens;
use std::sync::Arc;

impl TryFrom<&v1::RouteEvent> for RoutingEvent {
    type Error = ConvertError;

    fn try_from(event: &v1::RouteEvent) -> Result<Self, ConvertError> {
        use v1::route_event::Event;
        let event = event.event.as_ref().ok_or_else(|| ConvertError::new("event", "is required"))?;
        Ok(match event {
            Event::Arrive(arrive) => arrival(arrive)?,
            Event::FirstToken(first) => RoutingEvent::FirstToken { request: RequestId(first.request) },
            Event::Finish(finish) => RoutingEvent::Finish { request: RequestId(finish.request) },
            Event::Steps(steps) => RoutingEvent::Steps { count: steps.count },
            Event::Report(report) => RoutingEvent::Report {
                rank: rank(report.rank)?,
                sequence: report.sequence,
                as_of: report.as_of.map(DispatchNumber),
                kv_used_tokens: Tokens(report.kv_used_tokens),
                requests: report.requests,
                step: report.step.as_ref().map(step),
            },
            Event::RankDown(down) => RoutingEvent::RankDown { rank: rank(down.rank)? },
            Event::RankUp(up) => RoutingEvent::RankUp { rank: rank(up.rank)? },
            Event::Drain(drain) => RoutingEvent::Drain { rank: rank(drain.rank)? },
            Event::Kv(kv) => {
                RoutingEvent::Kv { rank: rank(kv.rank)?, sequence: kv.sequence, change: kv_change(kv)? }
            }
            Event::Tick(_) => RoutingEvent::Tick,
        })
    }
}

fn arrival(arrive: &v1::Arrive) -> Result<RoutingEvent, ConvertError> {
    let priority = v1::Priority::try_from(arrive.priority)
        .map_err(|_| ConvertError::new("priority", format!("{} is none: 0 or 1", arrive.priority)))?;
    Ok(RoutingEvent::Arrive {
        request: RequestId(arrive.request),
        prompt_tokens: Tokens(arrive.prompt_tokens),
        cached_tokens: Tokens(arrive.cached_tokens),
        tenant: TenantId(arrive.tenant),
        priority: match priority {
            v1::Priority::Interactive => Priority::Interactive,
            v1::Priority::Batch => Priority::Batch,
        },
        blocks: blocks(&arrive.blocks)?,
        expected_output: arrive.expected_output.map(Tokens),
    })
}

fn step(step: &v1::StepReport) -> StepReport {
    StepReport {
        tokens: Tokens(step.tokens),
        pairs: step.pairs,
        requests: step.requests,
        kv_tokens: Tokens(step.kv_tokens),
        micros: step.micros,
    }
}

fn kv_change(kv: &v1::Kv) -> Result<KvChange, ConvertError> {
    use v1::kv::Change;
    let change = kv.change.as_ref().ok_or_else(|| ConvertError::new("change", "is required"))?;
    Ok(match change {
        Change::Stored(stored) => {
            KvChange::Stored { parent: stored.parent.map(BlockHash), blocks: blocks(&stored.blocks)? }
        }
        Change::Removed(removed) => KvChange::Removed { blocks: blocks(&removed.blocks)? },
        Change::Cleared(_) => KvChange::Cleared,
    })
}

/// Bounded before they are copied.
fn blocks(names: &[u64]) -> Result<Arc<[BlockHash]>, ConvertError> {
    if names.len() > BLOCKS_MAX {
        return Err(ConvertError::new("blocks", format!("are {}: at most {BLOCKS_MAX}", names.len())));
    }
    Ok(names.iter().copied().map(BlockHash).collect())
}

impl From<&RoutingEvent> for v1::RouteEvent {
    fn from(event: &RoutingEvent) -> Self {
        use v1::route_event::Event;
        let names = |blocks: &[BlockHash]| blocks.iter().map(|b| b.0).collect();
        let event = match event {
            RoutingEvent::Arrive {
                request,
                prompt_tokens,
                cached_tokens,
                tenant,
                priority,
                blocks,
                expected_output,
            } => Event::Arrive(v1::Arrive {
                request: request.0,
                prompt_tokens: prompt_tokens.0,
                cached_tokens: cached_tokens.0,
                tenant: tenant.0,
                priority: match priority {
                    Priority::Interactive => v1::Priority::Interactive,
                    Priority::Batch => v1::Priority::Batch,
                }
                .into(),
                blocks: names(blocks),
                expected_output: expected_output.map(|t| t.0),
            }),
            RoutingEvent::FirstToken { request } => Event::FirstToken(v1::FirstToken { request: request.0 }),
            RoutingEvent::Finish { request } => Event::Finish(v1::Finish { request: request.0 }),
            RoutingEvent::Steps { count } => Event::Steps(v1::Steps { count: *count }),
            RoutingEvent::Report { rank, sequence, as_of, kv_used_tokens, requests, step } => {
                Event::Report(v1::RankReport {
                    rank: rank.0.into(),
                    sequence: *sequence,
                    as_of: as_of.map(|n| n.0),
                    kv_used_tokens: kv_used_tokens.0,
                    requests: *requests,
                    step: step.map(|step| v1::StepReport {
                        tokens: step.tokens.0,
                        pairs: step.pairs,
                        requests: step.requests,
                        kv_tokens: step.kv_tokens.0,
                        micros: step.micros,
                    }),
                })
            }
            RoutingEvent::RankDown { rank } => Event::RankDown(v1::RankDown { rank: rank.0.into() }),
            RoutingEvent::RankUp { rank } => Event::RankUp(v1::RankUp { rank: rank.0.into() }),
            RoutingEvent::Drain { rank } => Event::Drain(v1::Drain { rank: rank.0.into() }),
            RoutingEvent::Kv { rank, sequence, change } => {
                use v1::kv::Change;
                let change = match change {
                    KvChange::Stored { parent, blocks } => {
                        let parent = parent.map(|b| b.0);
                        Change::Stored(v1::KvStored { parent, blocks: names(blocks) })
                    }
                    KvChange::Removed { blocks } => Change::Removed(v1::KvRemoved { blocks: names(blocks) }),
                    KvChange::Cleared => Change::Cleared(v1::KvCleared {}),
                };
                Event::Kv(v1::Kv { rank: rank.0.into(), sequence: *sequence, change: Some(change) })
            }
            RoutingEvent::Tick => Event::Tick(v1::Tick {}),
        };
        Self { event: Some(event) }
    }
}

impl From<&Decision> for v1::Decision {
    fn from(decision: &Decision) -> Self {
        use v1::decision::Outcome;
        let outcome = match decision {
            Decision::Dispatch { number, rank, microbatch, tokens, .. } => Outcome::Dispatch(v1::Dispatch {
                rank: rank.0.into(),
                microbatch: (*microbatch).into(),
                tokens: tokens.map(|t| t.0),
                number: number.0,
            }),
            Decision::Migrate { number, from, to, .. } => {
                Outcome::Migrate(v1::Migrate { from: from.0.into(), to: to.0.into(), number: number.0 })
            }
            Decision::Hold { .. } => Outcome::Hold(v1::Hold {}),
            Decision::Refuse { code, message, .. } => {
                Outcome::Refuse(v1::RouteError { code: (*code).to_owned(), message: message.clone() })
            }
            Decision::Lost { rank, .. } => Outcome::Lost(v1::Lost { rank: rank.0.into() }),
        };
        Self { request: decision.request().0, outcome: Some(outcome) }
    }
}

/// For gateways written against the core's types. Codes of refusals become the one generic code, since the
/// core's are static.
impl TryFrom<&v1::Decision> for Decision {
    type Error = ConvertError;

    fn try_from(decision: &v1::Decision) -> Result<Self, ConvertError> {
        use v1::decision::Outcome;
        let request = RequestId(decision.request);
        let outcome = decision.outcome.as_ref().ok_or_else(|| ConvertError::new("outcome", "is required"))?;
        Ok(match outcome {
            Outcome::Dispatch(dispatch) => Decision::Dispatch {
                request,
                number: DispatchNumber(dispatch.number),
                rank: rank(dispatch.rank)?,
                microbatch: u8::try_from(dispatch.microbatch).ok().filter(|m| *m < 2).ok_or_else(|| {
                    ConvertError::new("microbatch", format!("is {}: must be 0 or 1", dispatch.microbatch))
                })?,
                tokens: dispatch.tokens.map(Tokens),
            },
            Outcome::Migrate(migrate) => Decision::Migrate {
                request,
                number: DispatchNumber(migrate.number),
                from: rank(migrate.from)?,
                to: rank(migrate.to)?,
            },
            Outcome::Hold(_) => Decision::Hold { request },
            Outcome::Refuse(error) => Decision::Refuse {
                request,
                code: "routing_refused",
                message: format!("{}: {}", error.code, error.message),
            },
            Outcome::Lost(lost) => Decision::Lost { request, rank: rank(lost.rank)? },
        })
    }
}

fn rank(value: u32) -> Result<Rank, ConvertError> {
    u16::try_from(value).map(Rank).map_err(|_| ConvertError::new("rank", format!("{value} is no rank")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_event(event: RoutingEvent) {
        assert_eq!(RoutingEvent::try_from(&v1::RouteEvent::from(&event)), Ok(event));
    }

    #[track_caller]
    fn check_decision(decision: Decision) {
        assert_eq!(Decision::try_from(&v1::Decision::from(&decision)), Ok(decision));
    }

    #[test]
    fn events_survive_the_wire() {
        let (request, rank) = (RequestId(7), Rank(3));
        let blocks: Arc<[BlockHash]> = [BlockHash(5), BlockHash(u64::MAX)].into();
        check_event(RoutingEvent::arrive(request, Tokens(9), Tokens(4)));
        for (priority, expected_output) in [(Priority::Interactive, None), (Priority::Batch, Some(Tokens(1)))]
        {
            check_event(RoutingEvent::Arrive {
                request,
                prompt_tokens: Tokens(900),
                cached_tokens: Tokens(4),
                tenant: TenantId(6),
                priority,
                blocks: blocks.clone(),
                expected_output,
            });
        }
        check_event(RoutingEvent::FirstToken { request });
        check_event(RoutingEvent::Finish { request });
        check_event(RoutingEvent::Steps { count: 3 });
        let step = StepReport { tokens: Tokens(1), pairs: 2, requests: 3, kv_tokens: Tokens(4), micros: 5 };
        for (as_of, step) in
            [(None, None), (Some(DispatchNumber(0)), None), (Some(DispatchNumber(8)), Some(step))]
        {
            let (kv_used_tokens, requests) = (Tokens(5), 2);
            check_event(RoutingEvent::Report { rank, sequence: 9, as_of, kv_used_tokens, requests, step });
        }
        check_event(RoutingEvent::RankDown { rank });
        check_event(RoutingEvent::RankUp { rank });
        check_event(RoutingEvent::Drain { rank });
        for change in [
            KvChange::Stored { parent: None, blocks: blocks.clone() },
            KvChange::Stored { parent: Some(BlockHash(0)), blocks: blocks.clone() },
            KvChange::Removed { blocks },
            KvChange::Cleared,
        ] {
            check_event(RoutingEvent::Kv { rank, sequence: 4, change });
        }
        check_event(RoutingEvent::Tick);
    }

    #[test]
    fn decisions_survive_the_wire() {
        let (request, number, rank) = (RequestId(7), DispatchNumber(11), Rank(1));
        check_decision(Decision::Hold { request });
        check_decision(Decision::Lost { request, rank });
        check_decision(Decision::Migrate { request, number, from: rank, to: Rank(2) });
        for tokens in [None, Some(Tokens(8))] {
            check_decision(Decision::Dispatch { request, number, rank, microbatch: 1, tokens });
        }
    }

    /// The field that an event is refused for.
    #[track_caller]
    fn check_refused(event: Option<v1::route_event::Event>, field: &str) {
        let refused = RoutingEvent::try_from(&v1::RouteEvent { event }).map_err(|e| e.field);
        assert_eq!(refused, Err(field));
    }

    #[test]
    fn an_event_that_cannot_be_is_refused_for_its_field() {
        use v1::route_event::Event;
        check_refused(None, "event");
        check_refused(Some(Event::Report(v1::RankReport { rank: 70_000, ..Default::default() })), "rank");
        check_refused(Some(Event::RankDown(v1::RankDown { rank: 65_536 })), "rank");
        check_refused(Some(Event::Kv(v1::Kv { rank: 1, sequence: 1, change: None })), "change");
        let arrive = v1::Arrive { request: 1, prompt_tokens: 1, ..Default::default() };
        check_refused(Some(Event::Arrive(v1::Arrive { priority: 2, ..arrive.clone() })), "priority");
        let blocks = vec![1; BLOCKS_MAX + 1];
        check_refused(Some(Event::Arrive(v1::Arrive { blocks: blocks.clone(), ..arrive })), "blocks");
        let change = Some(v1::kv::Change::Removed(v1::KvRemoved { blocks }));
        check_refused(Some(Event::Kv(v1::Kv { rank: 1, sequence: 1, change })), "blocks");
    }
}
