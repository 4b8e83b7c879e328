//! The kernel.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

use cuda_std::prelude::*;

use super::NUM_THREADS;

/// Pieces that a thread has in flight.
const IN_FLIGHT: usize = 8;

/// Reads `num_pieces` pieces of 16 bytes, each once.
#[kernel(threads = 512)]
pub unsafe fn memory_read_16(
    source: Global<u32>, // [4 * num_pieces]
    num_pieces: u64,
    out: GlobalMut<u32>, // [threads of the grid]
) {
    let stride = (thread::grid_dim_x() * NUM_THREADS) as usize;
    let num_pieces = num_pieces as usize;
    let mut folded = 0;
    let mut piece = thread::index_1d() as usize;
    while piece + (IN_FLIGHT - 1) * stride < num_pieces {
        let mut pieces = [[0u32; 4]; IN_FLIGHT];
        for i in 0..IN_FLIGHT {
            pieces[i] = source.load_x4(4 * (piece + i * stride));
        }
        for i in 0..IN_FLIGHT {
            folded ^= pieces[i][0] ^ pieces[i][1] ^ pieces[i][2] ^ pieces[i][3];
        }
        piece += IN_FLIGHT * stride;
    }
    while piece < num_pieces {
        let words = source.load_x4(4 * piece);
        folded ^= words[0] ^ words[1] ^ words[2] ^ words[3];
        piece += stride;
    }
    out.store(thread::index_1d() as usize, folded);
}
