//! Bugs that are planted on purpose, to see that the simulation's checks can fail.
//!
//! A place in the code asks `planted!(Name)`. Without the feature `mutants` that is a constant `false`: no release and no
//! default build holds any of these bugs. With it, one of them at a time can be switched on for the running thread.

/// Whether this bug is planted and switched on.
#[macro_export]
#[cfg(feature = "mutants")]
macro_rules! planted {
    ($name:ident) => {
        $crate::mutants::is_on($crate::mutants::Mutant::$name)
    };
}

/// Whether this bug is planted and switched on: never, in a build without the feature `mutants`.
#[macro_export]
#[cfg(not(feature = "mutants"))]
macro_rules! planted {
    ($name:ident) => {
        false
    };
}

#[cfg(feature = "mutants")]
mod registry;

#[cfg(feature = "mutants")]
pub use registry::{Mutant, is_on, switch};
