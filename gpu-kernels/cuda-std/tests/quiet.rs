//! Panics of kernels stay off stderr, and only those. Alone in its file: the hook is the process's.
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

mod common;

use std::panic;
use std::sync::atomic::{AtomicU32, Ordering};

use common::{assert_says, dims, fault};
use cuda_std::prelude::*;

/// Panics.
#[kernel]
pub unsafe fn panics() {
    assert!(thread::block_dim_x() == 0, "{} threads", thread::block_dim_x());
}

#[test]
fn panics_of_kernels_do_not_reach_the_hook_and_others_do() {
    static NUM_HEARD: AtomicU32 = AtomicU32::new(0);
    panic::set_hook(Box::new(|_| _ = NUM_HEARD.fetch_add(1, Ordering::Relaxed)));
    assert_says(&fault(dims(4, 32, 0), panics {}), &["panicked: 32 threads"]);
    let heard_of_kernel = NUM_HEARD.load(Ordering::Relaxed);
    panic::catch_unwind(|| panic!("not a kernel")).unwrap_err();
    let heard = NUM_HEARD.load(Ordering::Relaxed);
    _ = panic::take_hook();
    assert_eq!((heard_of_kernel, heard), (0, 1));
}
