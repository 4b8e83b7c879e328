use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use cuda_std::float::E4m3;
use cuda_std::tensor_map::{TensorElement, TensorMap, TensorMaps};
use half::{bf16, f16};
use proptest::prelude::*;

use super::contract::TileLoads::{self, Boxes, Pieces};
use super::contract::{DecodeShape, PageTable};
use super::device::*;
use super::plan::DecodePlan;
use super::plan::SplitPolicy::{self, Balanced};
use super::reference::{DecodeCase, DecodeProblem, DecodeResult, StoredElement, Tolerance, cases};
use super::{MAX_TILE_LOCATIONS, TILE_TOKENS};
use crate::kv_layout::{KvElement, KvLayout, KvPageShape};
use crate::testing::{DeviceMemory, TestDevice, digest};

mod plans;

/// A problem in device memory.
struct OnDevice<T, K> {
    shape: DecodeShape,
    kv_lens: Vec<u32>,
    num_locations: usize,
    kv_indptr: DeviceMemory<i32>,
    kv_indices: DeviceMemory<i32>,
    kv_page_rank: DeviceMemory<i32>,
    kv_last_page_len: DeviceMemory<i32>,
    /// Each location's pages, to which the table of pointers points.
    pools: Vec<DeviceMemory<K>>,
    peer_kv_ptrs: DeviceMemory<u64>,
    k_scale: DeviceMemory<f32>,
    v_scale: DeviceMemory<f32>,
    q: DeviceMemory<T>,
    out: DeviceMemory<T>,
    lse: DeviceMemory<f32>,
}

impl<T: StoredElement, K: StoredElement> OnDevice<T, K> {
    fn new(problem: &DecodeProblem<T, K>) -> Self {
        let table = &problem.table;
        let shape = problem.shape;
        shape.check().unwrap();
        let pool_pages: Vec<usize> =
            problem.pools.iter().map(|pool| pool.len() / shape.page.page_elements()).collect();
        table.table().check(shape.batch, shape.page.page_size, &pool_pages).unwrap();
        let pools: Vec<_> =
            problem.pools.iter().map(|pool| DeviceMemory::from_slice(pool)).collect();
        let addresses: Vec<u64> = pools.iter().map(DeviceMemory::address).collect();
        Self {
            shape,
            kv_lens: table.table().kv_lens(shape.page.page_size),
            num_locations: problem.pools.len(),
            kv_indptr: DeviceMemory::from_slice(&table.lists.kv_indptr),
            kv_indices: DeviceMemory::from_slice(&table.lists.kv_indices),
            kv_page_rank: DeviceMemory::from_slice(&table.lists.kv_page_rank),
            kv_last_page_len: DeviceMemory::from_slice(&table.lists.kv_last_page_len),
            pools,
            peer_kv_ptrs: DeviceMemory::from_slice(&addresses),
            k_scale: DeviceMemory::from_slice(&problem.k_scale),
            v_scale: DeviceMemory::from_slice(&problem.v_scale),
            q: DeviceMemory::from_slice(&problem.q),
            out: DeviceMemory::poisoned(shape.q_elements()),
            lse: DeviceMemory::poisoned(shape.lse_elements()),
        }
    }

    fn results(&self) -> (Vec<T>, Vec<f32>) {
        (self.out.to_vec(), self.lse.to_vec())
    }
}

impl<T: StoredElement + TensorElement> OnDevice<T, T> {
    fn pool_maps(&self) -> TensorMaps<T, 5, { MAX_TILE_LOCATIONS as usize }> {
        let maps =
            self.pools.iter().map(|pool| match pool.len() / self.shape.page.page_elements() {
                0 => TensorMap::null(),
                num_pages => {
                    TensorMap::new(pool.view(), &self.shape.pool_tiling(num_pages)).unwrap()
                }
            });
        TensorMaps::new(&maps.collect::<Vec<_>>())
    }
}

