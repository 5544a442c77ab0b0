//! Commands that change something in a running balancer. Each has a request id under which it acts once, so that it can be
//! repeated when nobody knows whether it was carried out.

use super::Failure;
use super::admin::{DEADLINE, Output, Server};
use clap::Args;
use evenkeel_proto::v1::admin_service_client::AdminServiceClient;
use evenkeel_proto::v1::*;
use serde_json::json;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tonic::transport::Channel;

/// What every change takes.
#[derive(Args)]
pub(super) struct ChangeFlags {
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Name of this change: the same one acts once within a day, however often it is given [default: a new one]
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    #[command(flatten)]
    server: Server,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

impl ChangeFlags {
    /// Orders the change, and says what was done; on failure, how to repeat it.
    pub(super) fn order(
        self,
        work: impl AsyncFn(AdminServiceClient<Channel>, String, bool) -> Result<Option<Change>, tonic::Status>,
    ) -> Result<(), Failure> {
        self.order_within(DEADLINE, work)
    }

    /// The same for a change that takes longer.
    pub(super) fn order_within(
        self,
        within: Duration,
        work: impl AsyncFn(AdminServiceClient<Channel>, String, bool) -> Result<Option<Change>, tonic::Status>,
    ) -> Result<(), Failure> {
        let Self { dry_run, request_id, server, output } = self;
        let id = request_id.unwrap_or_else(new_request_id);
        let ask = async |client| work(client, id.clone(), dry_run).await;
        let change = server.call_within(within, ask).map_err(|failure| {
            if dry_run {
                return failure;
            }
            let message = format!("{} (to repeat it: --request-id {id})", failure.message);
            Failure { message, ..failure }
        })?;
        let change = change.unwrap_or_default();
        match output {
            Output::Json => {
                let said = json!({
                    "audit": change.audit, "text": change.text, "repeated": change.repeated,
                    "request_id": id, "dry_run": dry_run,
                });
                println!("{said:#}");
            }
            Output::Table if dry_run => println!("would be done: {}", change.text),
            Output::Table if change.repeated => {
                println!("was done before: {} (audit {})", change.text, change.audit)
            }
            Output::Table => println!("{} (audit {})", change.text, change.audit),
        }
        Ok(())
    }
}

/// Differs from every other on this machine; that it differs from those of other machines makes its time and the number
/// of its process likely enough for a day.
fn new_request_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("cli-{}-{}", now.as_nanos(), std::process::id())
}

/// Make no new plan for a unit until it is resumed
#[derive(Args)]
pub(super) struct Pause {
    /// The unit
    unit: String,
    /// End by itself after this time: 90s, 15m, 8h
    #[arg(long = "for", value_name = "TIME", value_parser = milliseconds)]
    for_ms: Option<u64>,
    #[command(flatten)]
    change: ChangeFlags,
}

impl Pause {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { unit, for_ms, change } = self;
        change.order(async |mut c, request_id, dry_run| {
            let request = PauseRequest { unit: unit.clone(), for_ms, request_id, dry_run };
            Ok(c.pause(request).await?.into_inner().change)
        })
    }
}

/// Make plans for a unit again
#[derive(Args)]
pub(super) struct Resume {
    /// The unit
    unit: String,
    #[command(flatten)]
    change: ChangeFlags,
}

impl Resume {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { unit, change } = self;
        change.order(async |mut c, request_id, dry_run| {
            let request = ResumeRequest { unit: unit.clone(), request_id, dry_run };
            Ok(c.resume(request).await?.into_inner().change)
        })
    }
}

/// Empty a node, so that it can be switched off
///
/// Its experts are copied to other nodes plan by plan while it serves. `evenkeel status` shows when it is empty.
#[derive(Args)]
pub(super) struct Drain {
    /// The node
    node: String,
    #[command(flatten)]
    change: ChangeFlags,
}

impl Drain {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { node, change } = self;
        change.order(async |mut c, request_id, dry_run| {
            let request = DrainRequest { node: node.clone(), request_id, dry_run };
            Ok(c.drain(request).await?.into_inner().change)
        })
    }
}

/// Use a drained node again
#[derive(Args)]
pub(super) struct Undrain {
    /// The node
    node: String,
    #[command(flatten)]
    change: ChangeFlags,
}

impl Undrain {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { node, change } = self;
        change.order(async |mut c, request_id, dry_run| {
            let request = UndrainRequest { node: node.clone(), request_id, dry_run };
            Ok(c.undrain(request).await?.into_inner().change)
        })
    }
}

#[derive(Args)]
struct PinFlags {
    /// The unit
    unit: String,
    /// The layer, counted from the first MoE layer
    #[arg(long)]
    layer: u32,
    /// The logical expert
    #[arg(long)]
    expert: u32,
    /// The rank
    #[arg(long)]
    rank: u32,
}

impl PinFlags {
    fn pin(&self) -> Option<PinnedExpert> {
        Some(PinnedExpert { layer: self.layer, expert: self.expert, rank: self.rank })
    }
}

/// Keep a replica of an expert on a rank
#[derive(Args)]
pub(super) struct Pin {
    #[command(flatten)]
    pin: PinFlags,
    #[command(flatten)]
    change: ChangeFlags,
}

impl Pin {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { pin, change } = self;
        change.order(async |mut c, request_id, dry_run| {
            let request = PinRequest { pin: pin.pin(), unit: pin.unit.clone(), request_id, dry_run };
            Ok(c.pin(request).await?.into_inner().change)
        })
    }
}

/// Let a pinned replica move again
#[derive(Args)]
pub(super) struct Unpin {
    #[command(flatten)]
    pin: PinFlags,
    #[command(flatten)]
    change: ChangeFlags,
}

impl Unpin {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { pin, change } = self;
        change.order(async |mut c, request_id, dry_run| {
            let request = UnpinRequest { pin: pin.pin(), unit: pin.unit.clone(), request_id, dry_run };
            Ok(c.unpin(request).await?.into_inner().change)
        })
    }
}

/// Reads 90s, 15m, 8h, 2d.
fn milliseconds(text: &str) -> Result<u64, String> {
    let refused = || format!("{text:?} is no time: give a number above 0 and one of s, m, h, d, as in 15m");
    let unit_ms = match text.chars().last() {
        Some('s') => 1_000,
        Some('m') => 60_000,
        Some('h') => 3_600_000,
        Some('d') => 86_400_000,
        _ => return Err(refused()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| refused())?;
    number.checked_mul(unit_ms).filter(|&ms| ms > 0).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        for (text, ms) in [("90s", 90_000), ("15m", 900_000), ("8h", 28_800_000), ("2d", 172_800_000)] {
            assert_eq!(milliseconds(text), Ok(ms), "{text}");
        }
        for text in
            ["", "s", "0s", "15", "-1m", "1.5h", "99999999999999999999d", "18446744073709551615d", "5µ"]
        {
            assert!(milliseconds(text).is_err(), "{text}");
        }
    }
}
