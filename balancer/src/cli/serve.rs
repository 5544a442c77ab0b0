//! `evenkeel serve`.

use super::tls::TlsFlags;
use super::{Failure, runtime};
use crate::config::{self, Overrides};
use crate::serve::{Bound, serve};
use clap::Args;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

/// A flag wins over its EVENKEEL_* variable, the variable over the file, the file over the default.
#[derive(Args)]
pub(super) struct Serve {
    /// Configuration file (TOML) [default: /etc/evenkeel/balancer.toml if it exists]
    #[arg(long, env = "EVENKEEL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of the cluster; agents of another one are refused [default: evenkeel]
    #[arg(long, env = "EVENKEEL_CLUSTER")]
    cluster: Option<String>,
    /// Address for the agents' stream [default: 127.0.0.1:7400]
    #[arg(long, env = "EVENKEEL_AGENTS_LISTEN", value_name = "ADDRESS")]
    agents_listen: Option<SocketAddr>,
    /// Address for admin and routing gRPC [default: 127.0.0.1:7401]
    #[arg(long, env = "EVENKEEL_ADMIN_LISTEN", value_name = "ADDRESS")]
    admin_listen: Option<SocketAddr>,
    /// Address for metrics and the page [default: 127.0.0.1:7402]
    #[arg(long, env = "EVENKEEL_METRICS_LISTEN", value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
    /// Directory of the store [default: /var/lib/evenkeel]
    #[arg(long, env = "EVENKEEL_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Name of this balancer, unique among those that share the store [default: the host's]
    #[arg(long, env = "EVENKEEL_BALANCER_NAME", value_name = "NAME")]
    balancer_name: Option<String>,
    /// Address at which agents and other balancers reach this one [default: that of --agents-listen]
    #[arg(long, env = "EVENKEEL_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,
    #[command(flatten)]
    tls: TlsFlags,
    /// Write the addresses really bound to this file (JSON) once every port answers
    #[arg(long, value_name = "FILE")]
    ports_file: Option<PathBuf>,
    /// Log filter, such as info or evenkeel=debug
    #[arg(long, env = "EVENKEEL_LOG", default_value = "info")]
    log: String,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), Failure> {
        let filter = tracing_subscriber::EnvFilter::try_new(&self.log)
            .map_err(|e| Failure::new("config_malformed", format!("--log {:?}: {e}", self.log)))?;
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(terminal);
        log.with_writer(std::io::stderr).init();
        let overrides = Overrides {
            cluster: self.cluster,
            agents_listen: self.agents_listen,
            admin_listen: self.admin_listen,
            metrics_listen: self.metrics_listen,
            state_dir: self.state_dir,
            balancer_name: self.balancer_name,
            advertise: self.advertise,
            security: self.tls.settings(),
        };
        let config =
            config::load(self.config.as_deref(), overrides).map_err(|e| Failure::new(e.code(), &e))?;
        let ports_file = self.ports_file;
        let ready = move |bound: &Bound| {
            tracing::info!(agents = %bound.agents, admin = %bound.admin, metrics = %bound.metrics, "serving");
            if let Some(path) = ports_file
                && let Err(error) = write_whole(&path, bound)
            {
                tracing::error!(path = %path.display(), %error, "ports file not written");
            }
        };
        runtime().block_on(async {
            let mut term = signal(SignalKind::terminate()).expect("signals can be listened to");
            let stop = async move {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = tokio::signal::ctrl_c() => {}
                }
            };
            serve(config, ready, stop).await.map_err(|e| Failure::new(e.code(), &e))
        })
    }
}

/// A reader sees the whole file or none of it.
fn write_whole(path: &Path, bound: &Bound) -> std::io::Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, serde_json::to_vec(bound)?)?;
    std::fs::rename(partial, path)
}
