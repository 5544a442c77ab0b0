//! The balancer's configuration: one structure, one way in. Precedence: flag, then EVENKEEL_* variable, then
//! file, then default. Flags and variables arrive together from the command line as [`Overrides`].

use crate::election::ElectionSettings;
use crate::records::StoreSettings;
use crate::records::settings::{SettingError, StoreKind};
use evenkeel_core::policy::{ExpertPolicy, HistoryPolicy, RoutingPolicy, SplitFor};
use evenkeel_core::prefix::PrefixPolicy;
use evenkeel_core::routing::{Router, TenantId};
use evenkeel_core::topology::Role;
use evenkeel_transport::security::SecuritySettings;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where the file is looked for when none is named. It may be missing there.
pub const DEFAULT_PATH: &str = "/etc/evenkeel/balancer.toml";

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name of the cluster; agents of another one are refused.
    pub cluster: String,
    /// Where agents connect.
    pub agents_listen: SocketAddr,
    /// Admin and routing gRPC.
    pub admin_listen: SocketAddr,
    /// Prometheus metrics and the page.
    pub metrics_listen: SocketAddr,
    /// Directory of the embedded store.
    pub state_dir: PathBuf,
    /// Which store.
    pub store: StoreSettings,
    /// Name of this balancer, unique among those that share the store; empty: the host's.
    pub balancer_name: String,
    /// host:port at which agents and other balancers reach this one; empty: `agents_listen`.
    pub advertise: String,
    /// host:port at which operators reach this one, named by the others; empty: the host of `advertise` with the port of
    /// `admin_listen`.
    pub advertise_admin: String,
    /// Who leads.
    pub election: Election,
    /// Plaintext is allowed on addresses that are not loopback: for closed networks.
    pub insecure_plaintext: bool,
    /// Certificates. With them TLS is on for every port; without them every port must be on loopback.
    pub tls: Tls,
    /// The control loop.
    pub control: Control,
    /// How eagerly experts are placed anew.
    pub experts: Experts,
    /// How requests are held and batched.
    pub routing: Routing,
}

/// See [`TlsFiles`](evenkeel_transport::TlsFiles). All three are set, or none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Certificates of the authorities that are trusted (PEM); empty: not set.
    pub ca: PathBuf,
    /// The balancer's certificate (PEM); empty: not set.
    pub certificate: PathBuf,
    /// Its private key (PEM); empty: not set.
    pub key: PathBuf,
}

/// Who leads, when several balancers share a store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Election {
    /// Time of the leader's lease, in milliseconds: how long a leader that is cut off is waited for.
    pub ttl_ms: u64,
}

impl Default for Election {
    fn default() -> Self {
        Self { ttl_ms: evenkeel_core::protocol::election::Settings::TTL_MS }
    }
}

/// The control loop's pace and limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// Engine steps per load window.
    pub window_steps: u32,
    /// How often an agent reports, in milliseconds.
    pub report_interval_ms: u32,
    /// How often either side pings, in milliseconds.
    pub ping_interval_ms: u32,
    /// Silence after which a stream is closed, in milliseconds.
    pub silence_limit_ms: u32,
    /// From PREPARE to the last agent's answer, in milliseconds.
    pub prepare_timeout_ms: u64,
    /// From COMMIT to an agent's answer, in milliseconds.
    pub commit_timeout_ms: u64,
    /// Pause after an aborted plan before the next is tried, in milliseconds.
    pub abort_pause_ms: u64,
    /// Streams of agents accepted at once.
    pub agents_max: u32,
}