/// Launches the entry of a problem's head dimension and group, with the arguments all share.
macro_rules! launch {
    ($device:expr, $on:expr, $dims:expr, $entry:ident { $($field:ident: $value:expr),* $(,)? }) => {
        $device.launch($dims, $entry {
            kv_indices: $on.kv_indices.view(),
            kv_page_rank: $on.kv_page_rank.view(),
            params: $on.shape.params($on.num_locations),
            q: $on.q.view(),
            out: $on.out.view_mut(),
            lse: $on.lse.view_mut(),
            $($field: $value),*
        })
    };
}

/// The entries for queries of this type over pages of `K`, as tests run them.
trait Entries<K: StoredElement = Self>: StoredElement {
    const TOLERANCE: Tolerance;

    fn baseline(device: &TestDevice, problem: &DecodeProblem<Self, K>) -> (Vec<Self>, Vec<f32>);
    fn split(
        device: &TestDevice,
        problem: &DecodeProblem<Self, K>,
        loads: TileLoads,
        num_blocks: u32,
        policy: SplitPolicy,
    ) -> (Vec<Self>, Vec<f32>);
}

macro_rules! entries {
    ($T:ty, $K:ty, $tolerance:expr, [$($scale:ident),*], $base64:ident, $base128:ident, $split64:ident, $wide64:ident, $split128:ident, $wide128:ident $(; $tiles64:ident, $tiles64_wide:ident, $tiles128:ident, $tiles128_wide:ident)?) => {
        impl Entries<$K> for $T {
            const TOLERANCE: Tolerance = $tolerance;

            fn baseline(
                device: &TestDevice,
                problem: &DecodeProblem<Self, $K>,
            ) -> (Vec<Self>, Vec<f32>) {
                let on = OnDevice::new(problem);
                macro_rules! baseline {
                    ($entry:ident) => {
                        launch!(
                            device,
                            on,
                            on.shape.baseline_dims(),
                            $entry {
                                kv_indptr: on.kv_indptr.view(),
                                kv_last_page_len: on.kv_last_page_len.view(),
                                peer_kv_ptrs: on.peer_kv_ptrs.view(),
                                $($scale: on.$scale.view()),*
                            }
                        )
                    };
                }
                match on.shape.page.head_dim {
                    64 => baseline!($base64),
                    _ => baseline!($base128),
                }
                on.results()
            }

            fn split(
                device: &TestDevice,
                problem: &DecodeProblem<Self, $K>,
                loads: TileLoads,
                num_blocks: u32,
                policy: SplitPolicy,
            ) -> (Vec<Self>, Vec<f32>) {
                let on = OnDevice::new(problem);
                let (shape, page) = (on.shape, on.shape.page);
                let (page_size, num_kv_heads) = (page.page_size, page.num_kv_heads);
                let dealing = loads.dealing();
                let plan = DecodePlan::new(
                    &on.kv_lens,
                    page_size,
                    num_kv_heads,
                    num_blocks,
                    policy,
                    dealing,
                );
                let items = DeviceMemory::from_slice(bytemuck::cast_slice(&plan.items));
                let absent = |len| vec![f32::from_bits(u32::MAX); len];
                let partial_out =
                    DeviceMemory::from_slice(&absent(shape.partial_elements(plan.num_parts)));
                let partial_lse =
                    DeviceMemory::from_slice(&absent(shape.partial_lse_elements(plan.num_parts)));
                let arrived = DeviceMemory::from_slice(&vec![0; shape.arrived_elements(plan.num_meetings)]);
                macro_rules! split {
                    ($entry:ident, $dims:expr, $pages:ident: $value:expr) => {
                        launch!(
                            device,
                            on,
                            $dims,
                            $entry {
                                $pages: $value,
                                items: items.view(),
                                partial_out: partial_out.view_mut(),
                                partial_lse: partial_lse.view_mut(),
                                arrived: arrived.view_mut(),
                                $($scale: on.$scale.view()),*
                            }
                        )
                    };
                }
                macro_rules! pieces {
                    ($entry:ident) => {
                        split!($entry, shape.split_dims(&plan), peer_kv_ptrs: on.peer_kv_ptrs.view())
                    };
                }
                $(macro_rules! boxes {
                    ($entry:ident) => {
                        split!($entry, shape.tiles_dims(&plan), pools: on.pool_maps())
                    };
                }
                if loads == Boxes {
                    match (page.head_dim, shape.head_tiles()) {
                        (64, 1) => boxes!($tiles64),
                        (64, _) => boxes!($tiles64_wide),
                        (_, 1) => boxes!($tiles128),
                        (_, _) => boxes!($tiles128_wide),
                    }
                })?
                if loads == Pieces {
                    match (page.head_dim, shape.head_tiles()) {
                        (64, 1) => pieces!($split64),
                        (64, _) => pieces!($wide64),
                        (_, 1) => pieces!($split128),
                        (_, _) => pieces!($wide128),
                    }
                }
                assert!(
                    arrived.to_vec().iter().all(|&count| count == 0),
                    "ready for the next launch"
                );
                if loads == Boxes {
                    for partial in [partial_out.to_vec(), partial_lse.to_vec()] {
                        let is_ready = partial.iter().all(|value| value.to_bits() == u32::MAX);
                        assert!(is_ready, "absent for the next launch");
                    }
                }
                on.results()
            }
        }
    };
}

