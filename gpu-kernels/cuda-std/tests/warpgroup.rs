//! Multiplications of a warpgroup against plain matrices, and what goes wrong without the rules.
#![allow(missing_docs, unsafe_op_in_unsafe_fn, clippy::if_same_then_else)]

mod common;

use std::collections::HashSet;

use common::{
    assert_says, contents, dims, fault, fresh, holding, launch, lets_races_be, seeded_config,
};
use cuda_std::cpu::Fault;
use cuda_std::prelude::*;
use cuda_std::wgmma::{SwizzledTile, place_of};
use half::{bf16, f16};

const K: usize = 64;
const A_BYTES: usize = SwizzledTile::<u16>::bytes(64);
const B_BYTES: usize = SwizzledTile::<u16>::bytes(256);
/// A of each of two warpgroups, then B.
const SHARED_BYTES: u32 = (2 * A_BYTES + B_BYTES) as u32;

/// Lets all threads store `rows` rows of 64 elements.
unsafe fn fill<T: HalfFloat>(tile: SwizzledTile<T>, x: Global<u16>, rows: usize) {
    let num_pieces = rows * K / 8;
    let mut piece = thread::thread_idx_x() as usize;
    while piece < num_pieces {
        tile.store_x4(piece / 8, piece % 8 * 8, x.load_x4(8 * piece));
        piece += thread::block_dim_x() as usize;
    }
}

/// The tile of this thread's warpgroup, and the tile that all share.
unsafe fn tiles<T: HalfFloat>() -> (SwizzledTile<T>, SwizzledTile<T>) {
    let base = shared::dynamic_shared_mem::<u8>();
    let warpgroup = (thread::thread_idx_x() / wgmma::NUM_THREADS) as usize;
    (
        SwizzledTile::at(base.offset(warpgroup * A_BYTES).cast()),
        SwizzledTile::at(base.offset(2 * A_BYTES).cast()),
    )
}

unsafe fn fill_tiles<T: HalfFloat>(a: Global<u16>, b: Global<u16>) {
    let (_, tile_b) = tiles::<T>();
    let num_warpgroups = (thread::block_dim_x() / wgmma::NUM_THREADS) as usize;
    fill(SwizzledTile::<T>::at(shared::dynamic_shared_mem()), a, 64 * num_warpgroups);
    fill(tile_b, b, 256);
    bulk::fence_proxy_async();
    thread::sync_threads();
}

/// Writes the accumulators of all warpgroups, `[64 * warpgroups, n]`.
unsafe fn write_out<const REGISTERS: usize>(d: &[f32; REGISTERS], out: GlobalMut<f32>) {
    let thread = thread::thread_idx_x();
    let first_row = (thread / wgmma::NUM_THREADS * 64) as usize;
    for (register, &value) in d.iter().enumerate() {
        let (row, column) = place_of(thread % wgmma::NUM_THREADS, register);
        out.store((first_row + row) * 2 * REGISTERS + column, value);
    }
}

