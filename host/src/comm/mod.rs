//! Ranks: the same program on several devices, and how they reach each other.
//!
//! A [`World`] runs a function once per device, each on its own thread; in there a [`Rank`] knows
//! which one it is. Ranks reach each other in three ways:
//! - [`Rank::exchange`] and [`Rank::barrier`], between host threads;
//! - a [`Communicator`], for data in device memory: NCCL between GPUs, copies on the CPU;
//! - a [`SymmetricBuffer`], whose addresses kernels read and write directly.
//!
//! A [`Team`] is a world whose ranks stay, each with a state of its own, and work on what they are
//! given together: for whoever drives all ranks from one place.
//!
//! [`World::mirror`] is a rank whose peers are all itself: for profilers and sanitizers, under which
//! kernels run one at a time.
//!
//! `World::cpu(n)` has the same meaning as `World::cuda(n)`, so that programs for several GPUs
//! are tested without one. No wait is endless: it ends at the world's deadline, and at once when
//! the rank that it waits for has failed or ended, with an error that names rank, peer and
//! operation.

mod communicator;
mod element;
mod error;
#[cfg(test)]
mod gpu_tests;
mod meeting;
pub mod nccl;
mod symmetric;
mod team;
#[cfg(test)]
mod tests;
mod threads;
mod timeout;
mod world;

pub use communicator::{Communicator, Group};
pub use element::{Reduce, ReduceOp};
pub use error::{CommError, Result};
pub use symmetric::SymmetricBuffer;
pub use team::{Team, TeamError};
pub use timeout::{set_timeout, timeout};
pub use world::{Rank, RankError, RankFailure, World};

/// What threads send each other: where the data lies.
type Message = crate::device::Extent;
