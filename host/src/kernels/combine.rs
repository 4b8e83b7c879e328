//! Launches of the room `combine`.

use gpu_kernels::combine::device::{
    combine_pull_bulk, combine_push_bulk, combine_push_packets, combine_sum_baseline,
};
use gpu_kernels::contract::{ContractError, require_len};
use gpu_kernels::dispatch::POISON;
use gpu_kernels::dispatch::contract::{ExchangeLaunch, ExchangeShape};
use half::bf16;

use super::KernelError;
use super::dispatch::{DispatchPush, Pusher, WAITS_FOR_NOBODY, filled, num_tokens_of};
use crate::comm::{Rank, SymmetricBuffer};
use crate::device::{Buffer, Stream};

/// What the experts made of the rows that came, and where the sums go.
#[derive(Clone, Copy)]
pub struct CombineArgs<'a> {
    /// `[ep_size, num_max_tokens, hidden]`, in the slots of dispatch
    pub partial: &'a Buffer<bf16>,
    /// `[num_tokens, topk]`, as given to dispatch
    pub topk_ids: &'a Buffer<i32>,
    /// `[num_tokens, hidden]`
    pub out: &'a Buffer<bf16>,
}

impl CombineArgs<'_> {
    /// The number of tokens, if all lengths agree on it.
    pub(crate) fn check(&self, shape: &ExchangeShape) -> Result<u32, ContractError> {
        let num_tokens = num_tokens_of(shape, self.topk_ids)?;
        require_len("out", num_tokens as usize * shape.hidden as usize, self.out.len())?;
        require_len("partial", shape.slot_elements(), self.partial.len())?;
        Ok(num_tokens)
    }

    fn keep(&self, stream: &Stream) {
        stream.keep(self.partial);
        stream.keep(self.topk_ids);
        stream.keep(self.out);
    }
}

/// How parts get to the tokens' ranks.
enum Way {
    Packets { staging: SymmetricBuffer<u32> },
    Push { staging: SymmetricBuffer<u32>, signals: SymmetricBuffer<u32> },
    Pull { signals: SymmetricBuffer<u32> },
}

/// Brings partial results to the tokens' ranks, and adds them up, in one kernel.
pub struct CombineDirect {
    pusher: Pusher,
    way: Way,
}

impl CombineDirect {
    /// What `dispatch` brought, when there are few tokens: packets into the peers' staging areas. All
    /// ranks make it together.
    ///
    /// # Errors
    /// A launch that the contract refuses; ranks that disagree or do not reach each other; too little
    /// memory.
    pub fn packets(
        rank: &Rank,
        dispatch: &DispatchPush,
        launch: ExchangeLaunch,
    ) -> Result<Self, KernelError> {
        launch.check_packets()?;
        let pusher = Pusher::beside(rank, &dispatch.pusher, launch)?;
        let staging = filled(rank, pusher.shape.combine_words(), POISON)?;
        Ok(Self { pusher, way: Way::Packets { staging } })
    }

    /// Many tokens: bulk copies into the peers' staging areas, added as they come. Needs a Hopper
    /// GPU, or the CPU.
    ///
    /// # Errors
    /// As [`packets`](Self::packets).
    pub fn push(
        rank: &Rank,
        dispatch: &DispatchPush,
        launch: ExchangeLaunch,
    ) -> Result<Self, KernelError> {
        launch.check_push()?;
        let pusher = Pusher::beside(rank, &dispatch.pusher, launch)?;
        let staging = rank.symmetric_alloc(pusher.shape.combine_staging_words())?;
        let signals = filled(rank, pusher.shape.num_signals(launch.num_senders), 0)?;
        Ok(Self { pusher, way: Way::Push { staging, signals } })
    }

    /// Many tokens, few multiprocessors: bulk copies from the peers' partial results. Needs a Hopper
    /// GPU, or the CPU.
    ///
    /// # Errors
    /// As [`packets`](Self::packets).
    pub fn pull(
        rank: &Rank,
        dispatch: &DispatchPush,
        launch: ExchangeLaunch,
    ) -> Result<Self, KernelError> {
        launch.check_pull()?;
        let pusher = Pusher::beside(rank, &dispatch.pusher, launch)?;
        let signals = filled(rank, pusher.shape.num_pull_signals(launch.num_blocks), POISON)?;
        Ok(Self { pusher, way: Way::Pull { signals } })
    }

    /// Bytes of memory that this holds on each rank.
    pub fn num_bytes(&self) -> usize {
        match &self.way {
            Way::Packets { staging } => staging.local().num_bytes(),
            Way::Push { staging, signals } => {
                staging.local().num_bytes() + signals.local().num_bytes()
            }
            Way::Pull { signals } => signals.local().num_bytes(),
        }
    }