entries! {
    bf16, bf16, Tolerance::BF16, [],
    paged_attention_decode_baseline_bf16_d64, paged_attention_decode_baseline_bf16_d128,
    paged_attention_decode_split_bf16_d64_g8, paged_attention_decode_split_bf16_d64_g16,
    paged_attention_decode_split_bf16_d128_g8, paged_attention_decode_split_bf16_d128_g16;
    paged_attention_decode_tiles_bf16_d64_g8, paged_attention_decode_tiles_bf16_d64_g16,
    paged_attention_decode_tiles_bf16_d128_g8, paged_attention_decode_tiles_bf16_d128_g16
}

entries! {
    f16, f16, Tolerance::F16, [],
    paged_attention_decode_baseline_f16_d64, paged_attention_decode_baseline_f16_d128,
    paged_attention_decode_split_f16_d64_g8, paged_attention_decode_split_f16_d64_g16,
    paged_attention_decode_split_f16_d128_g8, paged_attention_decode_split_f16_d128_g16;
    paged_attention_decode_tiles_f16_d64_g8, paged_attention_decode_tiles_f16_d64_g16,
    paged_attention_decode_tiles_f16_d128_g8, paged_attention_decode_tiles_f16_d128_g16
}

entries! {
    bf16, E4m3, Tolerance::BF16_OVER_E4M3, [k_scale, v_scale],
    paged_attention_decode_baseline_bf16_e4m3_d64, paged_attention_decode_baseline_bf16_e4m3_d128,
    paged_attention_decode_split_bf16_e4m3_d64_g8, paged_attention_decode_split_bf16_e4m3_d64_g16,
    paged_attention_decode_split_bf16_e4m3_d128_g8, paged_attention_decode_split_bf16_e4m3_d128_g16
}

entries! {
    f16, E4m3, Tolerance::F16_OVER_E4M3, [k_scale, v_scale],
    paged_attention_decode_baseline_f16_e4m3_d64, paged_attention_decode_baseline_f16_e4m3_d128,
    paged_attention_decode_split_f16_e4m3_d64_g8, paged_attention_decode_split_f16_e4m3_d64_g16,
    paged_attention_decode_split_f16_e4m3_d128_g8, paged_attention_decode_split_f16_e4m3_d128_g16
}

