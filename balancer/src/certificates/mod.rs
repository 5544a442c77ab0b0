//! Certificates for tests and small clusters: an authority in a directory, and what it issues. A cluster that has an
//! authority of its own (cert-manager, Vault, step-ca) uses that: all that counts are the names in certificates.

mod authority;
mod files;

pub use authority::{Authority, Issue};
pub use files::{CertificatesError, Pair};
