//! 8-bit floats against their definition: all 256 of them, and roundings found by search.
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

mod common;

use common::{contents, dims, fresh, holding, launch};
use cuda_std::float::E4m3;
use cuda_std::prelude::*;
use half::f16;

/// What e4m3 means: sign, 4 bits of exponent biased by 7, 3 of mantissa; one NaN of either sign.
fn defined(bits: u8) -> f64 {
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 3 & 0xf), f64::from(bits & 7) / 8.0);
    match (bits & 0x7f, exponent) {
        (0x7f, _) => f64::NAN,
        (_, 0) => sign * mantissa * 2f64.powi(-6),
        _ => sign * (1.0 + mantissa) * 2f64.powi(exponent - 7),
    }
}

/// The nearest by search; of two the one with an even last bit; what is too large saturates.
fn nearest(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let distance = |bits: &u8| (defined(*bits) - f64::from(value.abs().min(448.0))).abs();
    let of_two = |a: &u8, b: &u8| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1)));
    sign | (0..0x7f).min_by(of_two).unwrap()
}

/// Both roundings and both ways back, of four floats a thread.
#[kernel]
pub unsafe fn convert(values: Global<f32>, packed: GlobalMut<u32>, unpacked: GlobalMut<u32>) {
    let i = thread::index_1d() as usize;
    let four = float::pack_e4m3(values.load_x4(4 * i).map(f32::from_bits));
    packed.store(i, four);
    let ([a, b], [c, d]) = (float::unpack_e4m3(four), float::unpack_e4m3_by_columns(four));
    unpacked.store_x4(4 * i, [a, b, c, d]);
}

/// `[a, b, c, d]` of each register, and the four f16 by rows, then by columns.
fn converted(values: &[f32]) -> (Vec<u8>, Vec<[f16; 8]>) {
    let num_threads = values.len() / 4;
    let (memory, packed) = (holding(values), fresh::<u32>(num_threads));
    let unpacked = fresh::<u32>(4 * num_threads);
    let kernel =
        convert { values: memory.view(), packed: packed.view_mut(), unpacked: unpacked.view_mut() };
    launch(dims(1, num_threads as u32, 0), kernel).unwrap();
    let halves = contents::<[u16; 8]>(&unpacked);
    let halves = halves.into_iter().map(|eight| eight.map(f16::from_bits)).collect();
    (contents::<u8>(&packed), halves)
}

#[test]
fn every_float_goes_back_and_forth() {
    let all: Vec<f32> = (0..=255).map(|bits| defined(bits) as f32).collect();
    let (packed, unpacked) = converted(&all);
    for (register, halves) in (0..64).zip(unpacked) {
        for (place, of_four) in [0, 1, 2, 3, 0, 2, 1, 3].into_iter().enumerate() {
            let bits: u8 = 4 * register + of_four;
            let (got, want) = (halves[place].to_f64(), defined(bits));
            assert!(got == want || got.is_nan() && want.is_nan(), "{bits:#x}: {got}, not {want}");
        }
    }
    for bits in 0..=255 {
        let float = E4m3::from_bits(bits);
        let (got, want) = (f64::from(float.to_f32()), defined(bits));
        assert!(got == want || got.is_nan() && want.is_nan(), "{bits:#x}: {got}, not {want}");
        if !want.is_nan() {
            assert_eq!((packed[usize::from(bits)], E4m3::from_f32(want as f32)), (bits, float));
        }
    }
}

#[test]
fn ties_go_to_the_even_neighbour_and_large_values_saturate() {
    let mut values = Vec::new();
    for bits in 0..0x7e {
        let (low, high) = (defined(bits) as f32, defined(bits + 1) as f32);
        let tie = (low + high) / 2.0;
        values.extend([tie, tie.next_down(), tie.next_up(), -tie]);
    }
    values.extend([448.0, 464.0, 465.0, 1e30, f32::MAX, f32::INFINITY, -480.0, f32::NEG_INFINITY]);
    values.extend([0.0, -0.0, f32::MIN_POSITIVE, -1e-45]);
    let (packed, _) = converted(&values);
    for (value, got) in values.iter().zip(packed) {
        assert_eq!(got, nearest(*value), "{value:e}");
    }
    assert_eq!(E4m3::from_f32(1e9), E4m3::MAX);
    assert_eq!(E4m3::from_f32(f32::NAN).to_bits() & 0x7f, E4m3::NAN.to_bits());
}

#[test]
fn random_floats_round_to_the_nearest() {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut random = || f32::from_bits(rng.u32(0x3a00_0000..0x4400_0000) | rng.u32(0..2) << 31);
    let values: Vec<f32> = (0..1024).map(|_| random()).collect();
    let (packed, _) = converted(&values);
    for (value, got) in values.iter().zip(packed) {
        assert_eq!(got, nearest(*value), "{value:e}");
    }
}
