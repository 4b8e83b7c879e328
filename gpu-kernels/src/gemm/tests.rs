use std::collections::HashSet;
use std::vec;
use std::vec::Vec;

use cuda_std::tensor_map::TensorMap;
use half::bf16;
use proptest::prelude::*;

use super::contract::{GemmPlan, GemmShape, GemmVariant};
use super::device::*;
use super::reference::{Tolerance, cases, check, operands, product, random};
use super::schedule::{Raster, RowTiles, split_begin};
use crate::testing::{DeviceMemory, TestDevice, digest, tensor_maps};

/// Operands in device memory, and C as poison.
struct OnDevice {
    a: DeviceMemory<bf16>,
    b: DeviceMemory<bf16>,
    c: DeviceMemory<bf16>,
}

impl OnDevice {
    fn new(shape: GemmShape, a: &[bf16], b: &[bf16]) -> Self {
        shape.check().unwrap();
        Self {
            a: DeviceMemory::from_slice(a),
            b: DeviceMemory::from_slice(b),
            c: DeviceMemory::poisoned(shape.c_elements()),
        }
    }
}

fn baseline(device: &TestDevice, shape: GemmShape, a: &[bf16], b: &[bf16]) -> Vec<bf16> {
    let on = OnDevice::new(shape, a, b);
    let GemmShape { m, n, k } = shape;
    let kernel = gemm_baseline_bf16 { a: on.a.view(), b: on.b.view(), m, n, k, c: on.c.view_mut() };
    device.launch(shape.baseline_dims(), kernel);
    on.c.to_vec()
}

/// As `plan` says, on workspaces of the sizes that it states.
fn tma(device: &TestDevice, plan: GemmPlan, a: &[bf16], b: &[bf16]) -> Vec<bf16> {
    let on = OnDevice::new(plan.shape, a, b);
    let GemmShape { m, n, k } = plan.shape;
    let sums = DeviceMemory::<f32>::poisoned(plan.sums_elements());
    let arrived = DeviceMemory::from_slice(&vec![0_u32; plan.meeting_elements()]);
    let b = TensorMap::new(on.b.view(), &plan.b_tiling()).unwrap();
    let c_maps = tensor_maps(&on.c, &plan.c_tilings());
    let (c, dims) = (on.c.view_mut(), plan.dims());
    match plan.variant {
        GemmVariant::Baseline => panic!("it takes no maps"),
        GemmVariant::Tma => {
            let a = TensorMap::new(on.a.view(), &plan.a_tiling()).unwrap();
            device.launch(dims, gemm_tma_bf16 { a, b, c_maps, m, n, k, c });
        }
        GemmVariant::Split => {
            let a = tensor_maps(&on.a, &plan.ragged_a_tilings());
            let (num_splits, sums, arrived) =
                (plan.num_splits, sums.view_mut(), arrived.view_mut());
            let kernel = gemm_split_bf16 { a, b, c_maps, m, n, k, num_splits, sums, arrived, c };
            device.launch(dims, kernel);
        }
    }
    assert!(arrived.to_vec().iter().all(|&count| count == 0), "{plan:?}");
    on.c.to_vec()
}

/// SMs of the GPU that tests plan for: fewer than there are tiles, in most cases.
const NUM_SMS: u32 = 3;
/// SMs of one on which blocks can share tiles.
const MANY_SMS: u32 = 40;

fn wide(device: &TestDevice, shape: GemmShape, a: &[bf16], b: &[bf16]) -> Vec<bf16> {
    tma(device, GemmPlan::new(shape, GemmVariant::Tma, NUM_SMS), a, b)
}

fn split(device: &TestDevice, shape: GemmShape, a: &[bf16], b: &[bf16]) -> Vec<bf16> {
    tma(device, GemmPlan::with_splits(shape, GemmVariant::Split, 1, NUM_SMS), a, b)
}

fn split_3(device: &TestDevice, shape: GemmShape, a: &[bf16], b: &[bf16]) -> Vec<bf16> {
    tma(device, GemmPlan::with_splits(shape, GemmVariant::Split, 3, MANY_SMS), a, b)
}

