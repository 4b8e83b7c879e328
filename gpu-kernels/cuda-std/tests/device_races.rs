//! Data races in device memory: each rule kept, and broken.
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

mod common;

use common::{assert_says, config, dims, fresh, holding};
use cuda_std::cpu::memory::Allocation;
use cuda_std::cpu::{Access, Executor, Queue};
use cuda_std::prelude::*;

/// What orders the two sides of [`pass`], and of the launches below: how one tells, the other hears.
const RELEASE: u32 = 0;
const FENCE: u32 = 1;
const RELAXED: u32 = 2;
const ACQUIRE: u32 = 3;
const ADD_ACQ_REL: u32 = 4;
const ADD_RELAXED: u32 = 5;
const FENCE_GPU: u32 = 6;

#[derive(Clone, Copy)]
struct Flag(GlobalMut<u32>);

impl Flag {
    unsafe fn tell(self, how: u32) {
        match how {
            RELEASE => atomic::store_release_sys(self.0, 0, 1),
            FENCE => {
                atomic::fence_acq_rel_sys();
                atomic::store_relaxed_sys(self.0, 0, 1);
            }
            FENCE_GPU => {
                atomic::fence_acq_rel_gpu();
                atomic::store_relaxed_sys(self.0, 0, 1);
            }
            ADD_ACQ_REL => {
                atomic::fetch_add_acq_rel_gpu(self.0, 0, 1);
            }
            ADD_RELAXED => {
                atomic::fetch_add_relaxed_gpu(self.0, 0, 1);
            }
            _ => atomic::store_relaxed_sys(self.0, 0, 1),
        }
    }

    unsafe fn hear(self, how: u32) {
        while atomic::load_relaxed_sys(self.0.as_const(), 0) == 0 {
            thread::spin_pause();
        }
        match how {
            ACQUIRE => {
                atomic::load_acquire_sys(self.0.as_const(), 0);
            }
            FENCE => atomic::fence_acq_rel_sys(),
            FENCE_GPU => atomic::fence_acq_rel_gpu(),
            ADD_ACQ_REL => {
                atomic::fetch_add_acq_rel_gpu(self.0, 0, 0);
            }
            ADD_RELAXED => {
                atomic::fetch_add_relaxed_gpu(self.0, 0, 0);
            }
            _ => {}
        }
    }
}

/// Thread 3 of block 0 writes a word or reads it, and thread 0 tells; thread 0 of block 1 hears, and
/// thread 5 does the other of the two.
#[kernel(threads = 32)]
pub unsafe fn pass(word: GlobalMut<u32>, flag: GlobalMut<u32>, told: u32, heard: u32, reads: u32) {
    let t = thread::thread_idx_x();
    if thread::block_idx_x() == 0 {
        if t == 3 {
            access(word, reads);
        }
        thread::sync_threads();
        if t == 0 {
            Flag(flag).tell(told);
        }
    } else {
        if t == 0 {
            Flag(flag).hear(heard);
        }
        thread::sync_threads();
        if t == 5 {
            access(word, 1 - reads);
        }
    }
}

unsafe fn access(word: GlobalMut<u32>, reads: u32) {
    match reads {
        0 => word.store(0, 7),
        _ => {
            word.load(0);
        }
    }
}

/// What both blocks of [`pass`] say.
fn pass_said(told: u32, heard: u32, reads: u32) -> Result<(), String> {
    let (word, flag) = (holding(&[1u32]), holding(&[0u32]));
    let kernel = pass { word: word.view_mut(), flag: flag.view_mut(), told, heard, reads };
    common::launch(dims(2, 32, 0), kernel).map_err(|fault| fault.to_string())
}

#[test]
fn a_release_and_an_acquire_order_blocks() {
    let orders = [
        (RELEASE, ACQUIRE),
        (RELEASE, FENCE),
        (RELEASE, ADD_ACQ_REL),
        (FENCE, ACQUIRE),
        (FENCE, FENCE),
        (FENCE_GPU, FENCE_GPU),
        (ADD_ACQ_REL, ACQUIRE),
        (ADD_ACQ_REL, ADD_ACQ_REL),
    ];
    for (told, heard) in orders {
        for reads in [0, 1] {
            pass_said(told, heard, reads).unwrap();
        }
    }
}

