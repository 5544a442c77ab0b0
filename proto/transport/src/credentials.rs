//! The files of a process: its authority, its certificate and its key. They are read again while the process runs;
//! what cannot be used changes nothing.

use crate::certificate::CertificateFacts;
use crate::fault::{Fault, FaultCode};
use crate::identity::{PeerIdentity, PeerRole};
use crate::listen::Port;
use crate::verifier::{Admits, AgentVerifier, ClientVerifier, check_own};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// A file of certificates is a few kB; what is larger than this is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where the files of a process are, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities that are trusted: several while one takes the place of another.
    pub ca: PathBuf,
    /// The certificate of this process, then those between it and the authority, if any.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Whom a client expects on the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// A balancer of the cluster.
    Balancer,
    /// Any agent of the cluster.
    Agent,
}

/// What was read, as bytes, to see whether it has changed. Never shown: it holds the key.
#[derive(PartialEq, Eq)]
struct Contents {
    ca: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl TlsFiles {
    fn read(&self) -> Result<Contents, Fault> {
        Ok(Contents { ca: read(&self.ca)?, certificate: read(&self.certificate)?, key: read(&self.key)? })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    let failed = |reason: &dyn fmt::Display| {
        Fault::new(FaultCode::Unreadable, format!("{}: {reason}", path.display()))
    };
    let bytes = std::fs::metadata(path).map_err(|e| failed(&e))?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(failed(&format!("{bytes} bytes, at most {FILE_BYTES_MAX} are read")));
    }
    std::fs::read(path).map_err(|e| failed(&e))
}

/// Everything made from one reading of the files.
struct Loaded {
    identity: PeerIdentity,
    not_after: i64,
    servers: Vec<(Port, Arc<ServerConfig>)>,
    to_balancer: ClientConfig,
    to_agent: ClientConfig,
}

/// See the module. Shared by all connections of a process; those that are up stay up when the files change.
pub struct Credentials {
    files: TlsFiles,
    cluster: String,
    loaded: RwLock<Arc<Loaded>>,
    /// The last contents looked at, good or not: a broken file is spoken of once.
    seen: Mutex<Contents>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("files", &self.files).field("cluster", &self.cluster).finish()
    }
}

/// What a look at the files found.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// The files are as they were.
    Unchanged,
    /// New credentials are in use.
    Reloaded,
    /// The files have changed and cannot be used: the old credentials stay in use.
    Broken(Fault),
}

impl Credentials {
    /// Reads the files. `cluster`: the certificate must be of this one; `None` takes the certificate's.
    pub fn load(files: TlsFiles, cluster: Option<&str>) -> Result<Arc<Self>, Fault> {
        Self::load_at(files, cluster, UnixTime::now())
    }

    /// At a time: tests make certificates that have ended since.
    pub(crate) fn load_at(files: TlsFiles, cluster: Option<&str>, now: UnixTime) -> Result<Arc<Self>, Fault> {
        let contents = files.read()?;
        let loaded = Loaded::new(&files, &contents, cluster, now)?;
        let cluster = loaded.identity.cluster.clone();
        let loaded = RwLock::new(Arc::new(loaded));
        Ok(Arc::new(Self { files, cluster, loaded, seen: Mutex::new(contents) }))
    }

    /// Looks whether the files have changed, and uses them if they can be used. Blocks for the disk.
    pub fn look(&self) -> Look {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let contents = match self.files.read() {
            // Files that are being replaced may be away for a moment: that is not worth a word, the next look is near.
            Err(fault) => return Look::Broken(fault),
            Ok(contents) if contents == *seen => return Look::Unchanged,
            Ok(contents) => contents,
        };
        let loaded = Loaded::new(&self.files, &contents, Some(&self.cluster), UnixTime::now());
        let loaded = loaded.and_then(|loaded| loaded.expect_identity(&self.identity()));
        *seen = contents;
        match loaded {
            Ok(loaded) => {
                *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
                Look::Reloaded
            }
            Err(fault) => Look::Broken(fault),
        }
    }

    /// Whom the certificate in use names.
    pub fn identity(&self) -> PeerIdentity {
        self.loaded().identity.clone()
    }