/// See [`ExpertPolicy`] and [`HistoryPolicy`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Experts {
    /// See [`ExpertPolicy::split_tolerance`].
    pub split_tolerance: f64,
    /// See [`ExpertPolicy::split_for`].
    pub split_for: SplitLoads,
    /// See [`ExpertPolicy::weights_gain_min`].
    pub weights_gain_min: f64,
    /// See [`ExpertPolicy::moves_gain_min`].
    pub moves_gain_min: f64,
    /// See [`ExpertPolicy::moves_gain_at_once`].
    pub moves_gain_at_once: f64,
    /// See [`ExpertPolicy::imbalance_target`].
    pub imbalance_target: f64,
    /// See [`ExpertPolicy::placement_life_ms`].
    pub placement_life_ms: u64,
    /// See [`ExpertPolicy::transfer_bytes_per_ms`].
    pub transfer_bytes_per_ms: u64,
    /// See [`ExpertPolicy::transfer_slowdown`].
    pub transfer_slowdown: f64,
    /// See [`HistoryPolicy::half_life_ms`].
    pub history_half_life_ms: u64,
    /// See [`HistoryPolicy::season_ms`].
    pub history_season_ms: u64,
    /// See [`HistoryPolicy::season_buckets`].
    pub history_season_buckets: u16,
}

/// See [`SplitFor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitLoads {
    /// See [`SplitFor::Window`].
    Window,
    /// See [`SplitFor::Forecast`].
    Forecast,
}

/// See [`RoutingPolicy`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Routing {
    /// See [`RoutingPolicy::cohort_wait_max_ms`].
    pub cohort_wait_max_ms: u64,
    /// See [`RoutingPolicy::round_tokens`]; 0 dispatches whole prompts.
    pub prefill_round_tokens: u64,
    /// See [`RoutingPolicy::cohort_tokens`]; 0 sends all held prompts out.
    pub prefill_cohort_tokens: u64,
    /// See [`RoutingPolicy::kv_capacity_tokens`]; 0 leaves it to the engine.
    pub kv_capacity_tokens: u64,
    /// See [`RoutingPolicy::migrations_per_step`].
    pub migrations_per_step: u32,
    /// See [`RoutingPolicy::block_tokens`].
    pub block_tokens: u64,
    /// See [`PrefixPolicy::blocks_max`].
    pub prefix_blocks_max: u32,
    /// See [`RoutingPolicy::held_max`].
    pub held_max: u32,
    /// See [`RoutingPolicy::tenant_held_max`].
    pub tenant_held_max: u32,
    /// See [`RoutingPolicy::batch_share`].
    pub batch_share: f64,
    /// Weights of tenants by their number; see [`RoutingPolicy::tenant_weights`].
    pub tenants: BTreeMap<String, u32>,
    /// Directory to which events and decisions are recorded; empty: they are not.
    pub record: PathBuf,
    /// Megabytes that the recording of one unit may take; the oldest files go.
    pub record_max_mb: u32,
}

impl Default for Config {
    fn default() -> Self {
        let any = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            cluster: "evenkeel".to_owned(),
            agents_listen: any(7400),
            admin_listen: any(7401),
            metrics_listen: any(7402),
            state_dir: PathBuf::from("/var/lib/evenkeel"),
            store: StoreSettings::default(),
            balancer_name: String::new(),
            advertise: String::new(),
            advertise_admin: String::new(),
            election: Election::default(),
            insecure_plaintext: false,
            tls: Tls::default(),
            control: Control::default(),
            experts: Experts::default(),
            routing: Routing::default(),
        }
    }
}

impl Default for Control {
    fn default() -> Self {
        Self {
            window_steps: 256,
            report_interval_ms: 1_000,
            ping_interval_ms: 2_000,
            silence_limit_ms: 15_000,
            prepare_timeout_ms: 60_000,
            commit_timeout_ms: 10_000,
            abort_pause_ms: 5_000,
            agents_max: 16_384,
        }
    }
}

impl Default for Experts {
    fn default() -> Self {
        let (policy, history) = (ExpertPolicy::default(), HistoryPolicy::default());
        Self {
            split_tolerance: policy.split_tolerance,
            split_for: match policy.split_for {
                SplitFor::Window => SplitLoads::Window,
                SplitFor::Forecast => SplitLoads::Forecast,
            },
            weights_gain_min: policy.weights_gain_min,
            moves_gain_min: policy.moves_gain_min,
            moves_gain_at_once: policy.moves_gain_at_once,
            imbalance_target: policy.imbalance_target,
            placement_life_ms: policy.placement_life_ms,
            transfer_bytes_per_ms: policy.transfer_bytes_per_ms,
            transfer_slowdown: policy.transfer_slowdown,
            history_half_life_ms: history.half_life_ms,
            history_season_ms: history.season_ms,
            history_season_buckets: history.season_buckets,
        }
    }
}

