//! Connections over loopback between real sockets, with certificates made on the spot.

mod authority;
mod bounds;
mod gate;
mod handshake;
mod reloads;
mod stand;
mod threads;
