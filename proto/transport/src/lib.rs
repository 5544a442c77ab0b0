//! How the processes of a cluster connect: TLS 1.3 with certificates on both sides, names in certificates, and
//! listeners that hold nothing without bound.
//!
//! | module | what |
//! |---|---|
//! | [`identity`] | who a certificate names; what handlers are told |
//! | [`fault`] | why a connection came to nothing: stable codes with hints |
//! | [`credentials`] | the files of a process, read again while it runs |
//! | [`security`] | TLS or plaintext, and where plaintext may be |
//! | [`network`] | what connections run over |
//! | [`listen`] | accepted connections, with bounds and deadlines |
//! | [`dial`], [`blocking`] | connections to others |
//! | [`verbs`], [`authorise`] | who may call what |
#![forbid(unsafe_code)]

pub mod authorise;
pub mod blocking;
mod certificate;
mod connection;
pub mod credentials;
pub mod dial;
pub mod fault;
pub mod http;
pub mod identity;
pub mod listen;
pub mod network;
pub mod observer;
pub mod reload;
pub mod security;
mod slots;
#[cfg(test)]
mod tests;
pub mod verbs;
mod verifier;

pub use certificate::CertificateFacts;
pub use connection::{Connection, PeerInfo};
pub use credentials::{Credentials, TlsFiles};
pub use dial::Dialler;
pub use fault::{Fault, FaultCode};
pub use identity::{PeerIdentity, PeerRole, Principal};
pub use listen::{Incoming, Limits, Port};
pub use observer::Observer;
pub use security::Security;
