//! Each fault, provoked once.
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

mod common;

use common::{assert_says, config, contents, dims, fault, fresh, holding, launch};
use cuda_std::cpu::memory::{Allocation, MemoryError};
use cuda_std::cpu::{Executor, ExecutorConfig, Fault, LaunchDims, MAX_SHARED_BYTES, Violation};
use cuda_std::prelude::*;

/// Copies element `from_idx` of `from` to element `to_idx` of `to`.
#[kernel]
pub unsafe fn copy_one(from: Global<u32>, from_idx: u32, to: GlobalMut<u32>, to_idx: u32) {
    if thread::thread_idx_x() == 3 {
        to.store(to_idx as usize, from.load(from_idx as usize));
    }
}

#[test]
fn a_load_past_the_end_says_where_and_of_what() {
    let (from, to) = (holding(&[1_u32; 10]), fresh::<u32>(4));
    let kernel = copy_one { from: from.view(), from_idx: 10, to: to.view_mut(), to_idx: 0 };
    let fault = launch(LaunchDims { grid: [1, 1, 1], block: [8, 1, 1], shared_bytes: 0 }, kernel)
        .unwrap_err();
    let Fault::Violation { kernel, block, thread, site, violation } = &fault else {
        panic!("{fault}")
    };
    assert_eq!((*kernel, block.0, *thread), ("copy_one", [0, 0, 0], 3));
    assert!(site.file.ends_with("tests/faults.rs"), "{site}");
    assert!(matches!(violation, Violation::OutOfBounds { bytes: 4, .. }), "{violation}");
    assert_says(
        &fault.to_string(),
        &[
            "kernel copy_one, block (0,0,0), thread 3 at ",
            "faults.rs:15: load of 4 bytes",
            "out of bounds: the view has 40 bytes",
            "it is 0 bytes past the end of the 40 allocated",
        ],
    );
}

#[test]
fn a_store_far_outside_is_out_of_bounds() {
    let (from, to) = (holding(&[1_u32; 4]), fresh::<u32>(4));
    let kernel = copy_one { from: from.view(), from_idx: 0, to: to.view_mut(), to_idx: u32::MAX };
    assert_says(&fault(dims(1, 4, 0), kernel), &["store of 4 bytes", "out of bounds"]);
}

#[test]
fn a_null_view_and_cuda_memory_are_out_of_bounds_here() {
    let to = fresh::<u32>(4);
    for (from, words) in [
        (Global::null(), "the view is null"),
        (Global::for_cuda_launch(0x5000, 4), "the view has 16 bytes from 0x5000"),
    ] {
        let kernel = copy_one { from, from_idx: 0, to: to.view_mut(), to_idx: 0 };
        assert_says(&fault(dims(1, 4, 0), kernel), &["load of 4 bytes", words]);
    }
}

#[test]
fn freed_memory_is_reported_even_if_its_place_is_used_again() {
    let (from, to) = (holding(&[1_u32; 4]), fresh::<u32>(4));
    let kernel = copy_one { from: from.view(), from_idx: 0, to: to.view_mut(), to_idx: 0 };
    drop(from);
    let _again = holding(&[2_u32; 4]);
    assert_says(&fault(dims(1, 4, 0), kernel), &["load of 4 bytes", "uses memory that was freed"]);
}

#[test]
fn reading_device_memory_that_nothing_wrote_is_a_fault_unless_switched_off() {
    let (from, to) = (fresh::<u32>(4), fresh::<u32>(4));
    let kernel = copy_one { from: from.view(), from_idx: 2, to: to.view_mut(), to_idx: 0 };
    assert_says(&fault(dims(1, 4, 0), kernel), &["load of 4 bytes", "reads memory nothing wrote"]);

    // SAFETY: the memory is this test's.
    unsafe { from.write(8, &[7, 0, 0, 0]) }.unwrap();
    launch(dims(1, 4, 0), kernel).unwrap();
    assert_eq!(contents::<u32>(&to)[0], 7);

    let kernel = copy_one { from_idx: 3, ..kernel };
    let relaxed = Executor::new(ExecutorConfig { check_init: false, ..config() });
    // SAFETY: accesses are checked.
    unsafe { relaxed.launch(dims(1, 4, 0), kernel) }.unwrap();
    assert_eq!(contents::<u32>(&to)[0], u32::MAX, "poison");
}

