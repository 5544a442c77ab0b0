//! Physical quantities. The unit is in the type, so tokens never meet bytes by accident.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $suffix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        pub struct $name(pub u64);

        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0 + other.0)
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                self.0 += other.0;
            }
        }

        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(values: I) -> Self {
                Self(values.map(|v| v.0).sum())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{} ", $suffix), self.0)
            }
        }
    };
}

quantity!(
    /// Weight bytes moved or stored.
    Bytes,
    "B"
);
quantity!(
    /// Tokens: of a prompt, or of KVCache in use.
    Tokens,
    "tokens"
);

/// Virtual or monotonic time in milliseconds since an arbitrary start. The core never reads a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Millis(pub u64);

impl Millis {
    /// The time `ms` later.
    #[must_use]
    pub fn after(self, ms: u64) -> Millis {
        Millis(self.0 + ms)
    }

    /// Milliseconds from `earlier` to this time; zero when `earlier` lies in the future.
    pub fn since(self, earlier: Millis) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
