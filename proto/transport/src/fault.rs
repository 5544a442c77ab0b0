//! Why a connection came to nothing, as either side sees it: a stable code, what happened, what to do.

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
use std::fmt;
use std::sync::Arc;

macro_rules! fault_codes {
    ($($variant:ident = $code:literal, $hint:literal;)*) => {
        /// Stable codes of faults.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum FaultCode {
            $(#[doc = $hint] $variant,)*
        }

        impl FaultCode {
            /// All of them.
            pub const ALL: &[FaultCode] = &[$(FaultCode::$variant),*];

            /// The code that operators see.
            pub fn as_str(self) -> &'static str {
                match self { $(FaultCode::$variant => $code,)* }
            }

            /// What to do about it.
            pub fn hint(self) -> &'static str {
                match self { $(FaultCode::$variant => $hint,)* }
            }
        }
    };
}

fault_codes! {
    Expired = "certificate_expired", "issue a new certificate, or set the clock of the host that says so";
    NotYetValid = "certificate_not_yet_valid", "set the clocks: the certificate is dated after the time of the host that says so";
    UnknownAuthority = "certificate_unknown_authority", "both sides need certificates of the same authority: compare their ca files";
    WrongName = "certificate_wrong_name", "the address leads to another process than the one meant: check the address, or issue a certificate for the name";
    WrongCluster = "certificate_wrong_cluster", "use a certificate of this cluster, or set the cluster's name to that of the certificate";
    UnknownRole = "certificate_unknown_role", "issue a certificate with one name for one role: see `evenkeel certs issue --help`";
    AmbiguousName = "certificate_ambiguous_name", "issue one certificate per role and name";
    InvalidName = "certificate_invalid_name", "issue a certificate whose names are DNS labels";
    WrongPurpose = "certificate_wrong_purpose", "the extended key usage must allow it: clients need clientAuth, servers serverAuth, agents and balancers both";
    Missing = "certificate_missing", "give a certificate and its key: --tls-ca, --tls-cert, --tls-key";
    Refused = "certificate_refused", "the other side does not accept the name in this side's certificate; its log says whether cluster, role or form is wrong";
    Invalid = "certificate_invalid", "the certificate is damaged, or its key or signature does not belong to it: issue a new one";
    KeyMismatch = "certificate_key_mismatch", "the key does not belong to the certificate: replace both files together";
    Unreadable = "certificate_unreadable", "check the path, and that the file is PEM and readable by this user";
    NotTls = "not_tls", "one side speaks plaintext and the other TLS: configure certificates on both, or on neither";
    WrongProtocol = "tls_wrong_protocol", "the port serves another protocol: check the address";
    Incompatible = "tls_incompatible", "both sides need TLS 1.3";
    HandshakeTimeout = "handshake_timeout", "the other side did not finish its handshake: a slow network, a port scanner, or no TLS";
    HandshakeFailed = "handshake_failed", "the connection broke off: see the log of the other side";
    NodeMismatch = "node_identity_mismatch", "give the agent the certificate of its own node, or set --node to the certificate's";
    Forbidden = "forbidden", "use a certificate of a role that may do it: see the roles in docs/security.md";
    TlsRequired = "tls_required", "configure certificates (--tls-ca, --tls-cert, --tls-key), use a loopback address, or, in a closed network only, give --insecure-plaintext";
    Unreachable = "unreachable", "check the address and that the process runs";
}

/// A fault with its story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Stable code.
    pub code: FaultCode,
    /// What happened.
    pub text: String,
}

impl Fault {
    /// A fault.
    pub fn new(code: FaultCode, text: impl fmt::Display) -> Self {
        Self { code, text: text.to_string() }
    }

    /// What rustls says, on either side of a connection.
    pub(crate) fn of_tls(error: &Error) -> Self {
        if let Error::InvalidCertificate(CertificateError::Other(other)) = error
            && let Some(fault) = other.0.downcast_ref::<Fault>()
        {
            return fault.clone();
        }
        match error {
            Error::AlertReceived(alert) => {
                Self::new(code_of_alert(*alert), format!("the other side refused the connection: {alert:?}"))
            }
            _ => Self::new(code_of(error), error),
        }
    }

