//! `evenkeel-agent`: see `evenkeel-agent --help`.

use evenkeel_agent::config::{self, Config, Request};
use evenkeel_agent::failure::Failure;
use evenkeel_agent::{run, verify};
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    match config::read(std::env::args_os()).and_then(perform) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.exit)
        }
    }
}

fn perform(request: Request) -> Result<ExitCode, Failure> {
    match request {
        Request::Print(text) => {
            print(text.trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Request::Verify(flags) => {
            let report = runtime()?.block_on(verify::run(&flags))?;
            print(report.render(flags.output).trim_end());
            Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) })
        }
        Request::Run(config) => {
            let runtime = runtime()?;
            let result = runtime.block_on(serve(*config));
            // Staging threads look for the end every 100 ms.
            runtime.shutdown_timeout(Duration::from_secs(1));
            result.map(|()| ExitCode::SUCCESS)
        }
    }
}

/// Writes a line; a reader that went away is no reason to fail.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        // The agent shares its host with the engine: a few threads for messages, the rest for copies.
        .worker_threads(2)
        .max_blocking_threads(32)
        .enable_all()
        .build()
        .map_err(|error| Failure::other("runtime_failed", error))
}

async fn serve(config: Config) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log)
        .map_err(|error| Failure::usage("config_invalid", format!("log is {:?}: {error}", config.log)))?;
    let terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(terminal).with_writer(std::io::stderr).init();
    let failed = |error: std::io::Error| Failure::other("signal_failed", error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut running = run::start(config).await?;
    print(&running.ports().to_json());
    tokio::select! {
        failure = running.failed() => return Err(failure),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    running.stop().await;
    Ok(())
}
