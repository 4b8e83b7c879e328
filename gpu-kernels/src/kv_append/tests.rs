use std::format;
use std::string::String;
use std::vec::Vec;

use half::{bf16, f16};
use proptest::prelude::*;

use super::contract::{AppendLists, AppendShape, Rope, RopeStyle};
use super::device::{
    kv_append_rotate_q_bf16, kv_append_rotate_q_f16, kv_append_tokens_bf16, kv_append_tokens_f16,
};
use super::reference::{Case, append_tokens, cases, cos_sin_cache, rotate_tokens};
use crate::kv_layout::{KvElement, KvLayout, KvPageShape};
use crate::paged_attention::contract::PageTable;
use crate::testing::{
    DeviceMemory, Half, TestDevice, Tolerance, digest, random_halves, require_close,
};

mod e4m3;
mod qkv;

/// A case on the device, with random tokens in front of it.
struct Run<T> {
    case: Case,
    append_indptr: DeviceMemory<i32>,
    kv_indptr: DeviceMemory<i32>,
    kv_indices: DeviceMemory<i32>,
    kv_page_rank: DeviceMemory<i32>,
    kv_last_page_len: DeviceMemory<i32>,
    cos_sin: Vec<f32>,
    cos_sin_cache: DeviceMemory<f32>,
    k: Vec<T>,
    v: Vec<T>,
    q: Vec<T>,
}

/// The kernels of an element type.
trait Element: Half {
    /// Half a unit in the last place, and the f32 arithmetic before it.
    const ROUNDING: Tolerance;

    fn append(
        device: &TestDevice,
        run: &Run<Self>,
        k: &DeviceMemory<Self>,
        v: &DeviceMemory<Self>,
        ptrs: &DeviceMemory<u64>,
    );

    fn rotate_q(
        device: &TestDevice,
        run: &Run<Self>,
        q: &DeviceMemory<Self>,
        q_out: &DeviceMemory<Self>,
    );
}

macro_rules! element {
    ($T:ty, $ulp:expr, $append:ident, $rotate_q:ident) => {
        impl Element for $T {
            const ROUNDING: Tolerance = Tolerance { relative: $ulp / 2.0, absolute: 1e-6 };

            fn append(
                device: &TestDevice,
                run: &Run<Self>,
                k: &DeviceMemory<Self>,
                v: &DeviceMemory<Self>,
                ptrs: &DeviceMemory<u64>,
            ) {
                let kernel = $append {
                    k: k.view(),
                    v: v.view(),
                    cos_sin_cache: run.cos_sin_cache.view(),
                    append_indptr: run.append_indptr.view(),
                    kv_indptr: run.kv_indptr.view(),
                    kv_indices: run.kv_indices.view(),
                    kv_page_rank: run.kv_page_rank.view(),
                    kv_last_page_len: run.kv_last_page_len.view(),
                    peer_kv_ptrs: ptrs.view(),
                    params: run.case.shape.params(),
                };
                device.launch(run.case.shape.dims(), kernel);
            }

            fn rotate_q(
                device: &TestDevice,
                run: &Run<Self>,
                q: &DeviceMemory<Self>,
                q_out: &DeviceMemory<Self>,
            ) {
                let kernel = $rotate_q {
                    q: q.view(),
                    q_out: q_out.view_mut(),
                    cos_sin_cache: run.cos_sin_cache.view(),
                    append_indptr: run.append_indptr.view(),
                    kv_indptr: run.kv_indptr.view(),
                    kv_last_page_len: run.kv_last_page_len.view(),
                    params: run.case.shape.q_params(run.case.num_qo_heads),
                };
                device.launch(run.case.shape.rotate_q_dims(run.case.num_qo_heads), kernel);
            }
        }
    };
}

element!(bf16, 1.0 / 128.0, kv_append_tokens_bf16, kv_append_rotate_q_bf16);
element!(f16, 1.0 / 1024.0, kv_append_tokens_f16, kv_append_rotate_q_f16);

fn as_f32<T: Half>(values: &[T]) -> Vec<f32> {
    values.iter().map(|&x| x.to_f64() as f32).collect()
}

impl<T: Element> Run<T> {
    fn new(case: Case, seed: u64) -> Self {
        let AppendShape { page, rope, .. } = case.shape;
        let mut rng = fastrand::Rng::with_seed(seed);
        let num_max_positions = rope.map_or(0, |rope| rope.num_max_positions);
        let cos_sin = cos_sin_cache(num_max_positions, page.head_dim, 10_000.0);
        let AppendLists { append_indptr, table } = case.lists();
        Self {
            append_indptr: DeviceMemory::from_slice(append_indptr),
            kv_indptr: DeviceMemory::from_slice(table.kv_indptr),
            kv_indices: DeviceMemory::from_slice(table.kv_indices),
            kv_page_rank: DeviceMemory::from_slice(table.kv_page_rank),
            kv_last_page_len: DeviceMemory::from_slice(table.kv_last_page_len),
            cos_sin_cache: DeviceMemory::from_slice(&cos_sin),
            cos_sin,
            k: random_halves(&mut rng, case.shape.kv_elements()),
            v: random_halves(&mut rng, case.shape.kv_elements()),
            q: random_halves(&mut rng, case.shape.q_elements(case.num_qo_heads)),
            case,
        }
    }

