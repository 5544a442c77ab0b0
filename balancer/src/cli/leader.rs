//! `evenkeel leader`: who leads, hand it over, adopt a restored store.

use super::Failure;
use super::admin::{Output, Server, table};
use clap::{Args, Subcommand};
use evenkeel_proto::v1::{
    AdoptLeaderRequest, BalancerState, GetLeaderRequest, GetLeaderResponse, Term, TransferLeaderRequest,
};
use serde_json::{Value, json};

/// Exit code of what needs a yes that was not given.
const EXIT_USAGE: u8 = 2;

/// Show which balancer leads, hand the lead over, adopt a restored store
#[derive(Args)]
pub(super) struct Leader {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show which balancer leads, since when, and who stands by
    Show(Show),
    /// Hand the lead over to a balancer that stands by
    Transfer(Transfer),
    /// Go on with a store that was restored from a backup, or moved to from another one
    Adopt(Adopt),
}

#[derive(Args)]
struct Show {
    #[command(flatten)]
    server: Server,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Args)]
struct Transfer {
    /// The standby that is to lead; whoever is first if it is not given
    #[arg(long, value_name = "NAME")]
    to: Option<String>,
    #[command(flatten)]
    server: Server,
}

/// After a store was restored or replaced its revisions begin again, so that agents refuse its leaders as older than those
/// they have seen. This raises the generation of terms above all of them. Make sure first that this is the store to go on
/// with: what was committed after the backup is not in it.
#[derive(Args)]
struct Adopt {
    /// Yes, this is the store to go on with
    #[arg(long)]
    yes: bool,
    /// Also if no higher term has been seen
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    server: Server,
}

impl Leader {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Show(show) => show.run(),
            Verb::Transfer(transfer) => transfer.run(),
            Verb::Adopt(adopt) => adopt.run(),
        }
    }
}

impl Show {
    fn run(self) -> Result<(), Failure> {
        let found =
            self.server.call(async |mut c| Ok(c.get_leader(GetLeaderRequest {}).await?.into_inner()))?;
        match self.output {
            Output::Json => println!("{:#}", as_json(&found)),
            Output::Table => println!("{}", as_table(&found)),
        }
        Ok(())
    }
}

fn term(term: Option<Term>) -> String {
    term.map_or_else(|| "-".to_owned(), |t| format!("{}.{}", t.generation, t.revision))
}

fn state(found: &GetLeaderResponse) -> &'static str {
    match found.state() {
        BalancerState::Unspecified => "starting",
        BalancerState::Standby => "standby",
        BalancerState::Leading => "leading",
        BalancerState::Frozen => "frozen",
        BalancerState::NotAdopted => "not_adopted",
    }
}

/// Milliseconds of Unix time as people write it.
fn time(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| "-".to_owned(), |at| at.to_string())
}

fn as_json(found: &GetLeaderResponse) -> Value {
    let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    let standbys: Vec<Value> = found
        .standbys
        .iter()
        .map(|standby| json!({"balancer": standby.balancer, "address": standby.address}))
        .collect();
    json!({
        "leader": text(&found.leader),
        "address": text(&found.address),
        "admin_address": text(&found.admin_address),
        "term": found.term.map(|t| term(Some(t))),
        "lease": (found.lease != 0).then(|| format!("{:x}", found.lease)),
        "since": found.since_ms.map(time),
        "asked": found.balancer,
        "asked_state": state(found),
        "standbys": standbys,
        "highest_term_seen": term(found.highest_term),
    })
}

fn as_table(found: &GetLeaderResponse) -> comfy_table::Table {
    let dash = |value: &str| if value.is_empty() { "-".to_owned() } else { value.to_owned() };
    let standbys: Vec<&str> = found.standbys.iter().map(|standby| standby.balancer.as_str()).collect();
    let mut rows = table(&["LEADER", "ADDRESS", "ADMIN", "TERM", "SINCE", "STANDBYS", "ASKED", "STATE"]);
    rows.add_row([
        dash(&found.leader),
        dash(&found.address),
        dash(&found.admin_address),
        term(found.term),
        found.since_ms.map_or_else(|| "-".to_owned(), time),
        dash(&standbys.join(" ")),
        found.balancer.clone(),
        state(found).to_owned(),
    ]);
    rows
}

impl Transfer {
    fn run(self) -> Result<(), Failure> {
        let request = TransferLeaderRequest { to: self.to.unwrap_or_default() };
        let answer =
            self.server.call(async |mut c| Ok(c.transfer_leader(request.clone()).await?.into_inner()))?;
        println!("{} leads", answer.leader);
        Ok(())
    }
}

impl Adopt {
    fn run(self) -> Result<(), Failure> {
        if !self.yes {
            let text = "this makes the store as it is the truth, and what was committed after its backup is lost; give --yes if that is what you want";
            return Err(Failure { exit: EXIT_USAGE, ..Failure::new("confirmation_needed", text) });
        }
        let request = AdoptLeaderRequest { force: self.force };
        let answer = self.server.call(async |mut c| Ok(c.adopt_leader(request).await?.into_inner()))?;
        println!("adopted: the term is {}", term(answer.term));
        Ok(())
    }
}
