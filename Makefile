# Two commands are all a stranger needs: `make demo` and `make test`. Each does its own set-up.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

SEEDS ?= 1000
MUTANT_SEEDS ?= 8000

.PHONY: help demo test sim sim-mutants test-rust test-page test-chart test-foreign test-kernels test-fuzz lint build-demo bench-experts bench-requests bench-failover bench-control gpu-bundle gpu-test gpu-bench

help: ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -ts '	'

build-demo:
	cargo build --release --locked -p evenkeel -p evenkeel-agent --bins

demo: build-demo ## Replay a real trace through balancer, agents and simulated workers; ends with a table
	target/release/evenkeel demo $(DEMO_ARGS)

test: test-rust sim test-fuzz test-kernels test-foreign test-chart test-page ## Run every test

test-rust: ## Unit, property, golden and end-to-end tests
	tests/setup/nextest
	tests/setup/etcd
	cargo build --locked --workspace --bins
	cargo nextest run --locked --workspace --no-fail-fast
	cargo test --locked --workspace --doc --quiet

sim: ## Simulate the protocol over SEEDS=1000 seeds and check its invariants; SIM_ARGS='--seed 7' replays one
	cargo run --release --locked -p evenkeel-simulate --example protocol_sim -- $(if $(SIM_ARGS),$(SIM_ARGS),--seeds $(SEEDS))

sim-mutants: ## Plant bugs in the protocol, one at a time, and see the simulation catch them
	cargo run --release --locked -p evenkeel-simulate --features mutants --example protocol_sim -- --mutants --seeds $(MUTANT_SEEDS) $(SIM_ARGS)

test-fuzz: ## Feed every decoder with damaged input, FUZZ_ARGS='--seconds 600' for longer
	cargo run --locked --quiet -p evenkeel-fuzz -- $(FUZZ_ARGS)

test-foreign: ## Call the admin service with a foreign client, through reflection
	cargo build --locked --workspace --bins
	tests/foreign/run

test-chart: ## Render and validate the Helm chart, compare the dashboard with the metrics
	tests/chart/run

test-kernels: ## Compile every GPU kernel without a GPU; a spilled register fails
	kernels/check/run

test-page: ## Drive the page in a real browser
	tests/page/run

lint: ## Formatting and lints, warnings denied
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

bench-experts: ## Expert placement: every planner on the same loads in one run
	balancer/simulate/loads/prepare target/expert-loads
	cargo run --release --locked -p evenkeel-simulate --example bench_experts -- --loads target/expert-loads $(BENCH_ARGS)

bench-requests: ## Request routing: every policy on the same arrivals in one run
	cargo run --release --locked -p evenkeel-simulate --example bench_requests -- $(BENCH_ARGS)

bench-control: ## The balancer with 10,000 agents over TLS, a leader loss, slow connections; ends with the goals, met or missed
	cargo build --locked --release -p evenkeel --bin evenkeel
	cargo run --release --locked -p evenkeel-tests --example bench_control -- $(BENCH_ARGS)

bench-failover: ## kill -9 of the leader to the first accepted write: three balancers, three members of etcd, 100 kills
	tests/setup/etcd >/dev/null
	cargo build --locked --release -p evenkeel -p evenkeel-agent --bins
	EVENKEEL_KILLS=$${EVENKEEL_KILLS:-100} cargo test --release --locked -p evenkeel-tests --test leader -- --exact --nocapture a_killed_leader_is_followed_before_its_lease_ends

gpu-bundle: ## A folder that tests and measures the kernels on a machine with a GPU, without a toolchain
	kernels/gpu/bundle

gpu-test: gpu-bundle ## The kernels against their references, where a GPU is present
	target/gpu-bundle/run test

gpu-bench: gpu-bundle ## The kernels' times per node of a CUDA graph, where a GPU is present
	target/gpu-bundle/run bench
