//! A from registers and B by columns against plain matrices, and what goes wrong without the rules.
#![allow(missing_docs, unsafe_op_in_unsafe_fn, clippy::needless_range_loop)]

mod common;

use common::{assert_says, contents, dims, fault, fresh, holding, launch, seeded};
use cuda_std::cpu::Fault;
use cuda_std::cpu::memory::Allocation;
use cuda_std::prelude::*;
use cuda_std::wgmma::{SwizzledTile, TransposedTile, place_of};
use half::{bf16, f16};

const M: usize = 64;
const K: usize = 64;
const STEPS: usize = K / 16;
/// Columns of a panel, and bytes of one of `K` rows.
const PANEL: usize = SwizzledTile::<u16>::ROW_ELEMENTS;
const PANEL_BYTES: usize = SwizzledTile::<u16>::bytes(K);

/// Stores `x`, `[K, n]`, as panels of 64 columns.
unsafe fn fill<T: HalfFloat>(first_panel: Shared<T>, x: Global<T>, n: usize) {
    let mut i = thread::thread_idx_x() as usize;
    while i < K * n / 8 {
        let (row, column) = (8 * i / n, 8 * i % n);
        let panel = first_panel.offset(column / PANEL * PANEL_BYTES / 2);
        SwizzledTile::at(panel).store_x4(row, column % PANEL, x.load_x4(8 * i));
        i += thread::block_dim_x() as usize;
    }
    bulk::fence_proxy_async();
    thread::sync_threads();
}

/// What this thread holds of A, `[M, K]`.
unsafe fn load_a<T: HalfFloat>(a: Global<T>) -> [[u32; 4]; STEPS] {
    let (thread, mut registers) = (thread::thread_idx_x() % wgmma::NUM_THREADS, [[0; 4]; STEPS]);
    for step in 0..STEPS {
        for register in 0..4 {
            // Two columns of an accumulator are half a fragment.
            let (row, column) = place_of(thread, 8 * step + 2 * register);
            registers[step][register] = a.offset(row * K + column).cast::<u32>().load(0);
        }
    }
    registers
}

unsafe fn write_out<const REGISTERS: usize>(d: &[f32; REGISTERS], out: GlobalMut<f32>) {
    for (register, &value) in d.iter().enumerate() {
        let (row, column) = place_of(thread::thread_idx_x(), register);
        out.store(row * 2 * REGISTERS + column, value);
    }
}

macro_rules! products {
    ($($name:ident: $T:ty, $multiply:ident, $registers:literal;)*) => {$(
        /// `out = 1 + a b`.
        #[kernel]
        pub unsafe fn $name(a: Global<$T>, b: Global<$T>, out: GlobalMut<f32>) {
            let first_panel = shared::dynamic_shared_mem::<$T>();
            fill(first_panel, b, 2 * $registers);
            let b = TransposedTile::at(SwizzledTile::at(first_panel), PANEL_BYTES);
            let (mut a, mut d) = (load_a(a), [1.0; $registers]);
            wgmma::lend(&mut a);
            wgmma::fence(&mut d);
            for step in 0..STEPS {
                wgmma::$multiply(&mut d, &a[step], b.from_row(16 * step), true);
            }
            wgmma::commit_group();
            wgmma::wait_group::<0, _>(&mut d);
            wgmma::take_back(&mut a);
            write_out(&d, out);
        }
    )*};
}

products! {
    product_64_bf16: bf16, m64n64k16, 32;
    product_128_bf16: bf16, m64n128k16, 64;
    product_256_bf16: bf16, m64n256k16, 128;
    product_64_f16: f16, m64n64k16, 32;
    product_128_f16: f16, m64n128k16, 64;
    product_256_f16: f16, m64n256k16, 128;
}

/// Distinct values that are exact in either format, as are sums of their products in f32.
fn element(i: usize) -> f32 {
    (i * 37 % 101) as f32 - 50.0
}

