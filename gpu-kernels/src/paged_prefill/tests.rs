use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use cuda_std::tensor_map::TensorMap;
use half::{bf16, f16};
use proptest::prelude::*;

use super::contract::{PrefillShape, qo_lens};
use super::device::*;
use super::plan::PrefillPlan;
use super::reference::{PrefillCase, PrefillProblem, Tolerance, cases};
use super::{BASELINE, BlockShape, KvMaps, PrefillItem, WGMMA};
use crate::kv_layout::{KvElement, KvLayout, KvPageShape};
use crate::paged_attention::reference::StoredElement;
use crate::testing::{DeviceMemory, TestDevice, digest};

/// The kernels of a type and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Baseline,
    Wgmma,
    WgmmaRows,
}

impl Variant {
    fn block(self) -> BlockShape {
        if self == Self::Baseline { BASELINE } else { WGMMA }
    }
}

/// A problem in device memory, planned.
struct OnDevice<T> {
    shape: PrefillShape,
    block: BlockShape,
    plan: PrefillPlan,
    kv_indices: DeviceMemory<i32>,
    kv_page_rank: DeviceMemory<i32>,
    pools: Vec<DeviceMemory<T>>,
    peer_kv_ptrs: DeviceMemory<u64>,
    items: DeviceMemory<u32>,
    block_items: DeviceMemory<u32>,
    q: DeviceMemory<T>,
    out: DeviceMemory<T>,
    lse: DeviceMemory<f32>,
}

impl<T: StoredElement> OnDevice<T> {
    fn new(problem: &PrefillProblem<T>, block: BlockShape, num_max_blocks: u32) -> Self {
        let PrefillProblem { shape, qo_lens, q, kv } = problem;
        let (shape, table, page, kv_lens) = (*shape, &kv.table, shape.page, problem.kv_lens());
        shape.check().unwrap();
        shape.check_lengths(qo_lens, &kv_lens).unwrap();
        let pool_pages: Vec<usize> =
            kv.pools.iter().map(|pool| pool.len() / page.page_elements()).collect();
        table.table().check(kv_lens.len() as u32, page.page_size, &pool_pages).unwrap();
        let plan = PrefillPlan::new(&shape, qo_lens, &kv_lens, block, num_max_blocks);
        let pools: Vec<_> = kv.pools.iter().map(|pool| DeviceMemory::from_slice(pool)).collect();
        let addresses: Vec<u64> = pools.iter().map(DeviceMemory::address).collect();
        Self {
            shape,
            block,
            kv_indices: DeviceMemory::from_slice(&table.lists.kv_indices),
            kv_page_rank: DeviceMemory::from_slice(&table.lists.kv_page_rank),
            peer_kv_ptrs: DeviceMemory::from_slice(&addresses),
            pools,
            items: DeviceMemory::from_slice(bytemuck::cast_slice(&plan.items)),
            block_items: DeviceMemory::from_slice(&plan.block_items),
            plan,
            q: DeviceMemory::from_slice(q),
            out: DeviceMemory::poisoned(shape.q_elements(qo_lens)),
            lse: DeviceMemory::poisoned(shape.lse_elements(qo_lens)),
        }
    }

    fn maps(&self) -> KvMaps {
        let map_of = |pool: &DeviceMemory<T>| {
            let tiling = self.shape.map_tiling(pool.len() / self.shape.page.page_elements());
            TensorMap::new(pool.view().cast::<u16>(), &tiling).unwrap()
        };
        KvMaps::new(&self.pools.iter().map(map_of).collect::<Vec<_>>())
    }
}

/// Launches an entry with the arguments that all share, and those given.
macro_rules! launch {
    ($device:expr, $on:expr, $entry:ident { $($argument:ident: $value:expr)? }) => {
        $device.launch(
            $on.shape.dims(&$on.plan, $on.block),
            $entry {
                $($argument: $value,)?
                kv_indices: $on.kv_indices.view(),
                kv_page_rank: $on.kv_page_rank.view(),
                peer_kv_ptrs: $on.peer_kv_ptrs.view(),
                params: $on.shape.params($on.pools.len()),
                items: $on.items.view(),
                block_items: $on.block_items.view(),
                q: $on.q.view(),
                out: $on.out.view_mut(),
                lse: $on.lse.view_mut(),
            },
        )
    };
}

/// The kernels of an element type, as tests run them: over `num_max_blocks` blocks.
trait Entries: StoredElement {
    const TOLERANCE: Tolerance;