fn check<T: StoredElement>(
    what: &str,
    oracle: &DecodeResult,
    got: &(Vec<T>, Vec<f32>),
    tolerance: Tolerance,
) {
    if let Err(off) = oracle.check(&got.0, &got.1, tolerance) {
        panic!("{what}: {off}");
    }
}

/// The split kernels that take a problem.
fn loads_of<T, K>(problem: &DecodeProblem<T, K>) -> Vec<TileLoads> {
    match problem.shape.loads() {
        Pieces => vec![Pieces],
        Boxes => vec![Pieces, Boxes],
    }
}

fn every_case_is_the_oracle<T: Entries<K>, K: StoredElement>() {
    for case in cases() {
        let problem = case.problem_over::<T, K>(3);
        let oracle = problem.oracle();
        let device = TestDevice::seeded(5);
        check(
            &format!("{}, baseline", case.name),
            &oracle,
            &T::baseline(&device, &problem),
            T::TOLERANCE,
        );
        let batch_invariant = SplitPolicy::BatchInvariant { part_tokens: 32 };
        for (num_blocks, policy) in [
            (1, Balanced),
            (3, Balanced),
            (132, Balanced),
            (1, batch_invariant),
            (5, batch_invariant),
        ] {
            for loads in loads_of(&problem) {
                check(
                    &format!("{}, {policy:?} split over {num_blocks} by {loads:?}", case.name),
                    &oracle,
                    &T::split(&device, &problem, loads, num_blocks, policy),
                    T::TOLERANCE,
                );
            }
        }
    }
}

#[test]
fn every_case_is_the_oracle_in_bf16() {
    every_case_is_the_oracle::<bf16, bf16>();
}

#[test]
fn every_case_is_the_oracle_in_f16() {
    every_case_is_the_oracle::<f16, f16>();
}

#[test]
fn every_case_is_the_oracle_in_bf16_over_e4m3() {
    every_case_is_the_oracle::<bf16, E4m3>();
}

#[test]
fn every_case_is_the_oracle_in_f16_over_e4m3() {
    every_case_is_the_oracle::<f16, E4m3>();
}

#[test]
fn a_wrong_scale_shows() {
    let problem = cases()[3].problem_over::<bf16, E4m3>(2);
    let oracle = problem.oracle();
    let mut wrong_k = problem.clone();
    wrong_k.k_scale.rotate_left(1);
    let mut wrong_v = problem.clone();
    wrong_v.v_scale.rotate_left(1);
    for (problem, is_right) in [(problem, true), (wrong_k, false), (wrong_v, false)] {
        let (out, lse) = bf16::split(&TestDevice::ascending(), &problem, Pieces, 3, Balanced);
        assert_eq!(oracle.check(&out, &lse, Tolerance::BF16_OVER_E4M3).is_ok(), is_right);
    }
}

#[test]
fn lane_order_does_not_change_a_bit() {
    let case = &cases()[2];
    let problem = case.problem::<bf16>(11);
    for loads in loads_of(&problem) {
        let results: Vec<_> = TestDevice::lane_orders()
            .map(|device| bits(&bf16::split(&device, &problem, loads, 3, Balanced)))
            .collect();
        assert!(results.iter().all(|result| result == &results[0]), "{loads:?}");
    }
}

#[test]
fn who_claims_what_does_not_change_a_bit() {
    let case = DecodeCase { kv_lens: vec![420, 130, 250, 1100], ..cases()[3].clone() };
    let problem = case.problem::<bf16>(17);
    let results: Vec<_> = TestDevice::lane_orders()
        .map(|device| bf16::split(&device, &problem, Boxes, 3, Balanced))
        .collect();
    check("claimed", &problem.oracle(), &results[0], Tolerance::BF16);
    assert!(results.iter().all(|result| bits(result) == bits(&results[0])));
}

fn bits<T: StoredElement>((out, lse): &(Vec<T>, Vec<f32>)) -> (u64, u64) {
    (digest(out), digest(lse))
}

