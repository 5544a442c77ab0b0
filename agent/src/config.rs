//! Configuration of the agent: flag > `EVENKEEL_AGENT_*` > file > default. The environment is read here and
//! nowhere else.

use crate::failure::Failure;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use evenkeel_core::ids::{NodeId, Rank, UnitId};
use evenkeel_core::topology::{Role, UnitShape};
use evenkeel_transport::security::SecuritySettings;
use serde::Deserialize;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where the configuration is looked for when no `--config` is given; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/evenkeel/agent.toml";

/// Balancers of one cluster: three are usual, five tolerate two failures; more would only be more streams.
pub const BALANCERS_MAX: usize = 16;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "evenkeel-agent",
    version,
    about = "Evenkeel's agent: one per node, beside the inference workers. It takes expert-placement plans from the \
             balancer, moves expert weights between slots and nodes, flips the dispatch tables at a step boundary, \
             and reports expert loads.",
    after_help = "Every option can also be set as EVENKEEL_AGENT_<OPTION>, or as <option> = ... in the file \
                  (with '_' for '-').\nPrecedence: flag > environment > file > default.",
    args_conflicts_with_subcommands = true
)]
pub struct CommandLine {
    /// What to do instead of running the agent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings of the agent.
    #[command(flatten)]
    pub settings: Settings,
    /// TOML file with settings [default: /etc/evenkeel/agent.toml, if it exists]
    #[arg(long, env = "EVENKEEL_AGENT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What the program can do beside running the agent.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compares every slot of simulated workers, byte by byte, with what the committed plan says it holds
    Verify(VerifyFlags),
}

/// Output of `verify`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Settings of `verify`.
#[derive(Debug, Args)]
pub struct VerifyFlags {
    /// Admin address of the balancer, which names the committed plan
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7401", conflicts_with = "plan")]
    pub admin: String,
    /// File with the plan (an encoded evenkeel.v1.Plan), instead of asking the balancer
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
    /// State directory of an agent; may be given several times
    #[arg(long = "state", value_name = "DIR", required = true)]
    pub states: Vec<PathBuf>,
    /// Form of the result on standard output
    #[arg(long, value_enum, default_value = "table")]
    pub output: Output,
    /// How the balancer is asked.
    #[command(flatten)]
    pub tls: TlsFlags,
}

/// Certificates of a command.
#[derive(Debug, Default, Args)]
pub struct TlsFlags {
    /// Certificates of the authorities that are trusted (PEM); turns TLS on, with the two below
    #[arg(id = "verify_tls_ca", long = "tls-ca", env = "EVENKEEL_AGENT_TLS_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Certificate of the caller (PEM)
    #[arg(id = "verify_tls_cert", long = "tls-cert", env = "EVENKEEL_AGENT_TLS_CERT", value_name = "FILE")]
    pub certificate: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(id = "verify_tls_key", long = "tls-key", env = "EVENKEEL_AGENT_TLS_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Allow plaintext beyond loopback: for closed networks only
    #[arg(id = "verify_insecure_plaintext", long = "insecure-plaintext")]
    pub insecure_plaintext: bool,
}

impl TlsFlags {
    /// What they say.
    pub fn settings(&self) -> SecuritySettings {
        SecuritySettings {
            ca: self.ca.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            insecure_plaintext: self.insecure_plaintext,
        }
    }
}

/// What a unit is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoleName {
    /// Processes prompts
    Prefill,
    /// Generates tokens
    Decode,
    /// Does both in one engine
    Mixed,
}

impl From<RoleName> for Role {
    fn from(role: RoleName) -> Self {
        match role {
            RoleName::Prefill => Role::Prefill,
            RoleName::Decode => Role::Decode,
            RoleName::Mixed => Role::Mixed,
        }
    }
}