impl Default for Routing {
    fn default() -> Self {
        let policy = RoutingPolicy::default();
        let narrow = |count: usize| u32::try_from(count).expect("defaults fit 32 bits");
        Self {
            cohort_wait_max_ms: policy.cohort_wait_max_ms,
            prefill_round_tokens: policy.round_tokens.unwrap_or(0),
            prefill_cohort_tokens: policy.cohort_tokens.unwrap_or(0),
            kv_capacity_tokens: policy.kv_capacity_tokens.unwrap_or(0),
            migrations_per_step: policy.migrations_per_step,
            block_tokens: policy.block_tokens,
            prefix_blocks_max: narrow(policy.prefix.blocks_max),
            held_max: narrow(policy.held_max),
            tenant_held_max: narrow(policy.tenant_held_max),
            batch_share: policy.batch_share,
            tenants: policy
                .tenant_weights
                .iter()
                .map(|(tenant, &weight)| (tenant.0.to_string(), weight))
                .collect(),
            record: PathBuf::new(),
            // Hours of a unit of 144 ranks at 300 requests a second.
            record_max_mb: 1024,
        }
    }
}

impl Config {
    /// How the balancer's ports are secured.
    pub fn security(&self) -> SecuritySettings {
        let set = |path: &PathBuf| (!path.as_os_str().is_empty()).then(|| path.clone());
        SecuritySettings {
            ca: set(&self.tls.ca),
            certificate: set(&self.tls.certificate),
            key: set(&self.tls.key),
            insecure_plaintext: self.insecure_plaintext,
        }
    }
}

impl Config {
    /// What this balancer is called and where it is reached, once its ports are bound.
    pub fn identity(&self, agents: SocketAddr, admin: SocketAddr) -> ElectionSettings {
        let or = |value: &str, default: String| if value.is_empty() { default } else { value.to_owned() };
        let address = or(&self.advertise, agents.to_string());
        let host = address.rsplit_once(':').map_or("", |(host, _)| host);
        let admin_address = or(&self.advertise_admin, format!("{host}:{}", admin.port()));
        let name = or(&self.balancer_name, host_name());
        ElectionSettings { name, address, admin_address, ttl_ms: self.election.ttl_ms }
    }
}

/// The host's name in the form of a name of ours.
fn host_name() -> String {
    let found = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = found.trim().chars().map(plain).take(evenkeel_core::ids::NAME_LENGTH_MAX).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "balancer".to_owned() } else { name.to_owned() }
}

impl Routing {
    /// The policy for the routers.
    pub fn policy(&self) -> RoutingPolicy {
        RoutingPolicy {
            cohort_wait_max_ms: self.cohort_wait_max_ms,
            round_tokens: (self.prefill_round_tokens > 0).then_some(self.prefill_round_tokens),
            cohort_tokens: (self.prefill_cohort_tokens > 0).then_some(self.prefill_cohort_tokens),
            kv_capacity_tokens: (self.kv_capacity_tokens > 0).then_some(self.kv_capacity_tokens),
            migrations_per_step: self.migrations_per_step,
            block_tokens: self.block_tokens,
            prefix: PrefixPolicy { blocks_max: self.prefix_blocks_max as usize, ..PrefixPolicy::default() },
            held_max: self.held_max as usize,
            tenant_held_max: self.tenant_held_max as usize,
            batch_share: self.batch_share,
            tenant_weights: self.tenants.iter().filter_map(tenant_weight).collect(),
            ..RoutingPolicy::default()
        }
    }
}

