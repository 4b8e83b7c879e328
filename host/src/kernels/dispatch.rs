//! Launches of the room `dispatch`.
//!
//! A pusher is made on every rank together, for it lies in symmetric memory; its calls, too, all
//! ranks make together and in the same order.

use std::sync::Arc;

use gpu_kernels::contract::{ContractError, require_len};
use gpu_kernels::dispatch::contract::{ExchangeLaunch, ExchangeShape};
use gpu_kernels::dispatch::device::{
    dispatch_pack_baseline, dispatch_push_bulk, dispatch_push_packets,
};
use gpu_kernels::dispatch::{ExchangeParams, POISON};
use half::bf16;

use super::KernelError;
use crate::comm::{Rank, SymmetricBuffer};
use crate::device::{Buffer, Stream};

/// A rank's tokens and where they go.
#[derive(Clone, Copy)]
pub struct DispatchArgs<'a> {
    /// `[num_tokens, hidden]`
    pub x: &'a Buffer<bf16>,
    /// `[num_tokens, topk]`, -1 for none
    pub topk_ids: &'a Buffer<i32>,
    /// `[num_tokens, topk]`
    pub topk_weights: &'a Buffer<f32>,
}

impl DispatchArgs<'_> {
    /// The number of tokens, if all lengths agree on it.
    pub(crate) fn check(&self, shape: &ExchangeShape) -> Result<u32, ContractError> {
        let num_tokens = num_tokens_of(shape, self.topk_ids)?;
        require_len("topk_weights", self.topk_ids.len(), self.topk_weights.len())?;
        require_len("x", num_tokens as usize * shape.hidden as usize, self.x.len())?;
        Ok(num_tokens)
    }

    fn keep(&self, stream: &Stream) {
        stream.keep(self.x);
        stream.keep(self.topk_ids);
        stream.keep(self.topk_weights);
    }
}

/// How many tokens these are the ids of.
pub(super) fn num_tokens_of(
    shape: &ExchangeShape,
    topk_ids: &Buffer<i32>,
) -> Result<u32, ContractError> {
    let num_tokens = topk_ids.len() / shape.topk as usize;
    shape.check_tokens(num_tokens)?;
    require_len("topk_ids", num_tokens * shape.topk as usize, topk_ids.len())?;
    Ok(num_tokens as u32)
}

/// What a rank receives, in its memory.
#[derive(Clone, Copy)]
pub struct ReceivedViews<'a> {
    /// `[ep_size, num_max_tokens, hidden]`
    pub x: &'a Buffer<bf16>,
    /// `[ep_size, num_max_tokens, topk]`: the rank's own numbers of its experts, -1 for none
    pub topk_ids: &'a Buffer<i32>,
    /// `[ep_size, num_max_tokens, topk]`
    pub topk_weights: &'a Buffer<f32>,
}

impl ReceivedViews<'_> {
    /// Bytes of all three.
    pub(crate) fn num_bytes(&self) -> usize {
        self.x.num_bytes() + self.topk_ids.num_bytes() + self.topk_weights.num_bytes()
    }

    fn keep(&self, stream: &Stream) {
        stream.keep(self.x);
        stream.keep(self.topk_ids);
        stream.keep(self.topk_weights);
    }
}

/// Of kernels that prepare or finish what a library moves.
pub(super) const WAITS_FOR_NOBODY: ExchangeLaunch =
    ExchangeLaunch { num_blocks: 1, num_senders: 1, timeout_us: 0 };

/// Sizes and counters of one rank's pushing kernel.
pub(super) struct Pusher {
    pub(super) shape: ExchangeShape,
    pub(super) launch: ExchangeLaunch,
    ep_rank: u32,
    pub(super) epochs: Buffer<u32>,
    /// Of dispatch and combine. // [2 * ep_size + 1]
    pub(super) late: Arc<Buffer<u32>>,
}

impl Pusher {
    fn new(rank: &Rank, shape: ExchangeShape, launch: ExchangeLaunch) -> Result<Self, KernelError> {
        shape.check()?;
        require_len("ranks", shape.ep_size as usize, rank.size())?;
        let late = Arc::new(rank.device().alloc_zeroed(shape.late_words())?);
        Self::with(rank, shape, launch, late)
    }

    /// For the same tokens as `other`.
    pub(super) fn beside(
        rank: &Rank,
        other: &Self,
        launch: ExchangeLaunch,
    ) -> Result<Self, KernelError> {
        Self::with(rank, other.shape, launch, other.late.clone())
    }

    fn with(
        rank: &Rank,
        shape: ExchangeShape,
        launch: ExchangeLaunch,
        late: Arc<Buffer<u32>>,
    ) -> Result<Self, KernelError> {
        Ok(Self {
            shape,
            launch,
            ep_rank: rank.index() as u32,
            epochs: rank.device().alloc_zeroed(launch.num_blocks as usize)?,
            late,
        })
    }

    pub(super) fn params(&self, num_tokens: u32) -> ExchangeParams {
        self.shape.params(self.ep_rank, num_tokens, self.launch)
    }

