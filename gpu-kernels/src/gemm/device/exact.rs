//! Products that others are compared with: one element a thread, summed in f64.

use cuda_std::prelude::*;
use half::bf16;

/// `c = a b^T`, each element summed in f64 and rounded once, to f32. Slow, and plain enough to be
/// believed; the grid is one thread for each element.
#[kernel(threads = 256)]
pub unsafe fn gemm_exact_bf16(
    a: Global<bf16>, // [m, k]
    b: Global<bf16>, // [n, k]
    m: u32,
    n: u32,
    k: u32,
    c: GlobalMut<f32>, // [m, n]
) {
    let column = thread::block_idx_x() * 16 + thread::thread_idx_x() % 16;
    let row = thread::block_idx_y() * 16 + thread::thread_idx_x() / 16;
    if row >= m || column >= n {
        return;
    }
    let a = a.offset(row as usize * k as usize);
    let b = b.offset(column as usize * k as usize);
    let mut sum = 0.0;
    let mut i = 0;
    while i < k as usize {
        let (of_a, of_b) = (a.load_x4(i), b.load_x4(i));
        for word in 0..4 {
            let [a0, a1] = bf16::unpack(of_a[word]);
            let [b0, b1] = bf16::unpack(of_b[word]);
            sum += f64::from(a0) * f64::from(b0);
            sum += f64::from(a1) * f64::from(b1);
        }
        i += 8;
    }
    c.store(row as usize * n as usize + column as usize, sum as f32);
}