/// `None` when the key is no tenant's number, which [`validate`] refuses.
fn tenant_weight((tenant, &weight): (&String, &u32)) -> Option<(TenantId, u32)> {
    Some((TenantId(tenant.parse().ok()?), weight))
}

impl Experts {
    /// The policy for the solver.
    pub fn policy(&self) -> ExpertPolicy {
        ExpertPolicy {
            split_tolerance: self.split_tolerance,
            split_for: match self.split_for {
                SplitLoads::Window => SplitFor::Window,
                SplitLoads::Forecast => SplitFor::Forecast,
            },
            weights_gain_min: self.weights_gain_min,
            moves_gain_min: self.moves_gain_min,
            moves_gain_at_once: self.moves_gain_at_once,
            imbalance_target: self.imbalance_target,
            placement_life_ms: self.placement_life_ms,
            transfer_bytes_per_ms: self.transfer_bytes_per_ms,
            transfer_slowdown: self.transfer_slowdown,
            ..ExpertPolicy::default()
        }
    }

    /// The policy for the units' histories.
    pub fn history(&self) -> HistoryPolicy {
        HistoryPolicy {
            half_life_ms: self.history_half_life_ms,
            season_ms: self.history_season_ms,
            season_buckets: self.history_season_buckets,
        }
    }
}

/// What flags and variables set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overrides {
    /// See [`Config::cluster`].
    pub cluster: Option<String>,
    /// See [`Config::agents_listen`].
    pub agents_listen: Option<SocketAddr>,
    /// See [`Config::admin_listen`].
    pub admin_listen: Option<SocketAddr>,
    /// See [`Config::metrics_listen`].
    pub metrics_listen: Option<SocketAddr>,
    /// See [`Config::state_dir`].
    pub state_dir: Option<PathBuf>,
    /// See [`Config::balancer_name`].
    pub balancer_name: Option<String>,
    /// See [`Config::advertise`].
    pub advertise: Option<String>,
    /// See [`Config::tls`] and [`Config::insecure_plaintext`].
    pub security: SecuritySettings,
}

/// Why the configuration is not usable. `code` is stable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {path}: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, or a value has another type.
    #[error("configuration {path}: {reason}")]
    Malformed {
        /// The file.
        path: String,
        /// The parser's words, with line and column.
        reason: String,
    },
    /// A key that does not exist.
    #[error("configuration {path}: unknown key {key}{}", suggestion.as_ref().map_or(String::new(), |s| format!("; did you mean {s}?")))]
    UnknownKey {
        /// The file.
        path: String,
        /// The key with its section.
        key: String,
        /// The nearest known key.
        suggestion: Option<String>,
    },
    /// A value of the section `routing` outside its range.
    #[error("configuration: routing: {reason}")]
    Routing {
        /// The core's words: field, value and range.
        reason: String,
    },
    /// A value of the section `store` that cannot be used.
    #[error("configuration: {0}")]
    Store(#[from] SettingError),
    /// A value outside its range.
    #[error("configuration: {key} is {value}: must be {range}")]
    OutOfRange {
        /// The key with its section.
        key: &'static str,
        /// The value given.
        value: String,
        /// What is accepted.
        range: &'static str,
    },
}

impl ConfigError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            ConfigError::Unreadable { .. } => "config_unreadable",
            ConfigError::Malformed { .. } => "config_malformed",
            ConfigError::UnknownKey { .. } => "config_unknown_key",
            ConfigError::Store(error) => error.code(),
            ConfigError::Routing { .. } | ConfigError::OutOfRange { .. } => "config_out_of_range",
        }
    }
}

