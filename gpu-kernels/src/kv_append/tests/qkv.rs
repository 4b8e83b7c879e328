//! Appending from joint rows.

use cuda_std::float::E4m3;

use super::*;
use crate::kv_append::contract::QkvShape;
use crate::kv_append::device::{kv_append_qkv_bf16, kv_append_qkv_bf16_e4m3};
use crate::kv_append::reference::{QkvProblem, qkv_problems};

/// The device memory of a problem.
struct Memory {
    qkv: DeviceMemory<bf16>,
    qkv_bias: DeviceMemory<bf16>,
    norms: [DeviceMemory<bf16>; 2],
    cos_sin_cache: DeviceMemory<f32>,
    append_indptr: DeviceMemory<i32>,
    table: [DeviceMemory<i32>; 4],
    q_out: DeviceMemory<bf16>,
}

impl Memory {
    fn new(problem: &QkvProblem) -> Self {
        let AppendLists { append_indptr, table } = problem.case.lists();
        let lists = [table.kv_indptr, table.kv_indices, table.kv_page_rank, table.kv_last_page_len];
        Self {
            qkv: DeviceMemory::from_slice(&problem.qkv),
            qkv_bias: DeviceMemory::from_slice(&problem.qkv_bias),
            norms: problem.norms.each_ref().map(|norm| DeviceMemory::from_slice(norm)),
            cos_sin_cache: DeviceMemory::from_slice(&problem.cos_sin_cache),
            append_indptr: DeviceMemory::from_slice(append_indptr),
            table: lists.map(DeviceMemory::from_slice),
            q_out: DeviceMemory::poisoned(
                problem.shape.append.q_elements(problem.shape.num_qo_heads),
            ),
        }
    }
}

/// A view, or none of nothing.
fn given<T: bytemuck::Pod>(memory: &DeviceMemory<T>) -> cuda_std::global::Global<T> {
    if memory.len() == 0 { cuda_std::global::Global::null() } else { memory.view() }
}

macro_rules! launch {
    ($device:expr, $problem:expr, $memory:expr, $pools:expr, $entry:ident { $($scale:ident),* }) => {{
        let (problem, memory): (&QkvProblem, &Memory) = ($problem, $memory);
        let addresses: Vec<u64> = $pools.iter().map(DeviceMemory::address).collect();
        let ptrs = DeviceMemory::from_slice(&addresses);
        let [kv_indptr, kv_indices, kv_page_rank, kv_last_page_len] = &memory.table;
        let kernel = $entry {
            qkv: memory.qkv.view(),
            qkv_bias: given(&memory.qkv_bias),
            q_norm: given(&memory.norms[0]),
            k_norm: given(&memory.norms[1]),
            $($scale: $scale.view(),)*
            cos_sin_cache: memory.cos_sin_cache.view(),
            append_indptr: memory.append_indptr.view(),
            kv_indptr: kv_indptr.view(),
            kv_indices: kv_indices.view(),
            kv_page_rank: kv_page_rank.view(),
            kv_last_page_len: kv_last_page_len.view(),
            peer_kv_ptrs: ptrs.view(),
            params: problem.shape.params(),
            q_out: memory.q_out.view_mut(),
        };
        $device.launch(problem.shape.dims(), kernel);
    }};
}

/// Pools of poison.
fn pools<T: bytemuck::Pod>(problem: &QkvProblem) -> Vec<DeviceMemory<T>> {
    let page_elements = problem.case.shape.page.page_elements();
    let pages_of = problem.case.table.pages_of.iter();
    pages_of.map(|pages| DeviceMemory::poisoned(pages * page_elements)).collect()
}

/// `q_out` and the pools after one launch.
fn run(device: &TestDevice, problem: &QkvProblem) -> (Vec<bf16>, Vec<Vec<Option<bf16>>>) {
    let (memory, pools) = (Memory::new(problem), pools::<bf16>(problem));
    launch!(device, problem, &memory, pools, kv_append_qkv_bf16 {});
    (memory.q_out.to_vec(), pools.iter().map(DeviceMemory::written).collect())
}

