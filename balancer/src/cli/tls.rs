//! Flags of TLS, the same for every command that listens or connects.

use super::Failure;
use clap::Args;
use evenkeel_transport::security::SecuritySettings;
use evenkeel_transport::{Fault, FaultCode};
use std::path::PathBuf;

/// Exit code for a balancer that cannot be reached.
const EXIT_UNREACHABLE: u8 = 4;
/// Exit code for a caller that may not do what it asks for.
pub(super) const EXIT_DENIED: u8 = 5;
/// Exit code for settings that do not fit.
const EXIT_USAGE: u8 = 2;

#[derive(Args)]
pub(super) struct TlsFlags {
    /// Certificates of the authorities that are trusted (PEM); turns TLS on, with the two below
    #[arg(long, env = "EVENKEEL_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Certificate of this process or person (PEM)
    #[arg(long, env = "EVENKEEL_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(long, env = "EVENKEEL_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Allow plaintext beyond loopback: for closed networks only
    #[arg(long, env = "EVENKEEL_INSECURE_PLAINTEXT", value_parser = clap::builder::BoolishValueParser::new())]
    insecure_plaintext: bool,
}

impl TlsFlags {
    /// What they say.
    pub(super) fn settings(self) -> SecuritySettings {
        SecuritySettings {
            ca: self.tls_ca,
            certificate: self.tls_cert,
            key: self.tls_key,
            insecure_plaintext: self.insecure_plaintext,
        }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        let exit = match fault.code {
            FaultCode::Unreachable
            | FaultCode::HandshakeFailed
            | FaultCode::HandshakeTimeout
            | FaultCode::NotTls
            | FaultCode::WrongProtocol
            | FaultCode::Incompatible => EXIT_UNREACHABLE,
            FaultCode::TlsRequired | FaultCode::Unreadable | FaultCode::KeyMismatch => EXIT_USAGE,
            _ => EXIT_DENIED,
        };
        Failure { exit, ..Failure::new(fault.code.as_str(), fault.message()) }
    }
}