    fn attend(
        device: &TestDevice,
        problem: &PrefillProblem<Self>,
        variant: Variant,
        num_max_blocks: u32,
    ) -> (Vec<Self>, Vec<f32>);
}

macro_rules! entries {
    ($T:ty, $tolerance:expr, $base64:ident, $base128:ident, $wgmma:ident, $rows:ident) => {
        impl Entries for $T {
            const TOLERANCE: Tolerance = $tolerance;

            fn attend(
                device: &TestDevice,
                problem: &PrefillProblem<Self>,
                variant: Variant,
                num_max_blocks: u32,
            ) -> (Vec<Self>, Vec<f32>) {
                let on = OnDevice::new(problem, variant.block(), num_max_blocks);
                match (variant, on.shape.page.head_dim) {
                    (Variant::Baseline, 64) => launch!(device, on, $base64 {}),
                    (Variant::Baseline, _) => launch!(device, on, $base128 {}),
                    (Variant::Wgmma, _) => launch!(device, on, $wgmma { kv_maps: on.maps() }),
                    (Variant::WgmmaRows, _) => launch!(device, on, $rows {}),
                }
                (on.out.to_vec(), on.lse.to_vec())
            }
        }
    };
}

entries! {
    bf16, Tolerance::BF16,
    paged_prefill_attend_baseline_bf16_d64, paged_prefill_attend_baseline_bf16_d128,
    paged_prefill_attend_wgmma_bf16_d128, paged_prefill_attend_wgmma_rows_bf16_d128
}

entries! {
    f16, Tolerance::F16,
    paged_prefill_attend_baseline_f16_d64, paged_prefill_attend_baseline_f16_d128,
    paged_prefill_attend_wgmma_f16_d128, paged_prefill_attend_wgmma_rows_f16_d128
}

/// What runs a shape, each with numbers of blocks that leave it one item a block, or several.
fn variants(shape: &PrefillShape, num_locations: usize) -> Vec<(Variant, u32)> {
    let mut variants = vec![(Variant::Baseline, 1), (Variant::Baseline, 132)];
    if shape.suits_wgmma() {
        variants.extend([(Variant::WgmmaRows, 1), (Variant::WgmmaRows, 132)]);
        if shape.suits_maps(num_locations) {
            variants.extend([(Variant::Wgmma, 1), (Variant::Wgmma, 132)]);
        }
    }
    variants
}

fn every_case_is_the_oracle<T: Entries>() {
    for case in cases() {
        let problem = case.problem::<T>(3);
        let oracle = problem.oracle();
        for (variant, num_max_blocks) in variants(&problem.shape, case.num_locations) {
            let (out, lse) = T::attend(&TestDevice::seeded(5), &problem, variant, num_max_blocks);
            if let Err(off) = oracle.check(&out, &lse, T::TOLERANCE) {
                panic!("{}, {variant:?} over {num_max_blocks}: {off}", case.name);
            }
        }
    }
}

#[test]
fn every_case_is_the_oracle_in_bf16() {
    every_case_is_the_oracle::<bf16>();
}

#[test]
fn every_case_is_the_oracle_in_f16() {
    every_case_is_the_oracle::<f16>();
}

#[test]
fn lane_order_does_not_change_a_bit() {
    let case = cases().into_iter().find(|case| case.name == "the last of many tokens").unwrap();
    let problem = case.problem::<bf16>(11);
    for variant in [Variant::Baseline, Variant::Wgmma, Variant::WgmmaRows] {
        let results: Vec<_> = TestDevice::lane_orders()
            .map(|device| bits(&bf16::attend(&device, &problem, variant, 2)))
            .collect();
        assert!(results.iter().all(|result| result == &results[0]), "{variant:?}");
    }
}

fn bits<T: StoredElement>((out, lse): &(Vec<T>, Vec<f32>)) -> (u64, u64) {
    (digest(out), digest(lse))
}

#[test]
fn outputs_are_as_reviewed() {
    let case = cases().into_iter().find(|case| case.name == "pages in three places").unwrap();
    let problem = case.problem::<bf16>(1);
    let describe = |variant| {
        let got = bf16::attend(&TestDevice::ascending(), &problem, variant, 3);
        let head = |values: Vec<f64>| format!("{:+.3?}", &values[..6]);
        format!(
            "{variant:?}: digests {:016x?}\n  out {}\n  lse {}\n",
            bits(&got),
            head(got.0.iter().map(|&x| f64::from(x)).collect()),
            head(got.1.iter().map(|&x| f64::from(x)).collect()),
        )
    };
    let text: String =
        [Variant::Baseline, Variant::Wgmma, Variant::WgmmaRows].map(describe).concat();
    insta::assert_snapshot!(text);
}

