//! Data races in shared memory: each rule kept, and broken.
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

mod common;

use common::{assert_says, config, dims, fault, fresh, holding, launch, lets_races_be};
use cuda_std::Kernel;
use cuda_std::bulk::Mbarrier;
use cuda_std::prelude::*;
use cuda_std::wgmma::SwizzledTile;
use half::bf16;

#[track_caller]
fn assert_races(shared_bytes: u32, kernel: impl Kernel, parts: &[&str]) {
    let said = fault(dims(1, 256, shared_bytes), kernel);
    assert_says(&said, &["data race: ", "races.rs:"]);
    assert_says(&said, parts);
}

/// What orders the two accesses of a kernel below.
const NOTHING: u32 = 0;
const BLOCK: u32 = 1;
const WARP: u32 = 2;
const SHUFFLE: u32 = 3;
const OTHER_WARPS: u32 = 4;
const ARRIVE_THEN_WAIT: u32 = 5;
const WAIT_THEN_ARRIVE: u32 = 6;

/// Thread 0 stands before what orders, thread `reader` behind it.
unsafe fn order(how: u32, reader: u32) {
    let t = thread::thread_idx_x();
    match how {
        BLOCK => thread::sync_threads(),
        WARP => warp::sync_warp(warp::FULL_MASK),
        SHUFFLE => {
            warp::warp_shuffle_xor(warp::FULL_MASK, t, 1, 32);
        }
        OTHER_WARPS if t >= 64 => thread::sync_some(1, 192),
        ARRIVE_THEN_WAIT if t < 32 => thread::arrive_some(1, 64),
        ARRIVE_THEN_WAIT if t / 32 == reader / 32 => thread::sync_some(1, 64),
        WAIT_THEN_ARRIVE if t < 32 => thread::sync_some(1, 64),
        WAIT_THEN_ARRIVE if t / 32 == reader / 32 => thread::arrive_some(1, 64),
        _ => {}
    }
}

/// Thread 0 stores, and thread `reader` loads.
#[kernel(threads = 256)]
pub unsafe fn store_load(how: u32, reader: u32) {
    let words = shared::dynamic_shared_mem::<u32>();
    if thread::thread_idx_x() == 0 {
        words.store(1, 7);
    }
    order(how, reader);
    if thread::thread_idx_x() == reader {
        words.load(1);
    }
}

/// Thread 0 loads, and thread `reader` stores.
#[kernel(threads = 256)]
pub unsafe fn load_store(how: u32, reader: u32) {
    let words = shared::dynamic_shared_mem::<u32>();
    words.store(thread::thread_idx_x() as usize, 7);
    thread::sync_threads();
    if thread::thread_idx_x() == 0 {
        words.load(1);
    }
    order(how, reader);
    if thread::thread_idx_x() == reader {
        words.store(1, 8);
    }
}

#[test]
fn barriers_order_threads() {
    for (how, reader) in [(BLOCK, 1), (BLOCK, 255), (WARP, 31), (ARRIVE_THEN_WAIT, 64)] {
        launch(dims(1, 256, 1024), store_load { how, reader }).unwrap();
        launch(dims(1, 256, 1024), load_store { how, reader }).unwrap();
    }
}

#[test]
fn what_orders_others_or_nothing_does_not() {
    let unordered = [
        (NOTHING, 1),
        (SHUFFLE, 1),
        (WARP, 32),
        (OTHER_WARPS, 64),
        (WAIT_THEN_ARRIVE, 64),
        (ARRIVE_THEN_WAIT, 1),
    ];
    for (how, reader) in unordered {
        let who =
            format!("thread {reader} reads 4 bytes at 0x4 of shared memory, which thread 0 writes");
        assert_races(1024, store_load { how, reader }, &[&who, "and no barrier orders the two"]);
        let who =
            format!("thread {reader} writes 4 bytes at 0x4 of shared memory, which thread 0 reads");
        assert_races(1024, load_store { how, reader }, &[&who]);
    }
}

#[test]
fn an_executor_may_let_races_be() {
    let kernel = store_load { how: NOTHING, reader: 1 };
    // SAFETY: the kernel has no memory.
    unsafe { lets_races_be(config()).launch(dims(1, 256, 1024), kernel) }.unwrap();
}