#[test]
fn half_of_it_does_not() {
    let orders = [
        (RELAXED, ACQUIRE),
        (RELAXED, FENCE),
        (RELEASE, RELAXED),
        (FENCE, RELAXED),
        (ADD_RELAXED, ADD_ACQ_REL),
        (ADD_ACQ_REL, ADD_RELAXED),
        (RELAXED, RELAXED),
    ];
    for (told, heard) in orders {
        let said = pass_said(told, heard, 0).unwrap_err();
        let read = "block (1,0,0), thread 5 at";
        assert_says(&said, &[read, "data race: thread 5 reads 4 bytes at", "of device memory"]);
        assert_says(&said, &["a thread of cluster 0 writes at", "no release and acquire orders"]);
        let said = pass_said(told, heard, 1).unwrap_err();
        assert_says(&said, &["thread 5 writes 4 bytes", "which a thread of cluster 0 reads at"]);
    }
}

/// Blocks 0 and 1 add to a counter, each after a store of its own; block 2 hears of the second.
#[kernel(threads = 1)]
pub unsafe fn chain(words: GlobalMut<u32>, counter: GlobalMut<u32>, order: u32) {
    let block = thread::block_idx_x();
    let wait_for = |arrivals: u32| {
        while atomic::load_relaxed_gpu(counter.as_const(), 0) < arrivals {
            thread::spin_pause();
        }
    };
    match block {
        0 => {
            words.store(0, 1);
            atomic::fetch_add_acq_rel_gpu(counter, 0, 1);
        }
        1 => {
            wait_for(1);
            Flag(counter).tell(order);
        }
        _ => {
            wait_for(2);
            atomic::load_acquire_gpu(counter.as_const(), 0);
            words.load(0);
        }
    }
}

#[test]
fn additions_between_a_release_and_an_acquire_keep_what_was_told() {
    let (words, counter) = (holding(&[0u32]), holding(&[0u32]));
    let kernel = chain { words: words.view_mut(), counter: counter.view_mut(), order: ADD_RELAXED };
    common::launch(dims(3, 1, 0), kernel).unwrap();
}

#[test]
fn a_relaxed_store_takes_back_what_was_told() {
    let (gpu, queue, other) = (Executor::new(config()), Queue::new(), Queue::new());
    let (third, pair) = (Queue::new(), Pair::new());
    pair.tell(&gpu, &queue, RELEASE);
    let again = Pair { word: holding(&[1u32]), flag: pair.flag };
    again.tell(&gpu, &third, RELAXED);
    let heard = Pair { word: pair.word, flag: again.flag };
    heard.hear(&gpu, &other, ACQUIRE).unwrap_err();
}

/// The first warp writes and tells, the second hears and reads.
#[kernel(threads = 64)]
pub unsafe fn pass_in_block(word: GlobalMut<u32>, flag: GlobalMut<u32>, told: u32) {
    match thread::thread_idx_x() {
        0 => {
            word.store(0, 7);
            Flag(flag).tell(told);
        }
        32 => {
            Flag(flag).hear(ACQUIRE);
            word.load(0);
        }
        _ => {}
    }
}

#[test]
fn flags_order_threads_of_a_block_too() {
    let said = |told| {
        let (word, flag) = (holding(&[1u32]), holding(&[0u32]));
        let kernel = pass_in_block { word: word.view_mut(), flag: flag.view_mut(), told };
        common::launch(dims(1, 64, 0), kernel).map_err(|fault| fault.to_string())
    };
    said(RELEASE).unwrap();
    let said = said(RELAXED).unwrap_err();
    assert_says(&said, &["thread 32 reads 4 bytes", "which thread 0 writes", "no barrier"]);
}

