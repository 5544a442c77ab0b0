//! The protocol between balancer and agents as state machines without I/O and without a clock: both ends
//! feed them events and carry out the actions they answer with.

pub mod agent;
