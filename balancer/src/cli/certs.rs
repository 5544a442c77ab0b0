//! `evenkeel certs`.

use super::Failure;
use crate::certificates::{Authority, CertificatesError, Issue, Pair};
use clap::{Args, Subcommand};
use evenkeel_transport::{CertificateFacts, PeerIdentity, PeerRole};
use jiff::Timestamp;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(super) struct Certs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the authority of a cluster: ca.crt, which every process trusts, and ca.key, which stays here
    Init(Init),
    /// Issue a certificate
    Issue(IssueFlags),
    /// Show names, role and end of the certificates in a file
    Show(Show),
}

#[derive(Args)]
struct Init {
    /// Directory of the authority; made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Name of the cluster
    #[arg(long, value_name = "NAME")]
    cluster: String,
    /// Replace the authority that is there: certificates it issued are no longer trusted
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
struct IssueFlags {
    /// Directory of the authority; the certificate is written there too
    #[arg(long, value_name = "DIR", global = true, default_value = ".")]
    dir: PathBuf,
    /// Days until it ends
    #[arg(long, value_name = "N", global = true, default_value_t = 365)]
    days: u32,
    /// Replace the certificate that is there
    #[arg(long, global = true)]
    force: bool,
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// For a balancer
    Balancer(Also),
    /// For the agent of a node
    Agent {
        /// Name of the node, as in the agent's --node
        node: String,
        #[command(flatten)]
        also: Also,
    },
    /// For a person or a program that may look
    Viewer(Name),
    /// For a person that may also pause and resume
    Operator(Name),
    /// For a person that may do everything
    Admin(Name),
    /// For a gateway, which asks for routes
    Gateway(Name),
}

#[derive(Args)]
struct Also {
    /// A DNS name under which browsers and tools reach it; may be given several times
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
    /// An address under which browsers and tools reach it; may be given several times
    #[arg(long, value_name = "IP")]
    ip: Vec<std::net::IpAddr>,
}

impl Also {
    fn names(&self) -> Vec<String> {
        self.dns.iter().cloned().chain(self.ip.iter().map(ToString::to_string)).collect()
    }
}

#[derive(Args)]
struct Name {
    /// The name: a-z, 0-9 and '-'
    name: String,
}

#[derive(Args)]
struct Show {
    /// The file (PEM)
    file: PathBuf,
}

impl From<CertificatesError> for Failure {
    fn from(e: CertificatesError) -> Self {
        Failure { exit: 2, ..Failure::new(e.code(), &e) }
    }
}

impl Certs {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Init(init) => {
                let pair = Authority::init(&init.dir, &init.cluster, init.force)?;
                print_pair(&format!("authority of {}", init.cluster), &pair);
                Ok(())
            }
            Command::Issue(flags) => flags.run(),
            Command::Show(show) => show.run(),
        }
    }
}

impl IssueFlags {
    fn run(self) -> Result<(), Failure> {
        let authority = Authority::open(&self.dir)?;
        let (role, name) = match &self.role {
            Role::Balancer(_) => (PeerRole::Balancer, ""),
            Role::Agent { node, .. } => (PeerRole::Agent, node.as_str()),
            Role::Viewer(name) => (PeerRole::Viewer, name.name.as_str()),
            Role::Operator(name) => (PeerRole::Operator, name.name.as_str()),
            Role::Admin(name) => (PeerRole::Admin, name.name.as_str()),
            Role::Gateway(name) => (PeerRole::Gateway, name.name.as_str()),
        };
        let also = match &self.role {
            Role::Balancer(also) | Role::Agent { also, .. } => also.names(),
            // People and gateways are never dialled.
            _ => Vec::new(),
        };
        let issue = Issue { role, name, also: &also, days: self.days, force: self.force };
        let (identity, pair) = authority.issue(&self.dir, &issue)?;
        print_pair(&identity.dns_name(), &pair);
        Ok(())
    }
}

fn print_pair(what: &str, pair: &Pair) {
    println!("{what}: {} {}", pair.certificate.display(), pair.key.display());
}

impl Show {
    fn run(self) -> Result<(), Failure> {
        for (at, facts) in read(&self.file)?.iter().enumerate() {
            if at > 0 {
                println!();
            }
            print!("{}", describe(facts));
        }
        Ok(())
    }
}

fn read(file: &Path) -> Result<Vec<CertificateFacts>, Failure> {
    let unreadable = |text: String| Failure { exit: 2, ..Failure::new("certificate_unreadable", text) };
    let bytes = std::fs::read(file).map_err(|e| unreadable(format!("{}: {e}", file.display())))?;
    evenkeel_transport::credentials::facts(&bytes)
        .map_err(|fault| unreadable(format!("{}: {}", file.display(), fault.text)))
}

fn describe(facts: &CertificateFacts) -> String {
    let names: Vec<&str> = facts.dns_names.iter().chain(&facts.ip_addresses).map(String::as_str).collect();
    let role = match facts.identity() {
        _ if facts.is_authority => "authority".to_owned(),
        Ok(identity) => {
            let PeerIdentity { cluster, .. } = &identity;
            format!("{identity}, cluster {cluster}")
        }
        Err(fault) => format!("none: {}", fault.text),
    };
    let time = |seconds| Timestamp::from_second(seconds).map_or("out of range".to_owned(), |t| t.to_string());
    format!(
        "names    {}\nrole     {role}\nfrom     {}\nuntil    {}\nissuer   {}\n",
        names.join(", "),
        time(facts.not_before),
        time(facts.not_after),
        facts.issuer
    )
}
