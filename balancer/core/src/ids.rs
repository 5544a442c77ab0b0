//! Typed identifiers. An id of one kind never stands where another is meant.
//!
//! Names (`UnitId`, `NodeId`) come from operators and are validated; ordinals (`Rank`, `ExpertId`) are
//! dense numbers inside one unit and carry no validation of their own: the topology bounds them.

use std::fmt;

/// The longest accepted name: a DNS label, so that names can be used in hosts, keys and metric labels.
pub const NAME_LENGTH_MAX: usize = 63;

/// A name that is not a DNS label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} name {value:?} is not valid: use 1 to {NAME_LENGTH_MAX} characters a-z, 0-9 and '-', not beginning or ending with '-'"
)]
pub struct InvalidName {
    /// What the name was meant for: `unit` or `node`.
    pub kind: &'static str,
    /// The refused value.
    pub value: String,
}

fn validate_name(kind: &'static str, value: &str) -> Result<(), InvalidName> {
    let fits = (1..=NAME_LENGTH_MAX).contains(&value.len());
    let characters = value.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    let ends = !value.starts_with('-') && !value.ends_with('-');
    if fits && characters && ends { Ok(()) } else { Err(InvalidName { kind, value: value.to_owned() }) }
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// Validates the name.
            pub fn new(value: impl Into<String>) -> Result<Self, InvalidName> {
                let value = value.into();
                validate_name($kind, &value)?;
                Ok(Self(value))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_id!(
    /// One EP group: a prefill EP32 or a decode EP144 deployment.
    UnitId,
    "unit"
);
name_id!(
    /// One machine, which runs one agent.
    NodeId,
    "node"
);

macro_rules! ordinal_id {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        pub struct $name(pub $inner);

        impl $name {
            /// The ordinal as an index into a dense table.
            pub fn index(self) -> usize {
                usize::from(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

ordinal_id!(
    /// An EP rank: one GPU of a unit, counted over the whole unit.
    Rank,
    u16
);
ordinal_id!(
    /// A logical expert of a layer.
    ExpertId,
    u16
);
ordinal_id!(
    /// A MoE layer of the model, counted from the first MoE layer.
    LayerId,
    u16
);

/// The number of a committed plan of one unit. Epoch 0 is the placement the engine booted with; each commit adds exactly
/// one, but where numbers may have been used in a history that the store has lost: those are passed over, so that a number
/// names one plan for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The placement the engine loaded by itself, before any plan.
    pub const BOOT: Epoch = Epoch(0);

    /// Numbers that a generation of the store has for itself: at a plan a second, thirty years of them.
    pub const PER_GENERATION: u64 = 1_000_000_000;

    /// The epoch that follows this one where nothing was lost.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }

    /// Below every epoch that follows in a generation, and above every one of the generations before.
    pub fn first_of(generation: u64) -> Epoch {
        Epoch(generation.saturating_mul(Self::PER_GENERATION))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The reign of one leader: (store generation, create revision of the leader key), compared in that
/// order. Strictly increasing; an agent refuses anything lower than the highest it has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Term {
    /// Raised only when an operator adopts a store whose revisions started again.
    pub generation: u64,
    /// Create revision of the leader key in the store.
    pub revision: u64,
}

impl Term {
    /// No generation is raised above this one: each has [`Epoch::PER_GENERATION`] epochs, and a metric shows whole numbers
    /// to 2^53 only.
    pub const GENERATION_MAX: u64 = 1_000_000;
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.revision)
    }
}

/// SHA-256 over the canonical bytes of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The first eight hexadecimal digits: enough for a table, never for a comparison.
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, valid: bool) {
        assert_eq!(UnitId::new(name).is_ok(), valid, "{name:?}");
    }

    #[test]
    fn a_name_is_a_dns_label() {
        check("decode-1", true);
        check("7", true);
        check(&"a".repeat(63), true);
        check(&"a".repeat(64), false);
        check("", false);
        check("-a", false);
        check("a-", false);
        check("A", false);
        check("a_b", false);
    }

    #[test]
    fn a_term_compares_generation_before_revision() {
        let old = Term { generation: 0, revision: 900 };
        let adopted = Term { generation: 1, revision: 2 };
        assert!(adopted > old);
    }
}
