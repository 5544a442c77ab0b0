//! `evenkeel plan`: what was planned, back to an older plan, and the end of one under way.

use super::Failure;
use super::admin::{Output, Plans, Server};
use super::changes::ChangeFlags;
use clap::{Args, Subcommand};
use evenkeel_proto::v1::*;
use std::time::Duration;

/// A rollback is answered when its first plan is committed: the balancer gives a plan a minute to be prepared, unless told
/// otherwise.
const ROLLBACK_MAX: Duration = Duration::from_secs(120);

/// Show plans of a unit, go back to an older one, give up one that is being prepared
#[derive(Args)]
pub(super) struct Plan {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show committed plans of a unit, newest first
    List(Plans),
    /// Show one committed plan with the placement of every layer
    Get(Get),
    /// Go back to the content of an older plan, under a new epoch, and pause the unit
    Rollback(Rollback),
    /// Give up the plan that is being prepared; a committed one is only rolled forward
    Abort(Abort),
}

impl Plan {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::List(list) => list.run(),
            Verb::Get(get) => get.run(),
            Verb::Rollback(rollback) => rollback.run(),
            Verb::Abort(abort) => abort.run(),
        }
    }
}

#[derive(Args)]
struct Get {
    /// The unit
    unit: String,
    /// The plan [default: the last committed one]
    #[arg(long)]
    epoch: Option<u64>,
    #[command(flatten)]
    server: Server,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

impl Get {
    fn run(self) -> Result<(), Failure> {
        let request = GetPlanRequest { unit: self.unit, epoch: self.epoch };
        let found = self.server.call(async |mut c| Ok(c.get_plan(request.clone()).await?.into_inner()))?;
        let (plan, summary) = (found.plan.unwrap_or_default(), found.summary.unwrap_or_default());
        if self.output == Output::Json {
            let mut said = crate::page::plans_json(std::slice::from_ref(&summary))["plans"][0].take();
            let layers = plan.layers.iter().map(
                |layer| serde_json::json!({"expert_plus_one": layer.expert_plus_one, "share": layer.share}),
            );
            said["layers"] = layers.collect();
            println!("{said:#}");
            return Ok(());
        }
        super::admin::print_plans(std::slice::from_ref(&summary));
        for (at, layer) in plan.layers.iter().enumerate() {
            let slots = layer.expert_plus_one.iter().map(|expert| match expert.checked_sub(1) {
                Some(expert) => expert.to_string(),
                None => "-".to_owned(),
            });
            println!("layer {at}: {}", slots.collect::<Vec<_>>().join(" "));
        }
        Ok(())
    }
}

#[derive(Args)]
struct Rollback {
    /// The unit
    unit: String,
    /// The plan whose content is wanted
    #[arg(long)]
    to: u64,
    #[command(flatten)]
    change: ChangeFlags,
}

impl Rollback {
    fn run(self) -> Result<(), Failure> {
        let Self { unit, to, change } = self;
        change.order_within(ROLLBACK_MAX, async |mut c, request_id, dry_run| {
            let request = RollbackRequest { unit: unit.clone(), epoch: to, request_id, dry_run };
            Ok(c.rollback(request).await?.into_inner().change)
        })
    }
}

#[derive(Args)]
struct Abort {
    /// The unit
    unit: String,
    /// Only this plan [default: whichever is being prepared]
    #[arg(long)]
    epoch: Option<u64>,
    #[command(flatten)]
    change: ChangeFlags,
}

impl Abort {
    fn run(self) -> Result<(), Failure> {
        let Self { unit, epoch, change } = self;
        change.order(async |mut c, request_id, dry_run| {
            let request = AbortPlanRequest { unit: unit.clone(), epoch, request_id, dry_run };
            Ok(c.abort_plan(request).await?.into_inner().change)
        })
    }
}
