//! How the program fails: one line with a stable code, and an exit code.

use std::fmt;

/// A failure that ends the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Stable code.
    pub code: &'static str,
    /// What went wrong, with the remedy.
    pub message: String,
    /// 2 when the command line or configuration is at fault, else 1.
    pub exit: u8,
}

impl Failure {
    /// A fault of the command line or configuration.
    pub fn usage(code: &'static str, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string(), exit: 2 }
    }

    /// Any other fault.
    pub fn other(code: &'static str, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string(), exit: 1 }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Failure {}