/// Each thread stores to elements of its own, and perhaps to a neighbour's.
#[kernel(threads = 256)]
pub unsafe fn own_elements(neighbour: usize) {
    let t = thread::thread_idx_x() as usize;
    let (bytes, words) = (shared::dynamic_shared_mem::<u8>(), shared::dynamic_shared_mem::<u64>());
    bytes.store(t, 1);
    bytes.store(t ^ neighbour, 1);
    thread::sync_threads();
    // Whole pieces after their parts.
    words.store(t, 2);
    words.cast::<u16>().store(4 * t + 3, 3);
    words.cast::<u16>().load(4 * t + 3);
}

#[test]
fn bytes_beside_each_other_do_not_race() {
    launch(dims(1, 256, 2048), own_elements { neighbour: 0 }).unwrap();
    let neighbour = "thread 1 writes 1 bytes at 0x1 of shared memory, which thread 0 writes";
    assert_races(2048, own_elements { neighbour: 1 }, &[neighbour]);
}

/// All threads read one word and update another; then thread 40 reads both, and writes the first.
#[kernel(threads = 256)]
pub unsafe fn counters(how: u32) {
    let words = shared::dynamic_shared_mem::<u32>();
    let t = thread::thread_idx_x();
    if t < 2 {
        words.store(t as usize, 0);
    }
    thread::sync_threads();
    words.load(0);
    atomic::fetch_add_shared(words, 1, 1);
    if how == BLOCK {
        thread::sync_threads();
    } else {
        warp::sync_warp(warp::FULL_MASK);
    }
    if t == 40 {
        words.load(0);
        if how == WARP {
            words.load(1);
        }
        words.store(0, 1);
    }
}

#[test]
fn loads_and_updates_race_with_others_than_themselves() {
    launch(dims(1, 256, 8), counters { how: BLOCK }).unwrap();
    let update = "thread 40 reads 4 bytes at 0x4 of shared memory, which thread 0 writes";
    assert_races(8, counters { how: WARP }, &[update]);
    let store = "thread 40 writes 4 bytes at 0x0 of shared memory, which thread 0 reads";
    assert_races(8, counters { how: NOTHING }, &[store]);
}

/// Thread 0 copies and waits, before (1) or after (2) a barrier, or at an mbarrier (3) that thread 64
/// waits for; thread 64 loads.
#[kernel(threads = 256)]
pub unsafe fn copy_wait_load(x: Global<u32>, how: u32) {
    let words = shared::dynamic_shared_mem::<u32>();
    let barrier = Mbarrier::at(words.cast::<u64>().offset(2));
    let t = thread::thread_idx_x();
    if t == 0 {
        words.store_x4(0, [0; 4]);
        barrier.init(1);
    }
    thread::sync_threads();
    if t == 0 {
        async_copy::copy_16(words, x, async_copy::CachePolicy::evict_first());
        async_copy::commit_group();
        match how {
            1 => async_copy::wait_group::<0>(),
            3 => async_copy::arrive_when_landed(barrier),
            _ => {}
        }
    }
    thread::sync_threads();
    if t == 0 && how == 2 {
        async_copy::wait_group::<0>();
    }
    if t == 64 {
        if how == 3 {
            barrier.wait(0);
        }
        words.load(3);
    }
}

#[test]
fn copies_are_known_to_who_waited_and_to_who_was_told() {
    let x = holding(&[1_u32; 4]);
    for how in [1, 3] {
        launch(dims(1, 256, 32), copy_wait_load { x: x.view(), how }).unwrap();
    }
    for how in [0, 2] {
        let parts =
            ["thread 64 reads 4 bytes", "an asynchronous copy writes", "nothing has waited"];
        assert_races(32, copy_wait_load { x: x.view(), how }, &parts);
    }
}

/// Thread 0 loads in bulk, for one of two barriers; `waits_for` waits, and `reader` loads.
#[kernel(threads = 256)]
pub unsafe fn bulk_load(x: Global<u32>, waits_for: u32, reader: u32) {
    let words = shared::dynamic_shared_mem::<u32>();
    let barrier = |i: u32| Mbarrier::at(words.cast::<u64>().offset(2 + i as usize));
    let t = thread::thread_idx_x();
    if t == 0 {
        barrier(0).init(1);
        barrier(1).init(1);
        bulk::fence_init();
    }
    thread::sync_threads();
    if t == 0 {
        barrier(0).arrive_expect_bytes(16);
        bulk::load(words, x, 16, barrier(0));
        barrier(1).arrive();
    }
    if t == 64 || t == 0 {
        barrier(0).wait(0);
    }
    if t == reader {
        barrier(waits_for).wait(0);
        words.load(0);
    }
}

