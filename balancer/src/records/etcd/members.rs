//! Which member is asked, and which one next. All members serve alike, so the last one that answered is asked first.
//!
//! | a call that | and a member that | then |
//! |---|---|---|
//! | may be repeated | does not answer | the next one is asked, until the deadline |
//! | may not | surely did not get it | the next one is asked |
//! | may not | may have got it | [`StoreError::Unknown`] |

use super::member::{Failure, Member};
use crate::records::StoreError;
use prost::Message;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How long one of several members is waited for by calls that may be repeated: a majority answers in some ms, and an
/// election among the members themselves takes about a second.
const ATTEMPT_MAX: Duration = Duration::from_millis(500);
/// Pause when all members have failed, before they are asked again.
const ROUND_PAUSE: Duration = Duration::from_millis(50);

/// What a call is to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Changes nothing.
    Read,
    /// Twice is as good as once.
    Repeatable,
    /// Once at most.
    Once,
}

/// Why a call of the whole cluster came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failed {
    /// As the caller of the store is told.
    Store(StoreError),
    /// The lease has ended.
    NoLease,
    /// The revision is no longer kept.
    Compacted,
    /// The revision is yet to come.
    Future,
}

/// A call that any member can answer.
pub(super) trait Call: Sync {
    /// What comes back.
    type Answer;

    /// Makes it.
    fn make(
        &self,
        member: &Member,
        deadline: Duration,
    ) -> impl Future<Output = Result<Self::Answer, Failure>> + Send;
}

struct Unary<'a, M, R> {
    path: &'static str,
    message: &'a M,
    answer: PhantomData<fn() -> R>,
}

impl<M, R> Call for Unary<'_, M, R>
where
    M: Message + Clone + 'static,
    R: Message + Default + 'static,
{
    type Answer = R;

    async fn make(&self, member: &Member, deadline: Duration) -> Result<R, Failure> {
        member.unary(self.path, self.message, deadline).await
    }
}

/// See the module.
pub(super) struct Members {
    members: Vec<Member>,
    preferred: AtomicUsize,
    deadline: Duration,
    place: String,
    /// Said behind the reason when nobody can be reached.
    hint: &'static str,
}

impl Members {
    /// At least one member; calls end within `deadline`. `hint` is said behind the reason when nobody can be reached.
    pub(super) fn new(members: Vec<Member>, deadline: Duration, place: String, hint: &'static str) -> Self {
        assert!(!members.is_empty(), "the settings have been checked");
        Self { members, preferred: AtomicUsize::new(0), deadline, place, hint }
    }

    /// Where the store is, for people.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// The member to open a stream to.
    pub(super) fn preferred(&self) -> &Member {
        &self.members[self.preferred.load(Ordering::Relaxed)]
    }

    /// After a failure of the preferred member: the next one.
    pub(super) fn pass_on(&self) {
        let next = (self.preferred.load(Ordering::Relaxed) + 1) % self.members.len();
        self.preferred.store(next, Ordering::Relaxed);
    }

    /// Calls a method of one request and one response.
    pub(super) async fn unary<M, R>(
        &self,
        kind: Kind,
        operation: &'static str,
        path: &'static str,
        message: &M,
    ) -> Result<R, Failed>
    where
        M: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        self.call(kind, operation, &Unary { path, message, answer: PhantomData }).await
    }

    /// Makes a call of one member after the other, as the module's table says.
    pub(super) async fn call<C: Call>(
        &self,
        kind: Kind,
        operation: &'static str,
        call: &C,
    ) -> Result<C::Answer, Failed> {
        let began = Instant::now();
        let until = began + self.deadline;
        let first = self.preferred.load(Ordering::Relaxed);
        let mut lost = false;
        let mut reason = String::new();
        for attempt in 0.. {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let i = (first + attempt) % self.members.len();
            let several = kind != Kind::Once && self.members.len() > 1;
            let deadline = if several { left.min(ATTEMPT_MAX) } else { left };
            match call.make(&self.members[i], deadline).await {
                Ok(answer) => {
                    self.preferred.store(i, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(Failure::Lost(why)) => {
                    lost = true;
                    reason = why;
                    self.preferred.store((i + 1) % self.members.len(), Ordering::Relaxed);
                    if kind == Kind::Once {
                        break;
                    }
                }
                Err(Failure::NotSent(why)) => reason = why,
                Err(other) => return Err(self.definite(other)),
            }
            if (attempt + 1) % self.members.len() == 0 {
                // Nobody got it: whoever asks may as well be told now.
                if !lost {
                    break;
                }
                tokio::time::sleep(ROUND_PAUSE.min(until.saturating_duration_since(Instant::now()))).await;
            }
        }
        let place = self.place.clone();
        if !lost || kind == Kind::Read {
            let reason = format!("{reason}{}", self.hint);
            return Err(Failed::Store(StoreError::Away { place, reason }));
        }
        tracing::debug!(operation, reason, "a call of etcd may have been carried out or not");
        let waited_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Err(Failed::Store(StoreError::Unknown { place, operation, waited_ms }))
    }

    fn definite(&self, failure: Failure) -> Failed {
        let place = self.place.clone();
        Failed::Store(match failure {
            Failure::NoLease => return Failed::NoLease,
            Failure::Compacted => return Failed::Compacted,
            Failure::Future => return Failed::Future,
            Failure::Full(reason) => StoreError::Full { place, reason },
            Failure::Token => StoreError::Away { place, reason: "it does not take a fresh token".into() },
            Failure::Refused(reason) | Failure::NotSent(reason) | Failure::Lost(reason) => {
                StoreError::Away { place, reason }
            }
        })
    }
}
