//! Blocks, warps and ranks that wait for each other.
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

mod common;

use std::thread as os;
use std::time::{Duration, Instant};

use common::{assert_says, config, contents, dims, fresh, holding, launch};
use cuda_std::cpu::{Executor, ExecutorConfig};
use cuda_std::prelude::*;

/// Waits for all blocks of the grid, then writes how many had arrived.
#[kernel]
pub unsafe fn grid_barrier(arrived: GlobalMut<u32>, out: GlobalMut<u32>) {
    let first = thread::thread_idx_x() == 0;
    if first {
        atomic::fetch_add_acq_rel_gpu(arrived, 0, 1);
        while atomic::load_acquire_sys(arrived.as_const(), 0) < thread::grid_dim_x() {
            thread::spin_pause();
        }
    }
    thread::sync_threads();
    if first {
        let seen = atomic::load_relaxed_sys(arrived.as_const(), 0);
        out.store(thread::block_idx_x() as usize, seen);
    }
}

#[test]
fn more_blocks_than_workers_wait_for_each_other() {
    for num_workers in [1, 2, 3] {
        let (arrived, out) = (holding(&[0_u32]), fresh::<u32>(150));
        let executor = Executor::new(ExecutorConfig { num_workers, ..config() });
        let kernel = grid_barrier { arrived: arrived.view_mut(), out: out.view_mut() };
        // SAFETY: accesses are checked.
        unsafe { executor.launch(dims(150, 64, 0), kernel) }.unwrap();
        assert_eq!(contents::<u32>(&out), [150; 150], "{num_workers} workers");
    }
}

#[test]
fn a_grid_that_waits_for_a_block_it_does_not_have_meets_the_deadline() {
    let (arrived, out) = (holding(&[u32::MAX - 8]), fresh::<u32>(6));
    let kernel = grid_barrier { arrived: arrived.view_mut(), out: out.view_mut() };
    // Six arrivals short of wrapping round: waits end at once.
    launch(dims(6, 64, 0), kernel).unwrap();

    let (arrived, out) = (holding(&[0_u32]), fresh::<u32>(6));
    let kernel = one_missing { arrived: arrived.view_mut(), out: out.view_mut() };
    let before = Instant::now();
    let said = launch(dims(6, 33, 0), kernel).unwrap_err().to_string();
    let took = before.elapsed();
    assert!(took >= config().deadline && took < Duration::from_secs(5), "{took:?}");
    assert_says(
        &said,
        &[
            "kernel one_missing only spun for 300ms: block (",
            "thread 0 spins at",
            "waiting.rs:",
            "threads 1-32 wait at",
        ],
    );
}

/// As the grid barrier, but for one more block than there is.
#[kernel]
pub unsafe fn one_missing(arrived: GlobalMut<u32>, out: GlobalMut<u32>) {
    if thread::thread_idx_x() == 0 {
        atomic::fetch_add_acq_rel_gpu(arrived, 0, 1);
        while atomic::load_acquire_sys(arrived.as_const(), 0) <= thread::grid_dim_x() {
            thread::spin_pause();
        }
    }
    thread::sync_threads();
    out.store(0, 1);
}

/// Polls as a warp, with votes and barriers between two looks.
#[kernel]
pub unsafe fn polls_together(flag: Global<u32>) {
    let words = shared::dynamic_shared_mem::<u32>();
    loop {
        if thread::thread_idx_x() == 0 {
            words.store(0, atomic::load_acquire_sys(flag, 0));
        }
        thread::sync_threads();
        if warp::warp_vote_all(warp::FULL_MASK, words.load(0) != 0) {
            return;
        }
        thread::sync_threads();
        thread::spin_pause();
    }
}

#[test]
fn polling_with_barriers_meets_the_deadline_too() {
    let flag = holding(&[0_u32]);
    let said = launch(dims(2, 64, 4), polls_together { flag: flag.view() }).unwrap_err();
    assert_says(&said.to_string(), &["only spun for 300ms", "threads 0-63 spin at"]);
}

/// Works for `rounds` rounds of 1 ms, waiting for the clock between them.
#[kernel]
pub unsafe fn slow_but_working(out: GlobalMut<u32>, rounds: u32) {
    for round in 0..rounds {
        let before = thread::global_timer_ns();
        while thread::global_timer_ns() - before < 1_000_000 {
            thread::spin_pause();
        }
        out.store(thread::index_1d() as usize, round);
    }
}

#[test]
fn a_launch_that_gets_on_may_take_longer_than_the_deadline() {
    let out = fresh::<u32>(64);
    launch(dims(2, 32, 0), slow_but_working { out: out.view_mut(), rounds: 500 }).unwrap();
    assert_eq!(contents::<u32>(&out), [499; 64]);
}

