//! How a [`Record`] is written as bytes, and back. Bytes that are no record, or not one that belongs under its key, are
//! an error that names the key.

use super::StoreError;
use evenkeel_core::ids::{Digest, Epoch, ExpertId, LayerId, NodeId, Rank, UnitId};
use evenkeel_core::records::{
    AuditRecord, Key, LeaderRecord, LeaseId, Manifest, Pause, Pin, PlanName, Record, RequestRecord,
    UnitRecord,
};
use evenkeel_proto::v1::{self, stored_record::Record as Wire};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};

/// The format that is written. Others are refused: a reader that does not know what has changed must not guess.
const FORMAT: u32 = 1;

/// The bytes of a record.
pub fn encode(record: &Record) -> Vec<u8> {
    v1::StoredRecord { format: FORMAT, record: Some(to_wire(record)) }.encode_to_vec()
}

/// The record that the bytes under `key` stand for.
pub fn decode(key: &Key, bytes: &[u8]) -> Result<Record, StoreError> {
    let found = v1::StoredRecord::decode(bytes).map_err(|e| e.to_string()).and_then(|stored| {
        if stored.format != FORMAT {
            return Err(format!("has format {}, this program knows format {FORMAT}", stored.format));
        }
        of_wire(stored.record.ok_or("holds no record that this program knows")?)
    });
    let found = found.and_then(|record| match record.fits(key) {
        true => Ok(record),
        false => Err("holds a record that belongs under another key".into()),
    });
    found.map_err(|reason| StoreError::Broken { place: super::path::of_key(key), reason })
}

fn to_wire(record: &Record) -> Wire {
    match record {
        Record::Schema(version) => Wire::Schema(*version),
        Record::Generation(generation) => Wire::Generation(*generation),
        Record::Leader(leader) => Wire::Leader(v1::StoredLeader {
            balancer: leader.balancer.clone(),
            address: leader.address.clone(),
            lease: leader.lease.0,
        }),
        Record::Unit(unit) => Wire::Members(members(unit)),
        Record::Plan(name) => Wire::Plan(plan_name(name)),
        Record::Manifest(manifest) => Wire::Manifest(v1::StoredManifest {
            name: Some(plan_name(&manifest.name)),
            chunks: manifest.chunks,
            account: manifest.account.to_vec(),
        }),
        Record::Chunk(bytes) => Wire::Chunk(bytes.to_vec()),
        Record::Pins(pins) => Wire::Pins(v1::StoredPins { pins: pins.iter().map(pin).collect() }),
        Record::Drains(nodes) => {
            Wire::Drains(v1::StoredDrains { nodes: nodes.iter().map(ToString::to_string).collect() })
        }
        Record::Pause(pause) => {
            Wire::Pause(v1::StoredPause { by: pause.by.clone(), until_ms: pause.until_ms })
        }
        Record::Agent { at_ms, connected } => {
            Wire::Presence(v1::StoredPresence { at_ms: *at_ms, connected: *connected })
        }
        Record::Request(request) => Wire::Request(v1::StoredRequest {
            at_ms: request.at_ms,
            content: request.content.0.to_vec(),
            answer: request.answer.to_vec(),
        }),
        Record::Audit(audit) => Wire::Audit(v1::StoredAudit {
            who: audit.who.clone(),
            verb: audit.verb.clone(),
            unit: audit.unit.as_ref().map_or_else(String::new, ToString::to_string),
            plan: audit.plan.as_ref().map(plan_name),
            detail: audit.detail.clone(),
        }),
    }
}

fn members(unit: &UnitRecord) -> v1::StoredMembers {
    let member = |(node, ranks): (&NodeId, &Vec<Rank>)| v1::StoredMember {
        node: node.to_string(),
        ranks: ranks.iter().map(|rank| rank.0.into()).collect(),
    };
    v1::StoredMembers {
        shape: Some((&unit.shape).into()),
        weights_digest: unit.weights_digest.clone(),
        nodes: unit.nodes.iter().map(member).collect(),
        lost_epoch: unit.lost.0,
    }
}

fn plan_name(name: &PlanName) -> v1::StoredPlanName {
    v1::StoredPlanName { term: Some(name.term.into()), id: Some((name.epoch, name.digest).into()) }
}

fn pin(pin: &Pin) -> v1::StoredPin {
    v1::StoredPin { layer: pin.layer.0.into(), expert: pin.expert.0.into(), rank: pin.rank.0.into() }
}

fn of_wire(wire: Wire) -> Result<Record, String> {
    Ok(match wire {
        Wire::Schema(version) => Record::Schema(version),
        Wire::Generation(generation) => Record::Generation(generation),
        Wire::Leader(leader) => Record::Leader(LeaderRecord {
            balancer: leader.balancer,
            address: leader.address,
            lease: LeaseId(leader.lease),
        }),
        Wire::Members(members) => Record::Unit(of_members(members)?),
        Wire::Plan(name) => Record::Plan(of_plan_name(&name)?),
        Wire::Manifest(manifest) => Record::Manifest(Manifest {
            name: of_plan_name(&manifest.name.ok_or("name is missing")?)?,
            chunks: manifest.chunks,
            account: manifest.account.into(),
        }),
        Wire::Chunk(bytes) => Record::Chunk(bytes.into()),
        Wire::Pins(pins) => Record::Pins(pins.pins.iter().map(of_pin).collect::<Result<_, _>>()?),
        Wire::Drains(drains) => {
            Record::Drains(drains.nodes.into_iter().map(node_of).collect::<Result<BTreeSet<_>, _>>()?)
        }
        Wire::Pause(pause) => Record::Pause(Pause { by: pause.by, until_ms: pause.until_ms }),
        Wire::Presence(presence) => Record::Agent { at_ms: presence.at_ms, connected: presence.connected },
        Wire::Request(request) => Record::Request(RequestRecord {
            at_ms: request.at_ms,
            content: digest_of(&request.content)?,
            answer: request.answer.into(),
        }),
        Wire::Audit(audit) => Record::Audit(of_audit(audit)?),
    })
}

