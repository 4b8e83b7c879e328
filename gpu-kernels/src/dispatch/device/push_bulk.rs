//! Many tokens: rows through a ring of pieces in shared memory, straight to where they are received.

use cuda_std::bulk::Mbarrier;
use cuda_std::prelude::*;

use super::super::{
    BARRIERS_AT, BASES_AT, BULK_HELPERS, ExchangeParams, GAVE_UP_AT, Half, MAX_PIECE_BYTES,
    NUM_FIRST_LOADS, NUM_STAGES, NUM_STORES_IN_FLIGHT, RANKS_AT,
};
use super::deadline::Deadline;
use super::packets::owner_of;
use super::signals::Signals;

/// Signal: the receiver's area is free.
const READY: u32 = 0;
/// Signal: the sender has written all.
const DONE: u32 = 1;
/// Ids of a token that a helper has in flight.
const IDS: usize = 4;

/// Blocks of one issuing thread and its helpers. The first `num_senders` send to the peers, the
/// others copy what stays here; each takes consecutive tokens.
#[kernel(target = "sm_90a", threads = 288, early = true)]
pub unsafe fn dispatch_push_bulk(
    x: Global<u32>,                      // [num_tokens, row_units, 4]
    topk_ids: Global<i32>,               // [num_tokens, topk]
    topk_weights: Global<f32>,           // [num_tokens, topk]
    recv_x_ptrs: Global<u64>,            // [ep_size], of [ep_size, num_max_tokens, row_units, 4]
    recv_topk_ids_ptrs: Global<u64>,     // [ep_size], of [ep_size, num_max_tokens, topk]
    recv_topk_weights_ptrs: Global<u64>, // [ep_size], of [ep_size, num_max_tokens, topk]
    signal_ptrs: Global<u64>,            // [ep_size], of [2, ep_size - 1, num_senders]
    epochs: GlobalMut<u32>,              // [num_blocks]
    late: GlobalMut<u32>,                // [2 * ep_size + 1]
    params: ExchangeParams,
) {
    grid::launch_dependents();
    let thread = thread::thread_idx_x();
    let is_issuer = thread == 0;
    let helper = thread.wrapping_sub(warp::WARP_SIZE);
    let share = Share::of_this_block(&params);
    let routing = Routing {
        topk_ids,
        topk_weights,
        recv_topk_ids_ptrs,
        recv_topk_weights_ptrs,
        share,
        params,
    };

    let mut ring = Ring::new(x, share, &params);
    if is_issuer {
        ring.set_up();
    }
    // A helper deals with one peer: of the last ones, which have the fewest tokens to look at.
    let step = BULK_HELPERS.wrapping_sub(helper);
    if step <= params.ep_size {
        let rank = step as usize - 1;
        bases().store(rank, recv_x_ptrs.load(rank));
    }
    if helper == 0 {
        gave_up().store(0, 0);
    }
    // Up to here nothing was looked at that a kernel writes.
    grid::wait_prerequisites();
    if is_issuer {
        ring.load_ahead(NUM_FIRST_LOADS);
    }
    let block = thread::block_idx_x();
    let epoch = epochs.load(block as usize).wrapping_add(1);
    let deadline = Deadline::of_call(Half::Dispatch, epoch, late, &params);
    let signals = Signals { signal_ptrs, deadline, params: &params };
    let has_peer = share.is_remote && (1..params.ep_size).contains(&step);
    if has_peer {
        signals.tell(READY, step, block, epoch);
    }
    if helper < BULK_HELPERS {
        routing.note_ranks(0, helper);
    }
    thread::sync_threads();
    if is_issuer {
        epochs.store(block as usize, epoch);
    }
    if has_peer && !signals.wait(READY, step, block, epoch, 1) {
        gave_up().store(0, 1);
    }
    thread::sync_threads();
    if gave_up().load(0) != 0 {
        if is_issuer {
            ring.drain();
        }
        return;
    }

    let num_batches = share.num_tokens.div_ceil(BULK_HELPERS);
    for batch in 0..num_batches {
        if is_issuer {
            ring.pass_on(batch, share, &params);
        } else if helper < BULK_HELPERS {
            routing.send(batch, helper);
            routing.note_ranks(batch + 1, helper);
        }
        thread::sync_threads();
    }
    if helper < BULK_HELPERS {
        routing.send_none(helper);
    }
    if is_issuer {
        bulk::wait_group::<0>();
    }
    thread::sync_threads();
    if is_issuer && share.is_remote {
        atomic::fence_acq_rel_sys();
        for step in 1..params.ep_size {
            signals.tell(DONE, step, block, epoch);
        }
    }
    if has_peer {
        signals.wait(DONE, step, block, epoch, 1);
    }
}

/// Tokens of a block, and whether it sends them to peers or keeps them.
#[derive(Clone, Copy)]
struct Share {
    is_remote: bool,
    /// Among the blocks that do the same.
    block: u32,
    num_blocks: u32,
    first_token: u32,
    num_tokens: u32,
}

