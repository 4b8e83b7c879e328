//! Multiplications of e4m3 by a warpgroup against plain matrices, and what goes wrong without the rules.
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

mod common;

use common::{assert_says, contents, dims, fault, fresh, holding, launch};
use cuda_std::float::E4m3;
use cuda_std::prelude::*;
use cuda_std::wgmma::{SwizzledTile, place_of};

const K: usize = SwizzledTile::<E4m3>::ROW_ELEMENTS;
const A_BYTES: usize = SwizzledTile::<E4m3>::bytes(64);
const SHARED_BYTES: u32 = (A_BYTES + SwizzledTile::<E4m3>::bytes(256)) as u32;

/// Lets all threads store `rows` rows of 128 elements.
unsafe fn fill(tile: SwizzledTile<E4m3>, x: Global<E4m3>, rows: usize) {
    let mut piece = thread::thread_idx_x() as usize;
    while piece < rows * K / 16 {
        tile.store_x4(piece / 8, piece % 8 * 16, x.load_x4(16 * piece));
        piece += thread::block_dim_x() as usize;
    }
}

/// A of 64 rows and B of 256, in shared memory.
unsafe fn tiles(a: Global<E4m3>, b: Global<E4m3>) -> [SwizzledTile<E4m3>; 2] {
    let base = shared::dynamic_shared_mem::<E4m3>();
    let tiles = [SwizzledTile::at(base), SwizzledTile::at(base.offset(A_BYTES))];
    fill(tiles[0], a, 64);
    fill(tiles[1], b, 256);
    bulk::fence_proxy_async();
    thread::sync_threads();
    tiles
}

/// `out = start + a b^T`, or without `start`; the accumulator begins as `start`.
unsafe fn product_of_size<const REGISTERS: usize>(
    a: Global<E4m3>,
    b: Global<E4m3>,
    out: GlobalMut<f32>,
    start: f32,
    accumulate: u32,
) {
    let [a, b] = tiles(a, b);
    let mut d = [start; REGISTERS];
    wgmma::fence(&mut d);
    for k in (0..K).step_by(32) {
        let accumulate = accumulate == 1 || k > 0;
        wgmma::multiply_e4m3(&mut d, a.from_column(k), b.from_column(k), accumulate);
    }
    wgmma::commit_group();
    wgmma::wait_group::<0, _>(&mut d);
    for (register, &value) in d.iter().enumerate() {
        let (row, column) = place_of(thread::thread_idx_x(), register);
        out.store(row * 2 * REGISTERS + column, value);
    }
}

/// Distinct values of which sums of products are exact in f32.
fn element(i: usize) -> E4m3 {
    E4m3::from_f32(((i * 37 % 101) as f32 - 50.0) / 4.0)
}

/// A `[64, 128]` and B `[256, 128]`.
fn operands() -> [Vec<E4m3>; 2] {
    [(0..64 * K).map(element).collect(), (0..256 * K).map(|i| element(i + 1000)).collect()]
}

fn product(a: &[E4m3], b: &[E4m3], n: usize) -> Vec<f32> {
    let dot = |i: usize| {
        (0..K).map(|k| a[i / n * K + k].to_f32() * b[i % n * K + k].to_f32()).sum::<f32>()
    };
    (0..64 * n).map(dot).collect()
}

macro_rules! sizes {
    ($($name:ident: $registers:literal;)*) => {
        $(
            /// One size of the multiplication.
            #[kernel]
            pub unsafe fn $name(
                a: Global<E4m3>,
                b: Global<E4m3>,
                out: GlobalMut<f32>,
                start: f32,
                accumulate: u32,
            ) {
                product_of_size::<$registers>(a, b, out, start, accumulate);
            }
        )*

        #[test]
        fn products_of_each_size_equal_plain_matrix_products() {
            let [a, b] = operands();
            let (a_memory, b_memory) = (holding(&a), holding(&b));
            $(for (start, accumulate) in [(3.0, 1), (f32::NAN, 0)] {
                let out = fresh::<f32>(64 * 2 * $registers);
                let (a_view, b_view, out_view) = (a_memory.view(), b_memory.view(), out.view_mut());
                let kernel = $name { a: a_view, b: b_view, out: out_view, start, accumulate };
                launch(dims(1, 128, SHARED_BYTES), kernel).unwrap();
                let start = if accumulate == 1 { start } else { 0.0 };
                let sums = product(&a, &b, 2 * $registers);
                let expected: Vec<f32> = sums.iter().map(|sum| start + sum).collect();
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

/// Where an element lies: `out[row * 128 + column]` is a byte.
#[kernel]
pub unsafe fn element_places(out: GlobalMut<u32>) {
    let base = shared::dynamic_shared_mem::<u8>();
    let tile = SwizzledTile::<E4m3>::at(base.cast());
    for i in 0..8 * K {
        base.store(i, (i / K * 16 + i % K / 16) as u8);
    }
    for row in 0..8 {
        for column in 0..K {
            out.store(K * row + column, u32::from(tile.place(row, column).load(0).to_bits()));
        }
    }
}

#[test]
fn elements_lie_where_the_hardware_swizzles_addresses() {
    let out = fresh::<u32>(8 * K);
    launch(dims(1, 1, 1024), element_places { out: out.view_mut() }).unwrap();
    for (i, &piece) in contents::<u32>(&out).iter().enumerate() {
        let (row, column) = ((i / K) as u32, (i % K) as u32);
        assert_eq!(piece, row * 16 + ((column / 16) ^ row), "element {i}");
    }
}

/// A product that begins at a column and a row of A where none can begin, or whose B is another type.
#[kernel]
pub unsafe fn misuse(a: Global<E4m3>, b: Global<E4m3>, how: u32) {
    let [a, b] = tiles(a, b);
    let mut d = [0.0; 8];
    wgmma::fence(&mut d);
    match how {
        0 => wgmma::multiply_e4m3(&mut d, a.from_column(16), b, false),
        1 => wgmma::multiply_e4m3(&mut d, a, b.from_row(4), false),
        2 => wgmma::multiply_e4m3(&mut d, a, b.from_row(248), false),
        _ => {
            let other = if thread::thread_idx_x() < 32 { a } else { a.from_column(32) };
            wgmma::multiply_e4m3(&mut d, other, b, false);
        }
    }
    wgmma::commit_group();
    wgmma::wait_group::<0, _>(&mut d);
}

#[test]
fn tiles_that_the_hardware_would_read_elsewhere_are_faults() {
    let [a, b] = operands();
    let (a, b) = (holding(&a), holding(&b));
    let said = |how| fault(dims(1, 128, SHARED_BYTES), misuse { a: a.view(), b: b.view(), how });
    assert_says(&said(0), &["m64n16k32", "`a` begins at column 16, which is not a multiple of 32"]);
    assert_says(&said(1), &["`b` begins at shared byte 8704, which is not aligned to 1024"]);
    assert_says(&said(2), &["shared load", "out of bounds"]);
    assert_says(&said(3), &["others of the warpgroup have a at shared byte 0"]);
}
