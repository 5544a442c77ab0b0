//! The authority: makes itself, and issues certificates.

use super::files::{CertificatesError, Pair, make_directory, read};
use evenkeel_transport::{CertificateFacts, PeerIdentity, PeerRole};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use sha2::{Digest as _, Sha256};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Clocks of a cluster differ by less: a new certificate is valid at once everywhere.
const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// An authority lasts ten years: longer than the small clusters it is for.
const AUTHORITY_DAYS: u32 = 3650;
const DAY: Duration = Duration::from_secs(86_400);

/// An authority in a directory: `ca.crt` and `ca.key`.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    cluster: String,
    not_after: i64,
}

/// A certificate to be made.
#[derive(Debug, Clone)]
pub struct Issue<'a> {
    /// What its owner is.
    pub role: PeerRole,
    /// The owner's name; empty for a balancer.
    pub name: &'a str,
    /// Further DNS names and addresses, for browsers and tools that verify what they dialled.
    pub also: &'a [String],
    /// Days until it ends.
    pub days: u32,
    /// Files that are there are replaced.
    pub force: bool,
}

impl Authority {
    /// Makes the authority of a cluster.
    pub fn init(directory: &Path, cluster: &str, force: bool) -> Result<Pair, CertificatesError> {
        PeerIdentity::balancer(cluster).map_err(|fault| CertificatesError::Name(fault.text))?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        // The name of the cluster is read from here when certificates are issued.
        let mut params =
            CertificateParams::new(vec![format!("{cluster}.{}", evenkeel_transport::identity::DOMAIN)])?;
        // Two authorities of one cluster have two names, so that who mixes them is told so.
        let digest = Sha256::digest(key.public_key_raw());
        let serial: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name = Default::default();
        params.distinguished_name.push(DnType::CommonName, format!("evenkeel {cluster} authority {serial}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, DAY * AUTHORITY_DAYS);
        let certificate = params.self_signed(&key)?;
        make_directory(directory)?;
        let pair = Pair::named(directory, "ca");
        pair.write(&certificate.pem(), &key.serialize_pem(), force)?;
        Ok(pair)
    }

    /// Reads the authority of a directory.
    pub fn open(directory: &Path) -> Result<Self, CertificatesError> {
        let none =
            |reason: String| CertificatesError::NoAuthority { directory: directory.to_owned(), reason };
        let Pair { certificate, key } = Pair::named(directory, "ca");
        let certificate = read(&certificate).map_err(|e| none(e.to_string()))?;
        let key = KeyPair::from_pem(&read(&key).map_err(|e| none(e.to_string()))?)?;
        let facts = facts(&certificate).map_err(none)?;
        let suffix = format!(".{}", evenkeel_transport::identity::DOMAIN);
        let cluster = facts.dns_names.iter().find_map(|name| name.strip_suffix(&suffix));
        let cluster = cluster.ok_or_else(|| none("ca.crt names no cluster".to_owned()))?.to_owned();
        Ok(Self { issuer: Issuer::from_ca_cert_pem(&certificate, key)?, cluster, not_after: facts.not_after })
    }

    /// The cluster that it is for.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Makes a certificate in the directory.
    pub fn issue(
        &self,
        directory: &Path,
        issue: &Issue<'_>,
    ) -> Result<(PeerIdentity, Pair), CertificatesError> {
        let identity = PeerIdentity::new(&self.cluster, issue.role, issue.name)
            .map_err(|fault| CertificatesError::Name(fault.text))?;
        let left = (self.not_after - unix_now()) / 86_400;
        if issue.days < 1 || i64::from(issue.days) > left {
            return Err(CertificatesError::Days { days: issue.days, max: left });
        }
        let names: Vec<String> =
            [identity.dns_name()].into_iter().chain(issue.also.iter().cloned()).collect();
        let named = |e: rcgen::Error| CertificatesError::Name(format!("{}: {e}", names.join(", ")));
        if issue.also.iter().any(|name| PeerIdentity::parse(name).is_some()) {
            return Err(CertificatesError::Name(
                "a certificate has one name that ends in .evenkeel".to_owned(),
            ));
        }
        let mut params = CertificateParams::new(names.clone()).map_err(named)?;
        params.distinguished_name = Default::default();
        params.distinguished_name.push(DnType::CommonName, identity.to_string());
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        // People and gateways are never servers.
        if matches!(issue.role, PeerRole::Agent | PeerRole::Balancer) {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        validity(&mut params, DAY * issue.days);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let pair = Pair::named(directory, &identity.to_string().replace('/', "-"));
        pair.write(&certificate.pem(), &key.serialize_pem(), issue.force)?;
        Ok((identity, pair))
    }
}

fn facts(pem: &str) -> Result<CertificateFacts, String> {
    let all = evenkeel_transport::credentials::facts(pem.as_bytes()).map_err(|fault| fault.text)?;
    all.into_iter().next().ok_or_else(|| "no certificate".to_owned())
}

fn unix_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).expect("seconds fit")
}

/// From now on, for this long.
fn validity(params: &mut CertificateParams, lasts: Duration) {
    let now = Duration::from_secs(unix_now().unsigned_abs());
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(CLOCK_SKEW);
    params.not_after = epoch + now + lasts;
}