/// Block 0 stores to a flag at which the others look; one side is atomic.
#[kernel(threads = 1)]
pub unsafe fn plain_flag(flag: GlobalMut<u32>, stores_atomically: u32) {
    match (thread::block_idx_x(), stores_atomically) {
        (0, 0) => flag.store(0, 1),
        (0, _) => atomic::store_relaxed_gpu(flag, 0, 1),
        (_, 0) => {
            atomic::load_relaxed_gpu(flag.as_const(), 0);
        }
        _ => {
            flag.load(0);
        }
    }
}

#[test]
fn a_flag_must_be_atomic_on_both_sides() {
    for stores_atomically in [0, 1] {
        let flag = holding(&[0u32]);
        let kernel = plain_flag { flag: flag.view_mut(), stores_atomically };
        assert_says(&common::fault(dims(2, 1, 0), kernel), &["data race", "of device memory"]);
    }
}

/// Tells or hears, each in a launch of its own.
#[kernel(threads = 1)]
pub unsafe fn side(word: GlobalMut<u32>, flag: GlobalMut<u32>, told: u32, heard: u32) {
    if told != u32::MAX {
        word.store(0, 7);
        Flag(flag).tell(told);
    } else {
        Flag(flag).hear(heard);
        word.load(0);
    }
}

struct Pair {
    word: Allocation,
    flag: Allocation,
}

impl Pair {
    fn new() -> Self {
        Self { word: holding(&[1u32]), flag: holding(&[0u32]) }
    }

    fn launch(&self, on: &Executor, queue: &Queue, told: u32, heard: u32) -> Result<(), String> {
        let (word, flag) = (self.word.view_mut(), self.flag.view_mut());
        let kernel = side { word, flag, told, heard };
        // SAFETY: one launch at a time.
        let done = unsafe { on.launch_on(queue, dims(1, 1, 0), kernel) };
        done.map_err(|fault| fault.to_string())
    }

    fn tell(&self, on: &Executor, queue: &Queue, how: u32) {
        self.launch(on, queue, how, 0).unwrap();
    }

    fn hear(&self, on: &Executor, queue: &Queue, how: u32) -> Result<(), String> {
        self.launch(on, queue, u32::MAX, how)
    }
}

#[test]
fn queues_order_their_own_launches_only() {
    let (gpu, queue, other) = (Executor::new(config()), Queue::new(), Queue::new());
    let told = || {
        let pair = Pair::new();
        pair.tell(&gpu, &queue, RELAXED);
        pair
    };
    told().hear(&gpu, &queue, RELAXED).unwrap();
    let said = told().hear(&gpu, &other, RELAXED).unwrap_err();
    assert_says(
        &said,
        &["data race: ", "thread 0 reads", "which a thread of another launch writes"],
    );
    assert_says(&said, &["no queue, event or wait of the host orders the two"]);

    let pair = told();
    let early = Queue::new().mark();
    let mark = queue.mark();
    other.wait(&early);
    pair.hear(&gpu, &other, RELAXED).unwrap_err();
    other.wait(&mark);
    pair.hear(&gpu, &other, RELAXED).unwrap();

    let pair = told();
    queue.synchronize();
    pair.hear(&gpu, &other, RELAXED).unwrap();

    told().hear(&gpu, &other, ACQUIRE).expect_err("a relaxed store tells nothing");
    let pair = Pair::new();
    pair.tell(&gpu, &queue, RELEASE);
    pair.hear(&gpu, &other, ACQUIRE).unwrap();
    // What one launch of a queue learned, the next knows.
    pair.hear(&gpu, &other, RELAXED).unwrap();
}

#[test]
fn a_relaxed_store_tells_of_launches_before() {
    let (gpu, queue, other) = (Executor::new(config()), Queue::new(), Queue::new());
    let (before, flag) = (Pair::new(), Pair::new());
    before.tell(&gpu, &queue, RELAXED);
    flag.tell(&gpu, &queue, RELAXED);
    let heard = Pair { word: before.word, flag: flag.flag };
    heard.hear(&gpu, &other, RELAXED).unwrap_err();
    heard.hear(&gpu, &other, ACQUIRE).unwrap();
}

