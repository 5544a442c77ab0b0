//! Generated keys and records for property tests.

use evenkeel_core::ids::{Digest, Epoch, ExpertId, LayerId, NodeId, Rank, Term, UnitId};
use evenkeel_core::records::{
    AuditId, AuditRecord, Key, LeaderRecord, LeaseId, Manifest, Opaque, Pause, Pin, PlanName, Record,
    RequestId, RequestRecord, Scope, UnitRecord,
};
use evenkeel_core::topology::{Role, UnitShape};
use proptest::prelude::*;

fn unit() -> impl Strategy<Value = UnitId> {
    "[a-z][a-z0-9]{0,4}".prop_map(|name| UnitId::new(name).expect("valid"))
}

fn node() -> impl Strategy<Value = NodeId> {
    "[a-z]([a-z0-9-]{0,6}[a-z0-9])?".prop_map(|name| NodeId::new(name).expect("valid"))
}

fn term() -> impl Strategy<Value = Term> {
    (any::<u64>(), any::<u64>()).prop_map(|(generation, revision)| Term { generation, revision })
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn opaque() -> impl Strategy<Value = Opaque> {
    prop::collection::vec(any::<u8>(), 0..64).prop_map(Into::into)
}

fn name() -> impl Strategy<Value = PlanName> {
    (term(), any::<u64>(), digest()).prop_map(|(term, epoch, digest)| PlanName {
        term,
        epoch: Epoch(epoch),
        digest,
    })
}

/// A key.
pub(crate) fn key() -> impl Strategy<Value = Key> {
    let request = "[a-zA-Z0-9_.-]{1,20}".prop_map(|id| RequestId::new(id).expect("valid"));
    prop_oneof![
        Just(Key::Schema),
        Just(Key::Generation),
        Just(Key::Leader),
        unit().prop_map(Key::Unit),
        unit().prop_map(Key::Head),
        (unit(), any::<u64>()).prop_map(|(unit, epoch)| Key::Manifest(unit, Epoch(epoch))),
        (unit(), any::<u64>(), any::<u32>()).prop_map(|(unit, epoch, i)| Key::Chunk(unit, Epoch(epoch), i)),
        unit().prop_map(Key::Pending),
        unit().prop_map(Key::Pins),
        unit().prop_map(Key::Drains),
        unit().prop_map(Key::Pause),
        node().prop_map(Key::Agent),
        request.prop_map(Key::Request),
        (any::<u64>(), term(), any::<u64>()).prop_map(|(at_ms, term, sequence)| Key::Audit(AuditId {
            at_ms,
            term,
            sequence
        })),
    ]
}

/// A scope.
pub(crate) fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        Just(Scope::All),
        Just(Scope::Leader),
        Just(Scope::Units),
        unit().prop_map(Scope::OfUnit),
        unit().prop_map(Scope::Manifests),
        (unit(), any::<u64>()).prop_map(|(unit, epoch)| Scope::Chunks(unit, Epoch(epoch))),
        Just(Scope::Agents),
        Just(Scope::Requests),
        Just(Scope::Audit),
    ]
}

fn shape() -> impl Strategy<Value = UnitShape> {
    let role = prop_oneof![Just(Role::Prefill), Just(Role::Decode), Just(Role::Mixed)];
    (role, 1..=512u16, 1..=64u16, 1..=2048u16, 64..=512u16, 0..=512u16, 1..=1u64 << 32).prop_map(
        |(role, layers, experts, ranks, slots_per_rank, spare_per_rank, expert_bytes)| UnitShape {
            role,
            layers,
            experts,
            top_k: 1,
            ranks,
            slots_per_rank,
            spare_per_rank,
            expert_bytes,
        },
    )
}

fn members() -> impl Strategy<Value = UnitRecord> {
    let ranks = prop::collection::vec(any::<u16>().prop_map(Rank), 0..4);
    let nodes = prop::collection::btree_map(node(), ranks, 0..4);
    (shape(), prop::collection::vec(any::<u8>(), 0..33), nodes, any::<u64>().prop_map(Epoch))
        .prop_map(|(shape, weights_digest, nodes, lost)| UnitRecord { shape, weights_digest, nodes, lost })
}

fn pin() -> impl Strategy<Value = Pin> {
    any::<(u16, u16, u16)>().prop_map(|(layer, expert, rank)| Pin {
        layer: LayerId(layer),
        expert: ExpertId(expert),
        rank: Rank(rank),
    })
}

fn audit() -> impl Strategy<Value = AuditRecord> {
    (".{0,9}", ".{0,9}", prop::option::of(unit()), prop::option::of(name()), ".{0,30}")
        .prop_map(|(who, verb, unit, plan, detail)| AuditRecord { who, verb, unit, plan, detail })
}

/// A record that belongs under the key.
fn record(key: &Key) -> BoxedStrategy<Record> {
    match key {
        Key::Schema => any::<u64>().prop_map(Record::Schema).boxed(),
        Key::Generation => any::<u64>().prop_map(Record::Generation).boxed(),
        Key::Leader => (".{0,9}", ".{0,9}", any::<u64>())
            .prop_map(|(balancer, address, lease)| {
                Record::Leader(LeaderRecord { balancer, address, lease: LeaseId(lease) })
            })
            .boxed(),
        Key::Unit(_) => members().prop_map(Record::Unit).boxed(),
        Key::Head(_) | Key::Pending(_) => name().prop_map(Record::Plan).boxed(),
        Key::Manifest(..) => (name(), any::<u32>(), opaque())
            .prop_map(|(name, chunks, account)| Record::Manifest(Manifest { name, chunks, account }))
            .boxed(),
        Key::Chunk(..) => opaque().prop_map(Record::Chunk).boxed(),
        Key::Pins(_) => prop::collection::btree_set(pin(), 0..5).prop_map(Record::Pins).boxed(),
        Key::Drains(_) => prop::collection::btree_set(node(), 0..5).prop_map(Record::Drains).boxed(),
        Key::Pause(_) => (".{0,9}", any::<Option<u64>>())
            .prop_map(|(by, until_ms)| Record::Pause(Pause { by, until_ms }))
            .boxed(),
        Key::Agent(_) => {
            any::<(u64, bool)>().prop_map(|(at_ms, connected)| Record::Agent { at_ms, connected }).boxed()
        }
        Key::Request(_) => (any::<u64>(), digest(), opaque())
            .prop_map(|(at_ms, content, answer)| Record::Request(RequestRecord { at_ms, content, answer }))
            .boxed(),
        Key::Audit(_) => audit().prop_map(Record::Audit).boxed(),
    }
}

/// A key with a record that belongs there.
pub(crate) fn entry() -> impl Strategy<Value = (Key, Record)> {
    key().prop_flat_map(|key| {
        let record = record(&key);
        (Just(key), record)
    })
}
