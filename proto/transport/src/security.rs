//! TLS or plaintext, and the rule where plaintext may be: on loopback, or where an operator says so in so many words.

use crate::credentials::{Credentials, TlsFiles};
use crate::fault::{Fault, FaultCode};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

/// How a process connects.
#[derive(Debug, Clone)]
pub enum Security {
    /// Plaintext, on loopback only.
    Loopback,
    /// Plaintext anywhere: for closed networks, by the operator's explicit order.
    Plaintext,
    /// TLS on every port.
    Tls(Arc<Credentials>),
}

/// What configuration, flags and environment say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecuritySettings {
    /// See [`TlsFiles::ca`].
    pub ca: Option<PathBuf>,
    /// See [`TlsFiles::certificate`].
    pub certificate: Option<PathBuf>,
    /// See [`TlsFiles::key`].
    pub key: Option<PathBuf>,
    /// Plaintext is allowed everywhere.
    pub insecure_plaintext: bool,
}

impl SecuritySettings {
    /// Reads the files if they are named. `cluster`: what the certificate must be of, if that is known.
    pub fn resolve(self, cluster: Option<&str>) -> Result<Security, Fault> {
        match (self.ca, self.certificate, self.key) {
            (Some(ca), Some(certificate), Some(key)) => {
                if self.insecure_plaintext {
                    let text =
                        "insecure_plaintext is set, and certificates are configured: remove one of them";
                    return Err(Fault::new(FaultCode::TlsRequired, text));
                }
                Ok(Security::Tls(Credentials::load(TlsFiles { ca, certificate, key }, cluster)?))
            }
            (None, None, None) if self.insecure_plaintext => Ok(Security::Plaintext),
            (None, None, None) => Ok(Security::Loopback),
            (ca, certificate, key) => {
                let given = [("ca", ca), ("certificate", certificate), ("key", key)];
                let missing: Vec<&str> =
                    given.iter().filter(|(_, path)| path.is_none()).map(|(name, _)| *name).collect();
                let text = format!("tls: {} is not set, and the three go together", missing.join(" and "));
                Err(Fault::new(FaultCode::Missing, text))
            }
        }
    }
}

impl Security {
    /// Whether connections are encrypted and both sides known.
    pub fn is_tls(&self) -> bool {
        matches!(self, Security::Tls(_))
    }

    /// Refuses a listener that others could reach in plaintext.
    pub fn check_listener(&self, key: &str, address: SocketAddr) -> Result<(), Fault> {
        self.check(key, &address.to_string(), address.ip().is_loopback())
    }

    /// Refuses to call another host in plaintext. `address`: `host:port`; of names only `localhost` is loopback for
    /// sure.
    pub fn check_target(&self, key: &str, address: &str) -> Result<(), Fault> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let local =
            host.parse::<IpAddr>().map_or(host.eq_ignore_ascii_case("localhost"), |ip| ip.is_loopback());
        self.check(key, address, local)
    }

    fn check(&self, key: &str, address: &str, local: bool) -> Result<(), Fault> {
        if local || !matches!(self, Security::Loopback) {
            return Ok(());
        }
        let text = format!("{key} is {address}, which is not loopback, and TLS is off");
        Err(Fault::new(FaultCode::TlsRequired, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(security: &Security, address: &str, allowed: bool) {
        let found = security.check_target("balancer", address);
        assert_eq!(
            found.as_ref().map_err(|fault| fault.code).err(),
            (!allowed).then_some(FaultCode::TlsRequired)
        );
        if let Ok(address) = address.parse() {
            assert_eq!(security.check_listener("balancer", address).is_ok(), allowed, "{address}");
        }
    }

    #[test]
    fn plaintext_stays_on_loopback_unless_it_is_ordered() {
        let insecure = SecuritySettings { insecure_plaintext: true, ..SecuritySettings::default() };
        let insecure = insecure.resolve(None).expect("valid");
        for (address, local) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("localhost:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("10.0.0.1:1", false),
            ("localhost.example.com:1", false),
            ("balancer:1", false),
        ] {
            check(&Security::Loopback, address, local);
            check(&insecure, address, true);
        }
    }

    #[test]
    fn files_go_together_and_not_with_plaintext() {
        let refused = |settings: SecuritySettings| settings.resolve(None).map(drop).unwrap_err();
        let path = || Some(PathBuf::from("/nonexistent"));
        let some = SecuritySettings { ca: path(), ..SecuritySettings::default() };
        let fault = refused(some);
        assert_eq!(fault.code, FaultCode::Missing);
        assert!(fault.text.contains("certificate and key"), "{fault}");
        let all =
            SecuritySettings { ca: path(), certificate: path(), key: path(), insecure_plaintext: false };
        assert_eq!(refused(all.clone()).code, FaultCode::Unreadable);
        assert_eq!(
            refused(SecuritySettings { insecure_plaintext: true, ..all }).code,
            FaultCode::TlsRequired
        );
    }
}
