//! Barriers for some threads of a block.
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

mod common;

use common::{assert_says, contents, dims, fault, fresh, launch, seeded};
use cuda_std::prelude::*;

/// Two pairs of warps, each with a barrier of its own: within a pair one writes a word a lane and
/// the other reads it, `rounds` times. The reader comes to a second barrier without waiting there.
/// `leave_out` (not 0) the wait for the writer, and a warp reads what is not there yet.
#[kernel(threads = 128)]
pub unsafe fn hand_over(out: GlobalMut<u32>, rounds: u32, leave_out: u32) {
    let words = shared::dynamic_shared_mem::<u32>();
    let (warp, lane) = (thread::thread_idx_x() / 32, warp::lane_id());
    let (pair, reads) = (warp / 2, warp % 2 == 1);
    let (written, read) = (1 + pair, 3 + pair);
    let place = (pair * 32 + lane) as usize;
    let mut sum = 0;
    for round in 0..rounds {
        if reads {
            if leave_out == 0 {
                thread::sync_some(written, 64);
            }
            sum += words.load((pair * 32 + (lane + 1) % 32) as usize);
            thread::arrive_some(read, 64);
        } else {
            words.store(place, round + 1);
            thread::arrive_some(written, 64);
            thread::sync_some(read, 64);
        }
    }
    if reads {
        out.store(place, sum);
    }
}

#[test]
fn each_barrier_is_for_those_that_name_it() {
    for seed in 0..4 {
        let out = fresh::<u32>(64);
        let kernel = hand_over { out: out.view_mut(), rounds: 5, leave_out: 0 };
        // SAFETY: accesses are checked, and the call waits for the launch.
        unsafe { seeded(seed).launch(dims(1, 128, 256), kernel) }.unwrap();
        assert_eq!(contents::<u32>(&out), [15; 64], "seed {seed}");
    }
}

#[test]
fn a_missing_wait_shows() {
    let broken = (0..8).any(|seed| {
        let out = fresh::<u32>(64);
        let kernel = hand_over { out: out.view_mut(), rounds: 5, leave_out: 1 };
        // SAFETY: as above.
        unsafe { seeded(seed).launch(dims(1, 128, 256), kernel) }.is_err()
            || contents::<u32>(&out) != [15; 64]
    });
    assert!(broken);
}

/// Comes to a barrier in a way that is wrong.
#[kernel]
pub unsafe fn apart(how: u32) {
    let warp = thread::thread_idx_x() / 32;
    match how {
        0 => thread::sync_some(0, 64),
        1 => thread::sync_some(16, 64),
        2 => thread::sync_some(1, 48),
        3 => thread::sync_some(2, 64 + 32 * warp),
        4 if warp == 0 => thread::sync_some(3, 64),
        5 if thread::thread_idx_x() > 0 => thread::sync_some(4, 64),
        _ => {}
    }
}

#[test]
fn threads_that_cannot_come_together_are_reported() {
    let said = |how| fault(dims(1, 64, 0), apart { how });
    launch(dims(2, 64, 0), apart { how: 6 }).unwrap();
    assert_says(&said(0), &["named_barrier.rs", "a number from 1 to 15, not 0"]);
    assert_says(&said(1), &["a number from 1 to 15, not 16"]);
    assert_says(&said(2), &["whole warps, and not for 48 threads"]);
    assert_says(&said(3), &["barrier 2 for 96 threads; others came for 64"]);
    assert_says(
        &said(4),
        &["divergent barrier", "threads 0-31 wait at", "at barrier 3 (32 of 64 threads came)"],
    );
    assert_says(&said(5), &["divergent barrier", "threads 1-63", "63 of 64 threads came"]);
}
