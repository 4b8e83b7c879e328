//! What can go wrong in an exchange, in words that name rank, peer, phase and counts.

use std::fmt;
use std::time::Duration;

use gpu_kernels::contract::ContractError;

use crate::comm::CommError;
use crate::device::DeviceError;
use crate::kernels::KernelError;

/// Which half of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Tokens to experts.
    Dispatch,
    /// Results to tokens.
    Combine,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dispatch => "dispatch",
            Self::Combine => "combine",
        })
    }
}

/// Why an exchange did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// A rank did not send what it had to in time; it is late, or dead.
    #[error(
        "rank {rank}, {phase}: gave up on rank {peer} after {timeout:?}: expected {expected} \
         messages from it, saw {seen}"
    )]
    Late {
        /// Who waited.
        rank: usize,
        /// In what.
        phase: Phase,
        /// For whom.
        peer: usize,
        /// Messages that a call expects from it.
        expected: u32,
        /// Those that had come.
        seen: u32,
        /// How long a kernel waits.
        timeout: Duration,
    },
    /// Ranks that were given different sizes or options.
    #[error("rank {rank}: an exchange of {expected}, but rank {peer} has {got}")]
    Mismatch {
        /// Who noticed.
        rank: usize,
        /// Who differs.
        peer: usize,
        /// What this rank has.
        expected: String,
        /// What the other one has.
        got: String,
    },
    /// Sizes or arguments that the kernels do not take.
    #[error(transparent)]
    Contract(#[from] ContractError),
    /// A launch that failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Ranks that could not work together.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}
