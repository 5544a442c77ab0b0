//! What a router answers.

use super::{DispatchNumber, RequestId};
use crate::ids::Rank;
use crate::units::Tokens;

/// What becomes of a request. The variants are those of `Decision` on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The request, or its next chunk, goes to a rank.
    Dispatch {
        /// The request.
        request: RequestId,
        /// Number of the dispatch in the unit.
        number: DispatchNumber,
        /// Where it runs. Every further chunk of the request names the same rank.
        rank: Rank,
        /// 0 or 1: the half of the rank's dual batch (prefill only).
        microbatch: u8,
        /// Prompt tokens to run now; `None`: all there are (the engine cuts as it likes).
        tokens: Option<Tokens>,
    },
    /// The running request moves with its KV (decode only, and only where the engine can).
    Migrate {
        /// The request.
        request: RequestId,
        /// Number of the migration in the unit; the rank it goes to has received it when it has the request.
        number: DispatchNumber,
        /// Where it ran.
        from: Rank,
        /// Where it runs from now on.
        to: Rank,
    },
    /// Kept by the balancer; a later batch decides.
    Hold {
        /// The request.
        request: RequestId,
    },
    /// Not taken.
    Refuse {
        /// The request.
        request: RequestId,
        /// Stable code.
        code: &'static str,
        /// Why, and what to do.
        message: String,
    },
    /// Its rank went down, and its KV with it. The router has forgotten it: it may arrive again.
    Lost {
        /// The request.
        request: RequestId,
        /// Where it ran.
        rank: Rank,
    },
}

impl Decision {
    /// The request that it is about.
    pub fn request(&self) -> RequestId {
        match self {
            Decision::Dispatch { request, .. }
            | Decision::Migrate { request, .. }
            | Decision::Hold { request }
            | Decision::Refuse { request, .. }
            | Decision::Lost { request, .. } => *request,
        }
    }
}

/// Code of a refusal because no rank of the unit takes requests.
pub const REFUSED_NO_RANK_UP: &str = "routing_no_rank_up";
/// Code of a refusal because its tenant holds as many requests as one tenant may.
pub const REFUSED_TENANT_HELD_FULL: &str = "routing_tenant_held_full";
/// Code of a refusal because as many requests are held as may be, most of them, by weight, of its tenant.
pub const REFUSED_HELD_FULL: &str = "routing_held_full";
/// Code of a refusal because the unit has as many requests, held and running, as it may.
pub const REFUSED_LIVE_FULL: &str = "routing_live_full";
/// Code of a refusal because the request's KV would not even fit an empty rank.
pub const REFUSED_NEVER_FITS: &str = "routing_never_fits";