    pub(super) fn keep(&self, stream: &Stream) {
        stream.keep(&self.epochs);
        stream.keep(&*self.late);
    }
}

/// How rows get to the peers, and where they are received.
#[allow(clippy::large_enum_variant, reason = "one for each exchange")]
enum Way {
    Bulk {
        recv_x: SymmetricBuffer<bf16>,
        recv_topk_ids: SymmetricBuffer<i32>,
        recv_topk_weights: SymmetricBuffer<f32>,
        signals: SymmetricBuffer<u32>,
    },
    Packets {
        staging: SymmetricBuffer<u32>,
        recv_x: Buffer<bf16>,
        recv_topk_ids: Buffer<i32>,
        recv_topk_weights: Buffer<f32>,
    },
}

/// Pushes straight to the peers, and holds what comes from them.
pub struct DispatchPush {
    pub(super) pusher: Pusher,
    way: Way,
}

impl DispatchPush {
    /// Many tokens: bulk copies into the peers' received rows. Needs a Hopper GPU, or the CPU.
    ///
    /// # Errors
    /// Sizes that the contract refuses; ranks that disagree or do not reach each other; too little
    /// memory.
    pub fn bulk(
        rank: &Rank,
        shape: ExchangeShape,
        launch: ExchangeLaunch,
    ) -> Result<Self, KernelError> {
        launch.check_bulk()?;
        let pusher = Pusher::new(rank, shape, launch)?;
        let recv_topk_ids = rank.symmetric_alloc::<i32>(shape.slot_entries())?;
        let signals = rank.symmetric_alloc::<u32>(shape.num_signals(launch.num_senders))?;
        let stream = rank.device().new_stream()?;
        stream.fill(recv_topk_ids.local(), -1)?;
        stream.fill(signals.local(), 0)?;
        let way = Way::Bulk {
            recv_x: rank.symmetric_alloc(shape.slot_elements())?,
            recv_topk_ids,
            recv_topk_weights: rank.symmetric_alloc(shape.slot_entries())?,
            signals,
        };
        stream.synchronize()?;
        // Before any peer writes there.
        rank.barrier()?;
        Ok(Self { pusher, way })
    }

    /// Few tokens: packets into the peers' staging areas.
    ///
    /// # Errors
    /// As [`bulk`](Self::bulk).
    pub fn packets(
        rank: &Rank,
        shape: ExchangeShape,
        launch: ExchangeLaunch,
    ) -> Result<Self, KernelError> {
        launch.check_packets()?;
        let pusher = Pusher::new(rank, shape, launch)?;
        let device = rank.device();
        let recv_topk_ids = device.alloc::<i32>(shape.slot_entries())?;
        device.new_stream()?.fill(&recv_topk_ids, -1)?;
        let way = Way::Packets {
            staging: filled(rank, shape.packet_words(), POISON)?,
            recv_x: device.alloc(shape.slot_elements())?,
            recv_topk_ids,
            recv_topk_weights: device.alloc(shape.slot_entries())?,
        };
        Ok(Self { pusher, way })
    }

    /// What the last call received.
    pub fn received(&self) -> ReceivedViews<'_> {
        match &self.way {
            Way::Bulk { recv_x, recv_topk_ids, recv_topk_weights, .. } => ReceivedViews {
                x: recv_x.local(),
                topk_ids: recv_topk_ids.local(),
                topk_weights: recv_topk_weights.local(),
            },
            Way::Packets { recv_x, recv_topk_ids, recv_topk_weights, .. } => ReceivedViews {
                x: recv_x,
                topk_ids: recv_topk_ids,
                topk_weights: recv_topk_weights,
            },
        }
    }

    /// Bytes of memory that this holds on each rank.
    pub fn num_bytes(&self) -> usize {
        self.received().num_bytes()
            + match &self.way {
                Way::Bulk { signals, .. } => signals.local().num_bytes(),
                Way::Packets { staging, .. } => staging.local().num_bytes(),
            }
    }

    /// Messages that were missing when waiting ended, by rank they should have come from: of dispatch,
    /// then of the combine beside it. Behind them the first call that missed any. All 0 while all is
    /// well. // [2 * ep_size + 1]
    pub fn late(&self) -> &Buffer<u32> {
        &self.pusher.late
    }

    /// Messages that a call expects from each peer.
    pub fn expected_messages(&self) -> u32 {
        match &self.way {
            Way::Bulk { .. } => self.pusher.launch.num_senders,
            Way::Packets { .. } => self.pusher.shape.num_max_tokens_per_rank,
        }
    }

    /// Sends this rank's tokens, and returns when those of all ranks are here, in the order of the
    /// stream. What still reads what was received before must come earlier in that order.
    ///
    /// # Errors
    /// Before any launch: arguments whose lengths do not fit, in words.
    pub fn run(&self, stream: &Stream, args: &DispatchArgs<'_>) -> Result<(), KernelError> {
        let Self { pusher, way } = self;
        let params = pusher.params(args.check(&pusher.shape)?);
        let x = args.x.view().cast();
        let (topk_ids, topk_weights) = (args.topk_ids.view(), args.topk_weights.view());
        let (epochs, late) = (pusher.epochs.view_mut(), pusher.late.view_mut());
        match way {
            Way::Bulk { recv_x, recv_topk_ids, recv_topk_weights, signals } => {
                let kernel = dispatch_push_bulk {
                    x,
                    topk_ids,
                    topk_weights,
                    recv_x_ptrs: recv_x.peer_ptrs().view(),
                    recv_topk_ids_ptrs: recv_topk_ids.peer_ptrs().view(),
                    recv_topk_weights_ptrs: recv_topk_weights.peer_ptrs().view(),
                    signal_ptrs: signals.peer_ptrs().view(),
                    epochs,
                    late,
                    params,
                };
                // SAFETY: shape, launch and lengths were checked, and all ranks' buffers are of
                // that shape; they are kept below.
                unsafe { stream.launch(pusher.shape.bulk_dims(pusher.launch), kernel) }?;
                recv_x.keep(stream);
                recv_topk_ids.keep(stream);
                recv_topk_weights.keep(stream);
                signals.keep(stream);
            }
            Way::Packets { staging, recv_x, recv_topk_ids, recv_topk_weights } => {
                let kernel = dispatch_push_packets {
                    x,
                    topk_ids,
                    topk_weights,
                    peer_ptrs: staging.peer_ptrs().view(),
                    recv_x: recv_x.view_mut().cast(),
                    recv_topk_ids: recv_topk_ids.view_mut(),
                    recv_topk_weights: recv_topk_weights.view_mut(),
                    epochs,
                    late,
                    params,
                };
                // SAFETY: as above.
                unsafe { stream.launch(pusher.shape.packets_dims(pusher.launch), kernel) }?;
                staging.keep(stream);
                self.received().keep(stream);
            }
        }
        args.keep(stream);
        pusher.keep(stream);
        Ok(())
    }
}

