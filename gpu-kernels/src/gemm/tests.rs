use std::collections::HashSet;
use std::vec;
use std::vec::Vec;

use cuda_std::tensor_map::TensorMap;
use half::bf16;
use proptest::prelude::*;

use super::contract::GemmShape;
use super::device::*;
use super::plan::{GemmKernel, GemmPlan, GemmVariant, StreamPlan};
use super::reference::{Tolerance, cases, check, operands, product, random};
use super::schedule::{Raster, RowTiles, Shares, part_of};
use super::split_plan::{SplitPlan, SplitTile};
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

fn wide(device: &TestDevice, shape: GemmShape, a: &[bf16], b: &[bf16]) -> Vec<bf16> {
    tiled(device, shape, GemmVariant::Tma, [a, b])
}

fn paired(device: &TestDevice, shape: GemmShape, a: &[bf16], b: &[bf16]) -> Vec<bf16> {
    tiled(device, shape, GemmVariant::Paired, [a, b])
}

fn tiled(
    device: &TestDevice,
    shape: GemmShape,
    variant: GemmVariant,
    [a, b]: [&[bf16]; 2],
) -> Vec<bf16> {
    let plan = GemmPlan::new(shape, variant, NUM_SMS);
    let on = OnDevice::new(shape, a, b);
    let GemmShape { m, n, k } = shape;
    let a = TensorMap::new(on.a.view(), &plan.a_tiling()).unwrap();
    let b = TensorMap::new(on.b.view(), &plan.b_tiling()).unwrap();
    let (c_maps, c) = (tensor_maps(&on.c, &plan.c_tilings()), on.c.view_mut());
    match variant {
        GemmVariant::Paired => {
            device.launch(plan.dims(), gemm_paired_bf16 { a, b, c_maps, m, n, k, c });
        }
        _ => device.launch(plan.dims(), gemm_tma_bf16 { a, b, c_maps, m, n, k, c }),
    }
    on.c.to_vec()
}

/// In tiles of each kind that has a kernel for the shape, which must agree.
fn split(device: &TestDevice, shape: GemmShape, a: &[bf16], b: &[bf16]) -> Vec<bf16> {
    let plans = SplitTile::ALL.map(|tile| SplitPlan::new(shape, 1, tile));
    let possible = plans.into_iter().filter(|plan| plan.check(shape).is_ok());
    let want = product(a, b, shape.k as usize);
    let results = possible.map(|plan| {
        let on = OnDevice::new(shape, a, b);
        let (GemmShape { m, n, k }, SplitPlan { tile_rows, num_stages, .. }) = (shape, plan);
        let a = TensorMap::new(on.a.view(), &plan.rows_tiling(shape)).unwrap();
        let b = TensorMap::new(on.b.view(), &plan.weights_tiling(shape)).unwrap();
        let (c, dims) = (on.c.view_mut(), plan.dims());
        macro_rules! launch {
            ($entry:ident) => {
                device.launch(dims, $entry { a, b, m, n, k, tile_rows, num_stages, c })
            };
        }
        match (plan.tile.num_splits, plan.tile.weight_rows) {
            (1, _) => launch!(gemm_split1_64_bf16),
            (2, _) => launch!(gemm_split2_64_bf16),
            _ => launch!(gemm_split4_128_bf16),
        }
        let c = on.c.to_vec();
        check(&c, &want, n as usize, Tolerance::BF16)
            .unwrap_or_else(|off| panic!("{plan:?}: {off}"));
        c
    });
    let all: Vec<Vec<bf16>> = results.collect();
    all.into_iter().next_back().expect("a tile for each block can always be had")
}

/// As `plan` says, on workspaces of the sizes that it states.
fn streamed(
    device: &TestDevice,
    shape: GemmShape,
    plan: StreamPlan,
    ab: [&[bf16]; 2],
) -> Vec<bf16> {
    let [a, b] = ab;
    let on = OnDevice::new(shape, a, b);
    let sums = DeviceMemory::<f32>::poisoned(plan.sums_elements());
    let arrived = DeviceMemory::from_slice(&vec![0_u32; plan.arrived_elements()]);
    let kernel = gemm_stream_bf16 {
        a: TensorMap::new(on.a.view(), &plan.rows_tiling(shape)).unwrap(),
        b: TensorMap::new(on.b.view(), &plan.weights_tiling(shape)).unwrap(),
        m: shape.m,
        n: shape.n,
        k: shape.k,
        tile_rows: plan.tile_rows,
        steps_per_block: plan.shares.steps_per_block,
        num_stages: plan.num_stages,
        sums: sums.view_mut(),
        arrived: arrived.view_mut(),
        c: on.c.view_mut(),
    };
    device.launch(plan.dims(), kernel);
    assert!(arrived.to_vec().iter().all(|&count| count == 0), "{plan:?}");
    on.c.to_vec()
}

/// SMs of the GPU that tests plan for: fewer than there are tiles, in most cases.
const NUM_SMS: u32 = 3;

fn stream(device: &TestDevice, shape: GemmShape, a: &[bf16], b: &[bf16]) -> Vec<bf16> {
    streamed(device, shape, StreamPlan::new(shape, 1, NUM_SMS), [a, b])
}

/// A block for every two steps: most tiles are the sum of several, and blocks have steps of two tiles.
fn stream_in_twos(device: &TestDevice, shape: GemmShape, a: &[bf16], b: &[bf16]) -> Vec<bf16> {
    let mut plan = StreamPlan::new(shape, 1, NUM_SMS);
    plan.shares.steps_per_block = 2;
    plan.num_stages = 2;
    streamed(device, shape, plan, [a, b])
}

