//! The lease: granted before it is needed, kept alive for as long as it is held.

use super::Action;
use crate::records::LeaseId;
use crate::units::Millis;

/// Keep-alives per lease time: three may be lost before the lease ends.
const KEEP_ALIVES: u64 = 4;

/// One lease at most, one call about it at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lease {
    /// None, and none is asked for before this time.
    None(Millis),
    Asked,
    Held(Held),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) id: LeaseId,
    /// When the last call was sent that gave it its whole time.
    pub(super) alive: Millis,
    /// The next keep-alive; `None`: one is under way.
    keep_at: Option<Millis>,
}

impl Default for Lease {
    fn default() -> Self {
        Lease::None(Millis(0))
    }
}

impl Lease {
    pub(super) fn held(&self) -> Option<LeaseId> {
        match self {
            Lease::Held(held) => Some(held.id),
            _ => None,
        }
    }

    /// The lease if it is the held one.
    fn of(&mut self, lease: LeaseId) -> Option<&mut Held> {
        match self {
            Lease::Held(held) if held.id == lease => Some(held),
            _ => None,
        }
    }

    pub(super) fn granted(&mut self, id: LeaseId, sent_at: Millis, ttl_ms: u64) {
        let keep_at = Some(sent_at.after(ttl_ms / KEEP_ALIVES));
        *self = Lease::Held(Held { id, alive: sent_at, keep_at });
    }

    pub(super) fn not_granted(&mut self, retry_at: Millis) {
        if *self == Lease::Asked {
            *self = Lease::None(retry_at);
        }
    }

    /// `true` when it is the held lease.
    pub(super) fn kept(&mut self, lease: LeaseId, sent_at: Millis, ttl_ms: u64) -> bool {
        let Some(held) = self.of(lease) else { return false };
        held.alive = held.alive.max(sent_at);
        held.keep_at = Some(sent_at.after(ttl_ms / KEEP_ALIVES));
        true
    }

    pub(super) fn not_kept(&mut self, lease: LeaseId, retry_at: Millis) {
        if let Some(held) = self.of(lease) {
            held.keep_at = Some(retry_at);
        }
    }

    /// Lets go of the held lease; the next one may be asked for at once.
    pub(super) fn shed(&mut self) -> Option<LeaseId> {
        let held = self.held()?;
        *self = Lease::default();
        Some(held)
    }

    pub(super) fn wake(&self) -> Option<Millis> {
        match self {
            Lease::None(at) => Some(*at),
            Lease::Asked => None,
            Lease::Held(held) => held.keep_at,
        }
    }

    pub(super) fn proceed(&mut self, now: Millis, out: &mut Vec<Action>) {
        match self {
            Lease::None(at) if *at <= now => {
                *self = Lease::Asked;
                out.push(Action::Grant);
            }
            Lease::Held(held) if held.keep_at.is_some_and(|at| at <= now) => {
                held.keep_at = None;
                out.push(Action::KeepAlive(held.id));
            }
            _ => {}
        }
    }
}