#[test]
fn the_scope_must_reach_the_other_device() {
    let (gpu, peer) = (Executor::new(config()), Executor::new(config()));
    let said = |told, heard| {
        // A queue that is gone was waited for: both are there until the end.
        let (queue, other, pair) = (Queue::new(), Queue::new(), Pair::new());
        pair.tell(&gpu, &queue, told);
        pair.hear(&peer, &other, heard)
    };
    said(RELEASE, ACQUIRE).unwrap();
    said(FENCE, FENCE).unwrap();
    assert_says(&said(FENCE_GPU, FENCE).unwrap_err(), &["thread 0 reads", "writes at"]);
    assert_says(&said(FENCE, FENCE_GPU).unwrap_err(), &["thread 0 reads", "writes at"]);
    let scope = "the scope of one atomic operation does not reach the other";
    assert_says(&said(ADD_ACQ_REL, ACQUIRE).unwrap_err(), &[scope]);
}

const WAIT: u32 = 0;
const WAIT_READ: u32 = 1;
const WAIT_READ_THEN_WAIT: u32 = 2;

/// Block 0 stores 16 bytes through the copy engine; block 1 loads them through it, after a proxy fence or
/// without, or as threads do.
#[kernel(target = "sm_90a", threads = 1)]
pub unsafe fn pass_bulk(
    words: GlobalMut<u32>,
    flag: GlobalMut<u32>,
    stores_bulk: u32,
    wait: u32,
    loads_bulk: u32,
    fences: u32,
) {
    let tile = shared::dynamic_shared_mem::<u32>();
    if thread::block_idx_x() == 0 {
        if stores_bulk == 1 {
            (0..4).for_each(|i| tile.store(i, 7));
            bulk::fence_proxy_async();
            bulk::store(words, tile, 16);
            bulk::commit_group();
            match wait {
                WAIT => bulk::wait_group::<0>(),
                WAIT_READ => bulk::wait_group_read::<0>(),
                _ => {
                    bulk::wait_group_read::<0>();
                    bulk::wait_group::<0>();
                }
            }
        } else {
            (0..4).for_each(|i| words.store(i, 7));
        }
        Flag(flag).tell(RELEASE);
    } else {
        Flag(flag).hear(ACQUIRE);
        if fences == 1 {
            bulk::fence_proxy_async();
        }
        if loads_bulk == 1 {
            let barrier = bulk::Mbarrier::at(tile.offset(4).cast());
            barrier.init(1);
            bulk::fence_init();
            barrier.arrive_expect_bytes(16);
            bulk::load(tile, words.as_const(), 16, barrier);
            barrier.wait(0);
        } else {
            words.load(3);
        }
    }
}

#[test]
fn bulk_copies_are_ordered_by_their_waits_and_by_proxy_fences() {
    let said = |stores_bulk, wait, loads_bulk, fences| {
        let (words, flag) = (holding(&[1u32; 4]), holding(&[0u32]));
        let (words, flag) = (words.view_mut(), flag.view_mut());
        let kernel = pass_bulk { words, flag, stores_bulk, wait, loads_bulk, fences };
        common::launch(dims(2, 1, 64), kernel).map_err(|fault| fault.to_string())
    };
    said(1, WAIT, 0, 0).unwrap();
    said(1, WAIT_READ_THEN_WAIT, 0, 0).unwrap();
    let of_store = "which a bulk store of cluster 0 writes at";
    assert_says(&said(1, WAIT_READ, 0, 0).unwrap_err(), &["thread 0 reads 4 bytes", of_store]);
    said(1, WAIT, 1, 0).unwrap();
    said(0, WAIT, 1, 1).unwrap();
    let said = said(0, WAIT, 1, 0).unwrap_err();
    assert_says(&said, &["thread 0 at gpu-kernels/cuda-std/tests/device_races.rs:"]);
    assert_says(&said, &["a bulk load reads 16 bytes", "no fence_proxy_async lies between"]);
}

