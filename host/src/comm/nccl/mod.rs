//! NCCL: found at run time under the names that its packages install, and used without blocking,
//! so that a wait for a rank that never comes can end.

mod communicator;
mod library;

pub(super) use communicator::NcclCommunicator;
pub use library::{NcclVersion, installed};