#[test]
fn maxima_that_grow_late_rescale_what_was_summed_up() {
    // Keys grow towards the first token, which comes last.
    let case = PrefillCase { kv_lens: vec![700], qo_lens: vec![20], ..cases()[2].clone() };
    let mut problem = case.problem::<bf16>(9);
    let half = problem.shape.page.strides().value as usize;
    let mut pools = Vec::clone(&problem.kv.pools);
    for token in 0..700 {
        let (location, k) = problem.kv.place_of_k(0, token, 0);
        let factor = 0.02 * (700 - token) as f32;
        for x in &mut pools[location][k..k + 128] {
            *x = bf16::from_f32(factor * x.to_f32());
        }
        assert!(pools[location][k + half].is_finite());
    }
    problem.kv.pools = pools.into();
    let oracle = problem.oracle();
    for (variant, num_max_blocks) in variants(&problem.shape, 1) {
        let (out, lse) = bf16::attend(&TestDevice::seeded(1), &problem, variant, num_max_blocks);
        assert_eq!(oracle.check(&out, &lse, Tolerance::BF16), Ok(()), "{variant:?}");
    }
}

#[test]
fn wrong_pages_and_queries_show() {
    let case = cases().into_iter().find(|case| case.name == "chunks").unwrap();
    let problem = case.problem::<bf16>(2);
    let oracle = problem.oracle();
    let mut wrong_page = problem.clone();
    let num_pages = wrong_page.kv.table.pages_of[0] as i32 + 1;
    for index in &mut wrong_page.kv.table.lists.kv_indices {
        *index = (*index + 1) % num_pages;
    }
    // As if each query but the last of its request were the next one.
    let mut off_by_one = problem.clone();
    off_by_one.q.rotate_right(problem.shape.page.head_dim as usize);
    for wrong in [wrong_page, off_by_one] {
        let (out, lse) = bf16::attend(&TestDevice::ascending(), &wrong, Variant::Wgmma, 3);
        assert!(oracle.check(&out, &lse, Tolerance::BF16).is_err());
    }
}

/// Heads of 128, pages of 16.
fn shape_of_heads(num_qo_heads: u32, num_kv_heads: u32) -> PrefillShape {
    let page = KvPageShape { num_kv_heads, ..cases()[0].page };
    PrefillShape { num_qo_heads, page, ..cases()[0].shape() }
}

#[test]
fn heads_whose_kv_fills_the_cache_go_one_after_the_other() {
    let heads = |kv_len| -> Vec<u32> {
        let plan = PrefillPlan::new(&shape_of_heads(4, 2), &[256], &[kv_len], WGMMA, 1);
        plan.items.iter().map(|item| item.qo_head).collect()
    };
    // 512 bytes for each token and KV head.
    assert_eq!(heads(30_000), [0, 1, 2, 3, 0, 1, 2, 3]);
    assert_eq!(heads(40_000), [0, 1, 0, 1, 2, 3, 2, 3]);
}

#[test]
fn a_plan_is_as_reviewed() {
    let shape = shape_of_heads(2, 1);
    let plan = PrefillPlan::new(&shape, &[300, 0, 70], &[300, 40, 500], WGMMA, 3);
    let mut text = String::new();
    for block in 0..plan.num_blocks() {
        for item in plan.items_of(block) {
            let PrefillItem { first_row, num_rows, qo_head, first_entry, .. } = *item;
            text += &format!(
                "block {block}: rows {first_row}..{} head {qo_head}, {} keys from entry \
                 {first_entry}\n",
                first_row + num_rows,
                item.num_keys(),
            );
        }
    }
    insta::assert_snapshot!(text);
}