/// Words on every rank that all hold `word` before any peer writes there. All ranks call it.
pub(super) fn filled(
    rank: &Rank,
    num_words: usize,
    word: u32,
) -> Result<SymmetricBuffer<u32>, KernelError> {
    let words = rank.symmetric_alloc::<u32>(num_words)?;
    let stream = rank.device().new_stream()?;
    stream.fill(words.local(), word)?;
    stream.synchronize()?;
    rank.barrier()?;
    Ok(words)
}

/// Sorts tokens into a buffer for each destination, for a library to send.
pub struct DispatchPack {
    shape: ExchangeShape,
    ep_rank: u32,
    send_x: Buffer<bf16>,
    send_topk_ids: Buffer<i32>,
    send_topk_weights: Buffer<f32>,
}

impl DispatchPack {
    /// Buffers for `shape` on one rank.
    ///
    /// # Errors
    /// A shape that the contract refuses; too little memory.
    pub fn new(rank: &Rank, shape: ExchangeShape) -> Result<Self, KernelError> {
        shape.check()?;
        require_len("ranks", shape.ep_size as usize, rank.size())?;
        let device = rank.device();
        Ok(Self {
            shape,
            ep_rank: rank.index() as u32,
            send_x: device.alloc_zeroed(shape.slot_elements())?,
            send_topk_ids: device.alloc_zeroed(shape.slot_entries())?,
            send_topk_weights: device.alloc_zeroed(shape.slot_entries())?,
        })
    }

    /// What goes to each rank, slots for all of its tokens. // [ep_size, num_max_tokens, …]
    pub fn packed(&self) -> ReceivedViews<'_> {
        ReceivedViews {
            x: &self.send_x,
            topk_ids: &self.send_topk_ids,
            topk_weights: &self.send_topk_weights,
        }
    }

    /// Packs; what stays on this rank goes straight to `received`.
    ///
    /// # Errors
    /// Before any launch: arguments whose lengths do not fit, in words.
    pub fn run(
        &self,
        stream: &Stream,
        args: &DispatchArgs<'_>,
        received: ReceivedViews<'_>,
    ) -> Result<(), KernelError> {
        let shape = self.shape;
        let num_tokens = args.check(&shape)?;
        require_len("received.x", shape.slot_elements(), received.x.len())?;
        require_len("received.topk_ids", shape.slot_entries(), received.topk_ids.len())?;
        require_len("received.topk_weights", shape.slot_entries(), received.topk_weights.len())?;
        let kernel = dispatch_pack_baseline {
            x: args.x.view().cast(),
            topk_ids: args.topk_ids.view(),
            topk_weights: args.topk_weights.view(),
            send_x: self.send_x.view_mut().cast(),
            send_topk_ids: self.send_topk_ids.view_mut(),
            send_topk_weights: self.send_topk_weights.view_mut(),
            recv_x: received.x.view_mut().cast(),
            recv_topk_ids: received.topk_ids.view_mut(),
            recv_topk_weights: received.topk_weights.view_mut(),
            params: shape.params(self.ep_rank, num_tokens, WAITS_FOR_NOBODY),
        };
        // SAFETY: shape and lengths were checked; all buffers are kept below.
        unsafe { stream.launch(shape.pack_dims(), kernel) }?;
        args.keep(stream);
        received.keep(stream);
        self.packed().keep(stream);
        Ok(())
    }
}
