//! Agents beside thousands of connections that are half open, or open and slow.

use crate::balancer::Balancer;
use crate::fleet::{Fleet, FleetShape};
use crate::table::Table;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Rounds of each kind, one after the other in turns, so that both see the same noise.
const ROUNDS: usize = 5;
/// Every slow connection says a byte this often.
const BYTE_EVERY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(120);

/// Compares how long `agents` take to be welcomed, with `slow` bad connections beside them and without.
pub(crate) async fn beside(agents: usize, slow: usize, table: &mut Table) -> Result<(), String> {
    eprintln!("bench_control: {agents} agents beside {slow} slow connections");
    let balancer = Balancer::start(agents)?;
    let shape = FleetShape { agents, unit: agents };
    // The first round warms both sides up.
    welcomed(&balancer, shape).await?;
    let (mut alone, mut crowded) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(welcomed(&balancer, shape).await?);
        let crowd = crowd(balancer.address(), slow).await;
        crowded.push(welcomed(&balancer, shape).await?);
        drop(crowd);
    }
    let (alone, crowded) = (median(alone), median(crowded));
    table.note("agents welcomed alone, s, median of rounds", format!("{alone:.3}"));
    table.note("beside the slow ones, s", format!("{crowded:.3}"));
    table.goal("slowed by slow connections, ratio", crowded / alone, 1.1, |v| format!("{v:.3}"));
    Ok(())
}

/// Seconds until a new fleet is welcomed.
async fn welcomed(balancer: &Balancer, shape: FleetShape) -> Result<f64, String> {
    let fleet = Fleet::start(balancer, shape)?;
    let began = Instant::now();
    fleet.wait("agents to be welcomed", PATIENCE, |seen| seen.connected == shape.agents).await?;
    let took = began.elapsed().as_secs_f64();
    fleet.stop().await;
    Ok(took)
}

/// Half of the connections never say anything; the other half says a byte of a TLS record now and then. What the balancer
/// cuts is opened again.
async fn crowd(address: &str, count: usize) -> JoinSet<()> {
    let mut crowd = JoinSet::new();
    for n in 0..count {
        let address = address.to_owned();
        crowd.spawn(async move {
            loop {
                if let Ok(stream) = TcpStream::connect(&address).await {
                    if n % 2 == 0 { say_nothing(stream).await } else { say_little(stream).await }
                }
                sleep(BYTE_EVERY).await;
            }
        });
    }
    // All of them are there before the agents come.
    sleep(Duration::from_secs(3)).await;
    crowd
}

/// Until the other side closes.
async fn say_nothing(mut stream: TcpStream) {
    while matches!(stream.read(&mut [0; 16]).await, Ok(1..)) {}
}

/// The header of a handshake record of 512 bytes, of which the rest comes slowly, until the other side closes.
async fn say_little(mut stream: TcpStream) {
    for byte in [0x16, 0x03, 0x01, 0x02, 0x00].into_iter().chain(std::iter::repeat_n(0, 512)) {
        if stream.write_all(&[byte]).await.is_err() {
            return;
        }
        sleep(BYTE_EVERY).await;
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
