//! Fetches expert bytes from another node. Blocking: it runs on the threads that stage.

use super::{FRAME_BYTES_MAX, RESPONSE_BYTES, Request, Status, decode_response};
use evenkeel_kernels::Fingerprint;
use evenkeel_transport::Security;
use evenkeel_transport::blocking::{self, BlockingStream, Protocol, Timeouts};
use evenkeel_transport::credentials::Server;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a connection may take to open, its handshake included.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How long the other side may send nothing.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How often a waiting read looks whether it is still wanted.
const POLL: Duration = Duration::from_millis(100);

/// Set when the work is not wanted any more.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Says that the work is not wanted any more.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is not.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A connection to another node's transfer port.
#[derive(Debug)]
pub struct Peer {
    stream: BlockingStream,
    cancel: Cancel,
}

impl Peer {
    /// Connects to host:port; with TLS the other side must be an agent of the cluster.
    pub fn connect(address: &str, security: &Security, cancel: Cancel) -> io::Result<Self> {
        let timeouts = Timeouts { connect: CONNECT_MAX, read: POLL, write: SILENCE_MAX };
        let wanted = || !cancel.is_cancelled();
        let stream =
            blocking::connect(security, Server::Agent, Protocol::Transfer, address, timeouts, &wanted)?;
        Ok(Self { stream, cancel })
    }

    /// Asks for an expert: the fingerprint its sender has registered, and a reader of exactly its bytes.
    pub fn fetch(&mut self, request: &Request) -> io::Result<(Fingerprint, Body<'_>)> {
        self.stream.write_all(&request.encode())?;
        let mut bytes = [0; RESPONSE_BYTES];
        self.read_fully(&mut bytes)?;
        match decode_response(&bytes) {
            Some((Status::Ok, fingerprint)) => {
                Ok((Fingerprint(fingerprint), Body { peer: self, left: request.length, frame: 0 }))
            }
            Some((status, _)) => Err(io::Error::other(format!("the other node answered {}", status.code()))),
            None => Err(invalid("the other side does not speak the transfer protocol".to_owned())),
        }
    }

    fn read_fully(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.read_some(&mut bytes[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        Ok(())
    }

    fn read_some(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let begun = Instant::now();
        loop {
            if self.cancel.is_cancelled() {
                return Err(io::Error::other("not wanted any more"));
            }
            match self.stream.read(bytes) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if begun.elapsed() > SILENCE_MAX {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// The bytes of one expert, as they arrive.
#[derive(Debug)]
pub struct Body<'a> {
    peer: &'a mut Peer,
    left: u64,
    frame: usize,
}

impl Read for Body<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || bytes.is_empty() {
            return Ok(0);
        }
        if self.frame == 0 {
            let mut length = [0; 4];
            self.peer.read_fully(&mut length)?;
            self.frame = u32::from_le_bytes(length) as usize;
            if self.frame == 0 {
                return Err(io::Error::other("the other node could not read its slot to the end"));
            }
            if self.frame > FRAME_BYTES_MAX || self.frame as u64 > self.left {
                let (frame, left) = (self.frame, self.left);
                return Err(invalid(format!(
                    "a frame of {frame} bytes: at most {FRAME_BYTES_MAX}, and {left} are left"
                )));
            }
        }
        let wanted = bytes.len().min(self.frame);
        let count = self.peer.read_some(&mut bytes[..wanted])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.frame -= count;
        self.left -= count as u64;
        Ok(count)
    }
}
