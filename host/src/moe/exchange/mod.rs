//! Tokens to the ranks of their experts, and back: one interface, two transports.
//!
//! ```text
//! exchange.dispatch(stream, &DispatchArgs { x, topk_ids, topk_weights })
//!     received().x, .topk_ids, .topk_weights      // [ep_size, num_max_tokens, …], on the device
//! …experts: partial[s, t] = weighted sum over this rank's experts of token t of rank s…
//! exchange.combine(stream, &CombineArgs { partial, topk_ids, out })
//! ```
//!
//! A token's row lies in the slot of its own index among its source's; `received().topk_ids` says
//! -1 for every id that is not this rank's, in all slots, so that it can be routed on as it is. No
//! count is read by the host: both calls can be captured into a graph, and graphs replayed any
//! number of times, as long as all ranks make the same calls in the same order.
//!
//! | | [`Transport::OneSided`] | [`Transport::Nccl`] |
//! |---|---|---|
//! | dispatch | rows straight into the peers' memory, those that are needed | a buffer per destination, all slots sent |
//! | combine | pushed and added in one kernel | all slots sent, then added |
//! | needs | peer access | NCCL; on the CPU, copies |
//! | in graphs | everywhere | on GPUs |
//!
//! Both give the same bits: sums run in f32 in the order of ranks.
//!
//! # When a rank is late
//! No wait on a device is endless. After [`ExchangeOptions::timeout`] the kernels give up and end, and
//! [`Exchange::synchronize`] says so: which rank waited for which, in what, how many messages it
//! expected and how many it saw. Calls that are in the stream behind the first one that waited in vain do
//! not wait, of either half, so that a model of many layers ends in that time, too. The exchange is of no
//! use after that; the devices are.

mod error;
#[cfg(test)]
mod gpu_tests;
mod nccl;
mod one_sided;
#[cfg(test)]
mod tests;

use std::time::Duration;

use gpu_kernels::dispatch::contract::{ExchangeShape, MAX_PACKET_TOKENS};

pub use crate::kernels::combine::CombineArgs;
pub use crate::kernels::dispatch::{DispatchArgs, ReceivedViews};
pub use error::{ExchangeError, Phase};

use crate::comm::Rank;
use crate::device::Stream;
use nccl::NcclExchange;
use one_sided::OneSidedExchange;

/// How rows travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Kernels write into the peers' memory.
    #[default]
    OneSided,
    /// Grouped sends and receives of a fixed size.
    Nccl,
}

/// How one-sided kernels move rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Bulk copies, then flags: the full rate of the wire. Needs a Hopper GPU, or the CPU.
    Bulk,
    /// Packets that say themselves when they have arrived: least latency.
    Packets,
}

/// How an exchange works; the same on all ranks, but for the timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExchangeOptions {
    /// How rows travel.
    pub transport: Transport,
    /// How one-sided kernels move rows; by default packets where no rank ever has more than 256
    /// tokens, or where there are no bulk copies.
    pub way: Option<Way>,
    /// Multiprocessors that one-sided kernels take; by default all. With 16, which leave most to a
    /// computation beside them, 8 of a dispatch send, and a combine pulls.
    pub num_sms: Option<u32>,
    /// How long a one-sided kernel of this rank waits for another; by default
    /// [`comm::timeout`](crate::comm::timeout).
    pub timeout: Duration,
}

impl Default for ExchangeOptions {
    fn default() -> Self {
        let timeout = crate::comm::timeout();
        Self { transport: Transport::default(), way: None, num_sms: None, timeout }
    }
}

/// One rank's part of an exchange.
pub struct Exchange {
    shape: ExchangeShape,
    by: By,
}

enum By {
    OneSided(Box<OneSidedExchange>),
    Nccl(Box<NcclExchange>),
}

