//! The report of a barrier that not all threads reach. Its lines are in the snapshots.
#![allow(missing_docs, unsafe_op_in_unsafe_fn, clippy::if_same_then_else)]

mod common;

use common::{dims, fault, launch};
use cuda_std::cpu::LaunchDims;
use cuda_std::prelude::*;

/// Two barriers for the threads of one block.
#[kernel]
pub unsafe fn diverges(last_returns: u32) {
    if thread::block_idx_x() == 1 && thread::thread_idx_x() >= 64 && last_returns == 1 {
        return;
    }
    if thread::block_idx_x() == 1 && thread::thread_idx_x() >= 32 {
        thread::sync_threads();
    } else {
        thread::sync_threads();
    }
}

#[test]
fn threads_at_two_barriers_and_none() {
    insta::assert_snapshot!(fault(dims(2, 65, 0), diverges { last_returns: 1 }), @"divergent barrier in kernel diverges, block (1,0,0): threads 0-31 wait at gpu-kernels/cuda-std/tests/divergent_barrier.rs:19, threads 32-63 wait at gpu-kernels/cuda-std/tests/divergent_barrier.rs:17, thread 64 returned");
}

#[test]
fn all_threads_at_a_barrier_but_not_the_same_one() {
    insta::assert_snapshot!(fault(dims(2, 64, 0), diverges { last_returns: 0 }), @"divergent barrier in kernel diverges, block (1,0,0): threads 0-31 wait at gpu-kernels/cuda-std/tests/divergent_barrier.rs:19, threads 32-63 wait at gpu-kernels/cuda-std/tests/divergent_barrier.rs:17");
}

/// Every other thread waits.
#[kernel]
pub unsafe fn every_other() {
    if thread::thread_idx_x().is_multiple_of(2) {
        thread::sync_threads();
    }
}

#[test]
fn every_other_thread() {
    let size = LaunchDims { grid: [1, 1, 1], block: [2, 2, 2], shared_bytes: 0 };
    insta::assert_snapshot!(fault(size, every_other {}), @"divergent barrier in kernel every_other, block (0,0,0): threads 0, 2, 4, 6 wait at gpu-kernels/cuda-std/tests/divergent_barrier.rs:37, threads 1, 3, 5, 7 returned");
}

#[test]
fn one_block_that_takes_one_path_is_fine() {
    launch(dims(1, 65, 0), diverges { last_returns: 1 }).unwrap();
}