#[test]
fn outputs_are_as_reviewed() {
    let case = cases().into_iter().find(|case| case.name == "pages in three places").unwrap();
    let problem = case.problem::<bf16>(1);
    let describe = |variant, got: (Vec<bf16>, Vec<f32>)| {
        let head = |values: Vec<f64>| format!("{:+.3?}", &values[..6]);
        format!(
            "{variant}: digests {:016x?}\n  out {}\n  lse {}\n",
            bits(&got),
            head(got.0.iter().map(|&x| f64::from(x)).collect()),
            head(got.1.iter().map(|&x| f64::from(x)).collect()),
        )
    };
    let device = TestDevice::ascending();
    let text: String = [
        describe("baseline", bf16::baseline(&device, &problem)),
        describe("split over 3", bf16::split(&device, &problem, Pieces, 3, Balanced)),
        describe("split over 3, boxes", bf16::split(&device, &problem, Boxes, 3, Balanced)),
    ]
    .concat();
    insta::assert_snapshot!(text);
}

#[test]
fn a_wrong_page_index_shows() {
    let case = &cases()[1];
    let problem = case.problem::<bf16>(2);
    let oracle = problem.oracle();
    let mut off_by_one = problem.clone();
    let num_pages = off_by_one.table.pages_of[0] as i32 + 1;
    for index in &mut off_by_one.table.lists.kv_indices {
        *index = (*index + 1) % num_pages;
    }
    for loads in loads_of(&problem) {
        let (out, lse) = bf16::split(&TestDevice::ascending(), &off_by_one, loads, 3, Balanced);
        assert!(oracle.check(&out, &lse, Tolerance::BF16).is_err(), "{loads:?}");
    }
}