/// Settings as they are written: on the command line, in the environment and in the file alike.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Agent ports of the balancers, separated by commas or given several times. A name stands for every address
    /// it has [default: 127.0.0.1:7400]
    #[arg(long, env = "EVENKEEL_AGENT_BALANCER", value_name = "HOST:PORT", value_delimiter = ',')]
    #[serde(default, deserialize_with = "one_or_many")]
    pub balancer: Option<Vec<String>>,
    /// Name of the cluster; must be that of the balancer [default: default]
    #[arg(long, env = "EVENKEEL_AGENT_CLUSTER", value_name = "NAME")]
    pub cluster: Option<String>,
    /// Name of this node, unique in the cluster: a-z, 0-9 and '-'
    #[arg(long, env = "EVENKEEL_AGENT_NODE", value_name = "NAME")]
    pub node: Option<String>,
    /// Name of the unit (EP group) this node belongs to
    #[arg(long, env = "EVENKEEL_AGENT_UNIT", value_name = "NAME")]
    pub unit: Option<String>,
    /// What the unit is for [default: mixed]
    #[arg(long, env = "EVENKEEL_AGENT_ROLE", value_enum)]
    pub role: Option<RoleName>,
    /// MoE layers of the model
    #[arg(long, env = "EVENKEEL_AGENT_LAYERS", value_name = "N")]
    pub layers: Option<u16>,
    /// Logical experts per layer
    #[arg(long, env = "EVENKEEL_AGENT_EXPERTS", value_name = "N")]
    pub experts: Option<u16>,
    /// Experts chosen per token
    #[arg(long, env = "EVENKEEL_AGENT_TOP_K", value_name = "N")]
    pub top_k: Option<u16>,
    /// EP ranks of the whole unit
    #[arg(long, env = "EVENKEEL_AGENT_RANKS_TOTAL", value_name = "N")]
    pub ranks_total: Option<u16>,
    /// Ranks on this node, as in 0-7 or 0,2,4-6
    #[arg(long, env = "EVENKEEL_AGENT_RANKS", value_name = "LIST")]
    pub ranks: Option<String>,
    /// Slots per rank and layer that a plan may fill
    #[arg(long, env = "EVENKEEL_AGENT_SLOTS_PER_RANK", value_name = "N")]
    pub slots_per_rank: Option<u16>,
    /// Further slots per rank and layer, empty between plans; new experts are staged there [default: 1]
    #[arg(long, env = "EVENKEEL_AGENT_SPARE_PER_RANK", value_name = "N")]
    pub spare_per_rank: Option<u16>,
    /// Bytes of one expert in one layer [default: 4096]
    #[arg(long, env = "EVENKEEL_AGENT_EXPERT_BYTES", value_name = "N")]
    pub expert_bytes: Option<u64>,
    /// Seed from which the simulated weights are derived [default: 1]
    #[arg(long, env = "EVENKEEL_AGENT_WEIGHTS_SEED", value_name = "N")]
    pub weights_seed: Option<u64>,
    /// Directory of this agent's state; no two agents may share one [default: /var/lib/evenkeel-agent]
    #[arg(long, env = "EVENKEEL_AGENT_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where to serve /metrics and /healthz; port 0 takes a free one [default: 127.0.0.1:7410]
    #[arg(long, env = "EVENKEEL_AGENT_METRICS", value_name = "IP:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Where to serve expert bytes to other nodes; port 0 takes a free one [default: 127.0.0.1:7411]
    #[arg(long, env = "EVENKEEL_AGENT_TRANSFER", value_name = "IP:PORT")]
    pub transfer: Option<SocketAddr>,
    /// Address under which other nodes reach the transfer port [default: the address it listens on]
    #[arg(long, env = "EVENKEEL_AGENT_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Where to serve the simulated engine; port 0 takes a free one [default: 127.0.0.1:7412]
    #[arg(long, env = "EVENKEEL_AGENT_ENGINE", value_name = "IP:PORT")]
    pub engine: Option<SocketAddr>,
    /// Paces staging, local copies included, so that it leaves bandwidth to inference; 0 does not [default: 0]
    #[arg(long, env = "EVENKEEL_AGENT_TRANSFER_BYTES_PER_SECOND", value_name = "N")]
    pub transfer_bytes_per_second: Option<u64>,
    /// Certificates of the authorities that are trusted (PEM); turns TLS on for every port, with the two below
    #[arg(long, env = "EVENKEEL_AGENT_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Certificate of this node's agent (PEM)
    #[arg(long, env = "EVENKEEL_AGENT_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(long, env = "EVENKEEL_AGENT_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Allow plaintext beyond loopback: for closed networks only [default: false]
    #[arg(
        long,
        env = "EVENKEEL_AGENT_INSECURE_PLAINTEXT",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub insecure_plaintext: Option<bool>,
    /// What to log to standard error, as in info or evenkeel_agent=debug [default: info]
    #[arg(long, env = "EVENKEEL_AGENT_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// Takes each setting from the first, else from the second.
