//! The transfer port against well-meaning and other clients.

mod stand_in;

use evenkeel_agent::metrics::AgentMetrics;
use evenkeel_agent::transfer::client::{Cancel, Peer};
use evenkeel_agent::transfer::{Request, server};
use evenkeel_core::ids::{ExpertId, LayerId};
use evenkeel_transport::{Incoming, Limits, Port, Security};
use evenkeel_worker::simulated::SimulatedWorker;
use evenkeel_worker::{NodeLayout, SlotAddress, WorkerBackend as _};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use tokio::sync::watch;

struct Server {
    address: SocketAddr,
    metrics: Arc<AgentMetrics>,
    worker: Arc<SimulatedWorker>,
    _directory: tempfile::TempDir,
    _stop: watch::Sender<bool>,
}

async fn start(connections_max: usize) -> Server {
    let unit = stand_in::Unit::new();
    let directory = tempfile::tempdir().unwrap();
    let layout = NodeLayout::new(unit.topology.shape().clone(), unit.topology.ranks_of(0).collect());
    let header = evenkeel_worker::simulated::slots::Header {
        layout,
        weights_seed: 1,
        unit: "u".into(),
        node: "n0".into(),
    };
    let worker = Arc::new(SimulatedWorker::open(directory.path(), header).unwrap().0);
    worker.boot(&Arc::new(unit.boot()), None).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Arc::new(AgentMetrics::default());
    let (stop, stopped) = watch::channel(false);
    let (held, metrics_held) = (worker.clone(), metrics.clone());
    let serve = server::Serve { worker: held, weights: [7; 32], metrics: metrics_held, connections_max };
    let limits = Limits::new(connections_max + 1);
    let incoming =
        Incoming::new(listener, Port::Transfer, Security::Loopback, limits, metrics.clone()).unwrap();
    tokio::spawn(server::run(incoming, serve, stopped));
    Server { address, metrics, worker, _directory: directory, _stop: stop }
}

fn request() -> Request {
    let slot = SlotAddress { layer: LayerId(1), slot: 4 };
    Request { weights: [7; 32], slot, expert: ExpertId(3), length: 100 }
}

fn fetch(peer: &mut Peer, request: &Request) -> Result<Vec<u8>, String> {
    let (_, mut body) = peer.fetch(request).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    body.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_given_away_only_as_what_it_holds() {
    let server = start(2).await;
    let mut peer =
        Peer::connect(&server.address.to_string(), &Security::Loopback, Cancel::default()).unwrap();
    let mut expected = vec![0; 100];
    server.worker.read(request().slot, ExpertId(3), 0, &mut expected).unwrap();
    assert_eq!(fetch(&mut peer, &request()), Ok(expected.clone()));
    let at = |layer, slot| SlotAddress { layer: LayerId(layer), slot };
    let refused = [
        (Request { weights: [8; 32], ..request() }, "other_weights"),
        (Request { length: 101, ..request() }, "wrong_length"),
        (Request { expert: ExpertId(2), ..request() }, "not_held"),
        (Request { slot: at(1, 5), ..request() }, "not_held"),
        (Request { slot: at(1, 9), ..request() }, "not_held"),
        (Request { slot: at(9, 4), ..request() }, "not_held"),
        (Request { slot: at(1, u32::MAX), ..request() }, "not_held"),
    ];
    for (request, outcome) in refused {
        let error = fetch(&mut peer, &request).unwrap_err();
        assert!(error.ends_with(outcome), "{error}");
    }
    assert_eq!(fetch(&mut peer, &request()), Ok(expected), "the connection is still good");
    // The last answer may not be counted yet, those before it on the connection are.
    let text = server.metrics.render();
    assert!(text.contains("evenkeel_agent_transfer_requests_total{outcome=\"not_held\"} 5"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_speaks_something_else_is_told_so_and_cut_off() {
    let server = start(2).await;
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(&[b'G'; 64]).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!((answer.len(), answer[8]), (24, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_told_that_it_is_busy() {
    let server = start(1).await;
    let connect =
        || Peer::connect(&server.address.to_string(), &Security::Loopback, Cancel::default()).unwrap();
    let mut first = connect();
    assert!(fetch(&mut first, &request()).is_ok());
    // The answer may be cut off by the reset that an unread request causes.
    assert!(fetch(&mut connect(), &request()).is_err());
    let text = server.metrics.render();
    assert!(text.contains("evenkeel_agent_transfer_requests_total{outcome=\"busy\"} 1"), "{text}");
    assert!(fetch(&mut first, &request()).is_ok());
}

/// A server that answers every request with these bytes; what the client makes of them.
fn check_answer(answer: &'static [u8], mention: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 64]).unwrap();
        stream.write_all(answer).unwrap();
    });
    let error =
        fetch(&mut Peer::connect(&address, &Security::Loopback, Cancel::default()).unwrap(), &request())
            .unwrap_err();
    assert!(error.contains(mention), "{error}");
    server.join().unwrap();
}

const GOOD: &[u8; 24] = b"EVKXFER1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[test]
fn a_server_that_misbehaves_is_an_error() {
    let after_good = |rest: &[u8]| -> &'static [u8] { [GOOD, rest].concat().leak() };
    check_answer(b"HTTP/1.1 400 Bad Request\r\n", "does not speak");
    check_answer(b"EVKXFER1\xff\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "does not speak");
    check_answer(&GOOD[..20], "end of file");
    check_answer(after_good(&101u32.to_le_bytes()), "101 bytes");
    check_answer(after_good(&u32::MAX.to_le_bytes()), "at most 4194304");
    check_answer(after_good(&0u32.to_le_bytes()), "could not read its slot");
    check_answer(after_good(&[100, 0, 0, 0, 1, 2, 3]), "end of file");
}

#[test]
fn a_fetch_that_is_not_wanted_any_more_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let cancel = Cancel::default();
    let mut peer =
        Peer::connect(&listener.local_addr().unwrap().to_string(), &Security::Loopback, cancel.clone())
            .unwrap();
    cancel.cancel();
    assert!(fetch(&mut peer, &request()).unwrap_err().contains("not wanted"));
}
