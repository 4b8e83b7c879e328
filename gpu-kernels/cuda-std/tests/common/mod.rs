//! Launches and buffers for the tests of the executor.
#![allow(dead_code, reason = "each test file uses a part")]

use std::time::Duration;

use bytemuck::Pod;
use cuda_std::Kernel;
use cuda_std::cpu::memory::Allocation;
use cuda_std::cpu::{Executor, ExecutorConfig, Fault, LaneOrder, LaunchDims};

/// Two workers, ascending order, a deadline that a test can wait for.
pub fn config() -> ExecutorConfig {
    ExecutorConfig {
        num_workers: 2,
        lane_order: LaneOrder::Ascending,
        check_init: true,
        check_races: true,
        deadline: Duration::from_millis(300),
    }
}

/// One worker, which runs lanes in an order of its own.
pub fn seeded(seed: u64) -> Executor {
    Executor::new(seeded_config(seed))
}

pub fn seeded_config(seed: u64) -> ExecutorConfig {
    ExecutorConfig { lane_order: LaneOrder::Seeded(seed), num_workers: 1, ..config() }
}

/// Lets races be, so that what comes of them shows.
pub fn lets_races_be(config: ExecutorConfig) -> Executor {
    Executor::new(ExecutorConfig { check_races: false, ..config })
}

pub fn dims(blocks: u32, threads: u32, shared_bytes: u32) -> LaunchDims {
    LaunchDims { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes }
}

/// Launches on a new executor.
pub fn launch<K: Kernel>(dims: LaunchDims, kernel: K) -> Result<(), Fault> {
    // SAFETY: accesses are checked, and the test waits for the launch.
    unsafe { Executor::new(config()).launch(dims, kernel) }
}

/// The words of the fault that a launch ends with.
#[track_caller]
pub fn fault<K: Kernel>(dims: LaunchDims, kernel: K) -> String {
    launch(dims, kernel).expect_err("a fault").to_string()
}

/// Whether all of `parts` stand in `text`.
#[track_caller]
pub fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

/// Memory that holds `values`.
pub fn holding<T: Pod>(values: &[T]) -> Allocation {
    let memory = fresh::<T>(values.len());
    // SAFETY: nobody else knows the memory yet.
    unsafe { memory.write(0, bytemuck::cast_slice(values)) }.expect("in range");
    memory
}

/// Memory for `len` elements that nothing wrote.
pub fn fresh<T>(len: usize) -> Allocation {
    Allocation::with_init_check(len * size_of::<T>()).expect("memory")
}

/// What `memory` holds.
pub fn contents<T: Pod>(memory: &Allocation) -> Vec<T> {
    let mut values = vec![T::zeroed(); memory.bytes() / size_of::<T>()];
    // SAFETY: launches have ended.
    unsafe { memory.read(0, bytemuck::cast_slice_mut(&mut values)) }.expect("in range");
    values
}
