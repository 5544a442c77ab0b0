//! Verifiers that also read whom a certificate names. Chains, validity and signatures are rustls' own business.

use crate::certificate::CertificateFacts;
use crate::fault::{Fault, FaultCode};
use crate::identity::{PeerIdentity, PeerRole};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use std::sync::Arc;

/// Who a certificate names, if it is of `cluster`.
pub(crate) fn identify(der: &CertificateDer<'_>, cluster: &str) -> Result<PeerIdentity, Fault> {
    CertificateFacts::read(der)?.identity()?.expect_cluster(cluster)
}

/// Which roles a port is for; all of them where each call is authorised by itself.
pub(crate) type Admits = fn(PeerRole) -> bool;

/// A server's view of its clients: signed by the authority, of the cluster, of a role that the port is for.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    cluster: String,
    admits: Admits,
}

impl ClientVerifier {
    /// `optional`: clients without a certificate are let in, as [`crate::Principal::Anonymous`].
    pub(crate) fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        cluster: String,
        optional: bool,
        admits: Admits,
    ) -> Result<Self, Fault> {
        let builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
        let builder = if optional { builder.allow_unauthenticated() } else { builder };
        let chain = builder.build().map_err(|e| Fault::new(FaultCode::Invalid, e))?;
        Ok(Self { chain, cluster, admits })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let identity = identify(end_entity, &self.cluster).map_err(Fault::into_tls)?;
        if !(self.admits)(identity.role) {
            let fault = Fault::new(FaultCode::Forbidden, format!("{identity} has no business on this port"));
            return Err(fault.into_tls());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// A client's view of an agent: which node stands behind an address is not known, so any agent of the cluster will do.
#[derive(Debug)]
pub(crate) struct AgentVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    cluster: String,
}

impl AgentVerifier {
    pub(crate) fn new(roots: Arc<RootCertStore>, provider: Arc<CryptoProvider>, cluster: String) -> Self {
        Self { roots, provider, cluster }
    }
}

impl ServerCertVerifier for AgentVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        let identity = identify(end_entity, &self.cluster).map_err(Fault::into_tls)?;
        if identity.role != PeerRole::Agent {
            return Err(Fault::new(FaultCode::WrongName, format!("{identity} is no agent")).into_tls());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A process looks at its own certificate as others will: a certificate that nobody accepts is found before it is used.
/// It must do for a client or for a server; which of them a process needs shows when it is used.
pub(crate) fn check_own(
    chain: &[CertificateDer<'_>],
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    identity: &PeerIdentity,
    now: UnixTime,
) -> Result<(), Fault> {
    let (own, intermediates) = chain.split_first().ok_or_else(|| {
        Fault::new(FaultCode::Unreadable, "the certificate's file has no certificate in it")
    })?;
    let name = ServerName::try_from(identity.dns_name()).expect("an identity is a DNS name");
    let built = |e: rustls::server::VerifierBuilderError| Fault::new(FaultCode::Invalid, e);
    let server = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone());
    let server =
        server.build().map_err(built)?.verify_server_cert(own, intermediates, &name, &[], now).map(drop);
    let client = WebPkiClientVerifier::builder_with_provider(roots, provider).build().map_err(built)?;
    let client = client.verify_client_cert(own, intermediates, now).map(drop);
    server.or(client).map_err(|e| Fault::of_tls(&e))
}
