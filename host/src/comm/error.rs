//! What can go wrong between ranks, in words that name rank, peer and operation.

use std::time::Duration;

use crate::device::DeviceError;

/// The result of an operation between ranks.
pub type Result<T, E = CommError> = std::result::Result<T, E>;

/// Why an operation between ranks did not end well.
#[derive(Debug, thiserror::Error)]
pub enum CommError {
    /// Another rank returned an error or panicked; this one gave up waiting for it.
    #[error("{operation}: gave up, because rank {peer} failed: {reason}")]
    PeerFailed {
        /// Who waited.
        rank: usize,
        /// In what.
        operation: &'static str,
        /// Who failed.
        peer: usize,
        /// With what.
        reason: String,
    },
    /// Another rank ended its work, and will never come.
    #[error("{operation}: rank {peer} has ended without taking part")]
    PeerLeft {
        /// Who waited.
        rank: usize,
        /// In what.
        operation: &'static str,
        /// Who is gone.
        peer: usize,
    },
    /// Nobody came for as long as a wait may take.
    #[error("{operation}: waited {deadline:?} for {}", name_ranks(peers))]
    Deadline {
        /// Who waited.
        rank: usize,
        /// In what.
        operation: &'static str,
        /// For whom.
        peers: Vec<usize>,
        /// How long.
        deadline: Duration,
    },
    /// Two ranks disagree about what they do together.
    #[error("{operation}: expected {expected}, but rank {peer} has {got}")]
    Mismatch {
        /// Who noticed.
        rank: usize,
        /// In what.
        operation: &'static str,
        /// Who differs.
        peer: usize,
        /// What this rank has.
        expected: String,
        /// What the other one has.
        got: String,
    },
    /// An argument that cannot be right on any rank.
    #[error("{operation}: {argument}: needs {needed}, got {got}")]
    Argument {
        /// The operation.
        operation: &'static str,
        /// Its argument.
        argument: &'static str,
        /// What it must be.
        needed: String,
        /// What it was.
        got: String,
    },
    /// There is no NCCL to load.
    #[error(
        "collectives between GPUs need NCCL, and none was found ({tried}); install it \
         (`apt install libnccl2`, or `pip install nvidia-nccl-cu13` with its folder in \
         LD_LIBRARY_PATH)"
    )]
    NcclMissing {
        /// What the dynamic loader said to each name.
        tried: String,
    },
    /// A call of NCCL failed.
    #[error("{call}: {text} (NCCL code {code})")]
    Nccl {
        /// Who called.
        rank: usize,
        /// What.
        call: &'static str,
        /// `ncclResult_t`.
        code: i32,
        /// What NCCL says about it.
        text: String,
    },
    /// This rank's communicator was aborted by an earlier failure.
    #[error("{operation}: an earlier failure ended this communicator")]
    Aborted {
        /// Whose communicator.
        rank: usize,
        /// What was asked of it.
        operation: &'static str,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

fn name_ranks(ranks: &[usize]) -> String {
    let plural = if ranks.len() == 1 { "rank" } else { "ranks" };
    let names: Vec<_> = ranks.iter().map(usize::to_string).collect();
    format!("{plural} {}", names.join(", "))
}