fn check(
    problem: &QkvProblem,
    (q_out, pools): &(Vec<bf16>, Vec<Vec<Option<bf16>>>),
) -> Result<(), String> {
    let (want_q, want_pools) = problem.expected();
    let is_right = |got: Option<bf16>, want: Option<f64>| match (got, want) {
        (Some(got), Some(want)) => problem.is_close(got.to_f64(), want),
        (got, want) => got.is_none() && want.is_none(),
    };
    let off_q = (0..want_q.len()).find(|&i| !is_right(Some(q_out[i]), Some(want_q[i])));
    if let Some(i) = off_q {
        return Err(format!("q_out[{i}] is {}, should be {}", q_out[i], want_q[i]));
    }
    for (location, (got, want)) in pools.iter().zip(want_pools).enumerate() {
        if let Some(i) = (0..want.len()).find(|&i| !is_right(got[i], want[i])) {
            return Err(format!("{location}[{i}] is {:?}, should be {:?}", got[i], want[i]));
        }
    }
    Ok(())
}

#[test]
fn joint_rows_are_the_reference() {
    for (seed, problem) in qkv_problems().into_iter().enumerate() {
        problem.shape.check().unwrap();
        let got = run(&TestDevice::seeded(seed as u64), &problem);
        let told = format!("{}, {:?}", problem.case.name, problem.shape.norm_eps);
        check(&problem, &got).unwrap_or_else(|off| panic!("{told}: {off}"));
    }
}

#[test]
fn without_bias_and_norm_joint_rows_are_as_three_tensors() {
    let problem = QkvProblem::new(decode_case(Some(RopeStyle::HalfSplit)), false, None, 3);
    let (q_out, pools) = run(&TestDevice::ascending(), &problem);
    let row = problem.shape.qkv_elements() / problem.shape.append.num_tokens as usize;
    let q_len = 64 * problem.shape.num_qo_heads as usize;
    let kv_len = 64 * problem.case.shape.page.num_kv_heads as usize;
    let columns = |start: usize, len: usize| -> Vec<bf16> {
        problem.qkv.chunks(row).flat_map(|row| &row[start..start + len]).copied().collect()
    };
    let mut separate = Run::<bf16>::new(problem.case.clone(), 3);
    separate.q = columns(0, q_len);
    separate.k = columns(q_len, kv_len);
    separate.v = columns(q_len + kv_len, kv_len);
    assert_eq!(separate.append(&TestDevice::ascending()), pools);
    let rotated = DeviceMemory::poisoned(separate.q.len());
    let q = DeviceMemory::from_slice(&separate.q);
    bf16::rotate_q(&TestDevice::ascending(), &separate, &q, &rotated);
    assert_eq!(rotated.to_vec(), q_out);
}

#[test]
fn another_bias_norm_or_position_does_not_pass() {
    let problem = QkvProblem::new(decode_case(Some(RopeStyle::HalfSplit)), true, Some(1e-6), 4);
    let got = run(&TestDevice::ascending(), &problem);
    check(&problem, &got).unwrap();
    let mut other = problem.clone();
    other.qkv_bias.rotate_left(1);
    assert!(check(&other, &got).is_err(), "another bias passes");
    let mut other = problem.clone();
    other.norms.swap(0, 1);
    assert!(check(&other, &got).is_err(), "swapped norms pass");
    let mut other = problem.clone();
    other.shape.norm_eps = Some(0.5);
    assert!(check(&other, &got).is_err(), "another eps passes");
    let mut other = problem;
    other.cos_sin_cache.rotate_left(64);
    assert!(check(&other, &got).is_err(), "angles of the next position pass");
}

