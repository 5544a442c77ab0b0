//! The standby's connection to the leader, and what its end proves.

use super::{Action, Holder};
use crate::planted;
use crate::records::{LeaderRecord, LeaseId};
use crate::units::Millis;

/// The leader that is looked at, by its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Peer {
    watched: Option<(LeaseId, Contact)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contact {
    /// Not connected, which proves nothing: the address may be wrong, the network away.
    Dialled,
    Up,
    /// The connection ended, and is tried once more.
    Retrying,
    /// The leader is gone: its lease is ended from this time on.
    Gone(Millis),
    /// The end of its lease is under way.
    Revoking,
}

impl Peer {
    fn of(&mut self, lease: LeaseId) -> Option<&mut Contact> {
        self.watched.as_mut().filter(|(watched, _)| *watched == lease).map(|(_, contact)| contact)
    }

    pub(super) fn up(&mut self, lease: LeaseId) {
        if let Some(contact @ (Contact::Dialled | Contact::Retrying)) = self.of(lease) {
            *contact = Contact::Up;
        }
    }

    /// `true` when it is worth a retry: only a connection that stood says something by its end.
    pub(super) fn reset(&mut self, lease: LeaseId) -> bool {
        match self.of(lease) {
            Some(contact @ Contact::Up) => {
                *contact = Contact::Retrying;
                true
            }
            _ => false,
        }
    }

    pub(super) fn refused(&mut self, lease: LeaseId, now: Millis) {
        if let Some(contact @ Contact::Retrying) = self.of(lease) {
            *contact = Contact::Gone(now);
        }
    }

    pub(super) fn away(&mut self, lease: LeaseId) {
        if let Some(contact @ (Contact::Up | Contact::Retrying)) = self.of(lease) {
            *contact = if planted!(RevokeOnSilence) { Contact::Gone(Millis(0)) } else { Contact::Dialled };
        }
    }

    pub(super) fn not_revoked(&mut self, lease: LeaseId, retry_at: Millis) {
        if let Some(contact @ Contact::Revoking) = self.of(lease) {
            *contact = Contact::Gone(retry_at);
        }
    }

    /// When the end of the leader's lease is to be asked for.
    pub(super) fn wake(&self, leader: Option<&Holder>) -> Option<Millis> {
        match self.watched {
            Some((lease, Contact::Gone(at))) if leader.is_some_and(|l| l.record.lease == lease) => Some(at),
            _ => None,
        }
    }

    /// `leader`: the other balancer that leads, if one does. `predecessor`: the reign of the process that had this
    /// process's name and address before.
    pub(super) fn proceed(
        &mut self,
        now: Millis,
        leader: Option<&LeaderRecord>,
        predecessor: Option<LeaseId>,
        out: &mut Vec<Action>,
    ) {
        let Some(leader) = leader else {
            if self.watched.take().is_some() {
                out.push(Action::DisconnectPeer);
            }
            return;
        };
        if self.watched.is_none_or(|(lease, _)| lease != leader.lease) {
            // Only one process listens at an address: the one before is gone.
            let predecessor = predecessor == Some(leader.lease);
            if !predecessor {
                out.push(Action::ConnectPeer(leader.clone()));
            } else if self.watched.is_some() {
                out.push(Action::DisconnectPeer);
            }
            let contact = if predecessor { Contact::Gone(now) } else { Contact::Dialled };
            self.watched = Some((leader.lease, contact));
        }
        if let Some((lease, contact @ Contact::Gone(_))) = &mut self.watched
            && matches!(contact, Contact::Gone(at) if *at <= now)
        {
            *contact = Contact::Revoking;
            out.push(Action::Revoke(*lease));
        }
    }
}
