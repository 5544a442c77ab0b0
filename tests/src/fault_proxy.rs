//! A proxy on loopback that stands between two processes and fails as networks do: it delays, stalls, corrupts, cuts, refuses.
//!
//! ```text
//! client -> FaultProxy::address -> [faults of this moment] -> target
//! ```
//!
//! Faults are read anew for every chunk, so that they can be changed while connections are up.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes moved at a time: small enough that a corrupted or delayed chunk is a part of a message.
const CHUNK_BYTES: usize = 4096;
/// How often a stalled direction looks whether it may go on, and an idle one whether it was cut.
const POLL: Duration = Duration::from_millis(5);

/// What is wrong with the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// Every chunk is late by this much.
    pub delay: Duration,
    /// One bit of each chunk that goes to the target is flipped.
    pub corrupt_to_target: bool,
    /// One bit of each chunk that comes from the target is flipped.
    pub corrupt_to_client: bool,
    /// Nothing moves, but connections stay open: a partition.
    pub stalled: bool,
    /// New connections are reset at once.
    pub refusing: bool,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    faults: Mutex<Faults>,
    /// Connections opened under an earlier number are cut.
    generation: AtomicU64,
    accepted: AtomicU64,
}

impl Shared {
    fn faults(&self) -> Faults {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module. It serves until the process ends: tests are short, and a listener that vanishes would be a fault of its own.
#[derive(Debug, Clone)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl FaultProxy {
    /// A proxy without faults in front of `target`.
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared {
            target,
            faults: Mutex::default(),
            generation: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                serving.accepted.fetch_add(1, Ordering::Relaxed);
                accept(&serving, client);
            }
        });
        Self { address, shared }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections taken so far, the refused ones included.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Replaces the faults, for open connections too.
    pub fn set(&self, faults: Faults) {
        *self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// Cuts every open connection.
    pub fn cut(&self) {
        self.shared.generation.fetch_add(1, Ordering::Relaxed);
    }
}

fn accept(shared: &Arc<Shared>, client: TcpStream) {
    if shared.faults().refusing {
        return;
    }
    let Ok(target) = TcpStream::connect(shared.target) else { return };
    let generation = shared.generation.load(Ordering::Relaxed);
    let both = || Some((client.try_clone().ok()?, target.try_clone().ok()?));
    let Some((client_out, target_out)) = both() else { return };
    for (from, to, to_target) in [(client, target_out, true), (target, client_out, false)] {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            let direction = Direction { from, to, to_target, generation };
            direction.run(&shared);
        });
    }
}

struct Direction {
    from: TcpStream,
    to: TcpStream,
    to_target: bool,
    generation: u64,
}

impl Direction {
    /// Moves chunks until either end is gone or the connection is cut; then both ends are closed.
    fn run(mut self, shared: &Shared) {
        let mut chunk = [0; CHUNK_BYTES];
        let _ = self.from.set_read_timeout(Some(POLL));
        while let Some(length) = self.next(shared, &mut chunk) {
            let faults = shared.faults();
            std::thread::sleep(faults.delay);
            let corrupt = if self.to_target { faults.corrupt_to_target } else { faults.corrupt_to_client };
            if corrupt {
                chunk[length / 2] ^= 1;
            }
            if self.to.write_all(&chunk[..length]).is_err() {
                break;
            }
        }
        let _ = self.from.shutdown(Shutdown::Both);
        let _ = self.to.shutdown(Shutdown::Both);
    }

    /// The next chunk's length; `None` at the end of the connection.
    fn next(&mut self, shared: &Shared, chunk: &mut [u8]) -> Option<usize> {
        loop {
            if shared.generation.load(Ordering::Relaxed) != self.generation {
                return None;
            }
            if shared.faults().stalled {
                std::thread::sleep(POLL);
                continue;
            }
            match self.from.read(chunk) {
                Ok(0) => return None,
                Ok(length) => return Some(length),
                Err(e)
                    if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
                Err(_) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets, one connection after the other.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut bytes = [0; 64];
                    while let Ok(length @ 1..) = stream.read(&mut bytes) {
                        if stream.write_all(&bytes[..length]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        address
    }

    fn connect(proxy: &FaultProxy) -> TcpStream {
        let stream = TcpStream::connect(proxy.address()).expect("the proxy listens");
        stream.set_read_timeout(Some(Duration::from_millis(500))).expect("can be set");
        stream
    }

    fn exchange(stream: &mut TcpStream) -> std::io::Result<[u8; 4]> {
        stream.write_all(b"ping")?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    }

    #[test]
    fn without_faults_bytes_pass_unchanged() {
        let proxy = FaultProxy::start(echo());
        assert_eq!(exchange(&mut connect(&proxy)).expect("answered"), *b"ping");
        assert_eq!(proxy.accepted(), 1);
    }

    #[test]
    fn bytes_are_corrupted_in_the_direction_that_was_asked_for() {
        let proxy = FaultProxy::start(echo());
        let mut stream = connect(&proxy);
        proxy.set(Faults { corrupt_to_client: true, ..Faults::default() });
        assert_ne!(exchange(&mut stream).expect("answered"), *b"ping");
        proxy.set(Faults { corrupt_to_client: true, corrupt_to_target: true, ..Faults::default() });
        assert_eq!(exchange(&mut stream).expect("answered"), *b"ping", "flipped twice");
    }

    #[test]
    fn a_stalled_connection_stays_open_and_goes_on() {
        let proxy = FaultProxy::start(echo());
        let mut stream = connect(&proxy);
        exchange(&mut stream).expect("answered");
        proxy.set(Faults { stalled: true, ..Faults::default() });
        // What was read just before the stall may still pass.
        stream.write_all(b"pong").expect("taken by the proxy's socket");
        proxy.set(Faults::default());
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).expect("passes after the stall");
        assert_eq!(answer, *b"pong");
    }

    #[test]
    fn a_cut_ends_what_is_open_and_nothing_else() {
        let proxy = FaultProxy::start(echo());
        let mut stream = connect(&proxy);
        exchange(&mut stream).expect("answered");
        proxy.cut();
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "closed");
        assert_eq!(exchange(&mut connect(&proxy)).expect("a new one passes"), *b"ping");
    }

    #[test]
    fn a_refusing_proxy_closes_at_once() {
        let proxy = FaultProxy::start(echo());
        proxy.set(Faults { refusing: true, ..Faults::default() });
        assert!(exchange(&mut connect(&proxy)).is_err());
    }
}