    /// Elements of every pool after the append; `None` where nothing was written.
    fn append(&self, device: &TestDevice) -> Vec<Vec<Option<T>>> {
        let page_elements = self.case.shape.page.page_elements();
        let pools: Vec<DeviceMemory<T>> = self
            .case
            .table
            .pages_of
            .iter()
            .map(|pages| DeviceMemory::poisoned(pages * page_elements))
            .collect();
        let addresses: Vec<u64> = pools.iter().map(DeviceMemory::address).collect();
        let k = DeviceMemory::from_slice(&self.k);
        let v = DeviceMemory::from_slice(&self.v);
        T::append(device, self, &k, &v, &DeviceMemory::from_slice(&addresses));
        pools.iter().map(DeviceMemory::written).collect()
    }

    fn expected_pools(&self) -> Vec<Vec<Option<f64>>> {
        let Case { shape, table, .. } = &self.case;
        let (k, v) = (as_f32(&self.k), as_f32(&self.v));
        append_tokens(shape, &self.case.lists(), &table.pages_of, &k, &v, &self.cos_sin)
    }

    fn check_append(&self, device: &TestDevice) -> Result<(), String> {
        for (got, want) in self.append(device).iter().zip(self.expected_pools()) {
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                if got.is_some() != want.is_some() {
                    return Err(format!("element {i} written: {}", got.is_some()));
                }
                if let (Some(got), Some(want)) = (got, want) {
                    require_close(&[got.to_f64()], &[want], self.tolerance())?;
                }
            }
        }
        Ok(())
    }

    fn check_rotate_q(&self, device: &TestDevice) -> Result<(), String> {
        let q = DeviceMemory::from_slice(&self.q);
        let q_out = DeviceMemory::poisoned(self.q.len());
        T::rotate_q(device, self, &q, &q_out);
        T::rotate_q(device, self, &q, &q);
        let (out, in_place) = (q_out.to_vec(), q.to_vec());
        let lists = self.case.lists();
        let want = rotate_tokens(&self.case.shape, &lists, &as_f32(&self.q), &self.cos_sin);
        let got: Vec<f64> = out.iter().map(|x| x.to_f64()).collect();
        require_close(&got, &want, self.tolerance())?;
        if digest(&out) != digest(&in_place) {
            return Err("in place gives another result".into());
        }
        Ok(())
    }

    /// Without a rotation every bit stays.
    fn tolerance(&self) -> Tolerance {
        self.case.shape.rope.map_or(Tolerance::EXACT, |_| T::ROUNDING)
    }
}

fn check_case<T: Element>(device: &TestDevice, case: Case, seed: u64) {
    let name = case.name.clone();
    case.shape.check().unwrap();
    case.shape.check_lists(&case.lists(), &case.table.pages_of).unwrap();
    let run = Run::<T>::new(case, seed);
    run.check_append(device).unwrap_or_else(|error| panic!("{name}: {error}"));
    if run.case.shape.rope.is_some() {
        run.case.shape.check_q(run.case.num_qo_heads).unwrap();
        run.check_rotate_q(device).unwrap_or_else(|error| panic!("{name}, q: {error}"));
    }
}

#[test]
fn bf16_equals_the_reference_in_any_lane_order() {
    for device in TestDevice::lane_orders() {
        for case in cases() {
            check_case::<bf16>(&device, case, 1);
        }
    }
}

