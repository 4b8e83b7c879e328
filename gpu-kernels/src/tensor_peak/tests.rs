use std::vec;
use std::vec::Vec;

use half::bf16;

use super::contract::{TensorPeakShape, TensorPeakVariant};
use super::device::{tensor_peak_mma, tensor_peak_wgmma};
use super::reference::{cases, inputs, product, relative_error};
use crate::testing::{DeviceMemory, TestDevice};

/// f32 sums of few steps.
const TOLERANCE: f64 = 1e-6;

fn run(device: &TestDevice, shape: TensorPeakShape, a: &[bf16], b: &[bf16]) -> Vec<f32> {
    shape.check().unwrap();
    let [a_memory, b_memory] = [a, b].map(DeviceMemory::from_slice);
    let out_memory = DeviceMemory::<f32>::poisoned(shape.out_elements());
    let (a, b, out) = (a_memory.view(), b_memory.view(), out_memory.view_mut());
    let num_steps = shape.num_steps;
    match shape.variant {
        TensorPeakVariant::Wgmma => {
            device.launch(shape.dims(), tensor_peak_wgmma { a, b, num_steps, out });
        }
        TensorPeakVariant::Mma => {
            device.launch(shape.dims(), tensor_peak_mma { a, b, num_steps, out });
        }
    }
    out_memory.to_vec()
}

#[test]
fn every_block_sums_up_its_products() {
    for (seed, shape) in (0..).zip(cases()) {
        let [a, b] = inputs(shape.variant, seed);
        assert_eq!((a.len(), b.len()), (shape.a_elements(), shape.b_elements()));
        let out = run(&TestDevice::seeded(seed), shape, &a, &b);
        let error = relative_error(&out, &product(&shape, &a, &b));
        assert!(error < TOLERANCE, "{shape:?}: {error}");
    }
}

#[test]
fn a_wrong_operand_a_missing_step_and_nan_are_far_off() {
    let shape = cases()[1];
    let [a, b] = inputs(shape.variant, 9);
    let expected = product(&shape, &a, &b);
    let as_f32 = |x: &[f64]| -> Vec<f32> { x.iter().map(|&x| x as f32).collect() };
    let out = [as_f32(&expected), as_f32(&expected)].concat();
    assert!(relative_error(&out, &expected) < TOLERANCE);

    let mut other = b.clone();
    other[300] = -other[300];
    assert!(relative_error(&as_f32(&product(&shape, &a, &other)), &expected) > TOLERANCE);
    let fewer = TensorPeakShape { num_steps: 2, ..shape };
    assert!(relative_error(&as_f32(&product(&fewer, &a, &b)), &expected) > 0.3);
    let mut nan = out.clone();
    nan[5] = f32::NAN;
    assert_eq!(relative_error(&nan, &expected), f64::INFINITY);
    let zeros = vec![0.0; out.len()];
    assert_eq!(relative_error(&zeros, &expected), 1.0);
}

#[test]
fn operands_are_normally_distributed() {
    for x in inputs(TensorPeakVariant::Wgmma, 4) {
        let moment = |power| x.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>();
        let len = x.len() as f64;
        assert!((moment(1) / len).abs() < 0.02);
        assert!((moment(2) / len - 1.0).abs() < 0.02);
        assert!((moment(4) / len - 3.0).abs() < 0.15);
    }
}

#[test]
fn work_is_counted_from_the_tiles() {
    let [wgmma, _, _, mma] = cases();
    assert_eq!(wgmma.work().flops, 2 * 128 * 256 * 256);
    assert_eq!(wgmma.dims().shared_bytes, 192 << 10);
    assert_eq!(mma.work().flops, 3 * 5 * 2 * 512 * 64 * 32);
    assert_eq!(mma.work().written_bytes, 3 * 4 * 512 * 64);
}

#[test]
fn launches_of_nothing_are_refused() {
    let shape = cases()[0];
    let error = TensorPeakShape { num_steps: 0, ..shape }.check().unwrap_err();
    insta::assert_snapshot!(error, @"`num_steps` must be at least 1, got 0");
    let error = TensorPeakShape { num_blocks: 0, ..shape }.check().unwrap_err();
    insta::assert_snapshot!(error, @"`num_blocks` must be 1 to 2147483647, got 0");
}
