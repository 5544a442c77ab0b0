//! How the agent's connections are secured: certificates from the configuration, and the rule where plaintext may be.

use crate::config::Config;
use crate::failure::Failure;
use crate::metrics::AgentMetrics;
use crate::transfer::server::CONNECTIONS_MAX;
use evenkeel_transport::{Fault, FaultCode, Limits, Port, Security};

/// A few scrapers and probes.
const METRICS_CONNECTIONS_MAX: usize = 64;
/// The engine of this node.
const ENGINE_CONNECTIONS_MAX: usize = 64;
/// Connections beyond those that are served, to be told that it is busy.
const TRANSFER_SPARE: usize = 64;

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure::usage(fault.code.as_str(), fault.message())
    }
}

/// Reads the certificates, refuses addresses that plaintext must not be on, and says what is in use.
pub fn open(config: &Config, metrics: &AgentMetrics) -> Result<Security, Failure> {
    let security = config.security.clone().resolve(Some(&config.cluster))?;
    for (key, address) in
        [("--metrics", config.metrics), ("--transfer", config.transfer), ("--engine", config.engine)]
    {
        security.check_listener(key, address)?;
    }
    for balancer in &config.balancers {
        security.check_target("--balancer", balancer)?;
    }
    match &security {
        Security::Tls(credentials) => {
            let found = credentials.identity();
            if found.node().as_ref() != Some(&config.node) {
                let text =
                    format!("the certificate is of {found}, this is the agent of node {}", config.node);
                return Err(Fault::new(FaultCode::NodeMismatch, text).into());
            }
        }
        Security::Plaintext => {
            tracing::warn!("insecure_plaintext: whoever reaches these ports may read and change everything");
            metrics.insecure_plaintext.set(1.0);
        }
        Security::Loopback => {}
    }
    Ok(security)
}

/// Bounds of a port.
pub fn limits(port: Port) -> Limits {
    Limits::new(match port {
        Port::Transfer => CONNECTIONS_MAX + TRANSFER_SPARE,
        Port::Engine => ENGINE_CONNECTIONS_MAX,
        Port::Metrics | Port::Agents | Port::Admin => METRICS_CONNECTIONS_MAX,
    })
}
