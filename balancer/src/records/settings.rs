//! Which store is used and where it is: a section of the configuration, and the one way from it to a [`Store`].

use super::embedded::EmbeddedStore;
use super::etcd::{EtcdStore, Reach};
use super::metered::Metered;
use super::{Store, StoreError};
use http::Uri;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Members of the largest sensible etcd, and as many that replace them.
const ENDPOINTS_MAX: usize = 14;
/// A prefix has room for a few names.
const PREFIX_LENGTH_MAX: usize = 256;
/// Certificates, keys and passwords are a few kB.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Accepted timeouts, in milliseconds: below, one slow write of a disk is taken for an outage; above, a leader's lease has
/// ended before a call has.
const TIMEOUT_MS: std::ops::RangeInclusive<u64> = 100..=60_000;

/// The kinds of stores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// A file in `state_dir`, for one balancer.
    #[default]
    Embedded,
    /// An etcd that several balancers share.
    Etcd,
}

/// The section `store` of the configuration. All but `kind` concerns etcd alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSettings {
    /// Which store.
    pub kind: StoreKind,
    /// Members of etcd: `https://host:port`, or `http://host:port` on loopback.
    pub endpoints: Vec<String>,
    /// What all keys begin with; empty: `/evenkeel/<cluster>/`.
    pub prefix: String,
    /// How long a call may take, in milliseconds: 100 to 60000. Must be well below the leader's lease.
    pub timeout_ms: u64,
    /// Certificates of the authorities that may have signed the members' (PEM).
    pub ca: PathBuf,
    /// The certificate to show (PEM); empty: none.
    pub certificate: PathBuf,
    /// Its private key (PEM); empty: none.
    pub key: PathBuf,
    /// The user of etcd; empty: none.
    pub user: String,
    /// The file with the user's password, on its first line.
    pub password_file: PathBuf,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            kind: StoreKind::Embedded,
            endpoints: Vec::new(),
            prefix: String::new(),
            timeout_ms: 2000,
            ca: PathBuf::new(),
            certificate: PathBuf::new(),
            key: PathBuf::new(),
            user: String::new(),
            password_file: PathBuf::new(),
        }
    }
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("store.{key} is {value}: {accepted}")]
pub struct SettingError {
    /// The key within the section.
    pub key: &'static str,
    /// Its value, quoted if it is text.
    pub value: String,
    /// What is accepted, or what to do.
    pub accepted: String,
}

impl SettingError {
    fn new(key: &'static str, value: impl std::fmt::Debug, accepted: impl Into<String>) -> Self {
        Self { key, value: format!("{value:?}"), accepted: accepted.into() }
    }

    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        "store_setting_invalid"
    }
}

/// Why there is no store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// A setting cannot be used.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The file cannot.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OpenError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            OpenError::Setting(error) => error.code(),
            OpenError::Store(error) => error.code(),
        }
    }
}

/// Opens the embedded store, or prepares to reach etcd, which may be away: calls tell. `insecure_plaintext`: etcd may be
/// asked without TLS beyond loopback. Blocks for the disk; must be called within a tokio runtime.
pub fn open(
    settings: &StoreSettings,
    state_dir: &Path,
    cluster: &str,
    insecure_plaintext: bool,
) -> Result<Arc<dyn Store>, OpenError> {
    Ok(match settings.kind {
        StoreKind::Embedded => Arc::new(Metered(EmbeddedStore::open(state_dir)?)),
        StoreKind::Etcd => Arc::new(Metered(EtcdStore::new(settings.reach(cluster, insecure_plaintext)?))),
    })
}

impl StoreSettings {
    /// Whether everything that is set can be used, as far as that can be seen without a look at any file.
    pub fn validate(&self, insecure_plaintext: bool) -> Result<(), SettingError> {
        if self.kind == StoreKind::Embedded {
            return Ok(());
        }
        self.endpoints(insecure_plaintext)?;
        if !TIMEOUT_MS.contains(&self.timeout_ms) {
            let accepted = format!("must be {} to {}", TIMEOUT_MS.start(), TIMEOUT_MS.end());
            return Err(SettingError::new("timeout_ms", self.timeout_ms, accepted));
        }
        let plain = self.prefix.bytes().all(|b| b.is_ascii_graphic());
        let whole = self.prefix.is_empty() || (self.prefix.starts_with('/') && self.prefix.ends_with('/'));
        if !plain || !whole || self.prefix.len() > PREFIX_LENGTH_MAX {
            let accepted = format!(
                "must begin and end with '/', without spaces, at most {PREFIX_LENGTH_MAX} characters; or empty"
            );
            return Err(SettingError::new("prefix", &self.prefix, accepted));
        }
        if self.certificate.as_os_str().is_empty() != self.key.as_os_str().is_empty() {
            return Err(SettingError::new("key", &self.key, "set both certificate and key, or neither"));
        }
        if self.user.is_empty() != self.password_file.as_os_str().is_empty() {
            return Err(SettingError::new("user", &self.user, "set both user and password_file, or neither"));
        }
        Ok(())
    }