#[test]
fn copies_between_allocations_keep_what_is_unwritten() {
    let (from, between, to) = (holding(&[5_u32, 6]), fresh::<u32>(4), fresh::<u32>(4));
    // SAFETY: the memory is this test's.
    unsafe {
        between.copy_from(4, &from, 0, 8).unwrap();
        to.copy_from(0, &between, 0, 12).unwrap();
        to.fill(12, 4, 1).unwrap();
    }
    let out = fresh::<u32>(1);
    let read = |from_idx| {
        let kernel = copy_one { from: to.view(), from_idx, to: out.view_mut(), to_idx: 0 };
        launch(dims(1, 4, 0), kernel).map(|()| contents::<u32>(&out)[0]).ok()
    };
    assert_eq!([0, 1, 2, 3].map(read), [None, Some(5), Some(6), Some(0x0101_0101)]);
}

#[test]
fn ranges_outside_an_allocation_are_refused() {
    let memory = fresh::<u32>(4);
    let refused = MemoryError::OutOfRange { first: 12, bytes: 8, allocated: 16 };
    // SAFETY: refused.
    assert_eq!(unsafe { memory.write(12, &[0; 8]) }, Err(refused.clone()));
    // SAFETY: refused.
    assert_eq!(unsafe { memory.read(12, &mut [0; 8]) }, Err(refused.clone()));
    // SAFETY: refused.
    assert_eq!(unsafe { memory.fill(12, 8, 0) }, Err(refused.clone()));
    // SAFETY: refused.
    assert_eq!(unsafe { memory.copy_from(0, &memory, 12, 8) }, Err(refused));
    assert!(matches!(Allocation::new(usize::MAX), Err(MemoryError::NoMemory { .. })));
    assert!(matches!(Allocation::new(1 << 60), Err(MemoryError::NoMemory { .. })));
}

/// Reads an element through the address that `table` holds.
#[kernel]
pub unsafe fn through_table(table: Global<u64>, entry: u32, len: u32, out: GlobalMut<u32>) {
    let memory = Global::<u32>::from_address(table.load(entry as usize), len as usize);
    out.store(0, memory.load(len as usize - 1));
}

#[test]
fn addresses_from_tables_are_checked_against_live_allocations() {
    let data = holding(&[1_u32, 2, 3]);
    let guard_page = data.address() / 4096 * 4096 - 16;
    let table = holding(&[data.address(), data.address() + 4, guard_page, 0]);
    let out = fresh::<u32>(1);
    let kernel =
        |entry, len| through_table { table: table.view(), entry, len, out: out.view_mut() };
    launch(dims(1, 1, 0), kernel(0, 3)).unwrap();
    launch(dims(1, 1, 0), kernel(1, 2)).unwrap();
    assert_eq!(contents::<u32>(&out), [3]);
    assert_says(&fault(dims(1, 1, 0), kernel(1, 3)), &["out of bounds: the view has 8 bytes"]);
    assert_says(&fault(dims(1, 1, 0), kernel(2, 3)), &["out of bounds"]);
    assert_says(&fault(dims(1, 1, 0), kernel(3, 3)), &["the view is null"]);
}

/// Loads in one piece at an element that may be unaligned.
#[kernel]
pub unsafe fn wide_load(x: Global<u32>, idx: u32, sixteen: u32) {
    if sixteen == 1 {
        x.load_x4(idx as usize);
    } else {
        x.load_x2(idx as usize);
    }
}

/// Reads an element of 8 bytes at an odd word.
#[kernel]
pub unsafe fn odd_word(x: Global<u32>) {
    x.offset(1).cast::<u64>().load(0);
}

#[test]
fn wide_accesses_are_aligned_to_their_size() {
    let memory = holding(&[0_u32; 8]);
    let kernel = |idx, sixteen| wide_load { x: memory.view(), idx, sixteen };
    launch(dims(1, 1, 0), kernel(4, 1)).unwrap();
    launch(dims(1, 1, 0), kernel(2, 0)).unwrap();
    assert_says(&fault(dims(1, 1, 0), kernel(2, 1)), &["load of 16 bytes", "not aligned to 16"]);
    assert_says(&fault(dims(1, 1, 0), kernel(1, 0)), &["load of 8 bytes", "not aligned to 8"]);
    let kernel = odd_word { x: memory.view() };
    assert_says(&fault(dims(1, 1, 0), kernel), &["load of 8 bytes", "not aligned to 8"]);
}

