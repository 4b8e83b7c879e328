use std::string::String;
use std::vec::Vec;

use half::bf16;

use super::contract::RmsNormShape;
use super::device::*;
use super::reference::{RmsNormProblem, cases};
use crate::testing::{DeviceMemory, TestDevice, digest};

/// `out` of normalising `x`.
fn normalize(device: &TestDevice, problem: &RmsNormProblem) -> Vec<bf16> {
    let shape = problem.shape;
    shape.check().unwrap();
    let x = DeviceMemory::from_slice(&problem.x);
    let weight = DeviceMemory::from_slice(&problem.weight);
    let out = DeviceMemory::<bf16>::poisoned(shape.elements());
    macro_rules! launch {
        ($entry:ident) => {{
            let (x, weight, out) = (x.view(), weight.view(), out.view_mut());
            device.launch(shape.dims(), $entry { x, weight, params: shape.params(), out })
        }};
    }
    match shape.thread_words() {
        1 => launch!(rms_norm_rows_bf16_x1),
        2 => launch!(rms_norm_rows_bf16_x2),
        4 => launch!(rms_norm_rows_bf16_x4),
        _ => launch!(rms_norm_rows_bf16_x8),
    }
    out.to_vec()
}

/// `x` and `out` after adding and normalising.
fn add_and_normalize(device: &TestDevice, problem: &RmsNormProblem) -> (Vec<bf16>, Vec<bf16>) {
    let shape = problem.shape;
    let x = DeviceMemory::from_slice(&problem.x);
    let delta = DeviceMemory::from_slice(&problem.delta);
    let weight = DeviceMemory::from_slice(&problem.weight);
    let out = DeviceMemory::<bf16>::poisoned(shape.elements());
    macro_rules! launch {
        ($entry:ident) => {{
            let (delta, weight, out) = (delta.view(), weight.view(), out.view_mut());
            let kernel = $entry { x: x.view_mut(), delta, weight, params: shape.params(), out };
            device.launch(shape.dims(), kernel)
        }};
    }
    match shape.thread_words() {
        1 => launch!(rms_norm_add_rows_bf16_x1),
        2 => launch!(rms_norm_add_rows_bf16_x2),
        4 => launch!(rms_norm_add_rows_bf16_x4),
        _ => launch!(rms_norm_add_rows_bf16_x8),
    }
    (x.to_vec(), out.to_vec())
}

/// `x` after the launch that only adds.
fn add(device: &TestDevice, problem: &RmsNormProblem) -> Vec<bf16> {
    let x = DeviceMemory::from_slice(&problem.x);
    let delta = DeviceMemory::from_slice(&problem.delta);
    let num_words = problem.shape.num_words();
    let kernel = rms_norm_add_bf16 { x: x.view_mut(), delta: delta.view(), num_words };
    device.launch(problem.shape.add_dims(), kernel);
    x.to_vec()
}

#[test]
fn every_case_is_the_oracle() {
    for (shape, seed) in cases().into_iter().zip(1..) {
        let (device, problem) = (TestDevice::seeded(seed), RmsNormProblem::new(shape, seed));
        let out = normalize(&device, &problem);
        problem.check(&problem.x, &out).unwrap_or_else(|off| panic!("{shape:?}: {off}"));
        let sums = problem.sums();
        assert_eq!(add(&device, &problem), sums, "{shape:?}");
        let (x, out) = add_and_normalize(&device, &problem);
        assert_eq!(x, sums, "{shape:?}");
        problem.check(&sums, &out).unwrap_or_else(|off| panic!("{shape:?}, sums: {off}"));
    }
}

#[test]
fn lane_order_changes_no_bit() {
    let problem = RmsNormProblem::new(cases()[4], 7);
    let of_order = |device| digest(&add_and_normalize(&device, &problem).1);
    let digests: Vec<u64> = TestDevice::lane_orders().map(of_order).collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
}

#[test]
fn the_value_is_rounded_before_its_weight() {
    let shape = RmsNormShape { num_rows: 1, row_len: 64, eps: 0.0 };
    let problem = RmsNormProblem::new(shape, 5);
    let squares: f32 = problem.x.iter().map(|x| x.to_f32() * x.to_f32()).sum();
    let scale = 1.0 / (squares / 64.0).sqrt();
    let rounded = |is_first_rounded| -> Vec<bf16> {
        let element = |(x, weight): (&bf16, &bf16)| {
            let mut normal = x.to_f32() * scale;
            if is_first_rounded {
                normal = bf16::from_f32(normal).to_f32();
            }
            bf16::from_f32(normal * weight.to_f32())
        };
        problem.x.iter().zip(&problem.weight).map(element).collect()
    };
    assert_ne!(rounded(true), rounded(false));
    assert_eq!(normalize(&TestDevice::ascending(), &problem), rounded(true));
}

#[test]
fn a_wrong_element_weight_or_nan_does_not_pass() {
    let problem = RmsNormProblem::new(cases()[2], 9);
    let out = normalize(&TestDevice::ascending(), &problem);
    problem.check(&problem.x, &out).unwrap();
    let mut other = out.clone();
    other[7] = bf16::from_f32(other[7].to_f32() * 1.02);
    assert!(problem.check(&problem.x, &other).is_err());
    other[7] = bf16::NAN;
    assert!(problem.check(&problem.x, &other).is_err());
    let mut rotated = problem.clone();
    rotated.weight.rotate_left(1);
    assert!(rotated.check(&problem.x, &out).is_err());
}

#[test]
fn outputs_do_not_change_between_versions() {
    let problem = RmsNormProblem::new(cases()[1], 3);
    let (_, out) = add_and_normalize(&TestDevice::ascending(), &problem);
    let head: Vec<f32> = out[..4].iter().map(|x| x.to_f32()).collect();
    let text = std::format!("{head:?} {:016x}", digest(&out));
    insta::assert_snapshot!(text, @"[0.11816406, -1.1015625, 1.8203125, 0.3046875] 5166f7e0942f7403");
}

#[test]
fn wrong_sizes_are_refused_in_words() {
    let good = cases()[1];
    let wrong = [
        RmsNormShape { row_len: 0, ..good },
        RmsNormShape { row_len: 12, ..good },
        RmsNormShape { row_len: 16_392, ..good },
        RmsNormShape { num_rows: 1 << 30, ..good },
        RmsNormShape { eps: -1.0, ..good },
        RmsNormShape { eps: f32::NAN, ..good },
    ];
    let text: String = wrong.map(|shape| std::format!("{}\n", shape.check().unwrap_err())).concat();
    insta::assert_snapshot!(text, @"
    `row_len` must be a multiple of 8 up to 16384, got 0
    `row_len` must be a multiple of 8 up to 16384, got 12
    `row_len` must be a multiple of 8 up to 16384, got 16392
    `num_rows` must be such that num_rows * row_len / 8 is at most 2147483647, got 1073741824
    `eps` must be 0 or a positive number, got -1
    `eps` must be 0 or a positive number, got NaN
    ");
}

#[test]
fn launches_and_work_follow_from_the_sizes() {
    let shape = RmsNormShape { num_rows: 3, row_len: 2056, eps: 1e-5 };
    assert_eq!((shape.dims().grid, shape.thread_words()), ([3, 1, 1], 2));
    assert_eq!(shape.add_dims().grid, [4, 1, 1]);
    assert_eq!(shape.work().read_bytes, 2 * 3 * 2056 + 2 * 2056);
    assert_eq!(shape.add_work().read_bytes, 4 * 3 * 2056 + 2 * 2056);
    assert_eq!(shape.add_work().written_bytes, 4 * 3 * 2056);
}
