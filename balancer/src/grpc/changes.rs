//! Changes that operators order: what makes a repeat the same, and what is answered.

use evenkeel_core::ids::Digest;
use evenkeel_core::protocol::reign::{Answer, OrderError, audit_text};
use evenkeel_core::records::RequestId;
use evenkeel_proto::v1;
use prost::Message;
use sha2::{Digest as _, Sha256};
use std::sync::atomic::{AtomicU64, Ordering};
use tonic::Status;

/// A change as it was asked for.
pub(super) struct Change<'a> {
    bytes: Vec<u8>,
    pub(super) request_id: &'a str,
    pub(super) dry_run: bool,
}

impl<'a> Change<'a> {
    /// Of a request that has this id.
    pub(super) fn of(message: &impl Message, request_id: &'a str, dry_run: bool) -> Self {
        Self { bytes: message.encode_to_vec(), request_id, dry_run }
    }

    /// Names what was asked for: verb and message, in which the id stands too.
    pub(super) fn content(&self, verb: &str) -> Digest {
        let mut hash = Sha256::new();
        hash.update(b"evenkeel change 1\0");
        hash.update(verb.as_bytes());
        hash.update([0]);
        hash.update(&self.bytes);
        Digest(hash.finalize().into())
    }
}

/// The name of a request; one that will not be repeated gets one that nobody else has.
pub(super) fn request_of(id: &str) -> Result<RequestId, Status> {
    static GIVEN: AtomicU64 = AtomicU64::new(0);
    let own = || {
        let given = GIVEN.fetch_add(1, Ordering::Relaxed);
        format!("balancer-{}-{}-{given}", crate::draft::unix_ms(), std::process::id())
    };
    let id = if id.is_empty() { own() } else { id.to_owned() };
    RequestId::new(id.as_str()).ok_or_else(|| {
        Status::invalid_argument(format!(
            "invalid_request_id: request_id is {id:?}: use 1 to {} characters a-z A-Z 0-9 - _ .",
            RequestId::LENGTH_MAX
        ))
    })
}

/// What was done, on the wire.
pub(super) fn changed(answer: Answer) -> v1::Change {
    let Answer { audit, text, repeated } = answer;
    v1::Change { audit: audit.map(audit_text).unwrap_or_default(), text, repeated }
}

/// An error, on the wire. The status' code says whether to repeat, to wait or to order something else.
pub(super) fn refused(error: &OrderError) -> Status {
    let message = format!("{}: {error}", error.code());
    match error {
        OrderError::UnknownUnit(_) | OrderError::UnknownNode(_) => Status::not_found(message),
        OrderError::Frozen | OrderError::Store(_) | OrderError::Busy(_) | OrderError::OutcomeUnknown => {
            Status::unavailable(message)
        }
        OrderError::RequestIdConflict(_) => Status::already_exists(message),
        OrderError::PlanAborted { .. } | OrderError::Refused => Status::aborted(message),
        OrderError::NotLeader
        | OrderError::NotHeld(_)
        | OrderError::UnitPaused(_)
        | OrderError::UnitBusy(..)
        | OrderError::DrainInfeasible { .. }
        | OrderError::PinInfeasible { .. }
        | OrderError::RollbackInfeasible { .. }
        | OrderError::NothingToAbort(..) => Status::failed_precondition(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_verb_or_message_is_another_change() {
        let message = v1::ResumeRequest { unit: "u".into(), ..Default::default() };
        let change = Change::of(&message, "r", false);
        assert_eq!(change.content("resume"), Change::of(&message, "r", true).content("resume"));
        assert_ne!(change.content("resume"), change.content("pause"));
        let other = v1::ResumeRequest { unit: "v".into(), ..Default::default() };
        assert_ne!(change.content("resume"), Change::of(&other, "r", false).content("resume"));
    }

    #[test]
    fn every_request_has_a_name() {
        assert_eq!(request_of("r-1").expect("valid").as_str(), "r-1");
        assert_ne!(request_of("").expect("given"), request_of("").expect("given"));
        let refused = request_of("a/b").expect_err("a slash");
        assert!(refused.message().starts_with("invalid_request_id: "), "{refused}");
    }
}