    /// Messages that a call expects from a peer that owns experts of these tokens.
    pub fn expected_messages(&self, tokens: &[u32]) -> u32 {
        let Pusher { shape, launch, .. } = self.pusher;
        match self.way {
            Way::Packets { .. } => shape.packet_messages(tokens.len() as u32),
            Way::Push { .. } => shape.push_messages(launch, tokens.iter().copied()),
            Way::Pull { .. } => 2 * launch.num_blocks,
        }
    }

    /// Moves and adds. `recv_topk_ids` is what the dispatch of these tokens received. All ranks
    /// call it together.
    ///
    /// # Errors
    /// Before any launch: arguments whose lengths do not fit, in words.
    pub fn run(
        &self,
        stream: &Stream,
        recv_topk_ids: &Buffer<i32>, // [ep_size, num_max_tokens, topk]
        args: &CombineArgs<'_>,
    ) -> Result<(), KernelError> {
        let Self { pusher, way } = self;
        let num_tokens = args.check(&pusher.shape)?;
        require_len("recv_topk_ids", pusher.shape.slot_entries(), recv_topk_ids.len())?;
        let partial = args.partial.view().cast();
        let (topk_ids, out) = (args.topk_ids.view(), args.out.view_mut().cast());
        let (epochs, late) = (pusher.epochs.view_mut(), pusher.late.view_mut());
        let (shape, params) = (pusher.shape, pusher.params(num_tokens));
        match way {
            Way::Packets { staging } => {
                let kernel = combine_push_packets {
                    partial,
                    recv_topk_ids: recv_topk_ids.view(),
                    topk_ids,
                    peer_ptrs: staging.peer_ptrs().view(),
                    out,
                    epochs,
                    late,
                    params,
                };
                // SAFETY: shape, launch and lengths were checked, and all ranks' buffers are of
                // that shape; they are kept below.
                unsafe { stream.launch(shape.combine_packets_dims(pusher.launch), kernel) }?;
                staging.keep(stream);
            }
            Way::Push { staging, signals } => {
                let kernel = combine_push_bulk {
                    partial,
                    recv_topk_ids: recv_topk_ids.view(),
                    topk_ids,
                    staging_ptrs: staging.peer_ptrs().view(),
                    signal_ptrs: signals.peer_ptrs().view(),
                    out,
                    epochs,
                    late,
                    params,
                };
                // SAFETY: as above.
                unsafe { stream.launch(shape.combine_bulk_dims(pusher.launch), kernel) }?;
                staging.keep(stream);
                signals.keep(stream);
            }
            Way::Pull { signals } => {
                let kernel = combine_pull_bulk {
                    partial,
                    topk_ids,
                    signal_ptrs: signals.peer_ptrs().view(),
                    out,
                    epochs,
                    late,
                    params,
                };
                // SAFETY: as above. Peers read `partial` until they say that they have; a kernel
                // that gave up waiting for that counts them late, and whoever finds that keeps
                // `partial`.
                unsafe { stream.launch(shape.combine_bulk_dims(pusher.launch), kernel) }?;
                signals.keep(stream);
            }
        }
        args.keep(stream);
        stream.keep(recv_topk_ids);
        pusher.keep(stream);
        Ok(())
    }
}

/// Adds up what a library has brought.
pub struct CombineSum {
    shape: ExchangeShape,
    ep_rank: u32,
}

impl CombineSum {
    /// For one rank.
    ///
    /// # Errors
    /// A shape that the contract refuses.
    pub fn new(rank: &Rank, shape: ExchangeShape) -> Result<Self, KernelError> {
        shape.check()?;
        require_len("ranks", shape.ep_size as usize, rank.size())?;
        Ok(Self { shape, ep_rank: rank.index() as u32 })
    }

    /// Adds `parts`, by rank they came from, and this rank's own partial results.
    ///
    /// # Errors
    /// Before any launch: arguments whose lengths do not fit, in words.
    pub fn run(
        &self,
        stream: &Stream,
        parts: &Buffer<bf16>, // [ep_size, num_max_tokens, hidden]
        args: &CombineArgs<'_>,
    ) -> Result<(), KernelError> {
        let shape = self.shape;
        let num_tokens = args.check(&shape)?;
        require_len("parts", shape.slot_elements(), parts.len())?;
        if num_tokens == 0 {
            return Ok(());
        }
        let kernel = combine_sum_baseline {
            partial: args.partial.view().cast(),
            parts: parts.view().cast(),
            topk_ids: args.topk_ids.view(),
            out: args.out.view_mut().cast(),
            params: shape.params(self.ep_rank, num_tokens, WAITS_FOR_NOBODY),
        };
        // SAFETY: shape and lengths were checked; all buffers are kept below.
        unsafe { stream.launch(shape.sum_dims(num_tokens), kernel) }?;
        args.keep(stream);
        stream.keep(parts);
        Ok(())
    }
}
