//! Tile operations against plain matrices.
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

mod common;

use common::{assert_says, contents, dims, fault, fresh, holding, launch};
use cuda_std::prelude::*;
use half::{bf16, f16};

/// `d = a * b + c`, fragments loaded element by element as the table in `mma` says.
unsafe fn multiply<T: HalfFloat>(
    a: Global<u16>,
    b: Global<u16>,
    c: Global<f32>,
    d: GlobalMut<f32>,
) {
    let lane = warp::lane_id() as usize;
    let (g, t) = (lane / 4, lane % 4);
    let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
    let a_pair =
        |row: usize, column: usize| pair(a.load(16 * row + column), a.load(16 * row + column + 1));
    let b_pair = |row: usize| pair(b.load(8 * row + g), b.load(8 * (row + 1) + g));
    let a =
        [a_pair(g, 2 * t), a_pair(g + 8, 2 * t), a_pair(g, 2 * t + 8), a_pair(g + 8, 2 * t + 8)];
    let b = [b_pair(2 * t), b_pair(2 * t + 8)];
    let places = [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)];
    let c = places.map(|(row, column)| c.load(8 * row + column));
    let result = mma::m16n8k16::<T>(a, b, c);
    for ((row, column), value) in places.into_iter().zip(result) {
        d.store(8 * row + column, value);
    }
}

macro_rules! multiplications {
    ($($name:ident: $T:ty;)*) => {$(
        /// `d = a * b + c`.
        #[kernel(threads = 32)]
        pub unsafe fn $name(a: Global<u16>, b: Global<u16>, c: Global<f32>, d: GlobalMut<f32>) {
            multiply::<$T>(a, b, c, d);
        }
    )*};
}

multiplications! {
    multiply_bf16: bf16;
    multiply_f16: f16;
}

/// Distinct values that are exact in either format, as are sums of their products in f32.
fn element(i: usize) -> f32 {
    (i * 37 % 101) as f32 - 50.0
}

#[test]
fn products_of_tiles_equal_plain_matrix_products() {
    let a: Vec<f32> = (0..256).map(element).collect();
    let b: Vec<f32> = (0..128).map(|i| element(i + 1000)).collect();
    let c: Vec<f32> = (0..128).map(|i| i as f32 / 4.0).collect();
    let expected: Vec<f32> = (0..128)
        .map(|i| {
            let (row, column) = (i / 8, i % 8);
            c[i] + (0..16).map(|k| a[16 * row + k] * b[8 * k + column]).sum::<f32>()
        })
        .collect();
    let c = holding(&c);
    let bits = |to_bits: fn(f32) -> u16, values: &[f32]| -> Vec<u16> {
        values.iter().map(|&value| to_bits(value)).collect()
    };

    let to_bits = |value| bf16::from_f32(value).to_bits();
    let (a_bits, b_bits) = (holding(&bits(to_bits, &a)), holding(&bits(to_bits, &b)));
    let d = fresh::<f32>(128);
    let (a_view, b_view) = (a_bits.view(), b_bits.view());
    let kernel = multiply_bf16 { a: a_view, b: b_view, c: c.view(), d: d.view_mut() };
    launch(dims(1, 32, 0), kernel).unwrap();
    assert_eq!(contents::<f32>(&d), expected);

    let to_bits = |value| f16::from_f32(value).to_bits();
    let (a_bits, b_bits) = (holding(&bits(to_bits, &a)), holding(&bits(to_bits, &b)));
    let d = fresh::<f32>(128);
    let (a_view, b_view) = (a_bits.view(), b_bits.view());
    let kernel = multiply_f16 { a: a_view, b: b_view, c: c.view(), d: d.view_mut() };
    launch(dims(1, 32, 0), kernel).unwrap();
    assert_eq!(contents::<f32>(&d), expected);
}

