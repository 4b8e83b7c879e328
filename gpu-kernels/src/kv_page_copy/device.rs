//! Copies of pages: registers, then the copy engine of an SM.

// A kernel is one unsafe program: its launch vouches for it.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc)]

use cuda_std::bulk::Mbarrier;
use cuda_std::prelude::*;

use super::{
    BASELINE_THREADS, CopyParams, KvPageMove, MAX_PIECE_BYTES, NUM_STAGES, NUM_STORES_IN_FLIGHT,
};

/// Times 16 bytes that a thread of the baseline has in flight.
const BASELINE_UNITS: usize = (MAX_PIECE_BYTES / 16 / BASELINE_THREADS) as usize;

/// One block per piece; loads of a whole piece are in flight before its first store.
#[kernel(threads = 128)]
pub unsafe fn kv_page_copy_baseline(
    moves: Global<KvPageMove>, // [num_moves]
    peer_kv_ptrs: Global<u64>, // [num_locations]
    params: CopyParams,
) {
    let piece_idx = thread::block_idx_x();
    let (src_address, bytes) =
        Pieces::from(piece_idx, Side::Src, moves, peer_kv_ptrs, params).next();
    let (dst_address, _) = Pieces::from(piece_idx, Side::Dst, moves, peer_kv_ptrs, params).next();
    let src = Global::<u8>::from_address(src_address, bytes as usize);
    let dst = GlobalMut::<u8>::from_address(dst_address, bytes as usize);

    let byte_of = |i: usize| (thread::thread_idx_x() + i as u32 * BASELINE_THREADS) * 16;
    let mut units = [[0; 4]; BASELINE_UNITS];
    for (i, unit) in units.iter_mut().enumerate() {
        if byte_of(i) < bytes {
            *unit = src.load_x4(byte_of(i) as usize);
        }
    }
    for (i, unit) in units.into_iter().enumerate() {
        if byte_of(i) < bytes {
            dst.store_x4(byte_of(i) as usize, unit);
        }
    }
}

/// Blocks of one thread; each passes consecutive pieces through its ring of stages.
#[kernel(target = "sm_90a", threads = 1)]
pub unsafe fn kv_page_copy_bulk(
    moves: Global<KvPageMove>, // [num_moves]
    peer_kv_ptrs: Global<u64>, // [num_locations]
    params: CopyParams,
) {
    let num_pieces = params.num_moves * params.pieces_per_page;
    let first_piece = share_begin(thread::block_idx_x(), num_pieces);
    let num_own = share_begin(thread::block_idx_x() + 1, num_pieces) - first_piece;
    if num_own == 0 {
        return;
    }

    let ring = Ring::new();
    let mut sources = Pieces::from(first_piece, Side::Src, moves, peer_kv_ptrs, params);
    let mut destinations = Pieces::from(first_piece, Side::Dst, moves, peer_kv_ptrs, params);

    let mut num_loaded = 0;
    let mut load_stage = 0;
    let mut store_stage = 0;
    let mut parity = 0;
    for num_stored in 0..num_own {
        while num_loaded < num_own && num_loaded < num_stored + NUM_STAGES - NUM_STORES_IN_FLIGHT {
            // The stage's last store, NUM_STORES_IN_FLIGHT pieces back, has read it.
            bulk::wait_group_read::<NUM_STORES_IN_FLIGHT>();
            ring.load(load_stage, sources.next());
            load_stage = next_stage(load_stage);
            num_loaded += 1;
        }
        ring.barrier(store_stage).wait(parity);
        ring.store(store_stage, destinations.next());
        store_stage = next_stage(store_stage);
        if store_stage == 0 {
            parity ^= 1;
        }
    }
    bulk::wait_group::<0>();
}

/// First piece of a block's share.
#[inline(always)]
fn share_begin(block: u32, num_pieces: u32) -> u32 {
    (u64::from(block) * u64::from(num_pieces) / u64::from(thread::grid_dim_x())) as u32
}

#[inline(always)]
fn next_stage(stage: u32) -> u32 {
    if stage + 1 == NUM_STAGES { 0 } else { stage + 1 }
}

/// The stages of a block in shared memory, and behind them their barriers.
#[derive(Clone, Copy)]
struct Ring(Shared<u8>);

impl Ring {
    #[inline(always)]
    unsafe fn new() -> Self {
        let ring = Self(shared::dynamic_shared_mem());
        for stage in 0..NUM_STAGES {
            ring.barrier(stage).init(1);
        }
        bulk::fence_init();
        ring
    }

    #[inline(always)]
    unsafe fn stage(self, stage: u32) -> Shared<u8> {
        self.0.offset((stage * MAX_PIECE_BYTES) as usize)
    }

    #[inline(always)]
    unsafe fn barrier(self, stage: u32) -> Mbarrier {
        let place = NUM_STAGES * MAX_PIECE_BYTES + 8 * stage;
        Mbarrier::at(self.0.offset(place as usize).cast())
    }

    #[inline(always)]
    unsafe fn load(self, stage: u32, (address, bytes): (u64, u32)) {
        let src = Global::<u8>::from_address(address, bytes as usize);
        self.barrier(stage).arrive_expect_bytes(bytes);
        bulk::load(self.stage(stage), src, bytes, self.barrier(stage));
    }

    #[inline(always)]
    unsafe fn store(self, stage: u32, (address, bytes): (u64, u32)) {
        let dst = GlobalMut::<u8>::from_address(address, bytes as usize);
        bulk::store(dst, self.stage(stage), bytes);
        bulk::commit_group();
    }
}

/// Which page of a move.
#[derive(Clone, Copy)]
enum Side {
    Src,
    Dst,
}

/// Walks the pieces of one side of the moves.
struct Pieces {
    places: Global<u32>,       // [num_moves, 4], from the side's rank on
    peer_kv_ptrs: Global<u64>, // [num_locations]
    params: CopyParams,
    move_idx: u32,
    offset: u32,
    page_address: u64,
}

impl Pieces {
    #[inline(always)]
    unsafe fn from(
        piece_idx: u32,
        side: Side,
        moves: Global<KvPageMove>, // [num_moves]
        peer_kv_ptrs: Global<u64>, // [num_locations]
        params: CopyParams,
    ) -> Self {
        let move_idx = piece_idx / params.pieces_per_page;
        let mut pieces = Self {
            places: moves.cast::<u32>().offset(match side {
                Side::Src => 0,
                Side::Dst => 2,
            }),
            peer_kv_ptrs,
            params,
            move_idx,
            offset: (piece_idx - move_idx * params.pieces_per_page) * params.piece_bytes,
            page_address: 0,
        };
        pieces.find_page();
        pieces
    }

    /// Address and bytes of this piece; goes on to the next.
    #[inline(always)]
    unsafe fn next(&mut self) -> (u64, u32) {
        if self.offset == self.params.page_bytes {
            self.offset = 0;
            self.move_idx += 1;
            self.find_page();
        }
        let address = self.page_address + u64::from(self.offset);
        let bytes = self.params.piece_bytes.min(self.params.page_bytes - self.offset);
        self.offset += bytes;
        (address, bytes)
    }

    #[inline(always)]
    unsafe fn find_page(&mut self) {
        let [rank, index] = self.places.load_x2(4 * self.move_idx as usize);
        let pool = self.peer_kv_ptrs.load(rank as usize);
        self.page_address = pool + u64::from(index) * u64::from(self.params.page_bytes);
    }
}
