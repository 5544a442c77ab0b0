//! How a [`Key`] is written as a path, and back. Paths begin below the store's prefix:
//!
//! ```text
//! schema | leader | generation
//! units/<u>/{unit,head,pending,pins,drains,pause}
//! units/<u>/plans/<epoch>/{m,<i>}
//! agents/<node> | idem/<request> | audit/<at_ms>-<generation>-<revision>-<sequence>
//! ```
//!
//! Numbers have all their digits, so that paths of one kind sort as their keys do. Only what [`of_key`] writes is a key to
//! [`to_key`]: anything else in the store belongs to somebody else, or to a later version.

use evenkeel_core::ids::{Epoch, NodeId, Term, UnitId};
use evenkeel_core::records::{AuditId, Key, RequestId, Scope};

/// Digits of `u64::MAX`.
const DIGITS_64: usize = 20;
/// Digits of `u32::MAX`.
const DIGITS_32: usize = 10;

/// The path of a key.
pub fn of_key(key: &Key) -> String {
    match key {
        Key::Schema => "schema".into(),
        Key::Generation => "generation".into(),
        Key::Leader => "leader".into(),
        Key::Unit(unit) => format!("units/{unit}/unit"),
        Key::Head(unit) => format!("units/{unit}/head"),
        Key::Manifest(unit, epoch) => format!("{}m", of_plan(unit, *epoch)),
        Key::Chunk(unit, epoch, i) => format!("{}{i:0DIGITS_32$}", of_plan(unit, *epoch)),
        Key::Pending(unit) => format!("units/{unit}/pending"),
        Key::Pins(unit) => format!("units/{unit}/pins"),
        Key::Drains(unit) => format!("units/{unit}/drains"),
        Key::Pause(unit) => format!("units/{unit}/pause"),
        Key::Agent(node) => format!("agents/{node}"),
        Key::Request(request) => format!("idem/{}", request.as_str()),
        Key::Audit(AuditId { at_ms, term: Term { generation, revision }, sequence }) => format!(
            "audit/{at_ms:0DIGITS_64$}-{generation:0DIGITS_64$}-{revision:0DIGITS_64$}-{sequence:0DIGITS_64$}"
        ),
    }
}

fn of_plan(unit: &UnitId, epoch: Epoch) -> String {
    format!("units/{unit}/plans/{:0DIGITS_64$}/", epoch.0)
}

/// The key that is written as this path.
pub fn to_key(path: &str) -> Option<Key> {
    let mut parts = path.split('/');
    let key = match parts.next()? {
        "schema" => Key::Schema,
        "generation" => Key::Generation,
        "leader" => Key::Leader,
        "units" => of_unit(UnitId::new(parts.next()?).ok()?, &mut parts)?,
        "agents" => Key::Agent(NodeId::new(parts.next()?).ok()?),
        "idem" => Key::Request(RequestId::new(parts.next()?)?),
        "audit" => Key::Audit(audit(parts.next()?)?),
        _ => return None,
    };
    parts.next().is_none().then_some(key)
}

fn of_unit<'a>(unit: UnitId, parts: &mut impl Iterator<Item = &'a str>) -> Option<Key> {
    Some(match parts.next()? {
        "unit" => Key::Unit(unit),
        "head" => Key::Head(unit),
        "pending" => Key::Pending(unit),
        "pins" => Key::Pins(unit),
        "drains" => Key::Drains(unit),
        "pause" => Key::Pause(unit),
        "plans" => {
            let epoch = Epoch(number(parts.next()?, DIGITS_64)?);
            match parts.next()? {
                "m" => Key::Manifest(unit, epoch),
                i => Key::Chunk(unit, epoch, u32::try_from(number(i, DIGITS_32)?).ok()?),
            }
        }
        _ => return None,
    })
}

fn audit(part: &str) -> Option<AuditId> {
    let mut numbers = part.split('-').map(|digits| number(digits, DIGITS_64));
    let mut next = || numbers.next().flatten();
    let (at_ms, generation, revision, sequence) = (next()?, next()?, next()?, next()?);
    let id = AuditId { at_ms, term: Term { generation, revision }, sequence };
    numbers.next().is_none().then_some(id)
}

/// A number of exactly so many digits; `parse` alone would take a sign.
fn number(digits: &str, count: usize) -> Option<u64> {
    let plain = digits.len() == count && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// Where the keys of a scope are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// A path, or what the paths begin with.
    pub path: String,
    /// Every path that begins with it, rather than that path alone.
    pub prefix: bool,
    /// Other, larger keys stand between those of the scope: their values are better not read.
    pub sparse: bool,
}

/// Where the keys of a scope are. What is found there may be outside of the scope all the same.
pub fn of_scope(scope: &Scope) -> Place {
    let (path, prefix, sparse) = match scope {
        Scope::All => (String::new(), true, false),
        Scope::Leader => (of_key(&Key::Leader), false, false),
        Scope::Units => ("units/".into(), true, true),
        Scope::OfUnit(unit) => (format!("units/{unit}/"), true, false),
        Scope::Manifests(unit) => (format!("units/{unit}/plans/"), true, true),
        Scope::Chunks(unit, epoch) => (of_plan(unit, *epoch), true, false),
        Scope::Agents => ("agents/".into(), true, false),
        Scope::Requests => ("idem/".into(), true, false),
        Scope::Audit => ("audit/".into(), true, false),
    };
    Place { path, prefix, sparse }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::arbitrary;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_key_survives_its_path(key in arbitrary::key()) {
            prop_assert_eq!(to_key(&of_key(&key)), Some(key));
        }

        #[test]
        fn paths_of_one_kind_and_unit_sort_as_their_keys(a in arbitrary::key(), b in arbitrary::key()) {
            if std::mem::discriminant(&a) == std::mem::discriminant(&b) && a.unit() == b.unit() {
                let by_path = of_key(&a).cmp(&of_key(&b));
                prop_assert_eq!(by_path, a.cmp(&b));
            }
        }

        #[test]
        fn a_scope_finds_its_keys_and_a_dense_one_no_others(scope in arbitrary::scope(), key in arbitrary::key()) {
            let place = of_scope(&scope);
            let path = of_key(&key);
            let found = if place.prefix { path.starts_with(&place.path) } else { path == place.path };
            prop_assert!(found || !scope.contains(&key));
            prop_assert!(place.sparse || found == scope.contains(&key));
        }

        #[test]
        fn other_paths_are_no_keys(path in "[a-z0-9/+-]{0,40}") {
            if let Some(key) = to_key(&path) {
                prop_assert_eq!(of_key(&key), path);
            }
        }
    }

    #[track_caller]
    fn check(path: &str, key: Option<Key>) {
        assert_eq!(to_key(path), key, "{path}");
    }

    #[test]
    fn only_the_canonical_path_is_a_key() {
        let unit = UnitId::new("u").expect("valid");
        check("units/u/plans/00000000000000000007/0000000001", Some(Key::Chunk(unit.clone(), Epoch(7), 1)));
        check("units/u/plans/00000000000000000007/m", Some(Key::Manifest(unit.clone(), Epoch(7))));
        check("units/u/plans/7/m", None);
        check("units/u/plans/+0000000000000000007/m", None);
        check("units/u/plans/99999999999999999999/m", None);
        check("units/u/plans/00000000000000000007/4294967296", None);
        check("units/u/head", Some(Key::Head(unit)));
        check("units/u/head/", None);
        check("units/U/head", None);
        check("units/u", None);
        check("config/anything", None);
        check("", None);
    }
}