#[test]
fn f16_equals_the_reference() {
    for case in cases() {
        check_case::<f16>(&TestDevice::seeded(5), case, 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn random_batches_equal_the_reference(
        seed: u64,
        page_size in 1u32..=64,
        num_kv_heads in 1u32..5,
        head_pieces in 1u32..=8,
        is_hnd: bool,
        rope in prop::option::of(any::<bool>()),
        requests in prop::collection::vec((0u32..40, 0u32..12), 1..6),
    ) {
        prop_assume!(requests.iter().any(|&(_, new)| new > 0));
        let layout = if is_hnd { KvLayout::Hnd } else { KvLayout::Nhd };
        let page = KvPageShape { page_size, num_kv_heads, head_dim: 16 * head_pieces, layout, element: KvElement::Half };
        let style = |interleaved| if interleaved { RopeStyle::Interleaved } else { RopeStyle::HalfSplit };
        let case = Case::new("random", page, rope.map(style), 3, &requests);
        check_case::<bf16>(&TestDevice::seeded(seed), case, seed);
    }
}

fn decode_case(rope: Option<RopeStyle>) -> Case {
    let page = KvPageShape {
        page_size: 16,
        num_kv_heads: 2,
        head_dim: 64,
        layout: KvLayout::Nhd,
        element: KvElement::Half,
    };
    Case::new("decode", page, rope, 2, &[(15, 1), (16, 1), (40, 3)])
}

#[test]
fn a_wrong_rotation_or_position_does_not_pass() {
    let device = TestDevice::ascending();
    let mut run = Run::<bf16>::new(decode_case(Some(RopeStyle::HalfSplit)), 3);
    run.check_append(&device).unwrap();
    let rope = run.case.shape.rope.unwrap();
    run.case.shape.rope = Some(Rope { style: RopeStyle::Interleaved, ..rope });
    let interleaved = run.expected_pools();
    run.case.shape.rope = Some(rope);
    assert_ne!(interleaved, run.expected_pools());

    let exact = run.cos_sin.clone();
    run.cos_sin.rotate_left(64);
    assert!(run.check_append(&device).is_err(), "angles of the next position pass");
    run.cos_sin = exact;
    run.kv_indices = DeviceMemory::from_slice(&[0, 1, 2, 2, 1, 0]);
    assert!(run.check_append(&device).is_err(), "other pages pass");
}

#[test]
fn nan_in_a_token_reaches_its_element_and_does_not_pass_for_a_number() {
    let device = TestDevice::ascending();
    let mut run = Run::<bf16>::new(decode_case(None), 4);
    run.check_append(&device).unwrap();
    let sound = run.expected_pools();
    run.v[17] = bf16::NAN;
    let got = run.append(&device);
    let num_nan = got.iter().flatten().flatten().filter(|x| x.is_nan()).count();
    assert_eq!(num_nan, 1);
    let wrong = got.iter().flatten().zip(sound.iter().flatten()).any(|(got, want)| {
        let values = got.zip(*want).map(|(got, want)| ([got.to_f64()], [want]));
        values.is_some_and(|(got, want)| require_close(&got, &want, bf16::ROUNDING).is_err())
    });
    assert!(wrong);
}

#[test]
fn outputs_do_not_change_between_versions() {
    let mut text = String::new();
    for rope in [None, Some(RopeStyle::HalfSplit), Some(RopeStyle::Interleaved)] {
        let run = Run::<bf16>::new(decode_case(rope), 6);
        let pools = run.append(&TestDevice::ascending());
        let written: Vec<bf16> = pools.into_iter().flatten().flatten().collect();
        let head: Vec<f32> = written[..8].iter().map(|x| x.to_f32()).collect();
        text += &format!("{rope:?}\n  head {head:?}\n  digest {:016x}\n", digest(&written));
    }
    insta::assert_snapshot!(text);
}

#[test]
fn refusals_name_argument_need_and_finding() {
    let case = decode_case(Some(RopeStyle::HalfSplit));
    let shape = case.shape;
    let page = shape.page;
    let AppendLists { append_indptr, table } = case.lists();
    let lists = |append_indptr, table| {
        shape.check_lists(&AppendLists { append_indptr, table }, &case.table.pages_of).unwrap_err()
    };
    let short = Rope { num_max_positions: 42, ..shape.rope.unwrap() };
    let twice: Vec<i32> = std::vec![0; table.kv_indices.len()];
    let errors = [
        AppendShape { page: KvPageShape { head_dim: 24, ..page }, ..shape }.check().unwrap_err(),
        AppendShape { batch: 0, ..shape }.check().unwrap_err(),
        AppendShape { num_tokens: 0, ..shape }.check().unwrap_err(),
        AppendShape { num_tokens: 1 << 29, ..shape }.check().unwrap_err(),
        AppendShape { rope: None, ..shape }.check_q(4).unwrap_err(),
        shape.check_q(0).unwrap_err(),
        shape.check_q(1 << 28).unwrap_err(),
        lists(&append_indptr[1..], table),
        lists(&[1, 1, 2, 5], table),
        lists(&[0, 1, 2, 4], table),
        lists(&[0, 3, 2, 5], table),
        lists(&[0, 0, 0, 5], PageTable { kv_last_page_len: &[16, 1, 17], ..table }),
        lists(
            &[0, 5, 5, 5],
            PageTable { kv_indptr: &[0, 0, 2, 6], kv_last_page_len: &[0, 1, 1], ..table },
        ),
        lists(append_indptr, PageTable { kv_indices: &twice, kv_page_rank: &twice, ..table }),
        AppendShape { rope: Some(short), ..shape }
            .check_lists(&case.lists(), &case.table.pages_of)
            .unwrap_err(),
    ];
    let texts: Vec<String> = errors.iter().map(|error| format!("{error}")).collect();
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn launches_and_work_follow_from_the_sizes() {
    let shape = decode_case(Some(RopeStyle::HalfSplit)).shape;
    assert_eq!(shape.num_tokens, 5);
    // 5 tokens of 2 heads of 4 shares.
    assert_eq!(shape.dims().grid, [1, 1, 1]);
    assert_eq!(shape.rotate_q_dims(33).grid, [6, 1, 1]);
    assert_eq!(shape.kv_elements(), 640);
    assert_eq!(shape.work().written_bytes, 2 * 2 * 640);
    assert_eq!(shape.work().read_bytes, 2 * 2 * 640 + 4 * 5 * 64);
    assert_eq!(shape.work().flops, 3 * 640);
}
