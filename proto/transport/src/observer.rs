//! What the transport tells the process that uses it, which counts it in its own metrics.

/// Told of what happens on connections. All codes and ports are literals of this crate: bounded sets of labels.
pub trait Observer: Send + Sync + 'static {
    /// A connection or a call was refused for who its other side is, or failed to show who it is.
    fn auth_failure(&self, code: &'static str);
    /// A connection was refused for a bound, or could not be accepted.
    fn connection_refused(&self, port: &'static str, code: &'static str);
    /// The certificate in use ends at this time, in seconds since 1970.
    fn certificate_expiry(&self, unix_seconds: i64);
    /// The files of the certificate have changed: `reloaded`, or `broken` and the old ones stay in use.
    fn certificate_reload(&self, outcome: &'static str);
}

/// Tells nobody: for commands and tests.
#[derive(Debug, Clone, Copy)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn auth_failure(&self, _: &'static str) {}
    fn connection_refused(&self, _: &'static str, _: &'static str) {}
    fn certificate_expiry(&self, _: i64) {}
    fn certificate_reload(&self, _: &'static str) {}
}
