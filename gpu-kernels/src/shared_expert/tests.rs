use std::vec;
use std::vec::Vec;

use cuda_std::tensor_map::TensorMap;
use half::bf16;

use super::contract::SharedExpertShape;
use super::device::*;
use super::reference::{cases, gate, operands, outputs};
use crate::gemm::reference::{Tolerance, check, product};
use crate::testing::{DeviceMemory, TestDevice, tensor_maps};

/// SMs of the GPU that tests plan for: fewer than there are tiles.
const NUM_SMS: u32 = 3;
/// SMs of one on which blocks share tiles.
const MANY_SMS: u32 = 40;

fn fused(
    device: &TestDevice,
    shape: &SharedExpertShape,
    x: &[bf16],
    gate_up: &[bf16],
) -> Vec<bf16> {
    shape.check().unwrap();
    let (x, gate_up) = (DeviceMemory::from_slice(x), DeviceMemory::from_slice(gate_up));
    let h = DeviceMemory::<bf16>::poisoned(shape.h_elements());
    let kernel = shared_expert_gate_up_bf16 {
        x: TensorMap::new(x.view(), &shape.x_tiling()).unwrap(),
        gate_up: TensorMap::new(gate_up.view(), &shape.gate_up_tiling()).unwrap(),
        h_maps: tensor_maps(&h, &shape.h_tilings()),
        num_tokens: shape.num_tokens,
        n: shape.intermediate,
        k: shape.hidden,
        h: h.view_mut(),
    };
    device.launch(shape.gate_up_dims(NUM_SMS), kernel);
    h.to_vec()
}

fn streamed(
    device: &TestDevice,
    shape: &SharedExpertShape,
    x: &[bf16],
    gate_up: &[bf16],
) -> Vec<bf16> {
    shape.check().unwrap();
    let (x, gate_up) = (DeviceMemory::from_slice(x), DeviceMemory::from_slice(gate_up));
    let h = DeviceMemory::<bf16>::poisoned(shape.h_elements());
    let plan = shape.stream_plan(MANY_SMS);
    let sums = DeviceMemory::<f32>::poisoned(plan.sums_elements());
    let arrived = DeviceMemory::from_slice(&vec![0_u32; plan.arrived_elements()]);
    let kernel = shared_expert_stream_bf16 {
        x: TensorMap::new(x.view(), &plan.rows_tiling(shape.h_product())).unwrap(),
        gate_up: TensorMap::new(gate_up.view(), &plan.weights_tiling(shape.h_product())).unwrap(),
        num_tokens: shape.num_tokens,
        n: shape.intermediate,
        k: shape.hidden,
        tile_rows: plan.tile_rows,
        steps_per_block: plan.shares.steps_per_block,
        num_stages: plan.num_stages,
        sums: sums.view_mut(),
        arrived: arrived.view_mut(),
        h: h.view_mut(),
    };
    device.launch(plan.dims(), kernel);
    h.to_vec()
}

fn split(
    device: &TestDevice,
    shape: &SharedExpertShape,
    x: &[bf16],
    gate_up: &[bf16],
) -> Vec<bf16> {
    let (product, plan) = (shape.h_product(), shape.split_plan());
    // A step for each block of a cluster, at least.
    if plan.check(product).is_err() {
        return streamed(device, shape, x, gate_up);
    }
    let (x, gate_up) = (DeviceMemory::from_slice(x), DeviceMemory::from_slice(gate_up));
    let h = DeviceMemory::<bf16>::poisoned(shape.h_elements());
    let kernel = shared_expert_split_bf16 {
        x: TensorMap::new(x.view(), &plan.rows_tiling(product)).unwrap(),
        gate_up: TensorMap::new(gate_up.view(), &plan.weights_tiling(product)).unwrap(),
        num_tokens: shape.num_tokens,
        n: shape.intermediate,
        k: shape.hidden,
        tile_rows: plan.tile_rows,
        num_stages: plan.num_stages,
        h: h.view_mut(),
    };
    device.launch(plan.dims(), kernel);
    h.to_vec()
}

#[test]
fn plans_of_shared_experts() {
    let is_split = [(16, 7168, 2048), (128, 7168, 2048), (256, 7168, 2048), (128, 2048, 5632)].map(
        |(num_tokens, hidden, intermediate)| {
            let shape = SharedExpertShape { num_tokens, hidden, intermediate };
            shape.is_faster_split(132)
        },
    );
    assert_eq!(is_split, [true, true, false, false]);
}

#[test]
fn gates_in_the_product_are_right_in_every_case() {
    for (seed, shape) in (0..).zip(cases()) {
        let [x, gate_up, down] = operands(&shape, seed);
        let [want, _] = outputs(&shape, &x, &gate_up, &down);
        for (name, run) in [("fused", fused as Run), ("streamed", streamed), ("split", split)] {
            let h = run(&TestDevice::seeded(seed), &shape, &x, &gate_up);
            check(&h, &want, shape.intermediate as usize, Tolerance::BF16)
                .unwrap_or_else(|off| panic!("{name}, {shape:?}: {off}"));
        }
    }
}

type Run = fn(&TestDevice, &SharedExpertShape, &[bf16], &[bf16]) -> Vec<bf16>;

#[test]
fn the_separate_gate_is_right_in_every_case() {
    for (seed, shape) in (0..).zip(cases()) {
        let n = shape.intermediate as usize;
        let [x, weights, _] = operands(&shape, seed);
        let product = product(&x, &weights, shape.hidden as usize);
        let rounded: Vec<bf16> = product.iter().map(|&x| bf16::from_f64(x)).collect();
        let want = gate(&rounded.iter().map(|&x| x.to_f64()).collect::<Vec<_>>(), n);
        let gate_up = DeviceMemory::from_slice(&rounded);
        let h = DeviceMemory::<bf16>::poisoned(shape.h_elements());
        let (gate_up, h_view) = (gate_up.view(), h.view_mut());
        let kernel = shared_expert_silu_mul_bf16 { gate_up, n: shape.intermediate, h: h_view };
        TestDevice::seeded(seed).launch(shape.silu_mul_dims(), kernel);
        check(&h.to_vec(), &want, n, Tolerance::BF16).unwrap();
    }
}

#[test]
fn gates_far_from_zero_are_shut_or_open() {
    let shut_and_open = [-1e4, 1e4, 0.0, -0.5, 2.0, 3.0, 4.0, 5.0];
    let h = gate(&shut_and_open, 4);
    assert_eq!((h[0], h[1], h[2]), (0.0, 3e4, 0.0));
}

#[test]
fn wrong_shapes_are_refused_in_words() {
    let right = SharedExpertShape { num_tokens: 1, hidden: 8, intermediate: 8 };
    right.check().unwrap();
    let error = SharedExpertShape { hidden: 4, ..right }.check().unwrap_err();
    insta::assert_snapshot!(error, @"`k` must be a multiple of 8, got 4");
    let error = SharedExpertShape { num_tokens: 0, ..right }.check().unwrap_err();
    insta::assert_snapshot!(error, @"`m` must be 1 to 1048576, got 0");
}

#[test]
fn work_counts_the_weights_once() {
    let work = SharedExpertShape { num_tokens: 2, hidden: 8, intermediate: 16 }.work();
    assert_eq!(work.read_bytes, 2 * (2 * 8 + 3 * 8 * 16));
    assert_eq!(work.flops, 2 * 2 * 3 * 8 * 16);
}
