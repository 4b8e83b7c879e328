//! The kernels.

// A kernel is one unsafe program: its launch vouches for it.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc)]

use cuda_std::prelude::*;

use super::{NUM_THREADS, content};

/// Pieces that a thread has in flight.
const IN_FLIGHT: usize = 8;

/// Pieces between two of a thread.
const STRIDE: usize = NUM_THREADS as usize;

/// Writes `num_pieces` pieces of 16 bytes, each once.
#[kernel(threads = 1024)]
pub unsafe fn memory_write_16(
    target: GlobalMut<u32>, // [4 * num_pieces]
    num_pieces: u64,
    seed: u64,
) {
    let store = |piece: usize| target.store_x4(4 * piece, content(seed, piece as u64));
    for_own_pieces(num_pieces as usize, store);
}

/// Counts the pieces, of those that a thread of this grid would write, that do not hold what a
/// write of `seed` leaves.
#[kernel(threads = 1024)]
pub unsafe fn memory_write_check_16(
    target: Global<u32>, // [4 * num_pieces]
    num_pieces: u64,
    seed: u64,
    num_wrong: GlobalMut<u32>, // [threads of the grid]
) {
    let mut wrong = 0;
    let compare = |piece: usize| {
        wrong += u32::from(target.load_x4(4 * piece) != content(seed, piece as u64));
    };
    for_own_pieces(num_pieces as usize, compare);
    num_wrong.store(thread::index_1d() as usize, wrong);
}

/// Calls `act` with this thread's pieces: eight of each round of its block, whose rounds are dealt
/// out over the grid.
#[inline(always)]
fn for_own_pieces(num_pieces: usize, mut act: impl FnMut(usize)) {
    let round = IN_FLIGHT * STRIDE;
    let grid_round = thread::grid_dim_x() as usize * round;
    let mut first = thread::block_idx_x() as usize * round + thread::thread_idx_x() as usize;
    while first + round - STRIDE < num_pieces {
        for i in 0..IN_FLIGHT {
            act(first + i * STRIDE);
        }
        first += grid_round;
    }
    while first < num_pieces {
        act(first);
        first += STRIDE;
    }
}
