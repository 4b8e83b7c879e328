use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use cuda_std::float::E4m3;
use cuda_std::prelude::*;
use half::bf16;
use proptest::prelude::*;

use super::SCALE_BLOCK;
use super::contract::UnpackShape;
use super::device::*;
use super::reference::{Case, cases, check};
use crate::moe_permute::contract::PermuteShape;
use crate::moe_permute::reference::Routing;
use crate::testing::{DeviceMemory, TestDevice, random_halves};
use crate::token_pack::reference as token_pack;
use crate::token_rows::{RowFormat, TokenRows};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Variant {
    Baseline,
    Wide,
}

const VARIANTS: [Variant; 2] = [Variant::Baseline, Variant::Wide];

/// What a case's launch reads.
struct Inputs {
    shape: UnpackShape,
    /// As the format holds them.
    rows: Vec<f32>,
    row_scales: Vec<f32>,
    pair_rows: Vec<i32>,
    topk_weights: Vec<f32>,
    addend: Vec<bf16>,
}

impl Inputs {
    /// Rows that no pair has are NaN.
    fn new(case: &Case, seed: u64) -> Self {
        let (shape, mut rng) = (case.shape, fastrand::Rng::with_seed(seed));
        let permutation = case.pack.permutation(seed);
        let rounded = |value: f32| match shape.rows.format {
            RowFormat::Bf16 => bf16::from_f32(value).to_f32(),
            RowFormat::Fp8 => E4m3::from_f32(100.0 * value).to_f32(),
        };
        let mut rows: Vec<f32> =
            (0..shape.rows.rows_elements()).map(|_| rounded(2.0 * rng.f32() - 1.0)).collect();
        for (row, elements) in rows.chunks_mut(shape.rows.hidden as usize).enumerate() {
            if permutation.row_pairs.get(row).is_none_or(|&pair| pair < 0) {
                elements.fill(f32::NAN);
            }
        }
        Self {
            rows,
            row_scales: (0..shape.rows.rows_scales()).map(|_| 0.02 * rng.f32()).collect(),
            topk_weights: permutation.pair_rows.iter().map(|_| rng.f32()).collect(),
            pair_rows: permutation.pair_rows,
            addend: random_halves(&mut rng, shape.addend_elements()),
            shape,
        }
    }

    fn run(&self, device: &TestDevice, variant: Variant) -> Vec<bf16> {
        let shape = &self.shape;
        shape.check().unwrap();
        let row_scales = DeviceMemory::from_slice(&self.row_scales);
        let pair_rows = DeviceMemory::from_slice(&self.pair_rows);
        let topk_weights = DeviceMemory::from_slice(&self.topk_weights);
        let addend = DeviceMemory::from_slice(&self.addend);
        let out = DeviceMemory::poisoned(shape.rows.x_elements());
        macro_rules! launch {
            ($T:ident, $baseline:ident, $wide:ident) => {{
                let rows: Vec<$T> = self.rows.iter().map(|&x| $T::from_f32(x)).collect();
                let rows = DeviceMemory::from_slice(&rows);
                macro_rules! kernel {
                    ($entry:ident) => {
                        $entry {
                            rows: rows.view(),
                            row_scales: row_scales.view(),
                            pair_rows: pair_rows.view(),
                            topk_weights: topk_weights.view(),
                            addend: if shape.has_addend { addend.view() } else { Global::null() },
                            params: shape.params(),
                            out: out.view_mut(),
                        }
                    };
                }
                match variant {
                    Variant::Baseline => device.launch(shape.baseline_dims(), kernel!($baseline)),
                    Variant::Wide => device.launch(shape.wide_dims(), kernel!($wide)),
                }
            }};
        }
        match shape.rows.format {
            _ if shape.rows.num_tokens == 0 => {}
            RowFormat::Bf16 => {
                launch!(bf16, token_unpack_sum_baseline_bf16, token_unpack_sum_wide_bf16);
            }
            RowFormat::Fp8 => {
                launch!(E4m3, token_unpack_sum_baseline_fp8, token_unpack_sum_wide_fp8);
            }
        }
        out.to_vec()
    }