fn operands(n: usize) -> [Vec<f32>; 2] {
    [(0..M * K).map(element).collect(), (0..K * n).map(|i| element(i + 1000)).collect()]
}

fn product(a: &[f32], b: &[f32], n: usize) -> Vec<f32> {
    let dot = |i: usize| (0..K).map(|k| a[i / n * K + k] * b[k * n + i % n]).sum::<f32>();
    (0..M * n).map(|i| 1.0 + dot(i)).collect()
}

fn as_bf16(values: &[f32]) -> Allocation {
    holding(&values.iter().map(|&value| bf16::from_f32(value)).collect::<Vec<_>>())
}

fn as_f16(values: &[f32]) -> Allocation {
    holding(&values.iter().map(|&value| f16::from_f32(value)).collect::<Vec<_>>())
}

#[test]
fn products_from_registers_by_columns_equal_plain_matrix_products() {
    macro_rules! check {
        ($($kernel:ident: $convert:ident, $n:literal;)*) => {$(
            let [a, b] = operands($n);
            let (a_memory, b_memory) = ($convert(&a), $convert(&b));
            let out = fresh::<f32>(M * $n);
            let kernel =
                $kernel { a: a_memory.view(), b: b_memory.view(), out: out.view_mut() };
            launch(dims(1, 128, ($n / PANEL * PANEL_BYTES) as u32), kernel).unwrap();
            assert!(contents::<f32>(&out) == product(&a, &b, $n), "{}", stringify!($kernel));
        )*};
    }
    check! {
        product_64_bf16: as_bf16, 64;
        product_128_bf16: as_bf16, 128;
        product_256_bf16: as_bf16, 256;
        product_64_f16: as_f16, 64;
        product_128_f16: as_f16, 128;
        product_256_f16: as_f16, 256;
    }
}

/// A product of 64 columns, broken in the way `how`; 0 is right.
#[kernel]
pub unsafe fn misuse(a: Global<bf16>, b: Global<bf16>, out: GlobalMut<f32>, how: u32) {
    let first_panel = shared::dynamic_shared_mem::<bf16>();
    fill(first_panel, b, 64);
    let panel_bytes = if how == 1 { 512 } else { PANEL_BYTES };
    let b = TransposedTile::at(SwizzledTile::at(first_panel), panel_bytes);
    let b = if how == 2 { b.from_row(4) } else { b };
    let (mut a, mut d) = (load_a(a), [1.0; 32]);
    if how != 3 && how != 4 {
        wgmma::lend(&mut a);
    }
    if how == 5 {
        wgmma::lend(&mut a);
    }
    wgmma::fence(&mut d);
    if how == 4 {
        wgmma::lend(&mut a);
    }
    for step in 0..STEPS {
        if how == 6 {
            a[step][0] = 0;
        }
        if how == 7 {
            wgmma::m64n128k16(&mut [0.0; 64], &a[step], b.from_row(16 * step), true);
        }
        wgmma::m64n64k16(&mut d, &a[step], b.from_row(16 * step), true);
    }
    wgmma::commit_group();
    if how == 8 {
        wgmma::take_back(&mut a);
    }
    if how == 9 {
        a[3][1] = 0;
    }
    wgmma::wait_group::<0, _>(&mut d);
    if how == 10 {
        thread::sync_threads();
    }
    wgmma::take_back(&mut a);
    if how == 11 {
        wgmma::take_back(&mut a);
    }
    write_out(&d, out);
}

fn run_misuse(how: u32) -> Result<Vec<f32>, Fault> {
    let [a, b] = operands(64).map(|values| as_bf16(&values));
    let out = fresh::<f32>(M * 64);
    let kernel = misuse { a: a.view(), b: b.view(), out: out.view_mut(), how };
    // SAFETY: accesses are checked.
    unsafe { seeded(2).launch(dims(1, 128, PANEL_BYTES as u32), kernel)? };
    Ok(contents(&out))
}

