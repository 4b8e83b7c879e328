use std::string::String;
use std::vec::Vec;

use half::{bf16, f16};

use super::contract::MergeStatesShape;
use super::device::{merge_states_bf16, merge_states_f16};
use super::reference::{MergeProblem, cases};
use crate::testing::{DeviceMemory, Half, TestDevice, Tolerance, require_close};

/// Half a unit in the last place of bf16, and that of fast exponentials.
const BF16: Tolerance = Tolerance { relative: 4e-3, absolute: 1e-6 };
/// The same of f16.
const F16: Tolerance = Tolerance { relative: 6e-4, absolute: 1e-6 };
/// Of `lse`, in f32.
const LSE: Tolerance = Tolerance { relative: 1e-6, absolute: 1e-6 };

/// `out` and `lse` of one launch.
macro_rules! merge {
    ($entry:ident: $T:ty, $device:expr, $problem:expr) => {{
        let (device, problem): (TestDevice, &MergeProblem) = ($device, $problem);
        let shape = problem.shape;
        shape.check().unwrap();
        let states_out = DeviceMemory::from_slice(&problem.states_out);
        let states_lse = DeviceMemory::from_slice(&problem.states_lse);
        let out = DeviceMemory::<$T>::poisoned(shape.out_elements());
        let lse = DeviceMemory::<f32>::poisoned(shape.lse_elements());
        let kernel = $entry {
            params: shape.params(),
            states_out: states_out.view(),
            states_lse: states_lse.view(),
            out: out.view_mut(),
            lse: lse.view_mut(),
        };
        device.launch(shape.dims(), kernel);
        (out.to_vec(), lse.to_vec())
    }};
}

fn check<T: Half>(
    problem: &MergeProblem,
    (out, lse): (Vec<T>, Vec<f32>),
    tolerance: Tolerance,
) -> Result<(), String> {
    let (want_out, want_lse) = problem.oracle();
    let out: Vec<f64> = out.into_iter().map(T::to_f64).collect();
    let lse: Vec<f64> = lse.into_iter().map(f64::from).collect();
    require_close(&out, &want_out, tolerance)?;
    require_close(&lse, &want_lse, LSE)
}

#[test]
fn every_case_is_the_oracle() {
    for (shape, seed) in cases().into_iter().zip(1..) {
        let problem = MergeProblem::new(shape, seed);
        let got = merge!(merge_states_bf16: bf16, TestDevice::seeded(seed), &problem);
        check(&problem, got, BF16).unwrap_or_else(|off| panic!("{shape:?}, bf16: {off}"));
        let got = merge!(merge_states_f16: f16, TestDevice::seeded(seed), &problem);
        check(&problem, got, F16).unwrap_or_else(|off| panic!("{shape:?}, f16: {off}"));
    }
}

#[test]
fn rows_without_tokens_are_zero_with_a_log_sum_of_minus_infinity() {
    let problem = MergeProblem::new(cases()[2], 3);
    let (out, lse) = merge!(merge_states_bf16: bf16, TestDevice::ascending(), &problem);
    assert_eq!(lse[8], f32::NEG_INFINITY);
    assert!(out[8 * 128..].iter().all(|&x| x == bf16::ZERO));
}

#[test]
fn a_swapped_state_shows() {
    let problem = MergeProblem::new(cases()[3], 5);
    let mut swapped = problem.clone();
    swapped.states_lse.rotate_left(problem.shape.num_rows as usize);
    let got = merge!(merge_states_bf16: bf16, TestDevice::ascending(), &swapped);
    assert!(check(&problem, got, BF16).is_err());
}

#[test]
fn wrong_sizes_are_refused_in_words() {
    let good = cases()[1];
    let wrong = [
        MergeStatesShape { num_states: 0, ..good },
        MergeStatesShape { num_rows: 0, ..good },
        MergeStatesShape { head_dim: 66, ..good },
        MergeStatesShape { num_rows: 1 << 26, ..good },
    ];
    let text: String = wrong.map(|shape| std::format!("{}\n", shape.check().unwrap_err())).concat();
    insta::assert_snapshot!(text, @"
    `num_states` must be at least 1, got 0
    `num_rows` must be at least 1, got 0
    `head_dim` must be a multiple of 4, got 66
    `num_rows` must be such that num_rows * head_dim is at most 4294967295, got 67108864
    ");
}
