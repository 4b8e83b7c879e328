//! Kernels that start before the kernel before them has ended.
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

mod common;

use common::{assert_says, contents, dims, fault, holding, launch};
use cuda_std::prelude::*;

/// Adds what the plan says to each word; `how` (not 0) does something too early.
#[kernel(early = true)]
pub unsafe fn add(plan: Global<u32>, words: GlobalMut<u32>, how: u32) {
    let (idx, t) = (thread::index_1d() as usize, thread::thread_idx_x() as usize);
    let scratch = shared::dynamic_shared_mem::<u32>();
    scratch.store(t, plan.load(idx));
    grid::launch_dependents();
    match how {
        1 => words.store(idx, 0),
        2 => scratch.store(t, words.load(idx)),
        3 => scratch.store(t, atomic::fetch_add_relaxed_gpu(words, idx, 1)),
        4 if idx == 5 => return,
        _ => {}
    }
    thread::sync_threads();
    grid::wait_prerequisites();
    words.store(idx, words.load(idx) + scratch.load(t));
}

#[test]
fn an_early_kernel_reads_its_plan_before_it_waits() {
    let plan: Vec<u32> = (0..64).collect();
    let (plan_memory, words) = (holding(&plan), holding(&[100u32; 64]));
    for _ in 0..2 {
        let kernel = add { plan: plan_memory.view(), words: words.view_mut(), how: 0 };
        launch(dims(2, 32, 128), kernel).unwrap();
    }
    let expected: Vec<u32> = plan.iter().map(|word| 100 + 2 * word).collect();
    assert_eq!(contents::<u32>(&words), expected);
}

#[test]
fn what_is_too_early_is_reported() {
    let plan = holding(&[1u32; 64]);
    let said = |how, before| {
        let words = holding(&[0u32; 64]);
        if before {
            launch(dims(2, 32, 128), add { plan: plan.view(), words: words.view_mut(), how: 0 })
                .unwrap();
        }
        fault(dims(2, 32, 128), add { plan: plan.view(), words: words.view_mut(), how })
    };
    assert_says(&said(1, false), &["early.rs", "a store before wait_prerequisites"]);
    assert_says(&said(2, true), &["early.rs", "an access to what a kernel wrote before"]);
    assert_says(&said(3, false), &["a store before wait_prerequisites"]);
    assert_says(&said(4, false), &["thread 5", "the thread returned before wait_prerequisites"]);
}

#[test]
fn what_the_host_wrote_may_be_read_early() {
    let (plan, words) = (holding(&[1u32; 32]), holding(&[7u32; 32]));
    let kernel = add { plan: plan.view(), words: words.view_mut(), how: 2 };
    launch(dims(1, 32, 128), kernel).unwrap();
    assert_eq!(contents::<u32>(&words), [14; 32]);
}