impl Share {
    #[inline(always)]
    fn of_this_block(params: &ExchangeParams) -> Self {
        let (block, grid) = (thread::block_idx_x(), thread::grid_dim_x());
        let is_remote = block < params.num_senders;
        let (block, num_blocks) = match is_remote {
            true => (block, params.num_senders),
            false => (block - params.num_senders, grid - params.num_senders),
        };
        let begin = |block: u32| {
            (u64::from(block) * u64::from(params.num_tokens) / u64::from(num_blocks)) as u32
        };
        let first_token = begin(block);
        Self {
            is_remote,
            block,
            num_blocks,
            first_token,
            num_tokens: begin(block + 1) - first_token,
        }
    }

    /// Steps to the ranks that this block writes to: 0 is this rank.
    #[inline(always)]
    fn steps(self, params: &ExchangeParams) -> (u32, u32) {
        if self.is_remote { (1, params.ep_size) } else { (0, 1) }
    }
}

#[inline(always)]
unsafe fn bases() -> Shared<u64> {
    shared::dynamic_shared_mem::<u8>().offset(BASES_AT as usize).cast()
}

/// Of the tokens of a batch, the ranks each goes to, one bit a rank.
#[inline(always)]
unsafe fn ranks_of_batch(batch: u32) -> Shared<u32> {
    let place = RANKS_AT + (batch & 1) * 4 * BULK_HELPERS;
    shared::dynamic_shared_mem::<u8>().offset(place as usize).cast()
}

#[inline(always)]
unsafe fn gave_up() -> Shared<u32> {
    shared::dynamic_shared_mem::<u8>().offset(GAVE_UP_AT as usize).cast()
}

/// What the helpers do.
#[derive(Clone, Copy)]
struct Routing {
    topk_ids: Global<i32>,
    topk_weights: Global<f32>,
    recv_topk_ids_ptrs: Global<u64>,
    recv_topk_weights_ptrs: Global<u64>,
    share: Share,
    params: ExchangeParams,
}

impl Routing {
    /// Leaves in shared memory which ranks a token of the batch goes to.
    #[inline(always)]
    unsafe fn note_ranks(&self, batch: u32, helper: u32) {
        let token = batch * BULK_HELPERS + helper;
        if token >= self.share.num_tokens {
            return;
        }
        let topk = self.params.topk;
        let first = (self.share.first_token + token) as usize * topk as usize;
        let mut ranks = 0;
        let mut k = 0;
        while k < topk {
            let mut ids = [-1; IDS];
            for (i, id) in ids.iter_mut().enumerate() {
                if k + (i as u32) < topk {
                    *id = self.topk_ids.load(first + k as usize + i);
                }
            }
            for &id in &ids {
                let owner = owner_of(id, &self.params);
                if owner < self.params.ep_size {
                    ranks |= 1 << owner;
                }
            }
            k += IDS as u32;
        }
        ranks_of_batch(batch).store(helper as usize, ranks);
    }

    /// Writes ids and weights of a batch to where they are received.
    #[inline(always)]
    unsafe fn send(&self, batch: u32, helper: u32) {
        let topk = self.params.topk;
        let first_token = self.share.first_token + batch * BULK_HELPERS;
        let num_tokens = (self.share.num_tokens - batch * BULK_HELPERS).min(BULK_HELPERS);
        let first = first_token as usize * topk as usize;
        let mut entry = helper;
        while entry < num_tokens * topk {
            let id = self.topk_ids.load(first + entry as usize);
            let weight = self.topk_weights.load(first + entry as usize);
            self.on_all(first + entry as usize, id, Some(weight));
            entry += BULK_HELPERS;
        }
    }

    /// Writes that no token came to the slots past the last.
    #[inline(always)]
    unsafe fn send_none(&self, helper: u32) {
        let (topk, Share { block, num_blocks, .. }) = (self.params.topk, self.share);
        let mut entry = self.params.num_tokens * topk + block * BULK_HELPERS + helper;
        while entry < self.params.num_max_tokens * topk {
            self.on_all(entry as usize, -1, None);
            entry += num_blocks * BULK_HELPERS;
        }
    }

    /// One entry of this rank's slots, on all ranks that the block writes to.
    #[inline(always)]
    unsafe fn on_all(&self, entry: usize, id: i32, weight: Option<f32>) {
        let params = &self.params;
        let num_entries = params.num_max_tokens as usize * params.topk as usize;
        let first = params.ep_rank as usize * num_entries;
        let owner = owner_of(id, params);
        let (mut step, end) = self.share.steps(params);
        while step < end {
            let rank = params.rank_after(step);
            let local_id =
                if owner == rank { id - (rank * params.experts_per_rank) as i32 } else { -1 };
            let ids = self.recv_topk_ids_ptrs.load(rank as usize) + 4 * first as u64;
            GlobalMut::from_address(ids, num_entries).store(entry, local_id);
            if let Some(weight) = weight {
                let weights = self.recv_topk_weights_ptrs.load(rank as usize) + 4 * first as u64;
                GlobalMut::from_address(weights, num_entries).store(entry, weight);
            }
            step += 1;
        }
    }
}