fn of_members(members: v1::StoredMembers) -> Result<UnitRecord, String> {
    let shape = members.shape.as_ref().ok_or("shape is missing")?;
    let mut nodes = BTreeMap::new();
    for member in members.nodes {
        let node = node_of(member.node)?;
        let ranks = member.ranks.into_iter().map(|rank| narrow("rank", rank).map(Rank));
        if nodes.insert(node.clone(), ranks.collect::<Result<_, _>>()?).is_some() {
            return Err(format!("node {node} is there twice"));
        }
    }
    Ok(UnitRecord {
        shape: shape.try_into().map_err(|e: evenkeel_proto::ConvertError| e.to_string())?,
        weights_digest: members.weights_digest,
        nodes,
        lost: Epoch(members.lost_epoch),
    })
}

fn of_audit(audit: v1::StoredAudit) -> Result<AuditRecord, String> {
    let unit = (!audit.unit.is_empty()).then(|| UnitId::new(audit.unit).map_err(|e| e.to_string()));
    Ok(AuditRecord {
        who: audit.who,
        verb: audit.verb,
        unit: unit.transpose()?,
        plan: audit.plan.as_ref().map(of_plan_name).transpose()?,
        detail: audit.detail,
    })
}

fn of_plan_name(name: &v1::StoredPlanName) -> Result<PlanName, String> {
    let id = name.id.as_ref().ok_or("id is missing")?;
    let (epoch, digest): (Epoch, Digest) =
        id.try_into().map_err(|e: evenkeel_proto::ConvertError| e.to_string())?;
    Ok(PlanName { term: name.term.ok_or("term is missing")?.into(), epoch, digest })
}

fn of_pin(pin: &v1::StoredPin) -> Result<Pin, String> {
    Ok(Pin {
        layer: LayerId(narrow("layer", pin.layer)?),
        expert: ExpertId(narrow("expert", pin.expert)?),
        rank: Rank(narrow("rank", pin.rank)?),
    })
}

fn node_of(name: String) -> Result<NodeId, String> {
    NodeId::new(name).map_err(|e| e.to_string())
}

fn digest_of(bytes: &[u8]) -> Result<Digest, String> {
    let bytes = <[u8; 32]>::try_from(bytes);
    bytes.map(Digest).map_err(|_| "content is not a digest of 32 bytes".into())
}

fn narrow(field: &str, value: u32) -> Result<u16, String> {
    u16::try_from(value).map_err(|_| format!("{field} {value} is above {}", u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::arbitrary;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_survives_its_bytes((key, record) in arbitrary::entry()) {
            prop_assert_eq!(decode(&key, &encode(&record)), Ok(record));
        }

        #[test]
        fn a_truncated_record_is_an_error_or_another_one((key, record) in arbitrary::entry(), cut in any::<prop::sample::Index>()) {
            let mut bytes = encode(&record);
            bytes.truncate(cut.index(bytes.len()));
            check_damaged(&key, &bytes)?;
        }

        #[test]
        fn a_flipped_bit_is_an_error_or_another_record((key, record) in arbitrary::entry(), bit in any::<prop::sample::Index>()) {
            let mut bytes = encode(&record);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            check_damaged(&key, &bytes)?;
        }

        #[test]
        fn noise_is_no_record((key, _) in arbitrary::entry(), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            check_damaged(&key, &bytes)?;
        }
    }

    /// Either an error that names the key, or a record that is as good as any.
    fn check_damaged(key: &Key, bytes: &[u8]) -> Result<(), TestCaseError> {
        match decode(key, bytes) {
            Ok(record) => prop_assert!(record.fits(key)),
            Err(StoreError::Broken { place, .. }) => {
                prop_assert_eq!(place, crate::records::path::of_key(key))
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
        Ok(())
    }

    #[track_caller]
    fn check_refused(key: &Key, stored: &v1::StoredRecord, reason: &str) {
        let error = decode(key, &stored.encode_to_vec()).expect_err("refused").to_string();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn what_a_reader_must_not_guess_is_refused() {
        let schema = |format| v1::StoredRecord { format, record: Some(Wire::Schema(2)) };
        check_refused(&Key::Schema, &schema(2), "format 2");
        check_refused(&Key::Schema, &schema(0), "format 0");
        check_refused(&Key::Schema, &v1::StoredRecord { format: 1, record: None }, "no record");
        check_refused(&Key::Generation, &schema(1), "another key");
    }

    #[test]
    fn fields_of_a_later_version_are_passed_over() {
        let mut bytes = encode(&Record::Schema(2));
        // Field 100, a varint.
        bytes.extend([0xa0, 0x06, 0x01]);
        assert_eq!(decode(&Key::Schema, &bytes), Ok(Record::Schema(2)));
    }

    #[test]
    fn the_bytes_of_a_generation_are_those_that_etcd_compares() {
        assert_eq!(encode(&Record::Generation(7)), [0x08, 1, 0x18, 7]);
    }
}
