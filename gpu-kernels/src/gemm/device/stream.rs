//! Products of few tokens, an equal share of the weights through each SM.
//!
//! A block's share is a run of steps of k, of one tile or of several: [`Shares`] says which. What it has
//! of a tile that others share, it leaves in a workspace; the last to come adds up all of it, in the
//! order of k, so that results repeat bit by bit. Nobody waits for anybody.
//!
//! The next launch's blocks start early: as a block that is not the last of its tile leaves an SM, the
//! next one there fills its ring, while the last ones add up.

use cuda_std::prelude::*;
use half::bf16;

use super::weights::{Block, Place, Plain, Rounded, Store, Weights};
use crate::gemm::schedule::Shares;
use crate::gemm::stream::{NUM_WARPS, WEIGHT_ROWS};

/// What is multiplied, and how it is dealt.
#[derive(Clone, Copy)]
pub(crate) struct Streamed {
    pub weights: Weights,
    /// Tokens of a tile: 16, 32, 64 or 128.
    pub tile_rows: u32,
    pub shares: Shares,
    /// `[blocks, 2, 8 warps, tile_rows / 8, 32 lanes, 4]`: what a block has of its first tile, if that
    /// begins in another block, and of its last, if it ends in another.
    pub sums: GlobalMut<f32>,
    /// `[tiles, 8 warps]`: who left sums; 0 before and after.
    pub arrived: GlobalMut<u32>,
}

/// This block's share.
#[inline(always)]
pub(crate) unsafe fn run<S: Store>(work: Streamed, store: S) {
    match work.tile_rows {
        16 => Sharing::<S, 8>::new(work, store).run(),
        32 => Sharing::<S, 16>::new(work, store).run(),
        64 => Sharing::<S, 32>::new(work, store).run(),
        _ => Sharing::<S, 64>::new(work, store).run(),
    }
}

/// A block that shares tiles with those before and after it.
#[derive(Clone, Copy)]
struct Sharing<S, const N: usize> {
    work: Streamed,
    block: Block<S, WEIGHT_ROWS, N>,
}

impl<S: Store, const N: usize> Sharing<S, N> {
    #[inline(always)]
    unsafe fn new(work: Streamed, store: S) -> Self {
        Self { work, block: Block::new(work.weights, store) }
    }

    #[inline(always)]
    unsafe fn run(&self) {
        self.block.set_up();
        grid::launch_dependents();
        let steps = self.work.shares.steps_of(thread::block_idx_x());
        if Block::<S, WEIGHT_ROWS, N>::multiplies() {
            grid::wait_prerequisites();
            self.multiply_all(steps);
        } else if warp::lane_id() == 0 {
            self.block.fill(steps);
        } else {
            grid::wait_prerequisites();
        }
    }

    #[inline(always)]
    unsafe fn multiply_all(&self, [begin, end]: [u32; 2]) {
        let mut place = Place::FIRST;
        let shares = self.work.shares;
        let mut step = begin;
        while step < end {
            let tile = step / shares.num_steps;
            let tile_end = end.min((tile + 1) * shares.num_steps);
            let mut d = [0.0; N];
            self.block.multiply(&mut d, tile_end - step, &mut place);
            if self.is_complete(&mut d, tile) {
                self.block.store_all(&d, tile);
            }
            step = tile_end;
        }
    }

    /// Where this lane's share of what block `block` has of a tile lies.
    #[inline(always)]
    unsafe fn sums_of(&self, block: u32, begins_here: bool) -> GlobalMut<f32> {
        let warp_idx = thread::thread_idx_x() / warp::WARP_SIZE;
        let slot = (2 * block + begins_here as u32) * NUM_WARPS + warp_idx;
        let lanes_registers = N * warp::WARP_SIZE as usize;
        self.work.sums.offset(slot as usize * lanes_registers + 4 * warp::lane_id() as usize)
    }