/// What the issuing thread does: pieces of its share's rows, which lie one after another, through
/// the stages of shared memory.
struct Ring {
    x: Global<u32>,
    first_byte: u64,
    row_bytes: u32,
    piece_bytes: u32,
    num_pieces: u32,
    pieces_per_row: u32,
    num_loaded: u32,
    num_stored: u32,
    load_stage: u32,
    load_offset: u64,
    load_piece: u32,
    store_stage: u32,
    parity: u32,
}

impl Ring {
    #[inline(always)]
    fn new(x: Global<u32>, share: Share, params: &ExchangeParams) -> Self {
        let row_bytes = 16 * params.row_units;
        Self {
            x,
            first_byte: u64::from(share.first_token) * u64::from(row_bytes),
            row_bytes,
            piece_bytes: params.piece_bytes,
            num_pieces: share.num_tokens * params.pieces_per_row,
            pieces_per_row: params.pieces_per_row,
            num_loaded: 0,
            num_stored: 0,
            load_stage: 0,
            load_offset: 0,
            load_piece: 0,
            store_stage: 0,
            parity: 0,
        }
    }

    #[inline(always)]
    unsafe fn set_up(&self) {
        for stage in 0..NUM_STAGES {
            barrier(stage).init(1);
        }
        bulk::fence_init();
    }

    #[inline(always)]
    fn bytes_of(&self, piece: u32) -> u32 {
        self.piece_bytes.min(self.row_bytes - piece * self.piece_bytes)
    }

    /// Loads up to `num_ahead` pieces ahead: stages must be free for them.
    #[inline(always)]
    unsafe fn load_ahead(&mut self, num_ahead: u32) {
        while self.num_loaded < self.num_pieces && self.num_loaded < self.num_stored + num_ahead {
            // The stage's last store, NUM_STORES_IN_FLIGHT pieces back, has read it.
            bulk::wait_group_read::<NUM_STORES_IN_FLIGHT>();
            let bytes = self.bytes_of(self.load_piece);
            let place = (self.first_byte + self.load_offset) / 4;
            let barrier = barrier(self.load_stage);
            barrier.arrive_expect_bytes(bytes);
            bulk::load(stage(self.load_stage), self.x.offset(place as usize), bytes, barrier);
            self.load_offset += u64::from(bytes);
            self.load_piece = next(self.load_piece, self.pieces_per_row);
            self.load_stage = next(self.load_stage, NUM_STAGES);
            self.num_loaded += 1;
        }
    }

    /// Stores the pieces of a batch to the ranks they go to.
    #[inline(always)]
    unsafe fn pass_on(&mut self, batch: u32, share: Share, params: &ExchangeParams) {
        let first = batch * BULK_HELPERS;
        let num_tokens = (share.num_tokens - first).min(BULK_HELPERS);
        let all_ranks = ranks_of_batch(batch);
        let slot = u64::from(params.ep_rank) * u64::from(params.num_max_tokens);
        let mut offset = (slot + u64::from(share.first_token + first)) * u64::from(self.row_bytes);
        for token in 0..num_tokens {
            let ranks = all_ranks.load(token as usize);
            for piece in 0..self.pieces_per_row {
                self.load_ahead(NUM_STAGES - NUM_STORES_IN_FLIGHT);
                barrier(self.store_stage).wait(self.parity);
                let bytes = self.bytes_of(piece);
                let (mut step, end) = share.steps(params);
                while step < end {
                    let rank = params.rank_after(step);
                    if ranks >> rank & 1 != 0 {
                        let row = bases().load(rank as usize) + offset;
                        let row = GlobalMut::<u8>::from_address(row, bytes as usize);
                        bulk::store(row, stage(self.store_stage), bytes);
                    }
                    step += 1;
                }
                bulk::commit_group();
                offset += u64::from(bytes);
                self.go_on();
            }
        }
    }

    /// Waits for loads that nobody will store.
    #[inline(always)]
    unsafe fn drain(&mut self) {
        while self.num_stored < self.num_loaded {
            barrier(self.store_stage).wait(self.parity);
            self.go_on();
        }
    }

    #[inline(always)]
    fn go_on(&mut self) {
        self.num_stored += 1;
        self.store_stage = next(self.store_stage, NUM_STAGES);
        if self.store_stage == 0 {
            self.parity ^= 1;
        }
    }
}

#[inline(always)]
fn next(idx: u32, len: u32) -> u32 {
    if idx + 1 == len { 0 } else { idx + 1 }
}

#[inline(always)]
unsafe fn stage(stage: u32) -> Shared<u8> {
    shared::dynamic_shared_mem::<u8>().offset((stage * MAX_PIECE_BYTES) as usize)
}

#[inline(always)]
unsafe fn barrier(stage: u32) -> Mbarrier {
    let place = BARRIERS_AT + 8 * stage;
    Mbarrier::at(shared::dynamic_shared_mem::<u8>().offset(place as usize).cast())
}