/// Warp 0 waits for what warp 1 of the same block writes.
#[kernel]
pub unsafe fn warps_hand_over(flag: GlobalMut<u32>, out: GlobalMut<u32>) {
    if thread::thread_idx_x() < 32 {
        while atomic::load_acquire_sys(flag.as_const(), 0) == 0 {
            thread::spin_pause();
        }
        out.store(thread::thread_idx_x() as usize, atomic::load_relaxed_sys(flag.as_const(), 0));
    } else if thread::thread_idx_x() == 63 {
        atomic::store_release_sys(flag, 0, 5);
    }
}

#[test]
fn a_warp_waits_for_another_of_its_block() {
    let (flag, out) = (holding(&[0_u32]), fresh::<u32>(32));
    launch(dims(1, 64, 0), warps_hand_over { flag: flag.view_mut(), out: out.view_mut() }).unwrap();
    assert_eq!(contents::<u32>(&out), [5; 32]);
}

/// Two ranks count up in turns: rank `rank` writes its flag when the other's is one ahead.
#[kernel]
pub unsafe fn ping_pong(
    mine: GlobalMut<u32>,
    theirs: Global<u32>,
    payload_out: GlobalMut<u32>,
    payload_in: Global<u32>,
    rank: u32,
    rounds: u32,
) {
    for round in 1..=rounds {
        if rank == 0 {
            payload_out.store(0, 10 * round);
            atomic::store_release_sys(mine, 0, round);
        }
        while atomic::load_acquire_sys(theirs, 0) < round {
            thread::spin_pause();
        }
        assert!(payload_in.load(0) == 10 * round);
        if rank == 1 {
            payload_out.store(0, 10 * round);
            atomic::store_release_sys(mine, 0, round);
        }
    }
}

#[test]
fn ranks_on_two_os_threads_signal_each_other() {
    let flags = [holding(&[0_u32]), holding(&[0_u32])];
    let payloads = [fresh::<u32>(1), fresh::<u32>(1)];
    os::scope(|scope| {
        for rank in 0..2 {
            let kernel = ping_pong {
                mine: flags[rank].view_mut(),
                theirs: flags[1 - rank].view(),
                payload_out: payloads[rank].view_mut(),
                payload_in: payloads[1 - rank].view(),
                rank: rank as u32,
                rounds: 2000,
            };
            scope.spawn(move || launch(dims(1, 1, 0), kernel).unwrap());
        }
    });
    assert_eq!([contents::<u32>(&flags[0]), contents(&flags[1])], [[2000], [2000]]);
}

#[test]
fn a_rank_whose_peer_never_comes_meets_the_deadline() {
    let (flag, payload) = (holding(&[0_u32, 0]), holding(&[0_u32, 0]));
    // SAFETY: within the allocations.
    let (mine, payload_out) = unsafe { (flag.view_mut().offset(1), payload.view_mut().offset(1)) };
    let (theirs, payload_in) = (flag.view(), payload.view());
    let kernel = ping_pong { mine, theirs, payload_out, payload_in, rank: 0, rounds: 1 };
    let said = launch(dims(1, 1, 0), kernel).unwrap_err().to_string();
    assert_says(&said, &["kernel ping_pong only spun for", "block (0,0,0): thread 0 spins at"]);
}

/// Waits for `expected`; writes 1, or 0 and what it saw instead.
#[kernel]
pub unsafe fn waits_at_most(
    flag: Global<u32>,
    expected: u32,
    deadline_ns: u64,
    out: GlobalMut<u32>,
) {
    match atomic::wait_acquire_sys(flag, 0, expected, deadline_ns) {
        Ok(()) => out.store_x2(0, [1, expected]),
        Err(seen) => out.store_x2(0, [0, seen]),
    }
}

#[test]
fn a_bounded_wait_tells_what_it_saw() {
    let (flag, out) = (holding(&[6_u32]), fresh::<u32>(2));
    let wait = |expected| {
        let (flag, out) = (flag.view(), out.view_mut());
        let kernel = waits_at_most { flag, expected, deadline_ns: 20_000_000, out };
        launch(dims(1, 1, 0), kernel).unwrap();
    };
    wait(6);
    assert_eq!(contents::<u32>(&out), [1, 6]);
    let before = Instant::now();
    wait(7);
    assert_eq!(contents::<u32>(&out), [0, 6]);
    assert!(before.elapsed() >= Duration::from_millis(20), "it waited until its deadline");
}
