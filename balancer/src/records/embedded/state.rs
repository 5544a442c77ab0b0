//! What the embedded store does, on whatever thread: transactions, leases and history over the file.

use super::disk::{Disk, Entry, Header, Opener, View, Write, header, versioned};
use super::history::History;
use super::leases::Leases;
use crate::records::{Found, StoreError, codec, path};
use evenkeel_core::ids::Term;
use evenkeel_core::records::{
    Change, Changed, Expect, Key, LeaseId, Outcome, Record, Revision, Scope, Transaction, Versioned,
};
use redb::StorageError;
use std::time::{Duration, Instant};

/// See the module. One holder at a time: reads wait while a write is synced, which happens a few times a minute.
pub(super) struct State {
    disk: Disk,
    leases: Leases,
    history: History,
    revision: Revision,
}

/// What a transaction would change.
struct Effect {
    writes: Vec<Write>,
    /// Per write: the key, its lease before, and what stands there now.
    changed: Vec<(Key, Option<LeaseId>, Option<Versioned>)>,
}

impl State {
    /// Opens the file. Leases of the processes before have ended, and their keys with them.
    pub(super) fn open(place: String, open: Opener) -> Result<Self, StoreError> {
        let (disk, opening) = Disk::open(place, open)?;
        let (leases, revision) = (Leases::of_opening(opening), Revision::default());
        let mut state = Self { disk, leases, history: History::after(revision), revision };
        state.learn()?;
        Ok(state)
    }

    /// The last transaction that changed something.
    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// To be called before anything else is done at `now`: ends the leases whose time is over.
    pub(super) fn advance(&mut self, now: Instant) -> Result<(), StoreError> {
        if self.disk.take_reopened()? {
            self.learn()?;
        }
        while let Some(lease) = self.leases.due(now) {
            self.end(lease)?;
        }
        Ok(())
    }

    /// When there is something to do next.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.leases.next_end()
    }

    /// Reads from the file what is otherwise known: the revision, and which keys are under which lease.
    fn learn(&mut self) -> Result<(), StoreError> {
        self.revision = self.disk.read(|view| Ok(Ok(view.revision)))?;
        self.history = History::after(self.revision);
        self.leases.detach_all();
        let mut over = Vec::new();
        for (path, lease) in self.disk.leased()? {
            match path::to_key(&path) {
                Some(key) if self.leases.lives(lease) => self.leases.attach(&key, None, Some(lease)),
                _ => over.push(Write { path, entry: None }),
            }
        }
        if !over.is_empty() {
            let revision = Revision(self.revision.0 + 1);
            self.disk.commit(revision, &over)?;
            self.revision = revision;
            self.history = History::after(revision);
        }
        Ok(())
    }

    /// See [`crate::records::Store::read`].
    pub(super) fn read(&mut self, keys: &[Key]) -> Result<Found<Vec<Option<Versioned>>>, StoreError> {
        self.disk.read(|view| {
            let mut records = Vec::new();
            for key in keys {
                match view.get(key)? {
                    Ok(found) => records.push(found),
                    Err(error) => return Ok(Err(error)),
                }
            }
            Ok(Ok(Found { revision: view.revision, records }))
        })
    }

    /// See [`crate::records::Store::keys`].
    pub(super) fn keys(&mut self, scope: &Scope) -> Result<Found<Vec<(Key, Revision)>>, StoreError> {
        let mut found = self.scan(scope, |key, path, bytes| Ok((key, header(path, bytes)?.modified)))?;
        found.records.sort_unstable();
        Ok(found)
    }

    /// See [`crate::records::Store::list`].
    pub(super) fn list(&mut self, scope: &Scope) -> Result<Found<Vec<(Key, Versioned)>>, StoreError> {
        let mut found = self.scan(scope, |key, path, bytes| {
            let found = versioned(&key, path, bytes)?;
            Ok((key, found))
        })?;
        found.records.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Ok(found)
    }

    fn scan<T>(
        &mut self,
        scope: &Scope,
        mut each: impl FnMut(Key, &str, &[u8]) -> Result<T, StoreError>,
    ) -> Result<Found<Vec<T>>, StoreError> {
        let place = path::of_scope(scope);
        self.disk.read(|view| {
            let mut records = Vec::new();
            let scanned = view.scan(&place.path, |path, bytes| {
                if let Some(key) = path::to_key(path).filter(|key| scope.contains(key)) {
                    records.push(each(key, path, bytes)?);
                }
                Ok(())
            })?;
            Ok(scanned.map(|()| Found { revision: view.revision, records }))
        })
    }

    /// See [`crate::records::Store::transact`].
    pub(super) fn transact(&mut self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let lives = |change: &Change| match change {
            Change::Put(_, _, Some(lease)) => self.leases.lives(*lease),
            _ => true,
        };
        if !transaction.changes.iter().all(lives) {
            return Ok(Outcome::Refused);
        }
        let revision = Revision(self.revision.0 + 1);
        let effect = self.disk.read(|view| {
            assert_eq!(view.revision.0 + 1, revision.0, "only this process writes");
            for expect in &transaction.expects {
                match holds(view, expect)? {
                    Ok(true) => {}
                    Ok(false) => return Ok(Ok(None)),
                    Err(error) => return Ok(Err(error)),
                }
            }
            Ok(effect(view, revision, &transaction.changes)?.map(Some))
        })?;
        let Some(effect) = effect else { return Ok(Outcome::Refused) };
        self.make(revision, effect)?;
        Ok(Outcome::Done(self.revision))
    }

    fn make(&mut self, revision: Revision, effect: Effect) -> Result<(), StoreError> {
        if effect.writes.is_empty() {
            return Ok(());
        }
        self.disk.commit(revision, &effect.writes)?;
        self.revision = revision;
        for (key, before, now) in &effect.changed {
            self.leases.attach(key, *before, now.as_ref().and_then(|now| now.lease));
        }
        let changed = effect.changed.into_iter().map(|(key, _, now)| Changed { revision, key, now });
        self.history.extend(changed);
        Ok(())
    }

    /// See [`crate::records::Store::grant`].
    pub(super) fn grant(&mut self, ttl: Duration, now: Instant) -> LeaseId {
        self.leases.grant(ttl, now)
    }

    /// See [`crate::records::Store::keep_alive`].
    pub(super) fn keep_alive(&mut self, lease: LeaseId, now: Instant) -> Result<(), StoreError> {
        if self.leases.keep_alive(lease, now) { Ok(()) } else { Err(StoreError::LeaseEnded(lease)) }
    }

    /// See [`crate::records::Store::revoke`].
    pub(super) fn end(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        let Some(keys) = self.leases.keys(lease) else { return Ok(()) };
        let effect = Effect {
            writes: keys.iter().map(|key| Write { path: path::of_key(key), entry: None }).collect(),
            changed: keys.iter().map(|key| (key.clone(), Some(lease), None)).collect(),
        };
        self.make(Revision(self.revision.0 + 1), effect)?;
        self.leases.end(lease);
        Ok(())
    }

    /// Changes of a scope after a revision; `None`: some are forgotten.
    pub(super) fn changes_after(&self, after: Revision, scope: &Scope) -> Option<Vec<Changed>> {
        self.history.changes_after(after, scope)
    }
}