proptest! {
    #[test]
    fn a_plan_has_every_row_once_and_evenly(
        lens in proptest::collection::vec((0u32..2000, 0u32..3000), 1..12),
        num_qo_heads in 1u32..9,
        num_max_blocks in 1u32..200,
    ) {
        let qo_lens: Vec<u32> = lens.iter().map(|&(qo_len, _)| qo_len).collect();
        let kv_lens: Vec<u32> = lens.iter().map(|&(qo_len, more)| qo_len + more).collect();
        let shape = shape_of_heads(num_qo_heads, 1);
        let plan = PrefillPlan::new(&shape, &qo_lens, &kv_lens, WGMMA, num_max_blocks);
        prop_assert!(plan.num_blocks() <= num_max_blocks);
        let num_rows: u32 = qo_lens.iter().sum();
        let mut seen = vec![0; (num_rows * num_qo_heads) as usize];
        let (mut most, mut least, mut heaviest) = (0, u32::MAX, 0);
        for block in 0..plan.num_blocks() {
            let cost = |item: &PrefillItem| item.num_keys().div_ceil(WGMMA.num_keys) + 1;
            let items = plan.items_of(block);
            prop_assert!(items.windows(2).all(|two| cost(&two[0]) >= cost(&two[1])));
            for item in items {
                for row in item.first_row..item.first_row + item.num_rows {
                    seen[(row * num_qo_heads + item.qo_head) as usize] += 1;
                }
            }
            let total = items.iter().map(cost).sum();
            (most, least) = (most.max(total), least.min(total));
            heaviest = items.iter().map(cost).max().unwrap_or(0).max(heaviest);
        }
        prop_assert!(seen.iter().all(|&times| times == 1));
        prop_assert!(num_rows == 0 || most - least <= heaviest);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]
    #[test]
    fn any_batch_is_the_oracle(
        lens in proptest::collection::vec((0u32..150, 0u32..200), 1..3),
        (group_size, num_kv_heads) in (1u32..3, 1u32..3),
        page_size in prop_oneof![1u32..=64, Just(8), Just(16), Just(32)],
        heads_outermost in any::<bool>(),
        (num_max_blocks, num_locations, seed) in (1u32..9, 1usize..4, any::<u64>()),
    ) {
        prop_assume!(lens.iter().any(|&(qo_len, _)| qo_len > 0));
        let layout = if heads_outermost { KvLayout::Hnd } else { KvLayout::Nhd };
        let case = PrefillCase {
            name: "drawn",
            num_qo_heads: group_size * num_kv_heads,
            page: KvPageShape { page_size, num_kv_heads, head_dim: 128, layout, element: KvElement::Half },
            qo_lens: lens.iter().map(|&(qo_len, _)| qo_len).collect(),
            kv_lens: lens.iter().map(|&(qo_len, more)| qo_len + more).collect(),
            num_locations,
        };
        let problem = case.problem::<bf16>(seed);
        let oracle = problem.oracle();
        let mut run = vec![Variant::Baseline, Variant::WgmmaRows];
        run.extend(problem.shape.suits_maps(num_locations).then_some(Variant::Wgmma));
        for variant in run {
            let device = TestDevice::seeded(seed);
            let (out, lse) = bf16::attend(&device, &problem, variant, num_max_blocks);
            prop_assert_eq!(oracle.check(&out, &lse, Tolerance::BF16), Ok(()));
        }
    }
}

fn refusal(change: impl FnOnce(&mut PrefillShape)) -> String {
    let mut shape = cases()[0].shape();
    change(&mut shape);
    format!("{}\n", shape.check().unwrap_err())
}

#[test]
fn sizes_are_refused_in_words() {
    let shape = cases()[0].shape();
    let lengths = |qo_lens: &[u32], kv_lens: &[u32]| {
        format!("{}\n", shape.check_lengths(qo_lens, kv_lens).unwrap_err())
    };
    let starts = |qo_indptr: &[i32]| format!("{}\n", qo_lens(qo_indptr).unwrap_err());
    let text = [
        refusal(|shape| shape.page.page_size = 65),
        refusal(|shape| shape.page.head_dim = 96),
        refusal(|shape| (shape.num_qo_heads, shape.page.num_kv_heads) = (7, 2)),
        refusal(|shape| shape.num_qo_heads = 1 << 26),
        refusal(|shape| shape.page.element = KvElement::E4m3),
        refusal(|shape| shape.sm_scale = 0.0),
        refusal(|shape| shape.sm_scale = f32::INFINITY),
        lengths(&[1, 2], &[1]),
        lengths(&[1, 5], &[1, 4]),
        lengths(&[0, 0], &[3, 4]),
        lengths(&[1 << 25], &[1 << 25]),
        starts(&[]),
        starts(&[1, 2]),
        starts(&[0, 2, 1]),
    ]
    .concat();
    insta::assert_snapshot!(text);
}