    /// What an attempt to connect or to read ended with.
    pub(crate) fn of_io(error: &std::io::Error) -> Self {
        let inner = error.get_ref();
        if let Some(fault) = inner.and_then(|e| e.downcast_ref::<Fault>()) {
            return fault.clone();
        }
        match inner.and_then(|e| e.downcast_ref::<Error>()) {
            Some(tls) => Self::of_tls(tls),
            None => Self::new(FaultCode::HandshakeFailed, error),
        }
    }

    /// As an error of rustls, from which [`Self::of_tls`] has it back.
    pub(crate) fn into_tls(self) -> Error {
        Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(self))))
    }

    /// As an error of a stream, from which [`Self::of_io`] has it back.
    pub(crate) fn into_io(self) -> std::io::Error {
        std::io::Error::new(std::io::ErrorKind::InvalidData, self)
    }

    /// What happened and what to do, for a message that has its code already.
    pub fn message(&self) -> String {
        format!("{}; {}", self.text, self.code.hint())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message())
    }
}

impl std::error::Error for Fault {}

fn code_of(error: &Error) -> FaultCode {
    use CertificateError as C;
    match error {
        Error::InvalidCertificate(certificate) => match certificate {
            C::Expired | C::ExpiredContext { .. } => FaultCode::Expired,
            C::NotValidYet | C::NotValidYetContext { .. } => FaultCode::NotYetValid,
            C::UnknownIssuer => FaultCode::UnknownAuthority,
            C::NotValidForName | C::NotValidForNameContext { .. } => FaultCode::WrongName,
            C::InvalidPurpose | C::InvalidPurposeContext { .. } => FaultCode::WrongPurpose,
            // Another authority of the same name: the signature is not of the key that the file has.
            #[allow(deprecated, reason = "rustls still makes it")]
            C::BadSignature => FaultCode::UnknownAuthority,
            _ => FaultCode::Invalid,
        },
        Error::NoCertificatesPresented => FaultCode::Missing,
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } | Error::PeerSentOversizedRecord => {
            FaultCode::NotTls
        }
        Error::NoApplicationProtocol => FaultCode::WrongProtocol,
        Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
            FaultCode::Invalid
        }
        Error::PeerIncompatible(_) => FaultCode::Incompatible,
        Error::InconsistentKeys(_) => FaultCode::KeyMismatch,
        _ => FaultCode::HandshakeFailed,
    }
}

/// In TLS 1.3 a client learns only by an alert what the server thinks of its certificate.
fn code_of_alert(alert: AlertDescription) -> FaultCode {
    use AlertDescription as A;
    match alert {
        A::CertificateExpired => FaultCode::Expired,
        A::UnknownCA | A::DecryptError => FaultCode::UnknownAuthority,
        A::CertificateUnknown | A::AccessDenied => FaultCode::Refused,
        A::UnsupportedCertificate => FaultCode::WrongPurpose,
        A::CertificateRequired | A::NoCertificate => FaultCode::Missing,
        A::BadCertificate | A::CertificateRevoked => FaultCode::Invalid,
        A::ProtocolVersion | A::HandshakeFailure => FaultCode::Incompatible,
        A::NoApplicationProtocol => FaultCode::WrongProtocol,
        _ => FaultCode::HandshakeFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_snake_case() {
        let mut codes: Vec<&str> = FaultCode::ALL.iter().map(|code| code.as_str()).collect();
        assert!(codes.iter().all(|c| c.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), FaultCode::ALL.len());
    }

    #[test]
    fn every_code_is_explained_in_the_document() {
        let document = include_str!("../../../docs/security.md");
        for code in FaultCode::ALL {
            let row = format!("| `{}` | {} |", code.as_str(), code.hint());
            assert!(document.contains(&row), "docs/security.md lacks: {row}");
        }
    }

    #[test]
    fn a_fault_survives_its_way_through_rustls_and_io() {
        let fault = Fault::new(FaultCode::WrongCluster, "of another cluster");
        assert_eq!(Fault::of_tls(&fault.clone().into_tls()), fault);
        assert_eq!(Fault::of_io(&fault.clone().into_io()), fault);
        let wrapped = std::io::Error::new(std::io::ErrorKind::InvalidData, fault.clone().into_tls());
        assert_eq!(Fault::of_io(&wrapped), fault);
    }
}