type Looked<T> = Result<Result<T, StoreError>, StorageError>;

fn holds(view: &View, expect: &Expect) -> Looked<bool> {
    Ok(match expect {
        Expect::Absent(key) => view.header(key)?.map(|found| found.is_none()),
        Expect::Modified(key, revision) => {
            view.header(key)?.map(|found| found.is_some_and(|found| found.modified == *revision))
        }
        Expect::Reigns(term) => reigns(view, *term)?,
    })
}

fn reigns(view: &View, term: Term) -> Looked<bool> {
    let (generation, leader) = match (view.get(&Key::Generation)?, view.header(&Key::Leader)?) {
        (Ok(generation), Ok(leader)) => (generation, leader),
        (Err(error), _) | (_, Err(error)) => return Ok(Err(error)),
    };
    let generation = match generation.map(|found| found.record) {
        Some(Record::Generation(generation)) => generation,
        _ => 0,
    };
    let leader = leader.map(|leader| leader.created.0);
    Ok(Ok(generation == term.generation && leader == Some(term.revision)))
}

fn effect(view: &View, revision: Revision, changes: &[Change]) -> Looked<Effect> {
    let mut effect = Effect { writes: Vec::new(), changed: Vec::new() };
    for change in changes {
        let (Change::Put(key, _, _) | Change::Delete(key)) = change;
        let before = match view.header(key)? {
            Ok(before) => before,
            Err(error) => return Ok(Err(error)),
        };
        let now = match change {
            Change::Put(_, record, lease) => {
                let created = before.map_or(revision, |before| before.created);
                Some((Header { created, modified: revision, lease: *lease }, record))
            }
            Change::Delete(_) if before.is_none() => continue,
            Change::Delete(_) => None,
        };
        let entry = now.map(|(header, record)| Entry { header, record: codec::encode(record) });
        effect.writes.push(Write { path: path::of_key(key), entry });
        let now = now.map(|(header, record)| header.with(record.clone()));
        effect.changed.push((key.clone(), before.and_then(|before| before.lease), now));
    }
    Ok(Ok(effect))
}
