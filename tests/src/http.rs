//! The few lines of HTTP that a test needs to read what a browser or Prometheus reads.

use evenkeel_transport::Security;
use evenkeel_transport::blocking::{self, Protocol, Timeouts};
use evenkeel_transport::credentials::Server;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// An answer of a local server takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(10);

/// Status code and body of a GET.
pub fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout can be set");
    ask(&mut stream, address, path)
}

/// The same over TLS, as the owner of a certificate.
pub fn get_secured(security: &Security, server: Server, address: &str, path: &str) -> (u16, String) {
    let times = Timeouts { connect: DEADLINE, read: DEADLINE, write: DEADLINE };
    let connected = blocking::connect(security, server, Protocol::Http, address, times, &|| true);
    ask(&mut connected.expect("connects"), address, path)
}

fn ask(stream: &mut (impl Read + Write), address: &str, path: &str) -> (u16, String) {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer in UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status code");
    (code, body.to_owned())
}
