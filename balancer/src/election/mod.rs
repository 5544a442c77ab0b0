//! Who leads, towards the outside: one task drives the core's [`evenkeel_core::protocol::election::Election`] against the
//! store, its connections to other balancers, and the clock. Everything else learns from it what it may do, by a
//! [`Standing`], and gives it orders by an [`ElectionHandle`].
//!
//! ```text
//!  store  <- calls ->            +--------+ -> Standing -> control loop, admin
//!  store  -- watch ->            | driver |
//!  leader <- attend (standby) -> |        | <- orders  --  ElectionHandle
//!  standbys <- roster (leader) - +--------+
//! ```
//!
//! No call of the store and no connection ever makes the driver wait: each is a task of its own with a deadline, and its
//! end is an event.

pub mod admin;
mod attend;
mod calls;
mod driver;
mod handle;
mod instruments;
mod roster;
mod settings;
#[cfg(test)]
mod tests;

pub use handle::{ElectionHandle, HandOverError, View};
pub use roster::{Peers, Roster, StandbySeen};
pub use settings::ElectionSettings;

use crate::records::Store;
use driver::{Driver, Shared};
use evenkeel_core::ids::Term;
use evenkeel_core::records::LeaderRecord;
use evenkeel_transport::Dialler;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Events and orders waiting for the driver: a few calls and connections, and orders of people. Senders wait when it is
/// full.
const INPUTS_MAX: usize = 64;

/// What this balancer may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It commands nothing.
    Standby {
        /// Who leads, as far as known. This balancer itself, if the store has to be adopted before it may lead.
        leader: Option<LeaderRecord>,
    },
    /// It leads.
    Leading {
        /// The term of every command and write.
        term: Term,
        /// No command at or after this time. Moves with each keep-alive.
        until: Instant,
    },
    /// It leads, but must command nothing until the store has confirmed that it still does.
    Frozen {
        /// The term.
        term: Term,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Election;

impl Election {
    /// Starts to stand by, and to lead when it is this balancer's turn; other balancers are connected to by `dialler`. Ends by
    /// [`ElectionHandle::stop`].
    pub fn start(
        store: Arc<dyn Store>,
        settings: ElectionSettings,
        dialler: impl Into<Dialler>,
    ) -> (watch::Receiver<Standing>, ElectionHandle) {
        let (standing, standing_seen) = watch::channel(Standing::Standby { leader: None });
        let (view, view_seen) = watch::channel(View::default());
        let (inputs, queue) = mpsc::channel(INPUTS_MAX);
        let roster = Arc::new(Roster::new(settings.admin_address.clone()));
        let written = Arc::default();
        let handle = ElectionHandle::new(
            inputs.clone(),
            view_seen,
            standing_seen.clone(),
            Arc::clone(&roster),
            Arc::clone(&written),
        );
        let shared = Shared { roster, written, standing, view };
        let driver = Driver::new(store, settings, dialler.into(), inputs, shared);
        tokio::spawn(driver.run(queue));
        (standing_seen, handle)
    }
}
