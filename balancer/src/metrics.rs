//! Every metric of the balancer: its name, its help text, and nothing else. No series per expert: a unit of
//! 58 layers x 256 experts would make 15,000; heat maps come from the API instead.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

macro_rules! metrics {
    ($($kind:ident $constant:ident = $name:literal, $unit:ident, $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*

        /// Registers the help text of every metric with the installed recorder.
        fn describe() {
            $(metrics!(@describe $kind, $constant, $unit, $help);)*
        }

        /// The names of all metrics, for the gate that compares them with dashboards and documents.
        pub const NAMES: &[&str] = &[$($name),*];
    };
    (@describe counter, $c:ident, $unit:ident, $help:literal) => { describe_counter!($c, Unit::$unit, $help) };
    (@describe gauge, $c:ident, $unit:ident, $help:literal) => { describe_gauge!($c, Unit::$unit, $help) };
    (@describe histogram, $c:ident, $unit:ident, $help:literal) => { describe_histogram!($c, Unit::$unit, $help) };
}

metrics! {
    gauge BUILD_INFO = "evenkeel_build_info", Count, "Always 1; the label names the running version.";
    gauge IMBALANCE = "evenkeel_imbalance_ratio", Count, "Max over mean over the ranks of a unit, by kind: expert (measured, mean over layers), prefill_tokens, prefill_attention, decode_kv, decode_requests. 1 is balanced.";
    gauge LOAD_DRIFT = "evenkeel_expert_load_drift_ratio", Count, "Relative standard deviation of an expert's load in one window about its forecast, beyond what sampling makes, mean over the layers of a unit.";
    gauge FORECAST_LAYERS = "evenkeel_forecast_layers", Count, "Layers of a unit by what the loads they are placed for are made of, predictor: last (the last window), average (exponential) or seasonal.";
    gauge PLAN_EPOCH = "evenkeel_plan_epoch", Count, "Number of the last committed plan of a unit.";
    gauge PREDICTED_GAIN = "evenkeel_plan_predicted_gain_ratio", Count, "Imbalance before over imbalance after, as the last plan predicted it on its own window.";
    gauge REALISED_GAIN = "evenkeel_plan_realised_gain_ratio", Count, "Imbalance the plan before would have had in the last clean window, over the imbalance measured in it.";
    counter PLANS_COMMITTED = "evenkeel_plans_committed_total", Count, "Plans committed, by kind: boot, weights (no byte moves) or moves.";
    counter PLANS_ABORTED = "evenkeel_plans_aborted_total", Count, "Plans given up before their commit, by code.";
    counter PLAN_REFUSALS = "evenkeel_plan_refusals_total", Count, "Commands that an agent refused, by code.";
    histogram PLAN_PHASE_SECONDS = "evenkeel_plan_phase_seconds", Seconds, "Time of a plan in each phase: prepare (to the last node staged), commit (to the last node flipped).";
    counter SLOT_MOVES = "evenkeel_slot_moves_total", Count, "Expert slots that received another expert by a committed plan.";
    counter MOVED_BYTES = "evenkeel_moved_bytes_total", Bytes, "Expert weight bytes staged, by path: local (same node) or peer.";
    counter SLOTS_VERIFIED = "evenkeel_slots_verified_total", Count, "Staged slots whose bytes were compared with their fingerprint.";
    histogram SOLVE_SECONDS = "evenkeel_solve_seconds", Seconds, "Time of one solve of all layers of a unit.";
    gauge KV_USED = "evenkeel_kv_used_tokens", Count, "KVCache in use on a rank, in tokens, as its agent reported.";
    gauge KV_CAPACITY = "evenkeel_kv_capacity_tokens", Count, "KVCache of a rank, in tokens, as its agent reported.";
    gauge REQUESTS = "evenkeel_requests", Count, "Running requests of a rank, as its agent reported.";
    counter TOKENS = "evenkeel_tokens_total", Count, "Tokens of a unit since its workers started, by kind: in_hit (found in a prefix cache), in_miss, out.";
    gauge STEP_SECONDS = "evenkeel_step_seconds", Seconds, "Time of an engine step over the last report interval, slowest rank of the unit, by percentile (50, 99).";
    histogram ROUTING_SECONDS = "evenkeel_routing_decision_seconds", Seconds, "Time to decide one batch of routing events.";
    counter ROUTING_DECISIONS = "evenkeel_routing_decisions_total", Count, "Routing decisions, by outcome: dispatch, hold, refuse, migrate (a running request moves), lost (its rank went down).";
    counter RECORDED_BATCHES = "evenkeel_recorded_batches_total", Count, "Batches of routing events for the flight recorder, by outcome: written, or dropped because the disk did not keep up.";
    gauge STEP_COST = "evenkeel_step_cost_microseconds", Count, "Fitted cost of a step of a unit, by part: fixed, token, pair, kv_token, request.";
    gauge STEP_COST_ERROR = "evenkeel_step_cost_error_ratio", Count, "Relative error of the fitted step cost on reports that it had not seen, by percentile (50, 90).";
    gauge STEP_COST_R_SQUARED = "evenkeel_step_cost_r_squared", Count, "Part of the variance of step times that the fitted cost explains; 1 is all of it.";
    gauge STEP_REPORTS = "evenkeel_step_reports", Count, "Step reports since the unit formed, by outcome: used, clipped (their error was cut), dropped.";
    gauge RANK_REPORTS_DROPPED = "evenkeel_rank_reports_dropped", Count, "Rank reports not used since the unit formed, by reason: stale (repeated or older), foreign (they name a dispatch of another router).";
    gauge PREFIX_EVENTS = "evenkeel_prefix_events", Count, "KV events of a prefill unit since it formed, by outcome: applied, unknown_parent, stale, gap (a rank was forgotten), evicted_block.";
    gauge HELD_PROMPTS = "evenkeel_held_prompts", Count, "Prompts held centrally until the next cohort.";
    gauge MASS_LOSS = "evenkeel_mass_loss", Count, "1 while no plan is made because many nodes of a unit, or of all units (unit \"all\"), were lost at once.";
    counter WORKERS_HUNG = "evenkeel_workers_hung_total", Count, "Nodes that did not apply a committed plan for seconds: their workers may hang.";
    gauge AGENTS = "evenkeel_agents", Count, "Agents of a unit, by state: connected or away.";
    gauge LEADER = "evenkeel_leader", Count, "1 while this balancer commands.";
    gauge FROZEN = "evenkeel_frozen", Count, "1 while this balancer leads but the store has not confirmed that in time: it commands nothing.";
    gauge STORE_NOT_ADOPTED = "evenkeel_store_not_adopted", Count, "1 while this balancer would lead but the store's revisions began again: `evenkeel leader adopt` is needed.";
    gauge TERM = "evenkeel_leader_term", Count, "Last term in which this balancer led, by part: generation, revision.";
    gauge STANDBYS = "evenkeel_standbys", Count, "Balancers that stand by and are connected to this one.";
    counter ELECTIONS = "evenkeel_elections_total", Count, "Terms that this balancer began, by cause: vacant (nobody led), lease_ended, assisted (the leader was seen to die), handed_over, adopted.";
    counter REIGNS_ENDED = "evenkeel_reigns_ended_total", Count, "Terms of this balancer that are over, by reason: lease_ended, lost, store_restored, handed_over, stopped, adopted.";
    histogram HANDOVER_SECONDS = "evenkeel_handover_seconds", Seconds, "From the first sign that the leader goes to the term of this balancer, by cause.";
    histogram STORE_SECONDS = "evenkeel_store_seconds", Seconds, "Time of a store operation, by operation and outcome: ok, refused, or the code of its error.";
    counter WATCH_RESTARTS = "evenkeel_watch_restarts_total", Count, "Watches of the store that began again, by reason: broken (no answer), or lost (changes were compacted, or the store is another one).";
    counter AUTH_FAILURES = "evenkeel_auth_failures_total", Count, "Connections and calls refused for who their caller is or did not show, by code.";
    counter CONNECTIONS_REFUSED = "evenkeel_connections_refused_total", Count, "Connections not taken for a bound or a fault of this host, by port and code.";
    gauge CERTIFICATE_EXPIRY = "evenkeel_certificate_expiry_timestamp_seconds", Seconds, "When the certificate in use ends, in seconds since 1970; without TLS there is none.";
    counter CERTIFICATE_RELOADS = "evenkeel_certificate_reloads_total", Count, "Changes of the certificate's files, by outcome: reloaded, or broken (the old ones stay in use).";
    gauge INSECURE_PLAINTEXT = "evenkeel_insecure_plaintext", Count, "1 while plaintext is allowed on addresses that are not loopback.";
    counter ADMIN_REQUESTS = "evenkeel_admin_requests_total", Count, "Admin requests, by verb and code.";
    counter DECODE_ERRORS = "evenkeel_decode_errors_total", Count, "Messages that could not be understood, by source.";
    counter DROPPED_REPORTS = "evenkeel_dropped_reports_total", Count, "Load segments not used, by reason.";
    counter LOAD_WINDOWS = "evenkeel_load_windows_total", Count, "Load windows closed, by completeness: clean, mixed (more than one plan) or given_up.";
}

/// Bucket bounds for times in seconds: 10 us (a batch of routing events) to 60 s (the longest phase).
const SECONDS_BUCKETS: [f64; 14] =
    [1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0];

/// Installs the process-wide recorder.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
        .install_recorder()?;
    describe();
    metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_prefixed_and_in_base_units() {
        let mut names = NAMES.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NAMES.len());
        for name in NAMES {
            assert!(name.starts_with("evenkeel_"), "{name}");
            assert!(!name.ends_with("_ms") && !name.ends_with("_us"), "{name}: seconds are the base unit");
        }
    }
}