#[test]
fn joint_rows_go_to_pages_of_e4m3_over_their_scales() {
    let mut case = decode_case(Some(RopeStyle::HalfSplit));
    case.shape.page.element = KvElement::E4m3;
    let problem = QkvProblem::new(case, true, Some(1e-6), 5);
    let (memory, pools) = (Memory::new(&problem), pools::<E4m3>(&problem));
    let [k_scale, v_scale] = [0.25f32, 4.0].map(|scale| DeviceMemory::from_slice(&[scale; 2]));
    let device = TestDevice::seeded(5);
    launch!(device, &problem, &memory, pools, kv_append_qkv_bf16_e4m3 { k_scale, v_scale });
    let (want_q, want_pools) = problem.expected();
    let q_out = memory.q_out.to_vec();
    assert!(q_out.iter().zip(&want_q).all(|(got, want)| problem.is_close(got.to_f64(), *want)));
    let strides = problem.case.shape.page.strides();
    for (got, want) in pools.iter().map(DeviceMemory::written).zip(want_pools) {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let is_value = i as u32 % strides.page >= strides.value;
            let scale = if is_value { 4.0 } else { 0.25 };
            let is_right = match (got, want) {
                (Some(got), Some(want)) => {
                    let off = f64::from(got.to_f32()) * scale - want;
                    off.abs() <= want.abs() / 16.0 + 0.02
                }
                (got, want) => got.is_none() && want.is_none(),
            };
            assert!(is_right, "{i}: {got:?}, should be {want:?}");
        }
    }
}

#[test]
fn requests_without_pages_append_nothing() {
    // As a graph replayed for one request of three leaves its table.
    let page = decode_case(None).shape.page;
    let case = Case::new("one of three", page, Some(RopeStyle::HalfSplit), 1, &[(4, 1), (9, 1)]);
    let problem = QkvProblem::new(case, false, Some(1e-6), 6);
    let (mut memory, pools) = (Memory::new(&problem), pools::<bf16>(&problem));
    memory.table[0] = DeviceMemory::from_slice(&[0, 1, 1]);
    memory.table[3] = DeviceMemory::from_slice(&[5, 0]);
    launch!(TestDevice::ascending(), &problem, &memory, pools, kv_append_qkv_bf16 {});
    let num_written = pools[0].written().iter().flatten().count();
    assert_eq!(num_written, 2 * 2 * 64, "K and V of one token");
    let queries = memory.q_out.written();
    let (first, second) = queries.split_at(queries.len() / 2);
    assert!(first.iter().all(Option::is_some) && second.iter().all(Option::is_none));
}

#[test]
fn joint_rows_that_do_not_fit_are_refused_in_words() {
    let problem = QkvProblem::new(decode_case(None), true, Some(1e-6), 7);
    let good = problem.shape;
    let with_head_dim = |head_dim| {
        let page = KvPageShape { head_dim, ..good.append.page };
        QkvShape { append: AppendShape { page, ..good.append }, ..good }
    };
    let wrong = [
        with_head_dim(48),
        QkvShape { num_qo_heads: 0, ..good },
        QkvShape { num_qo_heads: 1 << 30, ..good },
        QkvShape { append: AppendShape { num_tokens: 1 << 27, ..good.append }, ..good },
        QkvShape { norm_eps: Some(-1.0), ..good },
    ];
    let text: String = wrong.map(|shape| format!("{}\n", shape.check().unwrap_err())).concat();
    insta::assert_snapshot!(text, @"
    `head_dim` must be a power of two, to be normalised, got 48
    `num_qo_heads` must be 1 to 65536, got 0
    `num_qo_heads` must be 1 to 65536, got 1073741824
    `heads` must be such that num_tokens * heads * head_dim / 16 is at most 2147483647, got 5368709120 for 10 heads
    `norm_eps` must be 0 or a positive number, got -1
    ");
    assert!(QkvShape { norm_eps: None, ..with_head_dim(48) }.check().is_ok());
}