type Run = fn(&TestDevice, GemmShape, &[bf16], &[bf16]) -> Vec<bf16>;

/// Every kernel whose C is bf16, by name.
const RUNS: [(&str, Run); 4] =
    [("baseline", baseline), ("wide", wide), ("split", split), ("split in 3", split_3)];

#[test]
fn every_case_is_right_in_every_lane_order() {
    for (seed, shape) in (0..).zip(cases()) {
        let [a, b] = operands(&shape, seed);
        let want = product(&a, &b, shape.k as usize);
        for (name, run) in RUNS {
            let c = run(&TestDevice::seeded(seed), shape, &a, &b);
            check(&c, &want, shape.n as usize, Tolerance::BF16)
                .unwrap_or_else(|off| panic!("{name}, {shape:?}: {off}"));
        }
    }
}

#[test]
fn results_do_not_depend_on_the_order_of_lanes() {
    let shape = GemmShape { m: 33, n: 136, k: 200 };
    let [a, b] = operands(&shape, 5);
    for (name, run) in RUNS {
        let digests: HashSet<u64> =
            TestDevice::lane_orders().map(|device| digest(&run(&device, shape, &a, &b))).collect();
        assert_eq!(digests.len(), 1, "{name}");
    }
}

#[test]
fn exact_products_equal_the_oracle() {
    for (seed, shape) in (0..).zip(cases()) {
        let [a, b] = operands(&shape, seed);
        let (a_memory, b_memory) = (DeviceMemory::from_slice(&a), DeviceMemory::from_slice(&b));
        let c = DeviceMemory::<f32>::poisoned(shape.c_elements());
        let GemmShape { m, n, k } = shape;
        let (a_view, b_view) = (a_memory.view(), b_memory.view());
        let kernel = gemm_exact_bf16 { a: a_view, b: b_view, m, n, k, c: c.view_mut() };
        TestDevice::ascending().launch(shape.exact_dims(), kernel);
        for (got, want) in c.to_vec().into_iter().zip(product(&a, &b, shape.k as usize)) {
            assert!((f64::from(got) - want).abs() <= 1e-6 * want.abs() + 1e-9, "{shape:?}");
        }
    }
}

#[test]
fn a_wrong_element_and_nan_are_off() {
    let shape = GemmShape { m: 3, n: 8, k: 64 };
    let [a, b] = operands(&shape, 1);
    let want = product(&a, &b, 64);
    let right: Vec<bf16> = want.iter().map(|&x| bf16::from_f64(x)).collect();
    let tolerance = Tolerance::BF16;
    check(&right, &want, 8, tolerance).unwrap();
    for wrong in [bf16::NAN, bf16::INFINITY, right[9] + bf16::from_f32(0.05)] {
        let mut c = right.clone();
        c[9] = wrong;
        let off = check(&c, &want, 8, tolerance).unwrap_err();
        assert!(off.starts_with("1 of 24 elements are off; the first, row 1 column 1"), "{off}");
    }
    assert!(check(&[bf16::ZERO; 24], &want, 8, tolerance).is_err());
    assert!(check(&right[1..], &want, 8, tolerance).is_err());
}

#[test]
fn random_values_have_the_variance_asked_for() {
    let x = random(3, 1 << 16, 0.25);
    let moment = |power| x.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / x.len() as f64;
    assert!(moment(1).abs() < 0.01);
    assert!((moment(2) - 0.25).abs() < 0.005);
}

#[test]
fn wrong_shapes_are_refused_in_words() {
    let right = GemmShape { m: 1, n: 8, k: 8 };
    right.check().unwrap();
    let said = |shape: GemmShape| shape.check().unwrap_err();
    insta::assert_snapshot!(said(GemmShape { m: 0, ..right }), @"`m` must be 1 to 1048576, got 0");
    insta::assert_snapshot!(said(GemmShape { n: 12, ..right }), @"`n` must be a multiple of 8, got 12");
    insta::assert_snapshot!(said(GemmShape { k: 4, ..right }), @"`k` must be a multiple of 8, got 4");
    let huge = GemmShape { n: 1 << 21, ..right };
    insta::assert_snapshot!(said(huge), @"`n` must be 1 to 1048576, got 2097152");
}

