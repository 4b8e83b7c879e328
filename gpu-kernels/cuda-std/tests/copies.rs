//! `cp.async`, bulk copies and mbarriers.
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

mod common;

use common::{assert_says, config, contents, dims, fault, fresh, holding, launch, lets_races_be};
use cuda_std::bulk::Mbarrier;
use cuda_std::prelude::*;

const TILE: usize = 32;

/// Doubles tiles of 32 x 16 bytes, two tiles in flight. `newest` groups may be on their way when
/// a tile is read: 1 is right, 2 is one too many.
unsafe fn pipeline<const NEWEST: u32>(x: Global<u32>, y: GlobalMut<u32>, num_tiles: u32) {
    let policy = async_copy::CachePolicy::evict_first();
    let lane = thread::thread_idx_x() as usize;
    let buffers = shared::dynamic_shared_mem::<u32>();
    let place = |tile: usize| buffers.offset((tile % 2 * TILE + lane) * 4);
    let fetch = |tile: usize| {
        if tile < num_tiles as usize {
            async_copy::copy_16(place(tile), x.offset((tile * TILE + lane) * 4), policy);
        }
        async_copy::commit_group();
    };
    fetch(0);
    for tile in 0..num_tiles as usize {
        fetch(tile + 1);
        async_copy::wait_group::<NEWEST>();
        thread::sync_threads();
        // Another lane's piece, so that the barrier matters.
        let values = buffers.load_x4((tile % 2 * TILE + (lane + 1) % TILE) * 4);
        y.store_x4((tile * TILE + (lane + 1) % TILE) * 4, values.map(|value| 2 * value));
        thread::sync_threads();
    }
}

/// Waits as it should.
#[kernel(threads = 32)]
pub unsafe fn doubles(x: Global<u32>, y: GlobalMut<u32>, num_tiles: u32) {
    pipeline::<1>(x, y, num_tiles);
}

/// Does not wait for the newest two groups: one too many.
#[kernel(threads = 32)]
pub unsafe fn doubles_too_early(x: Global<u32>, y: GlobalMut<u32>, num_tiles: u32) {
    pipeline::<2>(x, y, num_tiles);
}

#[test]
fn async_copies_land_at_the_wait_that_covers_them() {
    let values: Vec<u32> = (0..4 * 4 * TILE as u32).collect();
    let (x, y) = (holding(&values), fresh::<u32>(values.len()));
    launch(dims(1, 32, 1024), doubles { x: x.view(), y: y.view_mut(), num_tiles: 4 }).unwrap();
    assert_eq!(contents::<u32>(&y), values.iter().map(|v| 2 * v).collect::<Vec<u32>>());
}

#[test]
fn a_missing_wait_reads_what_nothing_wrote() {
    let values: Vec<u32> = (0..4 * 4 * TILE as u32).collect();
    let (x, y) = (holding(&values), fresh::<u32>(values.len()));
    let kernel = doubles_too_early { x: x.view(), y: y.view_mut(), num_tiles: 4 };
    let said = fault(dims(1, 32, 1024), kernel);
    assert_says(&said, &["shared load of 16 bytes", "reads memory nothing wrote"]);
}

/// Zeros what it wrote before, looks too early, and leaves another copy unwaited.
#[kernel]
pub unsafe fn zeros(x: Global<u32>, y: GlobalMut<u32>, offset: u32) {
    let words = shared::dynamic_shared_mem::<u32>();
    words.store_x4(0, [7; 4]);
    let policy = async_copy::CachePolicy::evict_first();
    async_copy::copy_16_or_zero(words, x, false, policy);
    async_copy::commit_group();
    y.store_x4(0, words.load_x4(0));
    async_copy::wait_group::<0>();
    y.store_x4(4, words.load_x4(0));
    async_copy::copy_16(words.offset(offset as usize), x, policy);
}

#[test]
fn zeros_are_copies_too_and_sixteen_bytes_are_aligned() {
    let (x, y) = (holding(&[0_u32; 4]), fresh::<u32>(8));
    let kernel = |offset| zeros { x: x.view(), y: y.view_mut(), offset };
    let executor = lets_races_be(config());
    let launch = |kernel| {
        // SAFETY: accesses are checked, and the test waits for the launch.
        unsafe { executor.launch(dims(1, 1, 32), kernel) }
    };
    launch(kernel(4)).unwrap();
    assert_eq!(contents::<u32>(&y), [7, 7, 7, 7, 0, 0, 0, 0]);
    for (offset, rule) in [(1, "aligned to 16"), (8, "out of bounds")] {
        let said = launch(kernel(offset)).unwrap_err().to_string();
        assert_says(&said, &["shared store of 16 bytes", rule]);
    }
}