    /// The cluster, which no reload changes.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// When the certificate in use ends, in seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.loaded().not_after
    }

    fn loaded(&self) -> Arc<Loaded> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For connections that are accepted now.
    pub(crate) fn server(&self, port: Port) -> Arc<ServerConfig> {
        let loaded = self.loaded();
        let (_, config) = loaded.servers.iter().find(|(p, _)| *p == port).expect("every port has its own");
        config.clone()
    }

    /// For a connection that is opened now, and the name that the other side must have.
    pub(crate) fn client(
        &self,
        server: Server,
        alpn: Option<&[u8]>,
    ) -> (Arc<ClientConfig>, ServerName<'static>) {
        let loaded = self.loaded();
        let (config, name) = match server {
            Server::Balancer => (&loaded.to_balancer, PeerIdentity::balancer(&self.cluster)),
            // Only sent where a name is verified; an agent is verified by its role.
            Server::Agent => (&loaded.to_agent, PeerIdentity::new(&self.cluster, PeerRole::Agent, "any")),
        };
        let name = name.expect("the cluster's name was checked").dns_name();
        let mut config = config.clone();
        config.alpn_protocols = alpn.map(<[u8]>::to_vec).into_iter().collect();
        (Arc::new(config), ServerName::try_from(name).expect("an identity is a DNS name"))
    }
}

impl Loaded {
    fn new(
        files: &TlsFiles,
        contents: &Contents,
        cluster: Option<&str>,
        now: UnixTime,
    ) -> Result<Self, Fault> {
        let at = |path: &Path, fault: Fault| Fault {
            text: format!("{}: {}", path.display(), fault.text),
            ..fault
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(roots(&contents.ca).map_err(|fault| at(&files.ca, fault))?);
        let chain = certificates(&contents.certificate).map_err(|fault| at(&files.certificate, fault))?;
        let facts = CertificateFacts::read(&chain[0]).map_err(|fault| at(&files.certificate, fault))?;
        let identity = facts.identity().map_err(|fault| at(&files.certificate, fault))?;
        let cluster = cluster.unwrap_or(&identity.cluster).to_owned();
        let identity = identity.expect_cluster(&cluster).map_err(|fault| at(&files.certificate, fault))?;
        check_own(&chain, roots.clone(), provider.clone(), &identity, now)
            .map_err(|fault| at(&files.certificate, fault))?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|e| at(&files.key, Fault::new(FaultCode::Unreadable, format!("no private key: {e}"))))?;
        let make = Make { provider, roots, cluster, chain, key };
        let servers = Port::ALL.into_iter().map(|port| Ok((port, Arc::new(make.server(port)?))));
        let servers = servers.collect::<Result<_, Fault>>().map_err(|fault| at(&files.key, fault))?;
        let (to_balancer, to_agent) = (make.to_balancer()?, make.to_agent()?);
        Ok(Self { identity, not_after: facts.not_after, servers, to_balancer, to_agent })
    }
}

impl Loaded {
    /// A process does not become another while it runs: what it told others under its name would be another's.
    fn expect_identity(self, expected: &PeerIdentity) -> Result<Self, Fault> {
        if self.identity == *expected {
            return Ok(self);
        }
        let text = format!("the new certificate is of {}, this process is {expected}", self.identity);
        Err(Fault::new(FaultCode::WrongName, text))
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|e| Fault::new(FaultCode::Unreadable, format!("not PEM: {e}")))?;
    if read.is_empty() {
        return Err(Fault::new(FaultCode::Unreadable, "no certificate in PEM is in it"));
    }
    Ok(read)
}

/// Facts of every certificate in a PEM file.
pub fn facts(pem: &[u8]) -> Result<Vec<CertificateFacts>, Fault> {
    certificates(pem)?.iter().map(CertificateFacts::read).collect()
}

fn roots(pem: &[u8]) -> Result<RootCertStore, Fault> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|e| Fault::new(FaultCode::Invalid, format!("no authority: {e}")))?;
    }
    Ok(roots)
}

/// What configurations are made of.
struct Make {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    cluster: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Make {
    fn server(&self, port: Port) -> Result<ServerConfig, Fault> {
        let admits: Admits = port.admits();
        let optional = port.certificate_is_optional();
        let (roots, provider) = (self.roots.clone(), self.provider.clone());
        let verifier = ClientVerifier::new(roots, provider, self.cluster.clone(), optional, admits)?;
        let builder = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| Fault::of_tls(&e))?
            .with_client_cert_verifier(Arc::new(verifier));
        let mut config = builder
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|e| Fault::of_tls(&e))?;
        config.alpn_protocols = vec![port.alpn().to_vec()];
        // A resumed session shows no certificate: one that has expired, or whose authority is gone, would go on.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    fn to_balancer(&self) -> Result<ClientConfig, Fault> {
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| Fault::of_tls(&e))?
            .with_root_certificates(self.roots.clone());
        self.finish(builder)
    }

    fn to_agent(&self) -> Result<ClientConfig, Fault> {
        let (roots, provider) = (self.roots.clone(), self.provider.clone());
        let verifier = AgentVerifier::new(roots, provider, self.cluster.clone());
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| Fault::of_tls(&e))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = self.finish(builder)?;
        config.enable_sni = false;
        Ok(config)
    }

    fn finish(
        &self,
        builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    ) -> Result<ClientConfig, Fault> {
        let mut config = builder
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|e| Fault::of_tls(&e))?;
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}