macro_rules! merge {
    ($first:expr, $second:expr; $($field:ident),+ $(,)?) => {{
        // Named without `..`: a new field that is forgotten here does not compile.
        let (Settings { $($field),+ }, second) = ($first, $second);
        Settings { $($field: $field.or(second.$field)),+ }
    }};
}

impl Settings {
    fn over(self, file: Settings) -> Settings {
        merge!(self, file;
            balancer, cluster, node, unit, role, layers, experts, top_k, ranks_total, ranks, slots_per_rank,
            spare_per_rank, expert_bytes, weights_seed, state_dir, metrics, transfer, advertise, engine,
            transfer_bytes_per_second, tls_ca, tls_cert, tls_key, insecure_plaintext, log,
        )
    }
}

/// Configuration of the agent, checked and complete.
#[derive(Debug, Clone)]
pub struct Config {
    /// host:port of the balancers' agent ports, each once; a name stands for every address it has.
    pub balancers: Vec<String>,
    /// Name of the cluster.
    pub cluster: String,
    /// Name of this node.
    pub node: NodeId,
    /// Name of the unit.
    pub unit: UnitId,
    /// Shape of the unit.
    pub shape: UnitShape,
    /// Ranks on this node, ascending.
    pub ranks: Vec<Rank>,
    /// Seed of the simulated weights.
    pub weights_seed: u64,
    /// State directory.
    pub state_dir: PathBuf,
    /// Listening address of /metrics and /healthz.
    pub metrics: SocketAddr,
    /// Listening address for expert bytes.
    pub transfer: SocketAddr,
    /// Address for other nodes, when it is not the listening one.
    pub advertise: Option<String>,
    /// Listening address of the simulated engine.
    pub engine: SocketAddr,
    /// Pace of staging; 0 is unlimited.
    pub transfer_bytes_per_second: u64,
    /// How connections are secured.
    pub security: SecuritySettings,
    /// Log filter.
    pub log: String,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Request {
    /// Run the agent.
    Run(Box<Config>),
    /// Compare slots.
    Verify(VerifyFlags),
    /// Print this on standard output: help or version.
    Print(String),
}

/// Reads the command line, the environment and the file.
pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, Failure> {
    let parsed = CommandLine::command()
        // The help says once how their names are made.
        .mut_args(|argument| argument.hide_env(true))
        .try_get_matches_from(arguments)
        .and_then(|matches| CommandLine::from_arg_matches(&matches));
    let line = match parsed {
        Ok(line) => line,
        Err(error) if !error.use_stderr() => return Ok(Request::Print(error.render().to_string())),
        Err(error) => return Err(Failure::usage("usage", one_line(&error))),
    };
    if let Some(Command::Verify(flags)) = line.command {
        return Ok(Request::Verify(flags));
    }
    let (file, name) = read_file(line.config.as_deref())?;
    resolve(line.settings.over(file), &name).map(|config| Request::Run(Box::new(config)))
}

/// What clap says over several lines, without the usage that follows.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let lines: Vec<_> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}

fn read_file(given: Option<&Path>) -> Result<(Settings, String), Failure> {
    let path = given.unwrap_or(Path::new(DEFAULT_FILE));
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((parse_file(&text, &name)?, name)),
        Err(error) if given.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            Ok((Settings::default(), name))
        }
        Err(error) => Err(Failure::usage("config_unreadable", format!("{name}: {error}"))),
    }
}

