//! What this crate reads from a certificate beside what rustls verifies: names and validity.

use crate::fault::{Fault, FaultCode};
use crate::identity::PeerIdentity;
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Facts of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The subject, as text.
    pub subject: String,
    /// The issuer, as text.
    pub issuer: String,
    /// DNS names.
    pub dns_names: Vec<String>,
    /// IP addresses, as text.
    pub ip_addresses: Vec<String>,
    /// Whether it may issue others.
    pub is_authority: bool,
    /// Begin of its validity, in seconds since 1970.
    pub not_before: i64,
    /// End of its validity, in seconds since 1970.
    pub not_after: i64,
}

impl CertificateFacts {
    /// Reads a certificate in DER. Nothing is verified.
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, Fault> {
        let invalid =
            |e: &dyn std::fmt::Display| Fault::new(FaultCode::Invalid, format!("no certificate: {e}"));
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| invalid(&e))?;
        let names = certificate.subject_alternative_name().map_err(|e| invalid(&e))?;
        let names = names.map_or(&[][..], |names| names.value.general_names.as_slice());
        let dns = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        };
        let ip = |name: &GeneralName<'_>| match name {
            GeneralName::IPAddress(bytes) => ip_text(bytes),
            _ => None,
        };
        Ok(Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            dns_names: names.iter().filter_map(dns).collect(),
            ip_addresses: names.iter().filter_map(ip).collect(),
            is_authority: certificate.is_ca(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }

    /// Who it names.
    pub fn identity(&self) -> Result<PeerIdentity, Fault> {
        PeerIdentity::of_names(self.dns_names.iter().map(String::as_str))
    }
}

fn ip_text(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|b| std::net::IpAddr::from(b).to_string());
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|b| std::net::IpAddr::from(b).to_string())).ok()
}