/// Reads the file (the default one may be missing, a named one may not), then lays the overrides over it.
pub fn load(named: Option<&Path>, overrides: Overrides) -> Result<Config, ConfigError> {
    let path = named.unwrap_or(Path::new(DEFAULT_PATH));
    let mut config = match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, &path.display().to_string())?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && named.is_none() => Config::default(),
        Err(source) => return Err(ConfigError::Unreadable { path: path.display().to_string(), source }),
    };
    let Overrides {
        cluster,
        agents_listen,
        admin_listen,
        metrics_listen,
        state_dir,
        balancer_name,
        advertise,
        security,
    } = overrides;
    config.cluster = cluster.unwrap_or(config.cluster);
    config.agents_listen = agents_listen.unwrap_or(config.agents_listen);
    config.admin_listen = admin_listen.unwrap_or(config.admin_listen);
    config.metrics_listen = metrics_listen.unwrap_or(config.metrics_listen);
    config.state_dir = state_dir.unwrap_or(config.state_dir);
    config.balancer_name = balancer_name.unwrap_or(config.balancer_name);
    config.advertise = advertise.unwrap_or(config.advertise);
    config.tls.ca = security.ca.unwrap_or(config.tls.ca);
    config.tls.certificate = security.certificate.unwrap_or(config.tls.certificate);
    config.tls.key = security.key.unwrap_or(config.tls.key);
    config.insecure_plaintext |= security.insecure_plaintext;
    validate(&config)?;
    Ok(config)
}

fn parse(text: &str, path: &str) -> Result<Config, ConfigError> {
    let malformed =
        |e: toml::de::Error| ConfigError::Malformed { path: path.to_owned(), reason: e.to_string() };
    let table: toml::Table = toml::from_str(text).map_err(malformed)?;
    let known = toml::Table::try_from(Config::default()).expect("the default configuration is a table");
    if let Some((key, suggestion)) = unknown_key(&table, &known, "") {
        return Err(ConfigError::UnknownKey { path: path.to_owned(), key, suggestion });
    }
    toml::from_str(text).map_err(malformed)
}

/// The first key of `table` that `known` lacks, with the nearest one that it has.
fn unknown_key(table: &toml::Table, known: &toml::Table, prefix: &str) -> Option<(String, Option<String>)> {
    /// Below this similarity a suggestion confuses more than it helps.
    const SIMILARITY_MIN: f64 = 0.75;
    table.iter().find_map(|(key, value)| match (known.get(key), value) {
        (None, _) => {
            let near = known.keys().map(|k| (strsim::jaro_winkler(key, k), k));
            let best = near.filter(|(s, _)| *s >= SIMILARITY_MIN).max_by(|a, b| a.0.total_cmp(&b.0));
            Some((format!("{prefix}{key}"), best.map(|(_, k)| format!("{prefix}{k}"))))
        }
        // A table that is empty by default takes any key.
        (Some(toml::Value::Table(inner)), toml::Value::Table(section)) if !inner.is_empty() => {
            unknown_key(section, inner, &format!("{prefix}{key}."))
        }
        _ => None,
    })
}