    fn verdict(&self, out: &[bf16]) -> Result<(), String> {
        let hidden = self.shape.rows.hidden as usize;
        let f64s = |halves: &[bf16]| halves.iter().map(|&x| x.to_f64()).collect::<Vec<f64>>();
        let num_scales = self.shape.rows.num_scales() as usize;
        let row = |row: usize, i: usize| {
            let scale = match self.shape.rows.format {
                RowFormat::Bf16 => 1.0,
                RowFormat::Fp8 => self.row_scales[row * num_scales + i / SCALE_BLOCK as usize],
            };
            f64::from(self.rows[row * hidden + i]) * f64::from(scale)
        };
        let (addend, out) = (f64s(&self.addend), f64s(out));
        check(&self.shape, &self.pair_rows, &self.topk_weights, row, &addend, &out)
    }
}

fn check_case(device: &TestDevice, case: &Case, seed: u64) {
    let inputs = Inputs::new(case, seed);
    for variant in VARIANTS {
        if let Err(off) = inputs.verdict(&inputs.run(device, variant)) {
            panic!("{}, {variant:?}: {off}", case.pack.name);
        }
    }
}

#[test]
fn both_variants_are_the_oracle_in_any_lane_order() {
    for device in TestDevice::lane_orders() {
        for case in [cases(RowFormat::Bf16), cases(RowFormat::Fp8)].concat() {
            check_case(&device, &case, 1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn any_shape_is_the_oracle(
        seed: u64,
        num_tokens in 0u32..20,
        top_k in 1u32..18,
        num_experts in 1u32..20,
        units in 1u32..20,
        num_dropped in 0u32..9,
        has_addend: bool,
        is_fp8: bool,
    ) {
        let permute = PermuteShape::new(num_tokens, top_k, num_experts);
        let format = if is_fp8 { (16 * units, RowFormat::Fp8) } else { (8 * units, RowFormat::Bf16) };
        let pack = token_pack::Case::new("random", permute, Routing::Skewed, format, num_dropped);
        let case = Case { shape: UnpackShape { rows: pack.shape.rows, has_addend }, pack };
        check_case(&TestDevice::seeded(seed), &case, seed);
    }
}

#[test]
fn the_check_notices_a_wrong_weight_row_or_element() {
    let cases = cases(RowFormat::Bf16);
    let case = cases.iter().find(|case| case.pack.name == "top-k of 11").unwrap();
    let inputs = Inputs::new(case, 3);
    let out = inputs.run(&TestDevice::ascending(), Variant::Wide);
    assert_eq!(inputs.verdict(&out), Ok(()));
    let mut one_off = out.clone();
    one_off[77] = bf16::from_f32(one_off[77].to_f32() * 1.01 + 0.01);
    assert!(inputs.verdict(&one_off).unwrap_err().starts_with("token 0, element 77"));
    assert!(inputs.verdict(&vec![bf16::ZERO; out.len()]).is_err());
    assert!(inputs.verdict(&vec![bf16::NAN; out.len()]).is_err());
    let mut wrong = Inputs::new(case, 3);
    wrong.topk_weights[5] += 0.1;
    assert!(inputs.verdict(&wrong.run(&TestDevice::ascending(), Variant::Wide)).is_err());
}

#[test]
fn refusals_name_argument_need_and_finding() {
    let shape = cases(RowFormat::Bf16)[3].shape;
    let wrong = [
        UnpackShape { rows: TokenRows { hidden: 12, ..shape.rows }, ..shape },
        UnpackShape { rows: TokenRows { top_k: 600, ..shape.rows }, ..shape },
    ];
    let texts: Vec<String> =
        wrong.iter().map(|shape| format!("{}", shape.check().unwrap_err())).collect();
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn launches_and_work_follow_from_the_sizes() {
    let rows = TokenRows {
        num_tokens: 4096,
        top_k: 8,
        hidden: 7168,
        format: RowFormat::Bf16,
        num_max_rows: 32768,
    };
    let shape = UnpackShape { rows, has_addend: false };
    assert_eq!(shape.wide_dims().grid, [7 * 4096, 1, 1]);
    assert_eq!(shape.work(32768).read_bytes, 32768 * 14336 + 8 * 32768);
    assert_eq!(shape.work(32768).written_bytes, 4096 * 14336);
}
