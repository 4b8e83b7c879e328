use std::string::String;
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

/// x and gate_up in device memory, and h as poison.
struct OnDevice {
    x: DeviceMemory<bf16>,
    gate_up: DeviceMemory<bf16>,
    h: DeviceMemory<bf16>,
}

impl OnDevice {
    fn new(shape: &SharedExpertShape, x: &[bf16], gate_up: &[bf16]) -> Self {
        shape.check().unwrap();
        Self {
            x: DeviceMemory::from_slice(x),
            gate_up: DeviceMemory::from_slice(gate_up),
            h: DeviceMemory::poisoned(shape.h_elements()),
        }
    }
}

fn fused(device: &TestDevice, shape: &SharedExpertShape, on: &OnDevice) {
    let kernel = shared_expert_gate_up_bf16 {
        x: TensorMap::new(on.x.view(), &shape.x_tiling()).unwrap(),
        gate_up: TensorMap::new(on.gate_up.view(), &shape.gate_up_tiling()).unwrap(),
        h_maps: tensor_maps(&on.h, &shape.h_tilings()),
        num_tokens: shape.num_tokens,
        n: shape.intermediate,
        k: shape.hidden,
        h: on.h.view_mut(),
    };
    device.launch(shape.gate_up_dims(NUM_SMS), kernel);
}

fn streamed(device: &TestDevice, shape: &SharedExpertShape, on: &OnDevice) {
    let (product, plan) = (shape.h_product(), shape.stream_plan(MANY_SMS));
    let sums = DeviceMemory::<f32>::poisoned(plan.sums_elements());
    let arrived = DeviceMemory::from_slice(&vec![0_u32; plan.arrived_elements()]);
    let kernel = shared_expert_stream_bf16 {
        x: TensorMap::new(on.x.view(), &plan.rows_tiling(product)).unwrap(),
        gate_up: TensorMap::new(on.gate_up.view(), &plan.weights_tiling(product)).unwrap(),
        num_tokens: shape.num_tokens,
        n: shape.intermediate,
        k: shape.hidden,
        tile_rows: plan.tile_rows,
        steps_per_block: plan.shares.steps_per_block,
        num_stages: plan.num_stages,
        sums: sums.view_mut(),
        arrived: arrived.view_mut(),
        h: on.h.view_mut(),
    };
    device.launch(plan.dims(), kernel);
    assert!(arrived.to_vec().iter().all(|&count| count == 0), "{plan:?}");
}

fn split(device: &TestDevice, shape: &SharedExpertShape, on: &OnDevice) {
    let (product, plan) = (shape.h_product(), shape.split_plan());
    let kernel = shared_expert_split_bf16 {
        x: TensorMap::new(on.x.view(), &plan.rows_tiling(product)).unwrap(),
        gate_up: TensorMap::new(on.gate_up.view(), &plan.weights_tiling(product)).unwrap(),
        num_tokens: shape.num_tokens,
        n: shape.intermediate,
        k: shape.hidden,
        tile_rows: plan.tile_rows,
        num_stages: plan.num_stages,
        h: on.h.view_mut(),
    };
    device.launch(plan.dims(), kernel);
}

type Run = fn(&TestDevice, &SharedExpertShape, &OnDevice);

/// The kernels with a gate in the product that take a shape, by name.
fn runs(shape: &SharedExpertShape) -> Vec<(&'static str, Run)> {
    // A cluster has a step for each of its blocks, at least.
    let can_split = shape.split_plan().check(shape.h_product()).is_ok();
    let split = can_split.then_some(("split", split as Run));
    [("fused", fused as Run), ("streamed", streamed)].into_iter().chain(split).collect()
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
        for (name, run) in runs(&shape) {
            let on = OnDevice::new(&shape, &x, &gate_up);
            run(&TestDevice::seeded(seed), &shape, &on);
            check(&on.h.to_vec(), &want, shape.intermediate as usize, Tolerance::BF16)
                .unwrap_or_else(|off| panic!("{name}, {shape:?}: {off}"));
        }
    }
}

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
        let kernel = shared_expert_silu_mul_bf16 {
            gate_up: gate_up.view(),
            n: shape.intermediate,
            h: h.view_mut(),
        };
        let (_, dims) = shape.silu_mul_launches().next().unwrap();
        TestDevice::seeded(seed).launch(dims, kernel);
        check(&h.to_vec(), &want, n, Tolerance::BF16).unwrap();
    }
}

#[test]
fn gates_far_from_zero_are_shut_or_open() {
    let shut_and_open = [-1e4, 1e4, 0.0, -0.5, 2.0, 3.0, 4.0, 5.0];
    let h = gate(&shut_and_open, 4);
    assert_eq!((h[0], h[1], h[2]), (0.0, 3e4, 0.0));
}

/// 8192 tokens of 8 experts each are more rows than a grid has.
#[test]
fn more_tokens_than_a_grid_has_rows_take_several_launches() {
    let launches = |num_tokens| -> Vec<(usize, [u32; 3])> {
        let shape = SharedExpertShape { num_tokens, hidden: 8, intermediate: 2056 };
        shape.silu_mul_launches().map(|(first, dims)| (first, dims.grid)).collect()
    };
    assert_eq!(launches(65_535), [(0, [3, 65_535, 1])]);
    assert_eq!(launches(65_536), [(0, [3, 65_535, 1]), (65_535, [3, 1, 1])]);
}

#[test]
fn wrong_shapes_are_refused_in_words() {
    let right = SharedExpertShape { num_tokens: 1, hidden: 8, intermediate: 8 };
    right.check().unwrap();
    let wrong = [
        SharedExpertShape { hidden: 4, ..right },
        SharedExpertShape { num_tokens: 0, ..right },
        SharedExpertShape { intermediate: (1 << 31) + 8, ..right },
    ];
    let text: String = wrong.map(|shape| std::format!("{}\n", shape.check().unwrap_err())).concat();
    insta::assert_snapshot!(text, @"
    `hidden` must be a multiple of 8 up to 1048560, got 4
    `num_tokens` must be 1 to 1048560, got 0
    `intermediate` must be a multiple of 8 up to 524280, got 2147483656
    ");
}

#[test]
fn work_counts_the_weights_once() {
    let work = SharedExpertShape { num_tokens: 2, hidden: 8, intermediate: 16 }.work();
    assert_eq!(work.read_bytes, 2 * (2 * 8 + 3 * 8 * 16));
    assert_eq!(work.flops, 2 * 2 * 3 * 8 * 16);
}