#[test]
fn bulk_loads_are_known_to_who_waited_for_their_barrier() {
    let x = holding(&[1_u32; 4]);
    let kernel = |waits_for, reader| bulk_load { x: x.view(), waits_for, reader };
    launch(dims(1, 256, 32), kernel(0, 100)).unwrap();
    launch(dims(1, 256, 32), kernel(1, 64)).unwrap();
    let parts =
        ["thread 100 reads 4 bytes", "which a bulk load writes", "nothing has waited for that"];
    assert_races(32, kernel(1, 100), &parts);
}

/// All threads store to a stage or read it; thread 0 lets a bulk load overwrite it, after all or part of
/// what that needs.
#[kernel(threads = 256)]
pub unsafe fn reload(x: Global<u32>, reads: u32, without: u32) {
    let words = shared::dynamic_shared_mem::<u32>();
    let barrier = Mbarrier::at(words.cast::<u64>().offset(128));
    let t = thread::thread_idx_x();
    if t == 0 {
        barrier.init(1);
    }
    words.store(t as usize, 0);
    bulk::fence_proxy_async();
    thread::sync_threads();
    if reads == 1 {
        words.load(t as usize);
    } else {
        words.store(t as usize, 1);
    }
    if without != FENCE {
        bulk::fence_proxy_async();
    }
    if without != BARRIER {
        thread::sync_threads();
    }
    if t == 0 {
        barrier.arrive_expect_bytes(1024);
        bulk::load(words, x, 1024, barrier);
        barrier.wait(0);
    }
}

#[test]
fn bulk_loads_overwrite_what_was_read_and_what_was_fenced() {
    let x = holding(&[1_u32; 256]);
    let kernel = |reads, without| reload { x: x.view(), reads, without };
    launch(dims(1, 256, 1032), kernel(0, NOTHING)).unwrap();
    // What threads read needs no fence.
    launch(dims(1, 256, 1032), kernel(1, FENCE)).unwrap();
    let load = "a bulk load writes 1024 bytes at 0x0 of shared memory, which thread 0 writes";
    assert_races(1032, kernel(0, FENCE), &[load, "no fence_proxy_async lies between"]);
    let read = "reads 4 bytes at 0x4 of shared memory, which a bulk load writes";
    assert_races(1032, kernel(1, BARRIER), &[read, "nothing has waited for that"]);
}

/// Block 1 of a cluster arrives at a barrier that block 0 set up, and published or not.
#[kernel(cluster = 2, threads = 32)]
pub unsafe fn published_barrier(is_published: u32) {
    let barrier = Mbarrier::at(shared::dynamic_shared_mem());
    let t = thread::thread_idx_x();
    if t == 0 {
        barrier.init(1);
        if is_published == 1 {
            bulk::fence_init();
        }
    }
    cluster::meet();
    if cluster::block_rank() == 1 && t == 0 {
        barrier.arrive_in(0);
    }
    cluster::sync();
}

#[test]
fn barriers_are_published_before_a_cluster_meets() {
    launch(dims(2, 32, 8), published_barrier { is_published: 1 }).unwrap();
    let said = fault(dims(2, 32, 8), published_barrier { is_published: 0 });
    assert_says(&said, &["data race: ", "which thread 0 of block 0 of the cluster writes"]);
}

/// Uses a barrier that may not be set up yet.
#[kernel(threads = 256)]
pub unsafe fn early_arrival() {
    let barrier = Mbarrier::at(shared::dynamic_shared_mem());
    let t = thread::thread_idx_x();
    if t == 0 {
        barrier.init(1);
    }
    warp::sync_warp(warp::FULL_MASK);
    if t == 32 {
        barrier.arrive();
    }
}

#[test]
fn barriers_are_set_up_before_they_are_used() {
    assert_races(8, early_arrival {}, &["thread 32 reads 8 bytes at 0x0", "which thread 0 writes"]);
}

/// What is left out between threads that store and thread 0, which stores what they did in bulk.
const FENCE: u32 = 1;
const BARRIER: u32 = 2;
const FENCE_BEHIND_BARRIER: u32 = 3;
const FENCE_BEFORE_STORE: u32 = 4;

