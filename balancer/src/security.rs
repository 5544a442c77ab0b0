//! How the balancer's ports are secured: certificates from the configuration, bounds per port, counts in its metrics.

use crate::config::Config;
use crate::metrics as m;
use evenkeel_transport::{Fault, FaultCode, Limits, Observer, Port, Security};
use std::sync::Arc;

/// Operators, gateways and dashboards of a large cluster, with room for those that come back before they have gone.
const ADMIN_CONNECTIONS_MAX: usize = 1024;
/// A few scrapers, probes and browsers.
const METRICS_CONNECTIONS_MAX: usize = 256;

/// Reads the certificates, and refuses listeners that others could reach in plaintext.
pub fn open(config: &Config) -> Result<Security, Fault> {
    let security = config.security().resolve(Some(&config.cluster))?;
    for (key, address) in [
        ("agents_listen", config.agents_listen),
        ("admin_listen", config.admin_listen),
        ("metrics_listen", config.metrics_listen),
    ] {
        security.check_listener(key, address)?;
    }
    if let Security::Tls(credentials) = &security {
        let (found, needed) = (credentials.identity(), evenkeel_transport::PeerRole::Balancer);
        if found.role != needed {
            let text = format!("tls.certificate is of {found}, and agents accept a balancer only");
            return Err(Fault::new(FaultCode::WrongName, text));
        }
    }
    Ok(security)
}

/// Counts what the transport tells, and says what is in use.
pub fn observe(security: &Security) -> Arc<dyn Observer> {
    let insecure = matches!(security, Security::Plaintext);
    if insecure {
        tracing::warn!("insecure_plaintext: whoever reaches these ports may read and change everything");
    }
    metrics::gauge!(m::INSECURE_PLAINTEXT).set(f64::from(u8::from(insecure)));
    Arc::new(Counted)
}

/// Bounds of a port.
pub fn limits(port: Port, config: &Config) -> Limits {
    // An agent whose connection broke may be back before that is noticed.
    let agents = config.control.agents_max as usize;
    Limits::new(match port {
        Port::Agents => agents + agents / 4 + 64,
        Port::Admin => ADMIN_CONNECTIONS_MAX,
        Port::Metrics | Port::Transfer | Port::Engine => METRICS_CONNECTIONS_MAX,
    })
}

struct Counted;

impl Observer for Counted {
    fn auth_failure(&self, code: &'static str) {
        metrics::counter!(m::AUTH_FAILURES, "code" => code).increment(1);
    }

    fn connection_refused(&self, port: &'static str, code: &'static str) {
        metrics::counter!(m::CONNECTIONS_REFUSED, "port" => port, "code" => code).increment(1);
    }

    fn certificate_expiry(&self, unix_seconds: i64) {
        metrics::gauge!(m::CERTIFICATE_EXPIRY).set(unix_seconds as f64);
    }

    fn certificate_reload(&self, outcome: &'static str) {
        metrics::counter!(m::CERTIFICATE_RELOADS, "outcome" => outcome).increment(1);
    }
}