    fn reach(&self, cluster: &str, insecure_plaintext: bool) -> Result<Reach, SettingError> {
        self.validate(insecure_plaintext)?;
        let (endpoints, tls) = self.endpoints(insecure_plaintext)?;
        let prefix =
            if self.prefix.is_empty() { format!("/evenkeel/{cluster}/") } else { self.prefix.clone() };
        Ok(Reach {
            endpoints,
            tls: if tls { Some(self.tls()?) } else { None },
            shows_certificate: !self.certificate.as_os_str().is_empty(),
            user: self.user()?,
            prefix,
            deadline: Duration::from_millis(self.timeout_ms),
        })
    }

    /// The members, and whether they are reached by TLS.
    fn endpoints(&self, insecure_plaintext: bool) -> Result<(Vec<Uri>, bool), SettingError> {
        if !(1..=ENDPOINTS_MAX).contains(&self.endpoints.len()) {
            let accepted = format!("name 1 to {ENDPOINTS_MAX} members of etcd, each https://HOST:PORT");
            return Err(SettingError::new("endpoints", &self.endpoints, accepted));
        }
        let parsed = self.endpoints.iter().map(|endpoint| parse(endpoint, insecure_plaintext));
        let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
        let tls = parsed[0].1;
        if parsed.iter().any(|(_, other)| *other != tls) {
            let accepted = "all must begin with https://, or all with http://";
            return Err(SettingError::new("endpoints", &self.endpoints, accepted));
        }
        Ok((parsed.into_iter().map(|(endpoint, _)| endpoint).collect(), tls))
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, SettingError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("ca", &self.ca)? {
            roots.add(certificate).map_err(|e| SettingError::new("ca", &self.ca, e.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider knows TLS 1.3")
            .with_root_certificates(roots);
        let mut config = if self.certificate.as_os_str().is_empty() {
            builder.with_no_client_auth()
        } else {
            let chain = certificates("certificate", &self.certificate)?;
            let key = PrivateKeyDer::from_pem_slice(&read("key", &self.key)?);
            let key = key.map_err(|e| SettingError::new("key", &self.key, format!("no private key: {e}")))?;
            let built = builder.with_client_auth_cert(chain, key);
            built.map_err(|e| SettingError::new("key", &self.key, e.to_string()))?
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    fn user(&self) -> Result<Option<(String, String)>, SettingError> {
        if self.user.is_empty() {
            return Ok(None);
        }
        let read = read("password_file", &self.password_file)?;
        let text = std::str::from_utf8(&read);
        let password = text.ok().and_then(|text| text.lines().next()).filter(|line| !line.is_empty());
        let accepted = "must hold the password as text on its first line";
        let password =
            password.ok_or_else(|| SettingError::new("password_file", &self.password_file, accepted))?;
        Ok(Some((self.user.clone(), password.to_owned())))
    }
}

fn parse(endpoint: &str, insecure_plaintext: bool) -> Result<(Uri, bool), SettingError> {
    let refused = |accepted: &str| SettingError::new("endpoints", endpoint, accepted);
    let (tls, authority) = match endpoint.split_once("://") {
        Some(("https", authority)) => (true, authority),
        Some(("http", authority)) => (false, authority),
        _ => return Err(refused("must be https://HOST:PORT, or http://HOST:PORT on loopback")),
    };
    // Whether there is TLS is the connector's business; what stands behind host and port is not used.
    let uri: Uri = format!("http://{}", authority.trim_end_matches('/'))
        .parse()
        .map_err(|_| refused("must be https://HOST:PORT"))?;
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| refused("names no host"))?;
    if uri.port_u16().is_none() || !matches!(uri.path(), "" | "/") || authority.contains('@') {
        return Err(refused("must be https://HOST:PORT, and nothing more"));
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let loopback =
        host.parse::<IpAddr>().map_or(host.eq_ignore_ascii_case("localhost"), |ip| ip.is_loopback());
    if !tls && !loopback && !insecure_plaintext {
        return Err(refused("would be asked in plaintext: use https://, or set insecure_plaintext"));
    }
    Ok((uri, tls))
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, SettingError> {
    if path.as_os_str().is_empty() {
        return Err(SettingError::new(key, path, "name a file"));
    }
    let failed = |e: std::io::Error| SettingError::new(key, path, format!("cannot be read: {e}"));
    let bytes = std::fs::metadata(path).map_err(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        let accepted = format!("has {bytes} bytes, at most {FILE_BYTES_MAX} are read");
        return Err(SettingError::new(key, path, accepted));
    }
    std::fs::read(path).map_err(failed)
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, SettingError> {
    let pem = read(key, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|e| SettingError::new(key, path, format!("is not PEM: {e}")))?;
    if found.is_empty() {
        return Err(SettingError::new(key, path, "holds no certificate in PEM"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etcd(endpoints: &[&str]) -> StoreSettings {
        let endpoints = endpoints.iter().map(ToString::to_string).collect();
        StoreSettings { kind: StoreKind::Etcd, endpoints, ..StoreSettings::default() }
    }

    #[track_caller]
    fn check(settings: &StoreSettings, refused: Option<&str>) {
        let found = settings.validate(false).err().map(|e| (e.key, e.to_string()));
        assert_eq!(found.as_ref().map(|(key, _)| *key), refused, "{found:?}");
    }

    #[test]
    fn endpoints_are_checked() {
        check(&etcd(&["https://a:2379", "https://[::1]:2379/"]), None);
        check(&etcd(&["http://127.0.0.1:2379", "http://localhost:1", "http://[::1]:2"]), None);
        for bad in [
            &["http://10.0.0.1:2379"][..],
            &["a:2379"],
            &["https://a"],
            &["https://a:99999"],
            &["https://a:1/path"],
            &["https://user@a:1"],
            &["https://:1"],
            &["https://a:1", "http://127.0.0.1:1"],
            &["ftp://a:1"],
            &[],
            &["https://a:1"; ENDPOINTS_MAX + 1],
        ] {
            check(&etcd(bad), Some("endpoints"));
        }
        assert_eq!(etcd(&["http://10.0.0.1:2379"]).validate(true), Ok(()));
    }

    #[test]
    fn other_settings_are_checked() {
        let base = || etcd(&["https://a:2379"]);
        check(&StoreSettings { timeout_ms: 99, ..base() }, Some("timeout_ms"));
        check(&StoreSettings { timeout_ms: 60_001, ..base() }, Some("timeout_ms"));
        check(&StoreSettings { prefix: "/a/b/".into(), ..base() }, None);
        check(&StoreSettings { prefix: "a/".into(), ..base() }, Some("prefix"));
        check(&StoreSettings { prefix: "/a".into(), ..base() }, Some("prefix"));
        check(&StoreSettings { prefix: "/a b/".into(), ..base() }, Some("prefix"));
        check(&StoreSettings { certificate: "c".into(), ..base() }, Some("key"));
        check(&StoreSettings { user: "u".into(), ..base() }, Some("user"));
        // What is not used is not looked at.
        check(&StoreSettings { kind: StoreKind::Embedded, timeout_ms: 1, ..base() }, None);
    }

    #[track_caller]
    fn check_open(settings: &StoreSettings, key: &str) {
        let error = open(settings, Path::new("/nowhere"), "c", false).err().expect("refused");
        assert_eq!(error.code(), "store_setting_invalid");
        assert!(error.to_string().starts_with(&format!("store.{key} is ")), "{error}");
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str, content: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).expect("written");
            path
        };
        let base = || etcd(&["https://a:2379"]);
        check_open(&base(), "ca");
        check_open(&StoreSettings { ca: "/nowhere/ca".into(), ..base() }, "ca");
        check_open(&StoreSettings { ca: file("empty", ""), ..base() }, "ca");
        let local = || StoreSettings { user: "u".into(), ..etcd(&["http://127.0.0.1:1"]) };
        check_open(&StoreSettings { password_file: "/nowhere/p".into(), ..local() }, "password_file");
        check_open(&StoreSettings { password_file: file("blank", "\n"), ..local() }, "password_file");
    }

    #[test]
    fn a_section_is_read_from_toml() {
        let text = r#"
            kind = "etcd"
            endpoints = ["https://etcd-0:2379"]
            timeout_ms = 1500
        "#;
        let settings: StoreSettings = toml::from_str(text).expect("a section");
        assert_eq!(settings, StoreSettings { timeout_ms: 1500, ..etcd(&["https://etcd-0:2379"]) });
        assert_eq!(toml::from_str::<StoreSettings>("").expect("all defaults"), StoreSettings::default());
        assert!(toml::from_str::<StoreSettings>("endpoint = 1").is_err());
    }
}