/// Uses shared memory wrongly, in the way `how`.
#[kernel]
pub unsafe fn shared_misuse(how: u32) {
    let words = shared::dynamic_shared_mem::<u32>();
    words.store(0, 1);
    match how {
        0 => words.store(8, 1),
        1 => _ = words.load(usize::MAX / 4),
        2 => _ = words.load(1),
        3 => _ = words.load_x4(1),
        4 => _ = words.load_x2(0),
        _ => _ = words.load(0),
    }
}

#[test]
fn shared_memory_is_checked() {
    let said = |how| fault(dims(1, 1, 32), shared_misuse { how });
    let past_end = ["shared store of 4 bytes at 0x20", "has 32 bytes of shared memory"];
    assert_says(&said(0), &past_end);
    assert_says(&said(1), &["shared load", "out of bounds"]);
    assert_says(&said(2), &["shared load of 4 bytes at 0x4 reads memory nothing wrote"]);
    assert_says(&said(3), &["shared load of 16 bytes at 0x4 is not aligned to 16"]);
    assert_says(&said(4), &["shared load of 8 bytes at 0x0 reads memory nothing wrote"]);
    launch(dims(1, 1, 32), shared_misuse { how: 5 }).unwrap();
}

/// Leaves a mark in shared memory, and looks for that of another block.
#[kernel]
pub unsafe fn left_over() {
    let words = shared::dynamic_shared_mem::<u32>();
    if thread::block_idx_x() == 0 {
        words.store(0, 1);
    } else {
        words.load(0);
    }
}

#[test]
fn a_block_does_not_see_the_shared_memory_of_the_one_before() {
    assert_says(&fault(dims(2, 1, 16), left_over {}), &["block (1,0,0)", "memory nothing wrote"]);
}

/// Shuffles with masks that cannot meet, in the way `how`.
#[kernel]
pub unsafe fn mask_misuse(how: u32) {
    let lane = warp::lane_id();
    let shuffle = |mask| _ = warp::warp_shuffle_xor(mask, lane, 1, 32);
    match how {
        0 => shuffle(0xffff_fffe),
        1 if lane == 31 => {}
        2 if lane == 31 => warp::sync_warp(warp::FULL_MASK),
        3 if lane == 31 => shuffle(0x8000_0000),
        4 => _ = warp::warp_shuffle_xor(warp::FULL_MASK, lane, 1, 12),
        5 if lane == 31 => thread::sync_threads(),
        _ => shuffle(warp::FULL_MASK),
    }
}

#[test]
fn lanes_that_cannot_meet_are_reported() {
    let said = |how, threads| fault(dims(1, threads, 0), mask_misuse { how });
    assert_says(&said(0, 32), &["mask 0xfffffffe", "does not name lane 0, which calls it"]);
    assert_says(
        &said(1, 32),
        &["threads 0-30 wait at", "in warp_shuffle_xor", "thread 31 returned"],
    );
    assert_says(&said(2, 32), &["lane 0 is in warp_shuffle_xor with mask 0xffffffff at"]);
    assert_says(&said(3, 32), &["lane 31 reads lane 30, which the mask does not name"]);
    assert_says(&said(4, 32), &["a width of 12: it is a power of two up to 32"]);
    assert_says(&said(5, 32), &["threads 0-30 wait", "in warp_shuffle_xor", "thread 31 waits at"]);
    assert_says(&said(6, 40), &["lanes 0xffffff00", "the block's last warp has no such threads"]);
    launch(dims(1, 64, 0), mask_misuse { how: 6 }).unwrap();
}

/// Lane 0 returns, the others name it later.
#[kernel]
pub unsafe fn shuffle_after_return() {
    if warp::lane_id() > 0 {
        warp::sync_warp(0xffff_fffe);
        warp::warp_vote_ballot(warp::FULL_MASK, true);
    }
}

#[test]
fn a_mask_that_names_a_lane_that_returned_is_reported() {
    let said = fault(dims(1, 32, 0), shuffle_after_return {});
    assert_says(&said, &["warp_vote_ballot", "lanes 0x00000001, which have returned"]);
}