#[test]
fn zeros_and_nan_are_not_within_tolerance() {
    let case = &cases()[0];
    let oracle = case.problem::<bf16>(4).oracle();
    for value in [bf16::ZERO, bf16::NAN] {
        let (out, lse) = (vec![value; oracle.out.len()], vec![value.to_f32(); oracle.lse.len()]);
        assert!(oracle.check(&out, &lse, Tolerance::BF16).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_batch_is_the_oracle(
        kv_lens in proptest::collection::vec(0u32..150, 1..4),
        (group_size, num_kv_heads) in (1u32..=16, 1u32..3),
        page_size in prop_oneof![1u32..=64, (1u32..=8).prop_map(|eighth| 8 * eighth)],
        wide in any::<bool>(),
        heads_outermost in any::<bool>(),
        (num_blocks, num_locations, seed) in (1u32..9, 1usize..4, any::<u64>()),
        part_tiles in 1u32..6,
    ) {
        let layout = if heads_outermost { KvLayout::Hnd } else { KvLayout::Nhd };
        let head_dim = if wide { 128 } else { 64 };
        let case = DecodeCase {
            name: "drawn",
            num_qo_heads: group_size * num_kv_heads,
            page: KvPageShape { page_size, num_kv_heads, head_dim, layout, element: KvElement::Half },
            kv_lens,
            num_locations,
        };
        let problem = case.problem::<bf16>(seed);
        let device = TestDevice::seeded(seed);
        let oracle = problem.oracle();
        let batch_invariant = SplitPolicy::BatchInvariant { part_tokens: TILE_TOKENS * part_tiles };
        let (out, lse) = bf16::baseline(&device, &problem);
        prop_assert_eq!(oracle.check(&out, &lse, Tolerance::BF16), Ok(()));
        for loads in loads_of(&problem) {
            for policy in [Balanced, batch_invariant] {
                let (out, lse) = bf16::split(&device, &problem, loads, num_blocks, policy);
                prop_assert_eq!(oracle.check(&out, &lse, Tolerance::BF16), Ok(()), "{:?}", loads);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn a_batch_invariant_result_is_the_same_alone_and_in_any_batch(
        kv_lens in proptest::collection::vec(0u32..400, 2..5),
        (blocks_alone, blocks_in_batch) in (1u32..20, 1u32..20),
        part_tiles in 1u32..8,
        seed in any::<u64>(),
    ) {
        let page = KvPageShape { page_size: 16, num_kv_heads: 2, head_dim: 64, layout: KvLayout::Nhd, element: KvElement::Half };
        let case = DecodeCase { name: "drawn", num_qo_heads: 8, page, kv_lens, num_locations: 1 };
        let problem = case.problem::<bf16>(seed);
        let policy = SplitPolicy::BatchInvariant { part_tokens: TILE_TOKENS * part_tiles };
        let device = TestDevice::seeded(seed);
        let (out, lse) = bf16::split(&device, &problem, Boxes, blocks_in_batch, policy);
        for request in 0..case.kv_lens.len() {
            let (out_alone, lse_alone) =
                bf16::split(&device, &problem.of_requests(&[request]), Boxes, blocks_alone, policy);
            let of_request = |elements: usize| request * elements..(request + 1) * elements;
            prop_assert_eq!(digest(&out_alone), digest(&out[of_request(out_alone.len())]));
            prop_assert_eq!(digest(&lse_alone), digest(&lse[of_request(lse_alone.len())]));
        }
    }
}

fn refusal(change: impl FnOnce(&mut DecodeShape)) -> String {
    let mut shape = cases()[0].shape();
    change(&mut shape);
    format!("{}\n", shape.check().unwrap_err())
}

#[test]
fn shapes_are_refused_in_words() {
    let text = [
        refusal(|shape| shape.page.page_size = 0),
        refusal(|shape| shape.page.page_size = 65),
        refusal(|shape| shape.page.head_dim = 96),
        refusal(|shape| shape.page.num_kv_heads = 0),
        refusal(|shape| shape.num_qo_heads = 0),
        refusal(|shape| (shape.num_qo_heads, shape.page.num_kv_heads) = (7, 2)),
        refusal(|shape| shape.num_qo_heads = 17),
        refusal(|shape| shape.sm_scale = f32::NAN),
        refusal(|shape| shape.batch = 0),
        refusal(|shape| shape.batch = 65_536),
        refusal(|shape| shape.num_qo_heads = 1 << 31),
    ]
    .concat();
    insta::assert_snapshot!(text);
}

#[test]
fn tables_are_refused_in_words() {
    let good = PageTable {
        kv_indptr: &[0, 2, 2],
        kv_indices: &[0, 1],
        kv_page_rank: &[0, 1],
        kv_last_page_len: &[16, 0],
    };
    let check = |table: PageTable<'_>| table.check(2, 16, &[1, 2]);
    assert_eq!(check(good), Ok(()));
    let tables = [
        PageTable { kv_indptr: &[0, 2], ..good },
        PageTable { kv_indptr: &[1, 2, 2], ..good },
        PageTable { kv_indptr: &[0, 3, 2], ..good },
        PageTable { kv_indptr: &[0, 2, 3], kv_last_page_len: &[16, 1], ..good },
        PageTable { kv_last_page_len: &[17, 0], ..good },
        PageTable { kv_last_page_len: &[0, 0], ..good },
        PageTable { kv_last_page_len: &[16, 1], ..good },
        PageTable { kv_page_rank: &[0], ..good },
        PageTable { kv_page_rank: &[0, 2], ..good },
        PageTable { kv_page_rank: &[-1, 0], ..good },
        PageTable { kv_indices: &[1, 0], ..good },
        PageTable { kv_indices: &[0, -1], ..good },
        PageTable { kv_indptr: &[0, 1 << 27, 1 << 27], ..good },
    ];
    let text: String = tables.map(|table| format!("{}\n", check(table).unwrap_err())).concat();
    insta::assert_snapshot!(text);
}