/// Whether it has the form of a host and a port that can be connected to.
fn is_reachable(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    let anywhere = matches!(host, "" | "0.0.0.0" | "[::]");
    host.len() <= 253
        && !anywhere
        && host.bytes().all(plain)
        && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn validate(config: &Config) -> Result<(), ConfigError> {
    let check = |key, ok: bool, value: String, range| {
        if ok { Ok(()) } else { Err(ConfigError::OutOfRange { key, value, range }) }
    };
    let Control { window_steps, report_interval_ms, ping_interval_ms, silence_limit_ms, .. } = config.control;
    let name = evenkeel_core::ids::UnitId::new(config.cluster.as_str()).is_ok();
    check("cluster", name, format!("{:?}", config.cluster), "1 to 63 characters a-z, 0-9 and '-'")?;
    let named = config.balancer_name.is_empty()
        || evenkeel_core::ids::NodeId::new(config.balancer_name.as_str()).is_ok();
    let range = "1 to 63 characters a-z, 0-9 and '-'; empty: the host's name";
    check("balancer_name", named, format!("{:?}", config.balancer_name), range)?;
    for (key, address) in [("advertise", &config.advertise), ("advertise_admin", &config.advertise_admin)] {
        check(
            key,
            address.is_empty() || is_reachable(address),
            format!("{address:?}"),
            "HOST:PORT, as others reach it",
        )?;
    }
    config.store.validate(config.insecure_plaintext)?;
    if config.store.kind == StoreKind::Etcd && config.advertise.is_empty() {
        let listen = config.agents_listen;
        let range = "an address that others reach, or advertise must be set, when the store is shared";
        check("agents_listen", !listen.ip().is_unspecified(), listen.to_string(), range)?;
    }
    let ttl = config.election.ttl_ms;
    let whole = (2_000..=60_000).contains(&ttl) && ttl.is_multiple_of(1_000);
    check("election.ttl_ms", whole, ttl.to_string(), "whole seconds, 2000 to 60000")?;
    check("control.window_steps", window_steps > 0, window_steps.to_string(), "at least 1")?;
    let report = (10..=60_000).contains(&report_interval_ms);
    check("control.report_interval_ms", report, report_interval_ms.to_string(), "10 to 60000")?;
    let ping = (10..=60_000).contains(&ping_interval_ms);
    check("control.ping_interval_ms", ping, ping_interval_ms.to_string(), "10 to 60000")?;
    let silence = silence_limit_ms >= 2 * ping_interval_ms && silence_limit_ms <= 600_000;
    let range = "at least twice control.ping_interval_ms and at most 600000";
    check("control.silence_limit_ms", silence, silence_limit_ms.to_string(), range)?;
    let Control { prepare_timeout_ms, commit_timeout_ms, abort_pause_ms, .. } = config.control;
    for (key, value) in [
        ("control.prepare_timeout_ms", prepare_timeout_ms),
        ("control.commit_timeout_ms", commit_timeout_ms),
        ("control.abort_pause_ms", abort_pause_ms),
    ] {
        check(key, (1..=3_600_000).contains(&value), value.to_string(), "1 to 3600000")?;
    }
    let experts = &config.experts;
    for (key, value) in [
        ("experts.split_tolerance", experts.split_tolerance),
        ("experts.weights_gain_min", experts.weights_gain_min),
        ("experts.moves_gain_min", experts.moves_gain_min),
        ("experts.moves_gain_at_once", experts.moves_gain_at_once),
        ("experts.transfer_slowdown", experts.transfer_slowdown),
    ] {
        check(key, (0.0..=1.0).contains(&value), value.to_string(), "0 to 1")?;
    }
    for (key, value) in [
        ("experts.placement_life_ms", experts.placement_life_ms),
        ("experts.transfer_bytes_per_ms", experts.transfer_bytes_per_ms),
    ] {
        check(key, value >= 1, value.to_string(), "at least 1")?;
    }
    // A month: what is older says nothing of today, and clocks far from overflow.
    for (key, value) in [
        ("experts.history_half_life_ms", experts.history_half_life_ms),
        ("experts.history_season_ms", experts.history_season_ms),
    ] {
        check(key, value <= 2_592_000_000, value.to_string(), "0 (none) to 2592000000")?;
    }
    // Every bucket holds a number per layer and expert: quarters of an hour of a day, or hours of a week.
    let buckets = experts.history_season_buckets;
    check("experts.history_season_buckets", (1..=168).contains(&buckets), buckets.to_string(), "1 to 168")?;
    let target = experts.imbalance_target;
    check("experts.imbalance_target", (1.0..=2.0).contains(&target), target.to_string(), "1 to 2")?;
    // Eight files, none of them smaller than a megabyte, and together on one disk.
    let record = config.routing.record_max_mb;
    check("routing.record_max_mb", (8..=1_048_576).contains(&record), record.to_string(), "8 to 1048576")?;
    if let Some((tenant, _)) = config.routing.tenants.iter().find(|entry| tenant_weight(*entry).is_none()) {
        check("routing.tenants", false, format!("{tenant:?}"), "numbers of tenants, 0 to 4294967295")?;
    }
    // The core knows the ranges of the routing policy.
    Router::new(Role::Prefill, 1, config.routing.policy())
        .map(drop)
        .map_err(|e| ConfigError::Routing { reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(), &str>) {
        let found = parse(text, "b.toml").and_then(|c| validate(&c)).map_err(|e| e.to_string());
        assert_eq!(found, expected.map_err(str::to_owned));
    }

    #[test]
    fn an_unknown_key_is_named_with_the_nearest_known_one() {
        check("cluster = \"a\"", Ok(()));
        let message = "configuration b.toml: unknown key clutser; did you mean cluster?";
        check("clutser = \"a\"", Err(message));
        let message =
            "configuration b.toml: unknown key control.window_step; did you mean control.window_steps?";
        check("[control]\nwindow_step = 4", Err(message));
        let message = "configuration b.toml: unknown key experts.history_halflife_ms; did you mean experts.history_half_life_ms?";
        check("[experts]\nhistory_halflife_ms = 4", Err(message));
        check("zzz = 1", Err("configuration b.toml: unknown key zzz"));
    }

    #[test]
    fn a_value_out_of_range_names_key_value_and_range() {
        check(
            "[control]\nwindow_steps = 0",
            Err("configuration: control.window_steps is 0: must be at least 1"),
        );
        check(
            "[experts]\nimbalance_target = nan",
            Err("configuration: experts.imbalance_target is NaN: must be 1 to 2"),
        );
        check(
            "[experts]\nhistory_season_buckets = 0",
            Err("configuration: experts.history_season_buckets is 0: must be 1 to 168"),
        );
        check(
            "[routing]\nrecord_max_mb = 7",
            Err("configuration: routing.record_max_mb is 7: must be 8 to 1048576"),
        );
        check(
            "[routing]\nblock_tokens = 0",
            Err("configuration: routing: policy block_tokens is 0: accepted are 1 to 4096"),
        );
        check(
            "[routing]\nbatch_share = 1.5",
            Err("configuration: routing: fairness batch_share is 1.5: accepted are 0 to 1"),
        );
        check(
            "[routing.tenants]\n7 = 0",
            Err("configuration: routing: fairness weight is 0: accepted are 1 to 65536"),
        );
        check(
            "[routing.tenants]\nacme = 2",
            Err("configuration: routing.tenants is \"acme\": must be numbers of tenants, 0 to 4294967295"),
        );
        check("[routing.tenants]\n7 = 3\n8 = 1", Ok(()));
        check("[experts]\nhistory_half_life_ms = 0\nhistory_season_ms = 0", Ok(()));
        check(
            "[experts]\nhistory_half_life_ms = 2592000001",
            Err("configuration: experts.history_half_life_ms is 2592000001: must be 0 (none) to 2592000000"),
        );
        check(
            "cluster = \"A b\"",
            Err("configuration: cluster is \"A b\": must be 1 to 63 characters a-z, 0-9 and '-'"),
        );
    }

    #[test]
    fn what_a_balancer_is_called_has_a_form() {
        for text in [
            "balancer_name = \"b-1\"\nadvertise = \"b-1.balancers:7400\"",
            "advertise = \"[fd00::1]:7400\"",
            "[election]\nttl_ms = 3000",
        ] {
            check(text, Ok(()));
        }
        let message = "configuration: balancer_name is \"B 1\": must be 1 to 63 characters a-z, 0-9 and '-'; empty: the host's name";
        check("balancer_name = \"B 1\"", Err(message));
        let message = "configuration: advertise is \"0.0.0.0:7400\": must be HOST:PORT, as others reach it";
        check("advertise = \"0.0.0.0:7400\"", Err(message));
        let etcd = "agents_listen = \"0.0.0.0:7400\"\n[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]";
        let message = "configuration: agents_listen is 0.0.0.0:7400: must be an address that others reach, or advertise must be set, when the store is shared";
        check(etcd, Err(message));
        check(&format!("advertise = \"b-1:7400\"\n{etcd}"), Ok(()));
        let message = "configuration: election.ttl_ms is 2500: must be whole seconds, 2000 to 60000";
        check("[election]\nttl_ms = 2500", Err(message));
    }

    #[test]
    fn a_balancer_is_reached_where_it_listens_unless_it_says_otherwise() {
        let address = |text: &str| text.parse().expect("an address");
        let (agents, admin) = (address("127.0.0.1:7400"), address("0.0.0.0:7401"));
        let found = Config::default().identity(agents, admin);
        assert_eq!(
            (found.address.as_str(), found.admin_address.as_str()),
            ("127.0.0.1:7400", "127.0.0.1:7401")
        );
        assert!(evenkeel_core::ids::NodeId::new(found.name).is_ok());
        let config = Config { advertise: "b:1".to_owned(), ..Config::default() };
        assert_eq!(config.identity(agents, admin).admin_address, "b:7401");
    }

    #[test]
    fn a_wrong_type_is_named_with_its_line() {
        let error = parse("cluster = \"a\"\nagents_listen = 7", "b.toml").unwrap_err();
        assert_eq!(error.code(), "config_malformed");
        assert!(error.to_string().contains("line 2"), "{error}");
    }

    #[test]
    fn routing_keys_reach_the_policy() {
        let text = "[routing]\nprefill_cohort_tokens = 5\nkv_capacity_tokens = 6\nmigrations_per_step = 1\nbatch_share = 0.5\n[routing.tenants]\n7 = 3";
        let policy = parse(text, "b.toml").expect("valid").routing.policy();
        assert_eq!((policy.cohort_tokens, policy.kv_capacity_tokens), (Some(5), Some(6)));
        assert_eq!((policy.migrations_per_step, policy.batch_share), (1, 0.5));
        assert_eq!(policy.tenant_weights, [(TenantId(7), 3)].into());
        assert_eq!(Routing::default().policy(), RoutingPolicy::default());
    }

    #[test]
    fn the_history_and_what_splits_are_made_for_reach_their_policies() {
        let text = "[experts]\nsplit_for = \"forecast\"\nhistory_half_life_ms = 7\nhistory_season_ms = 8\nhistory_season_buckets = 9";
        let experts = parse(text, "b.toml").expect("valid").experts;
        assert_eq!(experts.policy().split_for, SplitFor::Forecast);
        let history = HistoryPolicy { half_life_ms: 7, season_ms: 8, season_buckets: 9 };
        assert_eq!(experts.history(), history);
        assert_eq!(Experts::default().history(), HistoryPolicy::default());
        let error = parse("[experts]\nsplit_for = \"past\"", "b.toml").unwrap_err().to_string();
        assert!(error.contains("`past`") && error.contains("`window` or `forecast`"), "{error}");
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_default() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "cluster = \"file\"\nstate_dir = \"/file\"").expect("written");
        let overrides = Overrides { cluster: Some("flag".to_owned()), ..Overrides::default() };
        let config = load(Some(file.path()), overrides).expect("valid");
        assert_eq!((config.cluster.as_str(), config.state_dir.as_path()), ("flag", Path::new("/file")));
        assert_eq!(config.agents_listen, Config::default().agents_listen);
    }

    #[test]
    fn certificates_come_from_flags_and_file_alike() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "[tls]\nca = \"/file\"\nkey = \"/file\"").expect("written");
        let flags = SecuritySettings { key: Some("/flag".into()), ..SecuritySettings::default() };
        let overrides = Overrides { security: flags, ..Overrides::default() };
        let security = load(Some(file.path()), overrides).expect("valid").security();
        let expected = (Some("/file".into()), None, Some("/flag".into()));
        assert_eq!((security.ca, security.certificate, security.key), expected);
        let message = "configuration b.toml: unknown key tls.cert; did you mean tls.certificate?";
        check("[tls]\ncert = \"a\"", Err(message));
    }

    #[test]
    fn a_named_file_must_exist() {
        let error = load(Some(Path::new("/nonexistent.toml")), Overrides::default()).unwrap_err();
        assert_eq!(error.code(), "config_unreadable");
    }
}