/// Panics in one thread, while others hold values to drop.
#[kernel]
pub unsafe fn panics(counter: GlobalMut<u32>) {
    struct CountsDrops(GlobalMut<u32>);
    impl Drop for CountsDrops {
        fn drop(&mut self) {
            // SAFETY: accesses are checked.
            unsafe { atomic::fetch_add_relaxed_gpu(self.0, 0, 1) };
        }
    }
    let _guard = CountsDrops(counter);
    let values = [1, 2, 3];
    let value = values[thread::thread_idx_x() as usize + 60];
    thread::sync_threads();
    counter.store(0, value);
}

#[test]
fn a_panic_is_a_fault_and_the_other_threads_unwind() {
    let counter = holding(&[0_u32]);
    let said = fault(dims(1, 64, 0), panics { counter: counter.view_mut() });
    assert_says(
        &said,
        &["panics, block (0,0,0), thread 0 at", "faults.rs:", "index out of bounds"],
    );
    let counted = contents::<u32>(&counter)[0];
    assert_eq!(counted, 1, "thread 0 had started, and its value was dropped");
}

/// All threads but the last wait while it panics.
#[kernel]
pub unsafe fn last_panics(counter: GlobalMut<u32>, threads: u32) {
    struct CountsDrops(GlobalMut<u32>);
    impl Drop for CountsDrops {
        fn drop(&mut self) {
            // SAFETY: accesses are checked. A drop may run when no thread of the GPU does.
            unsafe { self.0.store(0, self.0.load(0) + 1) };
        }
    }
    let _guard = CountsDrops(counter);
    assert!(thread::thread_idx_x() + 1 < threads, "the last of {threads} threads");
    thread::sync_threads();
}

#[test]
fn waiting_threads_drop_what_they_hold_when_another_panics() {
    let counter = holding(&[0_u32]);
    let kernel = last_panics { counter: counter.view_mut(), threads: 128 };
    assert_says(&fault(dims(1, 128, 0), kernel), &["thread 127", "the last of 128 threads"]);
    assert_eq!(contents::<u32>(&counter), [128]);
}

#[test]
fn an_executor_goes_on_after_a_fault() {
    let executor = Executor::new(config());
    let (from, to) = (holding(&[9_u32]), fresh::<u32>(1));
    let kernel = copy_one { from: from.view(), from_idx: 1, to: to.view_mut(), to_idx: 0 };
    for _ in 0..20 {
        // SAFETY: accesses are checked.
        unsafe { executor.launch(dims(16, 128, 64), kernel) }.unwrap_err();
    }
    let kernel = copy_one { from_idx: 0, ..kernel };
    // SAFETY: accesses are checked.
    unsafe { executor.launch(dims(1, 4, 0), kernel) }.unwrap();
    assert_eq!(contents::<u32>(&to), [9]);
}

/// Written for 64 threads.
#[kernel(threads = 64)]
pub unsafe fn for_64_threads() {}

#[test]
fn launches_that_no_device_accepts_are_refused_in_words() {
    let said = |grid, block, shared_bytes| {
        fault(LaunchDims { grid, block, shared_bytes }, for_64_threads {})
    };
    launch(dims(1, 64, MAX_SHARED_BYTES), for_64_threads {}).unwrap();
    launch(LaunchDims { grid: [1, 2, 3], block: [4, 4, 4], shared_bytes: 0 }, for_64_threads {})
        .unwrap();
    let cases = [
        (said([1, 0, 1], [64, 1, 1], 0), "grid is [1, 0, 1], and no dimension may be zero"),
        (said([1, 1, 1], [64, 1, 0], 0), "block is [64, 1, 0], and no dimension may be zero"),
        (said([1, 65536, 1], [64, 1, 1], 0), "grid is [1, 65536, 1], and the limit is"),
        (said([1, 1, 1], [1, 1, 65], 0), "block is [1, 1, 65], and the limit is"),
        (said([1, 1, 1], [1024, 2, 1], 0), "a block has 2048 threads, and the limit is 1024"),
        (
            said([1, 1, 1], [96, 1, 1], 0),
            "a block has 96 threads, and the kernel is written for 64",
        ),
        (said([1, 1, 1], [64, 1, 1], 232_449), "232449 bytes of shared memory, and the limit is"),
    ];
    for (said, words) in cases {
        assert_says(&said, &["kernel for_64_threads was not launched", words]);
    }
}

#[test]
#[should_panic(expected = "called outside of a kernel")]
fn a_thread_index_outside_of_a_kernel_panics() {
    thread::thread_idx_x();
}
