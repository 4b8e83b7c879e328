//! Products of few tokens, as many tiles as there are clusters: the blocks of a cluster share the steps
//! of a tile, and add up through each other's shared memory.
//!
//! When a block has multiplied its steps it leaves its sums where its stages were. Then each adds up its
//! part of the tile, some tokens of all weights, from all blocks, in the order of k, so that results
//! repeat bit by bit. Sums never leave the SMs.

use cuda_std::prelude::*;
use half::bf16;

use super::weights::{Block, Place, Plain, Rounded, Store, Weights};
use crate::gemm::schedule::part_of;
use crate::gemm::stream::{NUM_WARPS, WEIGHT_ROWS};
use crate::gemm::tma::STAGE_COLUMNS;

/// Threads that multiply, and the barrier at which they meet.
const MULTIPLY_THREADS: u32 = NUM_WARPS * warp::WARP_SIZE;
const MULTIPLIED: u32 = 1;

/// This block's part of the tile of its cluster, of `SPLITS` blocks.
#[inline(always)]
pub(crate) unsafe fn run<S: Store, const ROWS: usize, const SPLITS: usize>(
    work: Weights,
    tile_rows: u32,
    store: S,
) {
    // Registers of a thread for 16 tokens.
    match tile_rows * ROWS as u32 / WEIGHT_ROWS as u32 {
        16 => part::<S, ROWS, SPLITS, 8>(work, store),
        32 => part::<S, ROWS, SPLITS, 16>(work, store),
        64 => part::<S, ROWS, SPLITS, 32>(work, store),
        _ if ROWS == WEIGHT_ROWS => part::<S, ROWS, SPLITS, 64>(work, store),
        _ => {}
    }
}

#[inline(always)]
unsafe fn part<S: Store, const ROWS: usize, const SPLITS: usize, const N: usize>(
    work: Weights,
    store: S,
) {
    let block = Block::<S, ROWS, N>::new(work, store);
    block.set_up();
    grid::launch_dependents();
    let tile = thread::block_idx_x() / SPLITS as u32;
    let rank = if SPLITS > 1 { cluster::block_rank() } else { 0 };
    let [begin, end] = part_of(work.num_steps, rank, SPLITS as u32);
    let multiplies = Block::<S, ROWS, N>::multiplies();
    let sums = block.stages().cast::<f32>().offset(4 * thread::thread_idx_x() as usize);
    if multiplies {
        grid::wait_prerequisites();
        let mut d = [0.0; N];
        let mut place = Place::FIRST;
        block.multiply(&mut d, end - begin, &mut place);
        if SPLITS == 1 {
            return block.store_all(&d, tile);
        }
        thread::sync_some(MULTIPLIED, MULTIPLY_THREADS);
        for i in 0..N / 4 {
            let four = [d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]];
            sums.store_x4(i * SUMS_ROW, four.map(f32::to_bits));
        }
    } else if warp::lane_id() == 0 {
        let first = tile * work.num_steps;
        block.fill([first + begin, first + end]);
    } else {
        grid::wait_prerequisites();
    }
    if SPLITS == 1 {
        return;
    }
    cluster::sync();
    if multiplies {
        add_up::<S, ROWS, SPLITS, N>(&block, sums, rank, tile);
    }
    // Until then others read what this block left.
    cluster::meet();
}

/// Adds up and stores this block's part of a tile.
#[inline(always)]
unsafe fn add_up<S: Store, const ROWS: usize, const SPLITS: usize, const N: usize>(
    block: &Block<S, ROWS, N>,
    sums: Shared<f32>,
    rank: u32,
    tile: u32,
) {
    let fours = (N / 4).div_ceil(SPLITS);
    let first = rank as usize * fours;
    let mut theirs = [[[0; 4]; SPLITS]; MAX_FOURS];
    for i in 0..fours {
        if first + i < N / 4 {
            let place = sums.offset((first + i) * SUMS_ROW);
            for other in 0..SPLITS {
                theirs[i][other] = cluster::load_x4(place, other as u32);
            }
        }
    }
    for i in 0..fours {
        if first + i < N / 4 {
            let mut four = [0.0; 4];
            for other in 0..SPLITS {
                for j in 0..4 {
                    four[j] += f32::from_bits(theirs[i][other][j]);
                }
            }
            block.store(four, first + i, tile);
        }
    }
}

/// Most fours of registers that a block adds up.
const MAX_FOURS: usize = 4;
/// Sums that lie side by side, four a thread.
const SUMS_ROW: usize = 4 * MULTIPLY_THREADS as usize;

macro_rules! entries {
    ($(#[$doc:meta] $name:ident: $rows:literal, $splits:literal $(, cluster = $cluster:literal)?;)*) => {$(
        #[$doc]
        #[kernel(target = "sm_90a", $(cluster = $cluster,)? threads = 288, min_blocks = 1, early = true)]
        pub unsafe fn $name(
            a: TensorMap<bf16, 2>, // [m, k]
            b: TensorMap<bf16, 4>, // [n / 8, 1, 8, k]
            m: u32,
            n: u32,
            k: u32,
            tile_rows: u32,
            num_stages: u32,
            c: GlobalMut<bf16>, // [m, n]
        ) {
            let (m_tiles, num_steps) = (m.div_ceil(tile_rows), k.div_ceil(STAGE_COLUMNS as u32));
            let weights = Weights { a, b, m_tiles, num_steps, num_stages };
            run::<_, $rows, $splits>(weights, tile_rows, Plain(Rounded { c, m, n }));
        }
    )*};
}

entries! {
    /// `c = a b^T` for few rows of A, in tiles of 64 rows of weights, a block each.
    gemm_split1_64_bf16: 64, 1;
    /// `c = a b^T` for few rows of A, in tiles of 64 rows of weights, 2 blocks each.
    gemm_split2_64_bf16: 64, 2, cluster = 2;
    /// `c = a b^T` for few rows of A, in tiles of 128 rows of weights, 4 blocks each.
    gemm_split4_128_bf16: 128, 4, cluster = 4;
}