fn parse_file(text: &str, name: &str) -> Result<Settings, Failure> {
    let invalid = |error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
        Failure::usage(
            "config_invalid",
            format!("{name}, line {line}: {}", error.message().replace('\n', " ")),
        )
    };
    let table: toml::Table = text.parse().map_err(invalid)?;
    let known = Settings::augment_args(clap::Command::new("keys"));
    let known: Vec<_> = known.get_arguments().map(|argument| argument.get_id().as_str()).collect();
    if let Some(key) = table.keys().find(|key| !known.contains(&key.as_str())) {
        let hint = nearest(key, &known).map_or(String::new(), |near| format!("; did you mean {near:?}?"));
        return Err(Failure::usage("config_unknown_key", format!("{name}: unknown key {key:?}{hint}")));
    }
    toml::from_str(text).map_err(invalid)
}

/// The known key that the writer may have meant.
fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let score = |candidate: &str| strsim::jaro_winkler(&key.replace('-', "_"), candidate);
    let best = known.iter().max_by(|a, b| score(a).total_cmp(&score(b)))?;
    // Below this, unrelated words of similar letters come up.
    (score(best) > 0.75).then_some(best)
}

fn resolve(settings: Settings, file: &str) -> Result<Config, Failure> {
    let missing = |key: &str| {
        let (flag, variable) = (key.replace('_', "-"), key.to_uppercase());
        let message = format!(
            "{key} is not set: give --{flag}, set EVENKEEL_AGENT_{variable}, or write {key} = ... in {file}"
        );
        Failure::usage("config_missing", message)
    };
    let node = settings.node.ok_or_else(|| missing("node"))?;
    let unit = settings.unit.ok_or_else(|| missing("unit"))?;
    let invalid_name = |error: evenkeel_core::ids::InvalidName| Failure::usage("config_invalid", error);
    let shape = UnitShape {
        role: settings.role.unwrap_or(RoleName::Mixed).into(),
        layers: settings.layers.ok_or_else(|| missing("layers"))?,
        experts: settings.experts.ok_or_else(|| missing("experts"))?,
        top_k: settings.top_k.ok_or_else(|| missing("top_k"))?,
        ranks: settings.ranks_total.ok_or_else(|| missing("ranks_total"))?,
        slots_per_rank: settings.slots_per_rank.ok_or_else(|| missing("slots_per_rank"))?,
        spare_per_rank: settings.spare_per_rank.unwrap_or(1),
        expert_bytes: settings.expert_bytes.unwrap_or(4096),
    };
    shape.validate().map_err(|error| Failure::usage(error.code(), error))?;
    let ranks = parse_ranks(&settings.ranks.ok_or_else(|| missing("ranks"))?, shape.ranks)?;
    let transfer = settings.transfer.unwrap_or_else(|| loopback(7411));
    if transfer.ip().is_unspecified() && settings.advertise.is_none() {
        let message =
            format!("transfer listens on {transfer}, which no other node can use: set advertise too");
        return Err(Failure::usage("config_missing", message));
    }
    let balancers = balancers(settings.balancer.unwrap_or_else(|| vec!["127.0.0.1:7400".to_owned()]))?;
    settings.advertise.as_deref().map_or(Ok(()), |address| check_address("advertise", address))?;
    Ok(Config {
        balancers,
        cluster: settings.cluster.unwrap_or_else(|| "default".to_owned()),
        node: NodeId::new(node).map_err(invalid_name)?,
        unit: UnitId::new(unit).map_err(invalid_name)?,
        shape,
        ranks,
        weights_seed: settings.weights_seed.unwrap_or(1),
        state_dir: settings.state_dir.unwrap_or_else(|| PathBuf::from("/var/lib/evenkeel-agent")),
        metrics: settings.metrics.unwrap_or_else(|| loopback(7410)),
        transfer,
        advertise: settings.advertise,
        engine: settings.engine.unwrap_or_else(|| loopback(7412)),
        transfer_bytes_per_second: settings.transfer_bytes_per_second.unwrap_or(0),
        security: SecuritySettings {
            ca: settings.tls_ca,
            certificate: settings.tls_cert,
            key: settings.tls_key,
            insecure_plaintext: settings.insecure_plaintext.unwrap_or(false),
        },
        log: settings.log.unwrap_or_else(|| "info".to_owned()),
    })
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn check_address(key: &str, address: &str) -> Result<(), Failure> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.contains('/'));
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(_)) => Ok(()),
        _ => Err(Failure::usage("config_invalid", format!("{key} is {address:?}: must be HOST:PORT"))),
    }
}

