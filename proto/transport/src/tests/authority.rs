//! An authority for tests. It issues whatever it is asked for, mistakes too.

use crate::credentials::{Credentials, TlsFiles};
use crate::fault::Fault;
use crate::security::Security;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose as Purpose, IsCa,
    KeyPair, date_time_ymd,
};
use rustls::pki_types::UnixTime;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What is issued.
pub(super) struct Wish<'a> {
    pub(super) names: &'a [&'a str],
    pub(super) purposes: &'a [Purpose],
    /// First and last year, of which the first days count.
    pub(super) years: (i32, i32),
}

impl Default for Wish<'_> {
    fn default() -> Self {
        Self { names: &[], purposes: &[Purpose::ClientAuth, Purpose::ServerAuth], years: (2020, 4000) }
    }
}

pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer =
            CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("ca.crt"), issuer.pem()).expect("written");
        Self { issuer, directory }
    }

    /// Writes certificate and key under the name of a file, over others of that name.
    pub(super) fn issue(&self, file: &str, wish: &Wish<'_>) -> TlsFiles {
        let names: Vec<String> = wish.names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.extended_key_usages = wish.purposes.to_vec();
        params.not_before = date_time_ymd(wish.years.0, 1, 1);
        params.not_after = date_time_ymd(wish.years.1, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let files = self.files(file);
        std::fs::write(&files.certificate, certificate.pem()).expect("written");
        std::fs::write(&files.key, key.serialize_pem()).expect("written");
        files
    }

    pub(super) fn files(&self, file: &str) -> TlsFiles {
        let at = |name: String| self.directory.path().join(name);
        TlsFiles { ca: self.ca(), certificate: at(format!("{file}.crt")), key: at(format!("{file}.key")) }
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// Credentials of one name.
    pub(super) fn security(&self, name: &str) -> Security {
        self.wished(&Wish { names: &[name], ..Wish::default() })
    }

    pub(super) fn wished(&self, wish: &Wish<'_>) -> Security {
        Security::Tls(self.load(wish, Self::long_ago(wish)).expect("credentials"))
    }

    /// A moment within the validity of what is wished.
    fn long_ago(wish: &Wish<'_>) -> UnixTime {
        let days = u64::try_from(wish.years.0 - 1970).expect("after 1970") * 366;
        UnixTime::since_unix_epoch(Duration::from_secs(days * 86_400))
    }

    pub(super) fn load(&self, wish: &Wish<'_>, now: UnixTime) -> Result<Arc<Credentials>, Fault> {
        let file = wish.names.first().copied().unwrap_or("nameless");
        Credentials::load_at(self.issue(file, wish), None, now)
    }
}