impl Exchange {
    /// All ranks make it together, with the same shape and options.
    ///
    /// # Errors
    /// Sizes that the kernels do not take, in words; ranks that disagree; no way between devices; too
    /// little memory.
    pub fn new(
        rank: &Rank,
        shape: ExchangeShape,
        options: ExchangeOptions,
    ) -> Result<Self, ExchangeError> {
        shape.check()?;
        let ExchangeOptions { transport, way, num_sms, .. } = options;
        let own = (shape, transport, way, num_sms);
        let theirs = rank.exchange(own)?;
        if let Some(peer) = theirs.iter().position(|&their| their != own) {
            let (expected, got) = (format!("{own:?}"), format!("{:?}", theirs[peer]));
            return Err(ExchangeError::Mismatch { rank: rank.index(), peer, expected, got });
        }
        let by = match options.transport {
            Transport::OneSided => {
                By::OneSided(Box::new(OneSidedExchange::new(rank, shape, options)?))
            }
            Transport::Nccl => By::Nccl(Box::new(NcclExchange::new(rank, shape)?)),
        };
        Ok(Self { shape, by })
    }

    /// Its sizes.
    pub fn shape(&self) -> ExchangeShape {
        self.shape
    }

    /// Bytes of memory that it holds on each rank.
    pub fn num_bytes(&self) -> usize {
        match &self.by {
            By::OneSided(exchange) => exchange.num_bytes(),
            By::Nccl(exchange) => exchange.num_bytes(),
        }
    }

    /// What the last dispatch received. The memory stays where it is.
    pub fn received(&self) -> ReceivedViews<'_> {
        match &self.by {
            By::OneSided(exchange) => exchange.received(),
            By::Nccl(exchange) => exchange.received(),
        }
    }

    /// Sends this rank's tokens to the ranks of their experts, and receives theirs. What still reads
    /// what an earlier dispatch received must come earlier in the stream's order.
    ///
    /// # Errors
    /// Arguments whose lengths do not fit, before anything is launched; what a device or NCCL says.
    pub fn dispatch(&self, stream: &Stream, args: &DispatchArgs<'_>) -> Result<(), ExchangeError> {
        match &self.by {
            By::OneSided(exchange) => exchange.dispatch(stream, args),
            By::Nccl(exchange) => exchange.dispatch(stream, args),
        }
    }

    /// Brings the partial results of the last dispatch's rows back to their ranks, and adds them up.
    ///
    /// # Errors
    /// As [`dispatch`](Self::dispatch).
    pub fn combine(&self, stream: &Stream, args: &CombineArgs<'_>) -> Result<(), ExchangeError> {
        match &self.by {
            By::OneSided(exchange) => exchange.combine(stream, args),
            By::Nccl(exchange) => exchange.combine(stream, args),
        }
    }

    /// Waits until the stream is idle.
    ///
    /// # Errors
    /// A rank that was late, or has failed; what a device says.
    pub fn synchronize(&self, stream: &Stream) -> Result<(), ExchangeError> {
        match &self.by {
            By::OneSided(exchange) => exchange.synchronize(stream),
            By::Nccl(exchange) => exchange.synchronize(stream),
        }
    }
}

/// Multiprocessors up to which a combine of many tokens pulls.
const MAX_PULLING_SMS: u32 = 32;

/// The way of an exchange that was not told which.
fn usual_way(shape: &ExchangeShape, has_bulk: bool) -> Way {
    match has_bulk && shape.num_max_tokens_per_rank > MAX_PACKET_TOKENS {
        true => Way::Bulk,
        false => Way::Packets,
    }
}

/// The kernels of a phase, in their order; `NCCL` stands for the library's.
pub(super) fn kernel_names(
    shape: &ExchangeShape,
    transport: Transport,
    has_bulk: bool,
    num_sms: u32,
    phase: Phase,
) -> &'static [&'static str] {
    match (transport, phase) {
        (Transport::OneSided, Phase::Dispatch) => match usual_way(shape, has_bulk) {
            Way::Bulk => &["dispatch_push_bulk"],
            Way::Packets => &["dispatch_push_packets"],
        },
        (Transport::OneSided, Phase::Combine) => match usual_way(shape, has_bulk) {
            Way::Bulk if num_sms <= MAX_PULLING_SMS => &["combine_pull_bulk"],
            Way::Bulk => &["combine_push_bulk"],
            Way::Packets => &["combine_push_packets"],
        },
        (Transport::Nccl, Phase::Dispatch) => &["dispatch_pack_baseline", "NCCL"],
        (Transport::Nccl, Phase::Combine) => &["NCCL", "combine_sum_baseline"],
    }
}