#[test]
fn work_counts_each_operand_once() {
    let work = GemmShape { m: 2, n: 8, k: 16 }.work();
    assert_eq!((work.read_bytes, work.written_bytes), (2 * (32 + 128), 32));
    assert_eq!(work.flops, 2 * 2 * 8 * 16);
}

#[test]
fn blocks_share_tiles_as_long_as_all_run_at_once() {
    let plan = |m, n, k| GemmPlan::fastest(GemmShape { m, n, k }, 132);
    let few = plan(128, 4096, 7168);
    assert_eq!((few.variant, few.num_splits, few.num_blocks), (GemmVariant::Split, 3, 96));
    let short = plan(128, 7168, 2048);
    assert_eq!((short.variant, short.num_splits, short.num_blocks), (GemmVariant::Split, 1, 56));
    let many = plan(4096, 4096, 4096);
    assert_eq!((many.variant, many.num_splits, many.num_blocks), (GemmVariant::Tma, 1, 132));
    assert_eq!((many.sums_elements(), many.meeting_elements()), (0, 0));
    let wide = plan(16, 129_280, 7168);
    assert_eq!((wide.variant, wide.num_splits, wide.num_blocks), (GemmVariant::Split, 1, 132));
    let asked = |splits| {
        GemmPlan::with_splits(GemmShape { m: 9, n: 640, k: 200 }, GemmVariant::Split, splits, 132)
    };
    assert_eq!([0, 1, 3, 9].map(|splits| asked(splits).num_splits), [1, 1, 3, 4]);
}

#[test]
fn the_order_of_tiles_goes_down_in_groups() {
    let raster = Raster { m_tiles: 2, n_tiles: 18 };
    let places: Vec<_> = (0..raster.num_tiles()).map(|idx| raster.place(idx)).collect();
    assert_eq!(places[..3], [(0, 0), (0, 1), (0, 2)]);
    assert_eq!(places[15..18], [(0, 15), (1, 0), (1, 1)]);
    assert_eq!(places[31..], [(1, 15), (0, 16), (0, 17), (1, 16), (1, 17)]);
}

proptest! {
    #[test]
    fn every_tile_comes_once(m_tiles in 1_u32..40, n_tiles in 1_u32..70) {
        let raster = Raster { m_tiles, n_tiles };
        let places: HashSet<_> = (0..raster.num_tiles()).map(|idx| raster.place(idx)).collect();
        prop_assert_eq!(places.len() as u32, raster.num_tiles());
        prop_assert!(places.iter().all(|&(m, n)| m < m_tiles && n < n_tiles));
    }

    #[test]
    fn rows_are_dealt_evenly_to_as_few_tiles_as_hold_them(num_rows in 0_u32..5000, steps in 1_u32..17) {
        let max_rows = 16 * steps;
        let tiles = RowTiles::new(num_rows, max_rows);
        prop_assert_eq!(tiles.num_tiles, num_rows.div_ceil(max_rows));
        let mut next = 0;
        for idx in 0..tiles.num_tiles {
            let (first, rows) = tiles.tile(idx);
            prop_assert_eq!(first, next);
            prop_assert!((1..=max_rows).contains(&rows));
            prop_assert!(first.is_multiple_of(16));
            next += rows;
        }
        prop_assert_eq!(next, num_rows);
    }

    #[test]
    fn splits_cover_all_steps_and_none_is_empty(num_steps in 1_u32..2000, num_splits in 1_u32..64) {
        prop_assume!(num_splits <= num_steps);
        prop_assert_eq!(split_begin(num_steps, num_splits, 0), 0);
        prop_assert_eq!(split_begin(num_steps, num_splits, num_splits), num_steps);
        for split in 0..num_splits {
            let share = split_begin(num_steps, num_splits, split + 1)
                - split_begin(num_steps, num_splits, split);
            prop_assert!(share == num_steps / num_splits || share == num_steps.div_ceil(num_splits));
        }
    }
}
