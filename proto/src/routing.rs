//! Routing events and decisions, wire to core and back.

use crate::{ConvertError, v1};
use evenkeel_core::ids::Rank;
use evenkeel_core::routing::{Decision, RequestId, RoutingEvent};
use evenkeel_core::units::Tokens;

impl TryFrom<&v1::RouteEvent> for RoutingEvent {
    type Error = ConvertError;

    fn try_from(event: &v1::RouteEvent) -> Result<Self, ConvertError> {
        use v1::route_event::Event;
        let event = event.event.as_ref().ok_or_else(|| ConvertError::new("event", "is required"))?;
        Ok(match event {
            Event::Arrive(arrive) => RoutingEvent::Arrive {
                request: RequestId(arrive.request),
                prompt_tokens: Tokens(arrive.prompt_tokens),
                cached_tokens: Tokens(arrive.cached_tokens),
            },
            Event::Finish(finish) => RoutingEvent::Finish { request: RequestId(finish.request) },
            Event::Steps(steps) => RoutingEvent::Steps { count: steps.count },
            Event::RankState(state) => RoutingEvent::RankState {
                rank: rank(state.rank)?,
                kv_used_tokens: Tokens(state.kv_used_tokens),
                requests: state.requests,
                as_of_request: (state.as_of_request != 0).then_some(RequestId(state.as_of_request)),
                up: state.up,
            },
            Event::Tick(_) => RoutingEvent::Tick,
        })
    }
}

impl From<&RoutingEvent> for v1::RouteEvent {
    fn from(event: &RoutingEvent) -> Self {
        use v1::route_event::Event;
        let event = match event {
            RoutingEvent::Arrive { request, prompt_tokens, cached_tokens } => Event::Arrive(v1::Arrive {
                request: request.0,
                prompt_tokens: prompt_tokens.0,
                cached_tokens: cached_tokens.0,
            }),
            RoutingEvent::Finish { request } => Event::Finish(v1::Finish { request: request.0 }),
            RoutingEvent::Steps { count } => Event::Steps(v1::Steps { count: *count }),
            RoutingEvent::RankState { rank, kv_used_tokens, requests, as_of_request, up } => {
                Event::RankState(v1::RankState {
                    rank: rank.0.into(),
                    kv_used_tokens: kv_used_tokens.0,
                    requests: *requests,
                    as_of_request: as_of_request.map_or(0, |r| r.0),
                    up: *up,
                })
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
            Decision::Dispatch { rank, microbatch, tokens, .. } => Outcome::Dispatch(v1::Dispatch {
                rank: rank.0.into(),
                microbatch: (*microbatch).into(),
                tokens: tokens.map(|t| t.0),
            }),
            Decision::Hold { .. } => Outcome::Hold(v1::Hold {}),
            Decision::Refuse { code, message, .. } => {
                Outcome::Refuse(v1::RouteError { code: (*code).to_owned(), message: message.clone() })
            }
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
                rank: rank(dispatch.rank)?,
                microbatch: u8::try_from(dispatch.microbatch).ok().filter(|m| *m < 2).ok_or_else(|| {
                    ConvertError::new("microbatch", format!("is {}: must be 0 or 1", dispatch.microbatch))
                })?,
                tokens: dispatch.tokens.map(Tokens),
            },
            Outcome::Hold(_) => Decision::Hold { request },
            Outcome::Refuse(error) => Decision::Refuse {
                request,
                code: "routing_refused",
                message: format!("{}: {}", error.code, error.message),
            },
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
    fn events_and_decisions_survive_the_wire() {
        let request = RequestId(7);
        check_event(RoutingEvent::Arrive { request, prompt_tokens: Tokens(9), cached_tokens: Tokens(4) });
        check_event(RoutingEvent::Finish { request });
        check_event(RoutingEvent::Steps { count: 3 });
        check_event(RoutingEvent::Tick);
        for as_of_request in [None, Some(request)] {
            let (rank, kv_used_tokens) = (Rank(3), Tokens(5));
            check_event(RoutingEvent::RankState {
                rank,
                kv_used_tokens,
                requests: 2,
                as_of_request,
                up: true,
            });
        }
        check_decision(Decision::Hold { request });
        for tokens in [None, Some(Tokens(8))] {
            check_decision(Decision::Dispatch { request, rank: Rank(1), microbatch: 1, tokens });
        }
    }

    #[test]
    fn an_event_without_content_or_with_an_impossible_rank_is_refused() {
        let refused = |event: v1::RouteEvent| RoutingEvent::try_from(&event).map_err(|e| e.field);
        assert_eq!(refused(v1::RouteEvent { event: None }), Err("event"));
        let state = v1::RankState { rank: 70_000, ..Default::default() };
        assert_eq!(
            refused(v1::RouteEvent { event: Some(v1::route_event::Event::RankState(state)) }),
            Err("rank")
        );
    }
}
