//! The simulated network as the transport sees it.

use evenkeel_transport::network::{Accept, AnyWire, Network};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use turmoil::net::{TcpListener, TcpStream};

/// Connections to other hosts of the simulation, which have no names but addresses.
#[derive(Debug)]
pub(crate) struct Simulated;

#[tonic::async_trait]
impl Network for Simulated {
    async fn connect(&self, host: &str, port: u16) -> io::Result<(AnyWire, SocketAddr)> {
        let host: IpAddr = host.parse().map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let stream = TcpStream::connect((host, port)).await?;
        let address = stream.peer_addr()?;
        Ok((Box::new(stream), address))
    }
}

/// Connections of other hosts.
pub(crate) struct Listener(TcpListener);

impl Listener {
    pub(crate) async fn bind(port: u16) -> io::Result<Self> {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.map(Self)
    }
}

impl Accept for Listener {
    async fn accept(&mut self) -> io::Result<(AnyWire, SocketAddr)> {
        let (stream, peer) = self.0.accept().await?;
        Ok((Box::new(stream), peer))
    }
}
