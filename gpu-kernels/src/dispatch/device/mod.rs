//! Dispatch: into buffers for NCCL, or straight to the peers.

// A kernel is one unsafe program: its launch vouches for it.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::too_many_arguments)]

pub(crate) mod deadline;
mod pack;
pub(crate) mod packets;
mod push_bulk;
mod push_packets;
pub(crate) mod signals;

pub use pack::*;
pub use push_bulk::*;
pub use push_packets::*;