#[kernel(threads = 256)]
pub unsafe fn bulk_store(y: GlobalMut<u32>, without: u32) {
    let words = shared::dynamic_shared_mem::<u32>();
    let t = thread::thread_idx_x();
    words.store(t as usize, 0);
    thread::sync_threads();
    if without == FENCE_BEFORE_STORE {
        bulk::fence_proxy_async();
    }
    words.store(t as usize, t);
    if without == NOTHING || without == BARRIER {
        bulk::fence_proxy_async();
    }
    if without != BARRIER {
        thread::sync_threads();
    }
    if t == 0 {
        if without == FENCE_BEHIND_BARRIER {
            bulk::fence_proxy_async();
        }
        bulk::store(y, words, 1024);
        bulk::commit_group();
        bulk::wait_group_read::<0>();
    }
    thread::sync_threads();
    words.store(t as usize, 0);
}

#[test]
fn bulk_stores_see_what_was_fenced() {
    let y = fresh::<u32>(256);
    let kernel = |without| bulk_store { y: y.view_mut(), without };
    launch(dims(1, 256, 1024), kernel(NOTHING)).unwrap();
    launch(dims(1, 256, 1024), kernel(FENCE_BEHIND_BARRIER)).unwrap();
    let bulk = "a bulk store reads 1024 bytes at 0x0 of shared memory, which thread 0 writes";
    for without in [FENCE, FENCE_BEFORE_STORE] {
        assert_races(1024, kernel(without), &[bulk, "no fence_proxy_async lies between"]);
    }
    assert_races(1024, kernel(BARRIER), &["a bulk store reads"]);
}

/// All threads store tiles; a warpgroup multiplies them, and then the other overwrites one.
#[kernel(threads = 256)]
pub unsafe fn product(without: u32) {
    let base = shared::dynamic_shared_mem::<u8>();
    let a = SwizzledTile::<bf16>::at(base.cast());
    let b = SwizzledTile::<bf16>::at(base.offset(SwizzledTile::<bf16>::bytes(64)).cast());
    let t = thread::thread_idx_x() as usize;
    // The rows of `a`, then those of `b`.
    if t < 192 {
        (0..64).step_by(8).for_each(|column| a.store_x4(t, column, [0; 4]));
    }
    if without != FENCE {
        bulk::fence_proxy_async();
    }
    thread::sync_threads();
    let mut d = [0.0; 64];
    if t < 128 {
        wgmma::fence(&mut d);
        wgmma::m64n128k16(&mut d, a, b, false);
        wgmma::commit_group();
        if without != BARRIER {
            wgmma::wait_group::<0, _>(&mut d);
        }
        thread::arrive_some(1, 256);
        if without == BARRIER {
            wgmma::wait_group::<0, _>(&mut d);
        }
    } else {
        thread::sync_some(1, 256);
        if t == 200 {
            b.store_x4(3, 8, [0; 4]);
        }
    }
}

#[test]
fn multiplications_see_what_was_fenced_and_keep_it_until_their_wait() {
    let shared_bytes = SwizzledTile::<bf16>::bytes(64 + 128) as u32;
    launch(dims(1, 256, shared_bytes), product { without: NOTHING }).unwrap();
    let reads = "a multiplication of a warpgroup reads 16 bytes";
    assert_races(shared_bytes, product { without: FENCE }, &[reads, "no fence_proxy_async"]);
    let parts = ["thread 200 writes 16 bytes", "which a multiplication of a warpgroup reads"];
    assert_races(shared_bytes, product { without: BARRIER }, &parts);
}

/// Block 1 of a cluster reads what block 0 stored.
#[kernel(cluster = 2, threads = 64)]
pub unsafe fn from_other_block(is_ordered: u32) {
    let words = shared::dynamic_shared_mem::<u32>();
    let (rank, t) = (cluster::block_rank(), thread::thread_idx_x());
    if t == 5 {
        words.store_x4(0, [rank; 4]);
    }
    match is_ordered {
        0 => cluster::meet(),
        _ => cluster::sync(),
    }
    if rank == 1 && t == 9 {
        cluster::load_x4(words, 0);
    }
    cluster::sync();
}

#[test]
fn clusters_are_ordered_by_sync_and_not_by_meeting() {
    launch(dims(2, 64, 16), from_other_block { is_ordered: 1 }).unwrap();
    let said = fault(dims(2, 64, 16), from_other_block { is_ordered: 0 });
    assert_says(&said, &["thread 9 reads 16 bytes", "thread 5 of block 0 of the cluster writes"]);
}
