//! Missing barriers, and the orders of threads that show them.
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

mod common;

use common::{config, contents, dims, fresh, holding, lets_races_be, seeded, seeded_config};
use cuda_std::cpu::{Executor, Fault};
use cuda_std::prelude::*;

const THREADS: u32 = 128;
const NUM_SEEDS: u64 = 8;

/// Rotates each block's values by `by` through shared memory, `rounds` times; `barriers` has a bit
/// for the barrier after writing and one for that after reading.
#[kernel(threads = 128)]
pub unsafe fn rotate(x: Global<u32>, y: GlobalMut<u32>, by: u32, rounds: u32, barriers: u32) {
    let words = shared::dynamic_shared_mem::<u32>();
    let (t, i) = (thread::thread_idx_x(), thread::index_1d() as usize);
    let mut value = x.load(i);
    for _ in 0..rounds {
        words.store(t as usize, value);
        if barriers & 1 != 0 {
            thread::sync_threads();
        }
        value = words.load(((t + by) % THREADS) as usize);
        if barriers & 2 != 0 {
            thread::sync_threads();
        }
    }
    y.store(i, value);
}

/// Whether the answer is right; a fault counts as caught, too.
fn is_right(executor: &Executor, by: u32, rounds: u32, barriers: u32) -> Result<bool, Fault> {
    let values: Vec<u32> = (0..THREADS).collect();
    let (x, y) = (holding(&values), fresh::<u32>(values.len()));
    let kernel = rotate { x: x.view(), y: y.view_mut(), by, rounds, barriers };
    // SAFETY: accesses are checked, and the launch ends here.
    unsafe { executor.launch(dims(1, THREADS, 4 * THREADS), kernel)? };
    let expected: Vec<u32> = values.iter().map(|v| (v + by * rounds) % THREADS).collect();
    Ok(contents::<u32>(&y) == expected)
}

#[test]
fn both_barriers_are_enough_under_every_seed() {
    for seed in 0..NUM_SEEDS {
        for by in [1, 32, 127] {
            assert_eq!(is_right(&seeded(seed), by, 4, 3), Ok(true), "seed {seed}, by {by}");
        }
    }
}

#[test]
fn a_missing_barrier_after_writing_reads_what_nothing_wrote() {
    for seed in 0..NUM_SEEDS {
        let fault = is_right(&seeded(seed), 1, 1, 2).expect_err("a fault");
        assert!(fault.to_string().contains("reads memory nothing wrote"), "{fault}");
    }
}

/// Each thread reads what its left neighbour wrote, without a barrier; the first its own.
#[kernel(threads = 128)]
pub unsafe fn left_neighbour() {
    let words = shared::dynamic_shared_mem::<u32>();
    let t = thread::thread_idx_x() as usize;
    words.store(t, 1);
    words.load(t.max(1) - 1);
}

#[test]
fn ascending_order_hides_what_seeds_show() {
    // SAFETY: accesses are checked.
    let run = |executor: Executor| unsafe {
        executor.launch(dims(1, THREADS, 4 * THREADS), left_neighbour {})
    };
    assert_eq!(run(lets_races_be(config())), Ok(()));
    for seed in 0..NUM_SEEDS {
        run(lets_races_be(seeded_config(seed))).expect_err("a read of poison");
    }
}

#[test]
fn a_missing_barrier_after_reading_shows_under_most_seeds() {
    let caught =
        (0..NUM_SEEDS).filter(|&seed| is_right(&seeded(seed), 64, 4, 1) != Ok(true)).count();
    assert!(caught as u64 >= NUM_SEEDS * 3 / 4, "{caught} of {NUM_SEEDS}");
}

#[test]
fn the_same_seed_gives_the_same_answer_to_a_race() {
    let answers = |seed| {
        let executor = seeded(seed);
        (0..3).map(|_| race(&executor)).collect::<Vec<_>>()
    };
    assert_eq!(answers(1), answers(1));
    let different = (2..10).filter(|&seed| answers(seed) != answers(1)).count();
    assert!(different > 0);
}

/// Threads take tickets in the order in which they run.
#[kernel]
pub unsafe fn tickets(counter: GlobalMut<u32>, out: GlobalMut<u32>) {
    let ticket = atomic::fetch_add_relaxed_gpu(counter, 0, 1);
    out.store(thread::index_1d() as usize, ticket);
}

fn race(executor: &Executor) -> Vec<u32> {
    let (counter, out) = (holding(&[0_u32]), fresh::<u32>(256));
    let kernel = tickets { counter: counter.view_mut(), out: out.view_mut() };
    // SAFETY: accesses are checked, and the launch ends here.
    unsafe { executor.launch(dims(4, 64, 0), kernel) }.unwrap();
    contents(&out)
}

#[test]
fn launches_of_one_executor_differ_in_order() {
    let executor = seeded(3);
    assert_ne!(race(&executor), race(&executor));
}