/// Loads four 8 x 8 matrices, one after the other in shared memory, plainly and transposed, and
/// transposes the first in registers: `out` is `[32, 9]`.
#[kernel(threads = 32)]
pub unsafe fn load_matrices(x: Global<u32>, out: GlobalMut<u32>, skew: u32) {
    let words = shared::dynamic_shared_mem::<u32>();
    let lane = warp::lane_id() as usize;
    words.store_x4(4 * lane, x.load_x4(4 * lane));
    warp::sync_warp(warp::FULL_MASK);
    let row = words.offset(4 * lane + skew as usize);
    let plain = mma::load_matrix_x4(row);
    let transposed = mma::load_matrix_x4_transposed(row);
    let again = mma::transpose_8x8(plain[0]);
    for i in 0..4 {
        out.store(9 * lane + i, plain[i]);
        out.store(9 * lane + 4 + i, transposed[i]);
    }
    out.store(9 * lane + 8, again);
}

#[test]
fn matrices_are_dealt_out_as_fragments() {
    let elements: Vec<u16> = (0..256).map(|i| 1000 + i).collect();
    let (x, out) = (holding(&elements), fresh::<u32>(32 * 9));
    let kernel = load_matrices { x: x.view(), out: out.view_mut(), skew: 0 };
    launch(dims(1, 32, 512), kernel).unwrap();
    let at = |matrix: usize, row: usize, column: usize| {
        u32::from(elements[64 * matrix + 8 * row + column])
    };
    for (lane, row) in contents::<[u32; 9]>(&out).into_iter().enumerate() {
        let (g, t) = (lane / 4, lane % 4);
        for i in 0..4 {
            assert_eq!(row[i], at(i, g, 2 * t) | at(i, g, 2 * t + 1) << 16, "lane {lane}");
            assert_eq!(row[4 + i], at(i, 2 * t, g) | at(i, 2 * t + 1, g) << 16, "lane {lane}");
        }
        assert_eq!(row[8], row[4], "lane {lane}");
    }
}

#[test]
fn rows_of_matrices_are_checked() {
    let (x, out) = (holding(&[1_u32; 128]), fresh::<u32>(32 * 9));
    let kernel = |skew| load_matrices { x: x.view(), out: out.view_mut(), skew };
    let said = |skew| fault(dims(1, 32, 528), kernel(skew));
    assert_says(&said(1), &["shared load of 16 bytes", "not aligned to 16"]);
    assert_says(&said(4), &["thread 31 at", "shared load of 16 bytes", "memory nothing wrote"]);
    assert_says(&said(8), &["thread 31 at", "shared load of 16 bytes", "out of bounds"]);
}

/// Loads four matrices as fragments, and stores them again from word 128 on, and transposed from
/// word 256 on.
#[kernel(threads = 32)]
pub unsafe fn store_matrices(x: Global<u32>, out: GlobalMut<u32>) {
    let words = shared::dynamic_shared_mem::<u32>();
    let first = 4 * warp::lane_id() as usize;
    words.store_x4(first, x.load_x4(first));
    warp::sync_warp(warp::FULL_MASK);
    let fragments = mma::load_matrix_x4(words.offset(first));
    mma::store_matrix_x4(words.offset(128 + first), fragments);
    mma::store_matrix_x4_transposed(words.offset(256 + first), fragments);
    warp::sync_warp(warp::FULL_MASK);
    for copy in 0..2 {
        out.store_x4(128 * copy + first, words.load_x4(128 * (copy + 1) + first));
    }
}

#[test]
fn fragments_are_gathered_to_matrices() {
    let elements: Vec<u16> = (0..256).map(|i| 1000 + i).collect();
    let (x, out) = (holding(&elements), fresh::<u32>(256));
    let kernel = store_matrices { x: x.view(), out: out.view_mut() };
    launch(dims(1, 32, 1536), kernel).unwrap();
    let out: Vec<u16> = contents(&out);
    assert_eq!(out[..256], elements);
    for (i, &element) in out[256..].iter().enumerate() {
        let (matrix, row, column) = (i / 64, i / 8 % 8, i % 8);
        assert_eq!(element, elements[64 * matrix + 8 * column + row], "element {i}");
    }
}
