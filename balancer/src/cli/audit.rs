//! `evenkeel audit`.

use super::Failure;
use super::admin::{Output, Server, table};
use clap::{Args, Subcommand};
use evenkeel_proto::v1::{AuditEntry, ListAuditRequest};
use serde_json::json;

/// Show what was changed by whom
#[derive(Args)]
pub(super) struct Audit {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show entries, newest first
    List(List),
}

#[derive(Args)]
struct List {
    /// Only of this unit
    #[arg(long)]
    unit: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
    limit: u32,
    #[command(flatten)]
    server: Server,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

impl Audit {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Verb::List(List { unit, limit, server, output }) = self.verb;
        let request = ListAuditRequest { unit: unit.unwrap_or_default(), limit };
        let entries =
            server.call(async |mut c| Ok(c.list_audit(request.clone()).await?.into_inner().entries))?;
        match output {
            Output::Json => {
                println!("{:#}", json!({"entries": entries.iter().map(as_json).collect::<Vec<_>>()}))
            }
            Output::Table => print_table(&entries),
        }
        Ok(())
    }
}

fn as_json(entry: &AuditEntry) -> serde_json::Value {
    json!({
        "id": entry.id,
        "at_ms": entry.at_ms,
        "who": entry.who,
        "verb": entry.verb,
        "unit": entry.unit,
        "epoch": entry.plan.as_ref().map(|plan| plan.epoch),
        "detail": entry.detail,
    })
}

fn print_table(entries: &[AuditEntry]) {
    let mut rows = table(&["TIME", "WHO", "VERB", "UNIT", "EPOCH", "DETAIL", "ID"]);
    for entry in entries {
        let at = i64::try_from(entry.at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        rows.add_row([
            at.map_or_else(|| entry.at_ms.to_string(), |at| format!("{at:.0}")),
            entry.who.clone(),
            entry.verb.clone(),
            entry.unit.clone(),
            entry.plan.as_ref().map_or("-".to_owned(), |plan| plan.epoch.to_string()),
            entry.detail.clone(),
            entry.id.clone(),
        ]);
    }
    println!("{rows}");
}
