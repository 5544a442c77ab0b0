//! The independent check at the end: a process of its own reads every slot's bytes of every agent and
//! compares them with what the committed plan and the seed say.

use super::DemoError;
use super::cluster::Cluster;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tokio::process::Command;

/// What the verifier found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Verified {
    /// Agents whose slots were read.
    pub agents: u64,
    /// Slots compared byte for byte.
    pub slots_compared: u64,
    /// Bytes compared.
    pub bytes_compared: u64,
    /// Slots that differ.
    pub slots_wrong: u64,
}

/// Runs `evenkeel-agent verify` over all agents.
pub(super) async fn verify(cluster: &Cluster, agent_program: &Path) -> Result<Verified, DemoError> {
    let mut command = Command::new(agent_program);
    command.arg("verify").arg("--admin").arg(cluster.balancer.admin.to_string());
    for agent in cluster.agents.iter().flatten() {
        command.arg("--state").arg(&agent.state_dir);
    }
    command.args(["--output", "json"]).kill_on_drop(true);
    let spawn = |source| DemoError::Spawn { program: agent_program.to_owned(), source };
    let output = command.output().await.map_err(spawn)?;
    serde_json::from_slice(&output.stdout).map_err(|e| DemoError::Verify {
        status: output.status.to_string(),
        message: format!("{e}; {}", String::from_utf8_lossy(&output.stderr).trim()),
    })
}
