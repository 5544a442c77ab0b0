//! The control protocol as state machines: `(state, event, now) -> actions`, without I/O and without a
//! clock. The shells around them only deliver events and carry out actions, in order.

pub mod agent;
pub mod election;
pub mod membership;
pub mod reign;
pub mod unit;