/// Each address once, in the order given.
fn balancers(given: Vec<String>) -> Result<Vec<String>, Failure> {
    let mut balancers: Vec<String> = Vec::new();
    for address in given {
        let address = address.trim().to_owned();
        check_address("balancer", &address)?;
        if !balancers.contains(&address) {
            balancers.push(address);
        }
    }
    if balancers.is_empty() || balancers.len() > BALANCERS_MAX {
        let message = format!("balancer has {} addresses: must be 1 to {BALANCERS_MAX}", balancers.len());
        return Err(Failure::usage("config_invalid", message));
    }
    Ok(balancers)
}

/// `"a:1"`, `"a:1,b:1"` or `["a:1", "b:1"]`.
fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "an address HOST:PORT, or a list of them")]
    enum Addresses {
        One(String),
        Many(Vec<String>),
    }
    Ok(Some(match Addresses::deserialize(deserializer)? {
        Addresses::One(text) => text.split(',').map(str::to_owned).collect(),
        Addresses::Many(list) => list,
    }))
}

/// Ranks as in `0-7` or `0,2,4-6`.
fn parse_ranks(text: &str, total: u16) -> Result<Vec<Rank>, Failure> {
    let invalid = |reason: String| Failure::usage("config_invalid", format!("ranks is {text:?}: {reason}"));
    let number = |part: &str| {
        part.trim().parse::<u16>().map_err(|_| invalid(format!("{part:?} is no rank; write 0-7 or 0,2,4-6")))
    };
    let mut ranks = Vec::new();
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(invalid(format!("{first}-{last} counts down")));
        }
        if last >= total {
            return Err(invalid(format!(
                "rank {last} is outside the unit, which has ranks 0 to {}",
                total - 1
            )));
        }
        ranks.extend((first..=last).map(Rank));
    }
    ranks.sort_unstable();
    if let Some(pair) = ranks.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(invalid(format!("rank {} is named twice", pair[0])));
    }
    Ok(ranks)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: &str =
        "--node n --unit u --layers 2 --experts 6 --top-k 2 --ranks-total 4 --ranks 0-1 --slots-per-rank 2";

    fn run(text: &str) -> Result<Config, Failure> {
        let arguments = format!("evenkeel-agent {text}");
        match read(arguments.split_whitespace().map(OsString::from))? {
            Request::Run(config) => Ok(*config),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn check_refused(arguments: &str, code: &str, mention: &str) {
        let failure = run(arguments).unwrap_err();
        assert_eq!((failure.code, failure.exit), (code, 2), "{failure}");
        assert!(failure.message.contains(mention), "{failure}");
        assert!(!failure.message.contains('\n'), "{failure}");
    }

    #[test]
    fn a_bad_command_line_is_refused_with_its_remedy() {
        check_refused("--node n", "config_missing", "EVENKEEL_AGENT_UNIT");
        check_refused("--nodes n", "usage", "--node");
        check_refused("--layers many", "usage", "many");
        check_refused(&format!("{REQUIRED} --experts 9"), "usage", "--experts");
        let few = REQUIRED.replace("--experts 6", "--experts 9");
        check_refused(&few, "topology_too_few_slots", "set slots_per_rank to at least 3");
        check_refused(&REQUIRED.replace("0-1", "0-4"), "config_invalid", "ranks 0 to 3");
        check_refused(&REQUIRED.replace("0-1", "0,0"), "config_invalid", "twice");
        check_refused(&REQUIRED.replace("0-1", "1-0"), "config_invalid", "counts down");
        check_refused(&REQUIRED.replace("0-1", "x"), "config_invalid", "0,2,4-6");
        check_refused(&REQUIRED.replace("--node n", "--node N"), "config_invalid", "a-z");
        check_refused(&format!("{REQUIRED} --balancer here"), "config_invalid", "HOST:PORT");
        check_refused(&format!("{REQUIRED} --balancer a:1,"), "config_invalid", "HOST:PORT");
        let many: Vec<_> = (0..=BALANCERS_MAX).map(|at| format!("a:{at}")).collect();
        check_refused(&format!("{REQUIRED} --balancer {}", many.join(",")), "config_invalid", "1 to 16");
        check_refused(&format!("{REQUIRED} --transfer 0.0.0.0:1"), "config_missing", "advertise");
        check_refused(&format!("{REQUIRED} --config /nonexistent"), "config_unreadable", "/nonexistent");
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let config = run(REQUIRED).unwrap();
        let ports = [config.metrics.port(), config.transfer.port(), config.engine.port()];
        assert_eq!(ports, [7410, 7411, 7412]);
        assert_eq!(config.balancers, ["127.0.0.1:7400"]);
        assert_eq!(config.ranks, [Rank(0), Rank(1)]);
        assert_eq!((config.shape.spare_per_rank, config.shape.expert_bytes), (1, 4096));
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "node = \"from-file\"\ncluster = \"c\"\nspare_per_rank = 2\n").unwrap();
        let config = run(&format!("{REQUIRED} --config {}", file.path().display())).unwrap();
        assert_eq!((config.node.as_str(), config.cluster.as_str()), ("n", "c"));
        assert_eq!(config.shape.spare_per_rank, 2);
    }

    #[test]
    fn balancers_are_listed_in_any_way_and_each_counts_once() {
        let config = run(&format!("{REQUIRED} --balancer a:1,b:1 --balancer c:1,a:1")).unwrap();
        assert_eq!(config.balancers, ["a:1", "b:1", "c:1"]);
        for text in ["balancer = \"a:1, b:1\"", "balancer = [\"a:1\", \"b:1\"]"] {
            let given = parse_file(text, "f.toml").unwrap().balancer.unwrap();
            assert_eq!(balancers(given).unwrap(), ["a:1", "b:1"]);
        }
        assert_eq!(parse_file("layers = 2", "f.toml").unwrap().balancer, None);
    }

    #[track_caller]
    fn check_file(text: &str, code: &str, mention: &str) {
        let failure = parse_file(text, "f.toml").unwrap_err();
        assert_eq!(failure.code, code, "{failure}");
        assert!(failure.message.contains(mention), "{failure}");
    }

    #[test]
    fn a_bad_file_is_refused_with_its_place() {
        check_file("spare_per_ranks = 1", "config_unknown_key", "did you mean \"spare_per_rank\"?");
        check_file("state-dir = \"/x\"", "config_unknown_key", "did you mean \"state_dir\"?");
        check_file("zzz = 1", "config_unknown_key", "unknown key \"zzz\"");
        check_file("node = \"a\"\nlayers = \"two\"", "config_invalid", "line 2");
        check_file("node = ", "config_invalid", "line 1");
        check_file("layers = 70000", "config_invalid", "70000");
    }

    #[test]
    fn every_setting_can_come_from_the_environment() {
        for argument in Settings::augment_args(clap::Command::new("keys")).get_arguments() {
            let expected = format!("EVENKEEL_AGENT_{}", argument.get_id().as_str().to_uppercase());
            assert_eq!(argument.get_env().unwrap().to_str(), Some(expected.as_str()));
        }
    }
}