/// All threads read a word.
#[kernel(threads = 64)]
pub unsafe fn read_all(word: Global<u32>) {
    word.load(0);
}

#[kernel(threads = 1)]
pub unsafe fn write_one(word: GlobalMut<u32>) {
    word.store(0, 2);
}

#[test]
fn a_store_comes_after_all_of_many_loads() {
    let gpu = Executor::new(config());
    let (queue, other) = (Queue::new(), Queue::new());
    let word = holding(&[1u32]);
    let read = || {
        let kernel = read_all { word: word.view() };
        // SAFETY: one launch at a time.
        unsafe { gpu.launch_on(&queue, dims(4, 64, 0), kernel) }.unwrap();
    };
    let store = |queue: &Queue| queue.note(&[(Access::GlobalStore, &word, 0)], 4);
    read();
    let said = store(&other).unwrap_err().to_string();
    assert_says(
        &said,
        &["a copy or a fill of a queue writes 4 bytes", "a thread of a launch reads"],
    );
    store(&queue).unwrap();
    read();
    other.wait(&queue.mark());
    store(&other).unwrap();
}

#[test]
fn loads_of_many_launches_are_all_remembered() {
    let gpu = Executor::new(config());
    let (queue, other) = (Queue::new(), Queue::new());
    let word = holding(&[1u32]);
    for queue in [&queue, &other] {
        let kernel = read_all { word: word.view() };
        // SAFETY: one launch at a time.
        unsafe { gpu.launch_on(queue, dims(4, 64, 0), kernel) }.unwrap();
    }
    let write = || {
        let kernel = write_one { word: word.view_mut() };
        // SAFETY: one launch at a time.
        unsafe { gpu.launch_on(&queue, dims(1, 1, 0), kernel) }
    };
    write().unwrap_err();
    queue.note(&[(Access::GlobalStore, &word, 0)], 4).unwrap_err();
    queue.wait(&other.mark());
    write().unwrap();
}

/// All blocks read a word, which the last of them then writes.
#[kernel(threads = 64)]
pub unsafe fn read_then_write(word: GlobalMut<u32>, arrived: GlobalMut<u32>) {
    word.load(0);
    thread::sync_threads();
    if thread::thread_idx_x() == 0
        && atomic::fetch_add_acq_rel_gpu(arrived, 0, 1) + 1 == thread::grid_dim_x()
    {
        word.store(0, 2);
    }
}

#[test]
fn the_last_block_may_write_what_all_have_read() {
    let (word, arrived) = (holding(&[1u32]), holding(&[0u32]));
    let kernel = read_then_write { word: word.view_mut(), arrived: arrived.view_mut() };
    common::launch(dims(4, 64, 0), kernel).unwrap();
}

#[test]
fn copies_are_work_of_their_queue() {
    let (queue, other) = (Queue::new(), Queue::new());
    let (from, to) = (fresh::<u8>(5000), fresh::<u8>(5000));
    let copy = |queue: &Queue, at: usize, bytes| {
        queue.note(&[(Access::GlobalLoad, &from, at), (Access::GlobalStore, &to, at)], bytes)
    };
    copy(&queue, 10, 4000).unwrap();
    copy(&other, 4010, 990).unwrap();
    copy(&other, 0, 10).unwrap();
    copy(&other, 3000, 1500).unwrap_err();
    copy(&queue, 0, 3000).unwrap_err();
    copy(&queue, 100, 3000).unwrap();
    other.note(&[(Access::GlobalLoad, &from, 0)], 5000).unwrap();
}

#[test]
fn memory_forgets_with_its_allocation() {
    let (queue, other) = (Queue::new(), Queue::new());
    for queue in [&queue, &other, &queue] {
        let word = fresh::<u32>(1);
        queue.note(&[(Access::GlobalStore, &word, 0)], 4).unwrap();
    }
}