/// Threads of the producer and consumer kernels: a producer warp and a consumer warp.
const STAGES: usize = 2;
const STAGE_WORDS: usize = 64;

/// What a broken variant leaves out.
const NOTHING: u32 = 0;
const FULL_WAIT: u32 = 1;
const EMPTY_WAIT: u32 = 2;
const EMPTY_ARRIVAL: u32 = 3;
const READ_WAIT: u32 = 4;

/// Adds one to `num_tiles` tiles of 256 bytes: warp 0 loads them in bulk, two stages ahead; warp 1
/// adds, and stores in bulk.
unsafe fn produce_and_consume(x: Global<u32>, y: GlobalMut<u32>, num_tiles: u32, leave_out: u32) {
    let words = shared::dynamic_shared_mem::<u32>();
    let stage = |i: usize| words.offset(i * STAGE_WORDS);
    let result = words.offset(STAGES * STAGE_WORDS);
    let barrier =
        |i: usize| Mbarrier::at(words.offset((STAGES + 1) * STAGE_WORDS).cast::<u64>().offset(i));
    let (full, empty) = (|i: usize| barrier(i), |i: usize| barrier(STAGES + i));
    let t = thread::thread_idx_x() as usize;
    if t == 0 {
        for i in 0..STAGES {
            full(i).init(1);
            empty(i).init(32);
        }
        bulk::fence_init();
    }
    thread::sync_threads();
    for tile in 0..num_tiles as usize {
        let (i, round) = (tile % STAGES, (tile / STAGES) as u32);
        let tile_first = tile * STAGE_WORDS;
        if t == 0 {
            if leave_out != EMPTY_WAIT {
                empty(i).wait((round + 1) % 2);
            }
            full(i).arrive_expect_bytes(4 * STAGE_WORDS as u32);
            bulk::load(stage(i), x.offset(tile_first), 4 * STAGE_WORDS as u32, full(i));
        } else if t >= 32 {
            let lane = t - 32;
            if leave_out != FULL_WAIT {
                full(i).wait(round % 2);
            }
            let [a, b] = stage(i).load_x2(2 * lane);
            if leave_out != EMPTY_ARRIVAL {
                empty(i).arrive();
            }
            if lane == 0 && leave_out != READ_WAIT {
                bulk::wait_group_read::<0>();
            }
            warp::sync_warp(warp::FULL_MASK);
            result.store_x2(2 * lane, [a + 1, b + 1]);
            bulk::fence_proxy_async();
            warp::sync_warp(warp::FULL_MASK);
            if lane == 0 {
                bulk::store(y.offset(tile_first), result, 4 * STAGE_WORDS as u32);
                bulk::commit_group();
            }
        }
    }
    if t == 32 {
        bulk::wait_group::<0>();
    }
}

/// The whole, or without a part of its waiting.
#[kernel(threads = 64)]
pub unsafe fn add_one(x: Global<u32>, y: GlobalMut<u32>, num_tiles: u32, leave_out: u32) {
    produce_and_consume(x, y, num_tiles, leave_out);
}

const ADD_ONE_SHARED: u32 = ((STAGES + 1) * STAGE_WORDS * 4 + STAGES * 2 * 8) as u32;

/// Runs it under a seed; the answer, or the fault.
fn run_add_one(leave_out: u32, seed: u64) -> Result<bool, String> {
    let num_tiles = 7;
    let values: Vec<u32> = (0..num_tiles * STAGE_WORDS as u32).map(|i| 3 * i).collect();
    let (x, y) = (holding(&values), fresh::<u32>(values.len()));
    let kernel = add_one { x: x.view(), y: y.view_mut(), num_tiles, leave_out };
    // SAFETY: accesses are checked, and the launch ends here.
    unsafe { common::seeded(seed).launch(dims(1, 64, ADD_ONE_SHARED), kernel) }
        .map_err(|fault| fault.to_string())?;
    Ok(contents::<u32>(&y) == values.iter().map(|v| v + 1).collect::<Vec<u32>>())
}

#[test]
fn producer_and_consumer_meet_at_mbarriers_under_any_order() {
    for seed in 0..20 {
        assert_eq!(run_add_one(NOTHING, seed), Ok(true), "seed {seed}");
    }
}

