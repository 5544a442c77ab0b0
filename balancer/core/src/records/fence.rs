//! The transactions of the protocol. All but the campaign are fenced.

use super::{Change, Expect, Key, LeaderRecord, Manifest, Opaque, Record, Revision, Transaction};
use crate::ids::{Term, UnitId};
use crate::planted;

/// Takes the leader's key, if nobody has it. The revision at which it is done is the new term's.
pub fn campaign(leader: LeaderRecord) -> Transaction {
    let lease = leader.lease;
    Transaction {
        expects: if planted!(CampaignOverLeader) { Vec::new() } else { vec![Expect::Absent(Key::Leader)] },
        changes: vec![Change::Put(Key::Leader, Record::Leader(leader), Some(lease))],
    }
}

/// A campaign that is won only in the generation that the candidate has read, so that it knows the whole term without
/// another look. `generation`: the revision that last changed [`Key::Generation`]; `None`: it was absent.
pub fn campaign_in(leader: LeaderRecord, generation: Option<Revision>) -> Transaction {
    let mut transaction = campaign(leader);
    transaction.expects.push(match generation {
        None => Expect::Absent(Key::Generation),
        Some(revision) => Expect::Modified(Key::Generation, revision),
    });
    transaction
}

/// Changes made in the name of a term.
pub fn guarded(term: Term, changes: Vec<Change>) -> Transaction {
    Transaction { expects: vec![Expect::Reigns(term)], changes }
}

/// Makes a plan the head of its unit, in this order: its chunks as far as they need transactions of their own, then what
/// is left of them with manifest, head and `with` (the audit entry, the unit's record, ...). Only the last transaction
/// commits; a crash before it leaves chunks that no manifest names, which the next leader deletes.
///
/// `head` is the revision that last changed the unit's head; `None`: there is none yet, and the plan is the boot plan.
pub fn commit(
    term: Term,
    unit: &UnitId,
    head: Option<Revision>,
    manifest: Manifest,
    chunks: Vec<Opaque>,
    with: Vec<Change>,
) -> Vec<Transaction> {
    assert_eq!(manifest.chunks as usize, chunks.len(), "a manifest counts its chunks");
    let name = manifest.name;
    let put = |(i, chunk): (usize, Opaque)| {
        let key = Key::Chunk(unit.clone(), name.epoch, u32::try_from(i).expect("chunks fit 32 bits"));
        Change::Put(key, Record::Chunk(chunk), None)
    };
    let mut transactions: Vec<Transaction> = Vec::new();
    let mut chunks = chunks.into_iter().enumerate().map(put).peekable();
    let mut changes = Vec::new();
    // One chunk of half a MiB a transaction keeps each below etcd's limit of 1.5 MiB, the last one's records included.
    while let Some(chunk) = chunks.next() {
        if chunks.peek().is_some() {
            transactions.push(guarded(term, vec![chunk]));
        } else {
            changes.push(chunk);
        }
    }
    let key = Key::Head(unit.clone());
    let expect = head.map_or(Expect::Absent(key.clone()), |revision| Expect::Modified(key.clone(), revision));
    if !planted!(ManifestForgotten) {
        changes.push(Change::Put(Key::Manifest(unit.clone(), name.epoch), Record::Manifest(manifest), None));
    }
    changes.push(Change::Put(key, Record::Plan(name), None));
    changes.push(Change::Delete(Key::Pending(unit.clone())));
    changes.extend(with);
    let mut expects = vec![Expect::Reigns(term), expect];
    if planted!(CommitWithoutHeadExpectation) {
        expects.truncate(1);
    }
    if planted!(CommitUnfenced) {
        expects.remove(0);
    }
    if planted!(CommitExpectsNothing) {
        expects.clear();
    }
    transactions.push(Transaction { expects, changes });
    if planted!(HeadBeforeChunks) {
        transactions.rotate_right(1);
    }
    transactions
}