#[test]
fn registers_are_lent_and_left_alone() {
    let [a, b] = operands(64);
    for how in [0, 10] {
        assert!(run_misuse(how).unwrap() == product(&a, &b, 64));
    }
    let said = |how| run_misuse(how).expect_err("a fault").to_string();
    assert_says(&said(1), &["`b` has panels of 512 bytes", "not a multiple of 1024"]);
    assert_says(&said(2), &["`b` begins at shared byte 512, which is not aligned to 1024"]);
    assert_says(&said(3), &["`a` is in registers that were not lent before the last fence"]);
    assert_says(&said(4), &["`a` is in registers that were not lent before the last fence"]);
    assert_says(&said(5), &["lend: the registers are lent already"]);
    assert_says(&said(6), &["`a` is in registers that were changed while they were lent"]);
    assert_says(&said(7), &["shared load", "out of bounds"]);
    assert_says(&said(8), &["take_back: multiplications that no wait has covered read these"]);
    assert_says(&said(9), &["take_back: the registers were changed while they were lent"]);
    assert_says(&said(11), &["take_back: the registers are not lent"]);
}

/// Warp `warp` overwrites the tile that the others multiply, once one of its threads has waited.
#[kernel]
pub unsafe fn overwrite_after_wait(b: Global<bf16>, out: GlobalMut<f32>) {
    let tile = SwizzledTile::at(shared::dynamic_shared_mem::<bf16>());
    fill(tile.place(0, 0), b, 64);
    let mut d = [0.0; 32];
    wgmma::fence(&mut d);
    wgmma::m64n64k16(&mut d, tile, tile, false);
    wgmma::commit_group();
    wgmma::wait_group::<0, _>(&mut d);
    if thread::thread_idx_x() == 77 {
        for row in 0..K {
            for column in (0..PANEL).step_by(8) {
                tile.store_x4(row, column, [0; 4]);
            }
        }
    }
    write_out(&d, out);
}

#[test]
fn a_wait_is_the_whole_warpgroups() {
    let [_, b] = operands(64);
    let b_memory = as_bf16(&b);
    let dot = |i: usize| (0..16).map(|k| b[i / 64 * 64 + k] * b[i % 64 * 64 + k]).sum::<f32>();
    let expected: Vec<f32> = (0..M * 64).map(dot).collect();
    for seed in 0..4 {
        let out = fresh::<f32>(M * 64);
        let kernel = overwrite_after_wait { b: b_memory.view(), out: out.view_mut() };
        // SAFETY: accesses are checked.
        unsafe { seeded(seed).launch(dims(1, 128, PANEL_BYTES as u32), kernel) }.unwrap();
        assert!(contents::<f32>(&out) == expected, "order {seed}");
    }
}

/// Multiplies by columns of which one row was never written.
#[kernel]
pub unsafe fn unwritten_row() {
    let tile = SwizzledTile::<bf16>::at(shared::dynamic_shared_mem());
    let row = thread::thread_idx_x() as usize;
    if row < 64 && row != 11 {
        for column in (0..64).step_by(8) {
            tile.store_x4(row, column, [0; 4]);
        }
    }
    bulk::fence_proxy_async();
    thread::sync_threads();
    let (mut a, mut d) = ([[0; 4]; 1], [0.0; 32]);
    wgmma::lend(&mut a);
    wgmma::fence(&mut d);
    wgmma::m64n64k16(&mut d, &a[0], TransposedTile::at(tile, PANEL_BYTES), false);
    wgmma::commit_group();
    wgmma::wait_group::<0, _>(&mut d);
}

#[test]
fn columns_are_read_where_they_were_written() {
    let said = fault(dims(1, 128, 8192), unwritten_row {});
    assert_says(&said, &["warpgroup_operands.rs", "reads memory nothing wrote"]);
}
