//! Serves the node's slots to other nodes.

use super::{FRAME_BYTES_MAX, REQUEST_BYTES, Request, Status, WeightsDigest, encode_response};
use crate::metrics::AgentMetrics;
use evenkeel_transport::{Connection, Incoming};
use evenkeel_worker::WorkerBackend;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Connections served at a time: the largest unit of today's models has 40 nodes, each fetching over four.
pub const CONNECTIONS_MAX: usize = 256;
/// How long a connection may stay idle between requests.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How long the other side may take to accept a frame: the slowest accepted link is 400 kB/s.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// What a connection needs.
#[derive(Clone)]
pub struct Serve {
    /// Whose slots are served.
    pub worker: Arc<dyn WorkerBackend>,
    /// The node's weights.
    pub weights: WeightsDigest,
    /// Where requests are counted.
    pub metrics: Arc<AgentMetrics>,
    /// Connections served at a time; further ones are told that it is busy.
    pub connections_max: usize,
}

/// Serves until shutdown.
pub async fn run(mut incoming: Incoming, serve: Serve, mut shutdown: watch::Receiver<bool>) {
    let permits = Arc::new(Semaphore::new(serve.connections_max));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            Some(_) = connections.join_next() => continue,
            accepted = incoming.next_connection() => accepted,
        };
        let mut stream = accepted.expect("connections come as long as they are asked for");
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            serve.metrics.transfer_request(Status::Busy.code()).increment(1);
            connections.spawn(async move {
                // Whether it is heard or not, the close says enough.
                let _ = write(&mut stream, &encode_response(Status::Busy, 0)).await;
            });
            continue;
        };
        let serve = serve.clone();
        connections.spawn(async move {
            let _permit = permit;
            if let Err(error) = serve.connection(&mut stream).await {
                tracing::debug!(%error, "transfer connection ended");
            }
        });
    }
}

impl Serve {
    async fn connection(&self, stream: &mut Connection) -> io::Result<()> {
        loop {
            let mut bytes = [0; REQUEST_BYTES];
            match timeout(IDLE_MAX, stream.read_exact(&mut bytes)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(()),
            }
            let (status, fingerprint, request) = self.check(&bytes);
            write(stream, &encode_response(status, fingerprint)).await?;
            let outcome = match request {
                Some(request) => self.send(stream, request).await?,
                None => status,
            };
            self.metrics.transfer_request(outcome.code()).increment(1);
            if status == Status::BadRequest {
                return Ok(());
            }
        }
    }

    fn check(&self, bytes: &[u8; REQUEST_BYTES]) -> (Status, u64, Option<Request>) {
        let Some(request) = Request::decode(bytes) else { return (Status::BadRequest, 0, None) };
        if request.weights != self.weights {
            return (Status::OtherWeights, 0, None);
        }
        if request.length != self.worker.layout().shape().expert_bytes {
            return (Status::WrongLength, 0, None);
        }
        match self.worker.registered(request.slot) {
            Some(held) if held.expert == request.expert => (Status::Ok, held.fingerprint.0, Some(request)),
            _ => (Status::NotHeld, 0, None),
        }
    }

    async fn send(&self, stream: &mut Connection, request: Request) -> io::Result<Status> {
        let mut offset = 0;
        while offset < request.length {
            let length = usize::try_from(request.length - offset).unwrap_or(usize::MAX).min(FRAME_BYTES_MAX);
            let worker = self.worker.clone();
            let read = tokio::task::spawn_blocking(move || {
                // Header and bytes in one write.
                let mut frame = vec![0; 4 + length];
                frame[..4].copy_from_slice(&u32::try_from(length).expect("a frame is small").to_le_bytes());
                worker.read(request.slot, request.expert, offset, &mut frame[4..]).map(|()| frame)
            });
            match read.await.map_err(io::Error::other)? {
                Ok(frame) => write(stream, &frame).await?,
                Err(error) => {
                    tracing::warn!(%error, "a slot could not be read to its end");
                    write(stream, &0u32.to_le_bytes()).await?;
                    return Ok(Status::Fault);
                }
            }
            offset += length as u64;
        }
        Ok(Status::Ok)
    }
}

async fn write(stream: &mut Connection, bytes: &[u8]) -> io::Result<()> {
    let written = timeout(WRITE_MAX, async {
        stream.write_all(bytes).await?;
        // What TLS has taken may still lie in its buffer.
        stream.flush().await
    });
    written.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
