//! What the election does, as metrics and log lines.

use crate::metrics as m;
use evenkeel_core::protocol::election::{Action, Event, State};
use tokio::time::Instant;

/// When the present leader was first seen to be going, to measure how long nobody led.
#[derive(Debug, Default)]
pub(super) struct Instruments {
    vacant_since: Option<Instant>,
}

impl Instruments {
    /// Before the machine takes the event. `led`: another balancer led as far as known.
    pub(super) fn hears(&mut self, event: &Event, led: bool) {
        let signs = match event {
            Event::PeerReset(_) | Event::PeerResigns { .. } => true,
            Event::LeaderTold { holder, .. } => holder.is_none(),
            Event::PeerUp(_) => {
                self.vacant_since = None;
                false
            }
            _ => false,
        };
        if signs && led {
            self.vacant_since.get_or_insert_with(Instant::now);
        }
    }

    pub(super) fn does(&mut self, action: &Action) {
        match action {
            Action::Begin { term, cause, .. } => {
                let waited = self.vacant_since.take().map(|since| since.elapsed());
                tracing::info!(%term, cause = cause.as_str(), waited_ms = waited.map(|w| w.as_millis()), "this balancer leads");
                metrics::counter!(m::ELECTIONS, "cause" => cause.as_str()).increment(1);
                if let Some(waited) = waited {
                    metrics::histogram!(m::HANDOVER_SECONDS, "cause" => cause.as_str())
                        .record(waited.as_secs_f64());
                }
                metrics::gauge!(m::TERM, "part" => "generation").set(term.generation as f64);
                metrics::gauge!(m::TERM, "part" => "revision").set(term.revision as f64);
            }
            Action::End { reason } => {
                tracing::info!(reason = reason.as_str(), "this balancer leads no more");
                metrics::counter!(m::REIGNS_ENDED, "reason" => reason.as_str()).increment(1);
            }
            Action::Freeze => tracing::warn!(
                "frozen: the store has not confirmed the lease in time; agents keep serving their plans, and the balancer goes on by itself"
            ),
            Action::Thaw { .. } => tracing::info!("thawed: the store has confirmed the lease"),
            Action::Behind { term, highest } => tracing::error!(
                %term, %highest,
                code = "store_not_adopted",
                "the store's revisions began again, so this term is not above those that were: make sure that it is the right store, then run `evenkeel leader adopt`"
            ),
            Action::Revoke(lease) => tracing::debug!(lease = lease.0, "ending a lease"),
            _ => {}
        }
    }

    pub(super) fn stands(&self, state: State, standbys: usize) {
        let set = |metric, on: bool| metrics::gauge!(metric).set(f64::from(u8::from(on)));
        set(m::LEADER, matches!(state, State::Leading { .. }));
        set(m::FROZEN, matches!(state, State::Frozen { .. }));
        set(m::STORE_NOT_ADOPTED, matches!(state, State::Behind { .. }));
        metrics::gauge!(m::STANDBYS).set(standbys as f64);
    }
}