#[test]
fn a_consumer_that_does_not_wait_reads_what_nothing_wrote() {
    for seed in 0..5 {
        let said = run_add_one(FULL_WAIT, seed).unwrap_err();
        assert_says(&said, &["copies.rs:", "reads memory nothing wrote"]);
    }
}

#[test]
fn a_producer_that_does_not_wait_is_caught() {
    for seed in 0..5 {
        assert_ne!(run_add_one(EMPTY_WAIT, seed), Ok(true), "seed {seed}");
    }
}

#[test]
fn a_store_whose_source_is_reused_too_early_is_a_race() {
    let said = run_add_one(READ_WAIT, 0).unwrap_err();
    assert_says(&said, &["data race: thread", "which a bulk store reads at", "nothing has waited"]);
}

#[test]
fn an_mbarrier_that_never_completes_is_reported_with_its_state() {
    let said = run_add_one(EMPTY_ARRIVAL, 0).unwrap_err();
    assert_says(
        &said,
        &[
            "stuck mbarrier in kernel add_one, block (0,0,0): thread 0 waits at",
            "copies.rs:",
            "for parity 0 of the mbarrier at shared byte 784 (phase 0: 32 of 32 arrivals missing",
            "threads 1-31 returned",
        ],
    );
}

/// Stores in bulk and returns: no wait, not even a closed group.
#[kernel]
pub unsafe fn store_and_return(y: GlobalMut<u32>) {
    let words = shared::dynamic_shared_mem::<u32>();
    words.store_x4(0, [1, 2, 3, 4]);
    bulk::fence_proxy_async();
    bulk::store(y, words, 16);
}

#[test]
fn a_store_lands_when_its_thread_returns() {
    let y = fresh::<u32>(4);
    launch(dims(1, 1, 16), store_and_return { y: y.view_mut() }).unwrap();
    assert_eq!(contents::<u32>(&y), [1, 2, 3, 4]);
}

/// Breaks a rule of bulk copies, the one that `how` says.
#[kernel]
pub unsafe fn bulk_misuse(x: Global<u32>, y: GlobalMut<u32>, how: u32) {
    let words = shared::dynamic_shared_mem::<u32>();
    let barrier = Mbarrier::at(words.cast());
    let data = words.offset(4);
    if how != 0 {
        barrier.init(if how == 1 { 0 } else { 1 });
    }
    match how {
        2 => bulk::load(data, x, 12, barrier),
        3 => bulk::load(data.offset(1), x, 16, barrier),
        4 => bulk::load(data, x.offset(1), 16, barrier),
        5 => bulk::load(data, x, 4096, barrier),
        6 => bulk::store(y, data, 16),
        7 => {
            barrier.arrive_expect_bytes(16);
            barrier.arrive();
        }
        8 => barrier.wait(2),
        9 => {
            barrier.arrive_expect_bytes(16);
            bulk::load(data, x, 16, barrier);
        }
        10 => {
            bulk::load(data, x, 16, barrier);
            barrier.init(1);
        }
        _ => barrier.arrive(),
    }
}

#[test]
fn rules_of_bulk_copies_are_checked() {
    let (x, y) = (holding(&[1_u32; 64]), fresh::<u32>(64));
    let said = |how| fault(dims(1, 1, 512), bulk_misuse { x: x.view(), y: y.view_mut(), how });
    let cases = [
        (0, "no mbarrier was set up at shared byte 0"),
        (1, "counts 1 to 1048575 arrivals, not 0"),
        (2, "a bulk copy moves a multiple of 16 bytes, and not 12"),
        (3, "shared store of 16 bytes at 0x14 is not aligned to 16"),
        (4, "load of 16 bytes"),
        (5, "shared store of 4096 bytes at 0x10 is out of bounds"),
        (6, "shared load of 16 bytes at 0x10 reads memory nothing wrote"),
        (7, "the mbarrier at shared byte 0 has all 1 arrivals of its phase already"),
        (8, "a parity is 0 or 1, not 2"),
        (9, "the block ends while this load into its shared memory is on its way"),
        (10, "is set up again while it is in use"),
    ];
    for (how, words) in cases {
        assert_says(&said(how), &["kernel bulk_misuse", "copies.rs:", words]);
    }
    launch(dims(1, 1, 512), bulk_misuse { x: x.view(), y: y.view_mut(), how: 11 }).unwrap();
}