type Run = fn(&TestDevice, GemmShape, &[bf16], &[bf16]) -> Vec<bf16>;

/// Every kernel whose C is bf16, by name.
const RUNS: [(&str, Run); 6] = [
    ("baseline", baseline),
    ("wide", wide),
    ("paired", paired),
    ("split", split),
    ("stream", stream),
    ("stream in twos", stream_in_twos),
];

#[test]
fn every_case_is_right_in_every_lane_order() {
    for (seed, shape) in (0..).zip(cases()) {
        let [a, b] = operands(&shape, seed);
        let want = product(&a, &b, shape.k as usize);
        for (name, multiply) in RUNS {
            let c = multiply(&TestDevice::seeded(seed), shape, &a, &b);
            check(&c, &want, shape.n as usize, Tolerance::BF16)
                .unwrap_or_else(|off| panic!("{name}, {shape:?}: {off}"));
        }
    }
}

#[test]
fn results_do_not_depend_on_the_order_of_lanes() {
    let shape = GemmShape { m: 33, n: 136, k: 200 };
    let [a, b] = operands(&shape, 5);
    for (name, multiply) in RUNS {
        let digests: HashSet<u64> = TestDevice::lane_orders()
            .map(|device| digest(&multiply(&device, shape, &a, &b)))
            .collect();
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
    insta::assert_snapshot!(said(GemmShape { m: 0, ..right }), @"`m` must be 1 to 1048560, got 0");
    insta::assert_snapshot!(said(GemmShape { n: 12, ..right }), @"`n` must be a multiple of 8 up to 1048560, got 12");
    insta::assert_snapshot!(said(GemmShape { k: 4, ..right }), @"`k` must be a multiple of 8 up to 1048560, got 4");
    let huge = GemmShape { n: 1 << 21, ..right };
    insta::assert_snapshot!(said(huge), @"`n` must be a multiple of 8 up to 1048560, got 2097152");
}

#[test]
fn work_counts_each_operand_once() {
    let work = GemmShape { m: 2, n: 8, k: 16 }.work();
    assert_eq!((work.read_bytes, work.written_bytes), (2 * (32 + 128), 32));
    assert_eq!(work.flops, 2 * 2 * 8 * 16);
}

/// The plans of linear layers of common models, for the row counts of decoding and of prefill.
#[test]
fn plans_of_common_layers() {
    let layers = [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336), (1024, 4096)];
    let deepseek = [(4096, 7168), (7168, 2048), (129_280, 7168)];
    let mut table = std::string::String::new();
    for (n, k) in layers.into_iter().chain(deepseek) {
        for m in [1, 16, 64, 128, 256, 512, 1024, 4096] {
            let plan = GemmPlan::fastest(GemmShape { m, n, k }, 132);
            plan.check().unwrap();
            let how = match plan.kernel {
                GemmKernel::Baseline => "baseline".into(),
                GemmKernel::Tma { num_blocks } => std::format!("tma, {num_blocks} blocks"),
                GemmKernel::Paired { num_blocks } => std::format!("paired, {num_blocks} blocks"),
                GemmKernel::Split(SplitPlan { tile, num_tiles, tile_rows, num_stages, .. }) => {
                    std::format!(
                        "split, {num_tiles} tiles of {tile_rows} rows and {} of weights by {} blocks each, {num_stages} stages",
                        tile.weight_rows,
                        tile.num_splits,
                    )
                }
                GemmKernel::Stream(StreamPlan { tile_rows, shares, num_stages, .. }) => {
                    std::format!(
                        "stream, {} blocks of {} steps, tiles of {tile_rows} rows and {} steps, {num_stages} stages",
                        shares.num_blocks(),
                        shares.steps_per_block,
                        shares.num_steps,
                    )
                }
            };
            table.push_str(&std::format!("{m} x {n} x {k}: {how}\n"));
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn streamed_products_have_few_rows() {
    let plan = GemmPlan::new(GemmShape { m: 1025, n: 8, k: 8 }, GemmVariant::Stream, 132);
    insta::assert_snapshot!(plan.check().unwrap_err(), @"`m` must be at most 1024 of a streamed product, got 1025");
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
    fn parts_follow_each_other_and_differ_by_at_most_one(num_steps in 1_u32..200, num_parts in 1_u32..9) {
        let mut next = 0;
        for part in 0..num_parts {
            let [begin, end] = part_of(num_steps, part, num_parts);
            prop_assert_eq!(begin, next);
            prop_assert!((num_steps / num_parts..=num_steps.div_ceil(num_parts)).contains(&(end - begin)));
            next = end;
        }
        prop_assert_eq!(next, num_steps);
    }

    #[test]
    fn every_step_is_of_one_block(
        num_tiles in 1_u32..40, num_steps in 1_u32..60, steps_per_block in 1_u32..100,
    ) {
        let shares = Shares { num_tiles, num_steps, steps_per_block };
        let mut next = 0;
        for block in 0..shares.num_blocks() {
            let [begin, end] = shares.steps_of(block);
            prop_assert!(begin == next && end > begin);
            for step in begin..end {
                let [first, last] = shares.blocks_of(step / num_steps);
                prop_assert!((first..=last).contains(&block));
            }
            next = end;
        }
        prop_assert_eq!(next, num_tiles * num_steps);
        for tile in 0..num_tiles {
            let has_steps = |block| {
                let [begin, end] = shares.steps_of(block);
                begin < (tile + 1) * num_steps && tile * num_steps < end
            };
            let [first, last] = shares.blocks_of(tile);
            prop_assert!(has_steps(first) && has_steps(last));
        }
    }
}