macro_rules! products {
    ($($name:ident: $T:ty, $multiply:ident, $registers:literal;)*) => {$(
        /// `out = start + a b^T`, or without `start`; the accumulator begins as `start`.
        #[kernel]
        pub unsafe fn $name(
            a: Global<u16>,
            b: Global<u16>,
            out: GlobalMut<f32>,
            start: f32,
            accumulate: u32,
        ) {
            fill_tiles::<$T>(a, b);
            let (a, b) = tiles::<$T>();
            let mut d = [start; $registers];
            wgmma::fence(&mut d);
            for k in (0..K).step_by(16) {
                let accumulate = accumulate == 1 || k > 0;
                wgmma::$multiply(&mut d, a.from_column(k), b.from_column(k), accumulate);
            }
            wgmma::commit_group();
            wgmma::wait_group::<0, _>(&mut d);
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

/// A `[128, 64]` and B `[256, 64]`.
fn operands() -> [Vec<f32>; 2] {
    [(0..128 * K).map(element).collect(), (0..256 * K).map(|i| element(i + 1000)).collect()]
}

fn product(a: &[f32], b: &[f32], num_rows: usize, n: usize) -> Vec<f32> {
    let dot = |i: usize| (0..K).map(|k| a[i / n * K + k] * b[i % n * K + k]).sum();
    (0..num_rows * n).map(dot).collect()
}

/// `out = a b^T` for the first `2 REGISTERS` rows of B.
unsafe fn product_of_size<const REGISTERS: usize>(
    a: Global<u16>,
    b: Global<u16>,
    out: GlobalMut<f32>,
) {
    fill_tiles::<bf16>(a, b);
    let (a, b) = tiles::<bf16>();
    let mut d = [0.0; REGISTERS];
    wgmma::fence(&mut d);
    for k in (0..K).step_by(16) {
        wgmma::multiply(&mut d, a.from_column(k), b.from_column(k), k > 0);
    }
    wgmma::commit_group();
    wgmma::wait_group::<0, _>(&mut d);
    write_out(&d, out);
}

macro_rules! sizes {
    ($($name:ident: $registers:literal;)*) => {
        $(
            /// One size of the generic multiplication.
            #[kernel]
            pub unsafe fn $name(a: Global<u16>, b: Global<u16>, out: GlobalMut<f32>) {
                product_of_size::<$registers>(a, b, out);
            }
        )*

        #[test]
        fn the_generic_multiplication_has_every_size() {
            let [a, b] = operands();
            let (a_bits, b_bits) = (bits(bf16_bits, &a), bits(bf16_bits, &b));
            $({
                let out = fresh::<f32>(64 * 2 * $registers);
                let kernel =
                    $name { a: a_bits.view(), b: b_bits.view(), out: out.view_mut() };
                launch(dims(1, 128, SHARED_BYTES), kernel).unwrap();
                let expected = product(&a, &b, 64, 2 * $registers);
                assert!(contents::<f32>(&out) == expected, "{}", stringify!($name));
            })*
        }
    };
}

sizes! {
    product_16: 8;
    product_32: 16;
    product_48: 24;
    product_64: 32;
    product_80: 40;
    product_96: 48;
    product_112: 56;
    product_128: 64;
    product_256: 128;
}

fn bits(to_bits: fn(f32) -> u16, values: &[f32]) -> cuda_std::cpu::memory::Allocation {
    holding(&values.iter().map(|&value| to_bits(value)).collect::<Vec<u16>>())
}

fn bf16_bits(value: f32) -> u16 {
    bf16::from_f32(value).to_bits()
}

fn f16_bits(value: f32) -> u16 {
    f16::from_f32(value).to_bits()
}

#[test]
fn products_of_each_size_and_type_equal_plain_matrix_products() {
    let [a, b] = operands();
    macro_rules! check {
        ($($kernel:ident: $to_bits:ident, $n:literal;)*) => {$(
            for (start, accumulate) in [(3.0, 1), (f32::NAN, 0)] {
                let (a_bits, b_bits) = (bits($to_bits, &a), bits($to_bits, &b));
                let out = fresh::<f32>(128 * $n);
                let kernel = $kernel {
                    a: a_bits.view(),
                    b: b_bits.view(),
                    out: out.view_mut(),
                    start,
                    accumulate,
                };
                launch(dims(1, 256, SHARED_BYTES), kernel).unwrap();
                let start = if accumulate == 1 { start } else { 0.0 };
                let expected: Vec<f32> =
                    product(&a, &b, 128, $n).iter().map(|value| start + value).collect();
                assert!(contents::<f32>(&out) == expected, "{}", stringify!($kernel));
            }
        )*};
    }
    check! {
        product_64_bf16: bf16_bits, 64;
        product_128_bf16: bf16_bits, 128;
        product_256_bf16: bf16_bits, 256;
        product_64_f16: f16_bits, 64;
        product_128_f16: f16_bits, 128;
        product_256_f16: f16_bits, 256;
    }
}

#[test]
fn each_element_of_an_accumulator_is_in_one_register() {
    let places: HashSet<_> = (0..128)
        .flat_map(|thread| (0..128).map(move |register| place_of(thread, register)))
        .collect();
    assert_eq!(places.len(), 64 * 256);
    assert!(places.iter().all(|&(row, column)| row < 64 && column < 256));
    // As in the PTX manual's figure for wgmma .m64nNk16 D.
    assert_eq!(place_of(0, 0), (0, 0));
    assert_eq!(place_of(0, 2), (8, 0));
    assert_eq!(place_of(5, 5), (1, 11));
    assert_eq!(place_of(127, 127), (63, 255));
}

/// Writes where elements of a tile lie: `out[row * 64 + column]` is a byte.
#[kernel]
pub unsafe fn element_places(out: GlobalMut<u32>) {
    let base = shared::dynamic_shared_mem::<u16>();
    let tile = SwizzledTile::at(base);
    for i in 0..16 * 64 {
        base.store(i, i as u16);
    }
    for row in 0..16 {
        for column in 0..64 {
            out.store(64 * row + column, 2 * u32::from(tile.place(row, column).load(0)));
        }
    }
}

#[test]
fn elements_lie_where_the_hardware_swizzles_addresses() {
    let out = fresh::<u32>(1024);
    launch(dims(1, 1, 2048), element_places { out: out.view_mut() }).unwrap();
    for (i, &byte) in contents::<u32>(&out).iter().enumerate() {
        let plain = 2 * i as u32;
        assert_eq!(byte, plain ^ (plain >> 7 & 7) << 4, "element {i}");
    }
}

/// A product of 64 columns over K in two groups, broken in the way `how`; 0 is right.
#[kernel]
pub unsafe fn misuse(a: Global<u16>, b: Global<u16>, out: GlobalMut<f32>, how: u32) {
    fill_tiles::<bf16>(a, b);
    let (a, b) = tiles::<bf16>();
    let mut d = [0.0; 32];
    let mut other = [0.0; 32];
    if how != 1 {
        wgmma::fence(&mut d);
    }
    if how == 2 {
        d[3] = 1.0;
    }
    for half in 0..2 {
        for k in (32 * half..32 * half + 32).step_by(16) {
            wgmma::m64n64k16(&mut d, a.from_column(k), b.from_column(k), true);
            if how == 3 {
                d[0] += 1.0;
            }
        }
        if how != 4 {
            wgmma::commit_group();
        }
    }
    match how {
        5 => {}
        6 => wgmma::wait_group::<1, _>(&mut d),
        7 => {
            thread::sync_threads();
            b.store_x4(7, 0, [0; 4]);
            thread::sync_threads();
            wgmma::wait_group::<0, _>(&mut d);
        }
        8 => wgmma::wait_group::<0, _>(&mut other),
        9 => {
            wgmma::wait_group::<0, _>(&mut d);
            wgmma::m64n64k16(&mut d, a, b, true);
        }
        10 => {
            wgmma::wait_group::<1, _>(&mut d);
            thread::sync_threads();
            b.store_x4(7, 0, [0; 4]);
            wgmma::wait_group::<0, _>(&mut d);
        }
        _ => wgmma::wait_group::<0, _>(&mut d),
    }
    write_out(&d, out);
}

fn run_misuse(how: u32) -> Result<Vec<f32>, Fault> {
    let [a, b] = operands().map(|values| bits(bf16_bits, &values));
    let out = fresh::<f32>(64 * 64);
    let kernel = misuse { a: a.view(), b: b.view(), out: out.view_mut(), how };
    // SAFETY: accesses are checked.
    unsafe { lets_races_be(seeded_config(1)).launch(dims(1, 128, SHARED_BYTES), kernel)? };
    Ok(contents(&out))
}

#[test]
fn multiplications_land_at_the_wait_that_covers_them() {
    let [a, b] = operands();
    let expected = product(&a, &b, 64, 64);
    assert!(run_misuse(0).unwrap() == expected);
    for how in [4, 5, 6, 8] {
        let out = run_misuse(how).unwrap();
        assert!(out.iter().all(|value| value.is_nan()), "not committed or not waited for: {how}");
    }
    let mut overwritten = b.clone();
    overwritten[7 * K..7 * K + 8].fill(0.0);
    let late = product(&a, &overwritten, 64, 64);
    assert!(run_misuse(7).unwrap() == late, "overwritten before the wait");
    assert!(run_misuse(10).unwrap() == expected, "overwritten after the wait for its group");
}

#[test]
fn an_accumulator_is_handed_over_and_left_alone() {
    let said = |how| match run_misuse(how) {
        Err(fault) => fault.to_string(),
        Ok(_) => panic!("no fault"),
    };
    let not_fenced = "m64n64k16: no fence has handed over this accumulator";
    assert_says(&said(1), &["warpgroup.rs", not_fenced]);
    assert_says(&said(9), &[not_fenced, "since it was last waited for"]);
    assert_says(&said(2), &["the accumulator was changed after its fence"]);
    assert_says(&said(3), &["the accumulator was changed while multiplications own it"]);
}

/// Two accumulators in flight at once, the older waited for while the newer still runs.
#[kernel]
pub unsafe fn two_accumulators(a: Global<u16>, b: Global<u16>, out: GlobalMut<f32>) {
    fill_tiles::<bf16>(a, b);
    let (a, b) = tiles::<bf16>();
    let (mut left, mut right) = ([0.0; 32], [0.0; 32]);
    wgmma::fence(&mut left);
    wgmma::fence(&mut right);
    for (d, first_row) in [(&mut left, 0), (&mut right, 64)] {
        for k in (0..K).step_by(16) {
            wgmma::m64n64k16(d, a.from_column(k), b.from_row(first_row).from_column(k), k > 0);
        }
        wgmma::commit_group();
    }
    wgmma::wait_group::<1, _>(&mut left);
    write_out(&left, out);
    wgmma::wait_group::<0, _>(&mut right);
    write_out(&right, out.offset(64 * 64));
}

#[test]
fn accumulators_are_waited_for_one_by_one() {
    let [a, b] = operands();
    let (a_bits, b_bits) = (bits(bf16_bits, &a), bits(bf16_bits, &b));
    let out = fresh::<f32>(2 * 64 * 64);
    let kernel = two_accumulators { a: a_bits.view(), b: b_bits.view(), out: out.view_mut() };
    launch(dims(1, 128, SHARED_BYTES), kernel).unwrap();
    let expected = [product(&a, &b, 64, 64), product(&a, &b[64 * K..], 64, 64)].concat();
    assert!(contents::<f32>(&out) == expected);
}

/// One multiplication that its warpgroup cannot do together, in the way `how`.
#[kernel]
pub unsafe fn apart(how: u32) {
    let base = shared::dynamic_shared_mem::<u16>();
    let mut i = thread::thread_idx_x() as usize;
    while i < 8192 {
        base.store(i, 0);
        i += thread::block_dim_x() as usize;
    }
    bulk::fence_proxy_async();
    thread::sync_threads();
    let warp = thread::thread_idx_x() / 32;
    let (mut a, mut b) = (SwizzledTile::<bf16>::at(base.cast()), SwizzledTile::at(base.cast()));
    let mut accumulate = true;
    match how {
        1 if warp == 3 => return,
        2 if warp == 2 => thread::sync_threads(),
        3 if warp == 1 => b = b.from_column(16),
        4 => a = a.from_column(8),
        5 => b = SwizzledTile::at(base.offset(64).cast()),
        6 => b = b.from_row(72),
        7 => b = b.from_row(8 * 1024),
        8 if warp == 3 => accumulate = false,
        _ => {}
    }
    let mut d = [0.0; 32];
    if how == 9 && warp::lane_id() == 0 {
        return;
    }
    wgmma::fence(&mut d);
    if how == 10 && warp == 1 {
        wgmma::m64n64k16(&mut d, a, b, accumulate);
    } else {
        wgmma::m64n64k16(&mut d, a, b, accumulate);
    }
    wgmma::commit_group();
    wgmma::wait_group::<0, _>(&mut d);
}

#[test]
fn a_warpgroup_that_cannot_multiply_together_is_reported() {
    let said = |how, threads| fault(dims(1, threads, 16384), apart { how });
    launch(dims(2, 256, 16384), apart { how: 0 }).unwrap();
    let waits = "wait at gpu-kernels/cuda-std/tests/warpgroup.rs";
    assert_says(
        &said(1, 128),
        &["divergent barrier", "threads 0-95", waits, "in m64n64k16 of their warpgroup"],
    );
    assert_says(&said(2, 128), &["divergent barrier", "threads 0-63, 96-127", "threads 64-95"]);
    assert_says(&said(3, 128), &["b at shared byte 32", "others of the warpgroup have"]);
    assert_says(&said(8, 128), &["accumulate false", "others of the warpgroup have"]);
    assert_says(&said(9, 128), &["wgmma::fence", "which have returned"]);
    assert_says(&said(10, 128), &["others of the warpgroup are in m64n64k16 at"]);
    assert_says(&said(0, 192), &["the block's last warpgroup has no four warps"]);
    assert_says(&said(4, 128), &["`a` begins at column 8, which is not a multiple of 16"]);
    assert_says(&said(5, 128), &["`b` begins at shared byte 128, which is not aligned to 1024"]);
    assert_says(&said(6, 128), &["shared load", "out of bounds"]);
    assert_says(&said(7, 128), &["shared load", "out of bounds"]);
}

/// Multiplies tiles of which one row was never written.
#[kernel]
pub unsafe fn unwritten_row() {
    let tile = SwizzledTile::<bf16>::at(shared::dynamic_shared_mem());
    let row = thread::thread_idx_x() as usize;
    if row < 64 && row != 42 {
        for column in (0..64).step_by(8) {
            tile.store_x4(row, column, [0; 4]);
        }
    }
    bulk::fence_proxy_async();
    thread::sync_threads();
    let mut d = [0.0; 32];
    wgmma::fence(&mut d);
    wgmma::m64n64k16(&mut d, tile, tile, false);
    wgmma::commit_group();
    wgmma::wait_group::<0, _>(&mut d);
}

#[test]
fn a_tile_is_read_where_it_was_written() {
    let said = fault(dims(1, 128, 8192), unwritten_row {});
    assert_says(&said, &["warpgroup.rs", "reads memory nothing wrote"]);
}