    /// Whether `d`, which held this block's sums, now holds those of the whole tile. If others share it
    /// and some of them have not come yet, one of them stores it.
    #[inline(always)]
    unsafe fn is_complete(&self, d: &mut [f32; N], tile: u32) -> bool {
        let [first, last] = self.work.shares.blocks_of(tile);
        if first == last {
            return true;
        }
        let block = thread::block_idx_x();
        let own = self.sums_of(block, block == first);
        for i in 0..N / 4 {
            let four = [d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]];
            own.store_x4(i * SUMS_ROW, four.map(f32::to_bits));
        }
        warp::sync_warp(warp::FULL_MASK);
        let num_blocks = last - first + 1;
        let arrived = (tile * NUM_WARPS + thread::thread_idx_x() / warp::WARP_SIZE) as usize;
        let mut earlier = 0;
        if warp::lane_id() == 0 {
            earlier = atomic::fetch_add_acq_rel_gpu(self.work.arrived, arrived, 1);
        }
        let (earlier, _) = warp::warp_shuffle_idx(warp::FULL_MASK, earlier, 0, warp::WARP_SIZE);
        if earlier + 1 < num_blocks {
            return false;
        }
        warp::sync_warp(warp::FULL_MASK);
        if warp::lane_id() == 0 {
            self.work.arrived.store(arrived, 0);
        }
        match N {
            8 => self.add_up::<8>(d, first, num_blocks),
            16 => self.add_up::<4>(d, first, num_blocks),
            32 => self.add_up::<2>(d, first, num_blocks),
            _ => self.add_up::<1>(d, first, num_blocks),
        }
        true
    }

    /// Adds up what `num_blocks` blocks have of a tile, in their order; `TOGETHER` of them are on their
    /// way at a time.
    #[inline(always)]
    unsafe fn add_up<const TOGETHER: usize>(&self, d: &mut [f32; N], first: u32, num_blocks: u32) {
        for i in 0..N {
            d[i] = 0.0;
        }
        let mut idx = 0;
        while idx < num_blocks {
            let mut theirs = [[0.0; N]; TOGETHER];
            for i in 0..TOGETHER {
                let exists = idx + (i as u32) < num_blocks;
                let idx = if exists { idx + i as u32 } else { idx };
                let sums = self.sums_of(first + idx, idx == 0);
                for j in 0..N / 4 {
                    let four = sums.load_x4(j * SUMS_ROW);
                    for l in 0..4 {
                        theirs[i][4 * j + l] = if exists { f32::from_bits(four[l]) } else { 0.0 };
                    }
                }
            }
            for i in 0..TOGETHER {
                for j in 0..N {
                    d[j] += theirs[i][j];
                }
            }
            idx += TOGETHER as u32;
        }
    }
}

/// Sums of a warp that lie side by side, four a lane.
const SUMS_ROW: usize = 4 * warp::WARP_SIZE as usize;

/// `c = a b^T` for few rows of A.
#[kernel(target = "sm_90a", threads = 288, min_blocks = 1, early = true)]
pub unsafe fn gemm_stream_bf16(
    a: TensorMap<bf16, 2>, // [m, k]
    b: TensorMap<bf16, 4>, // [n / 8, 1, 8, k]
    m: u32,
    n: u32,
    k: u32,
    tile_rows: u32,
    steps_per_block: u32,
    num_stages: u32,
    sums: GlobalMut<f32>,    // [blocks, 2, 128, tile_rows]
    arrived: GlobalMut<u32>, // [tiles, 8], 0 before and after
    c: GlobalMut<bf16>,      // [m, n]
) {
    let m_tiles = m.div_ceil(tile_rows);
    let shares = Shares::of_product(n, m_tiles, k, steps_per_block);
    let weights = Weights { a, b, m_tiles, num_steps: shares.num_steps, num_stages };
    let work = Streamed { weights, tile_rows, shares, sums, arrived };
    run(work, Plain(Rounded { c, m, n }));
}
