//! Prefill through its launcher, on the CPU device and on GPUs, against the f64 oracle.
//!
//! GPU tests draw fresh inputs; the seed stands in the failure's message.

use farpage::device::{Buffer, Device, Stream};
use farpage::kernels::paged_attention::DevicePageTable;
use farpage::kernels::paged_prefill::{Prefill, PrefillArgs, PrefillElement, PrefillVariant};
use farpage::kv::memory::KvMemory;
use gpu_kernels::kv_layout::{KvElement, KvLayout, KvPageShape};
use gpu_kernels::paged_prefill::reference::{PrefillCase, PrefillProblem, Tolerance, cases};
use half::{bf16, f16};

/// The problem's pools, location by location.
fn upload_pools<T: PrefillElement>(
    stream: &Stream,
    devices: &[Device],
    problem: &PrefillProblem<T>,
) -> KvMemory {
    let (page, pools) = (problem.shape.page, &problem.kv.pools);
    let pages: Vec<usize> = pools.iter().map(|pool| pool.len() / page.page_elements()).collect();
    let (host_pages, device_pages) = pages.split_last().unwrap();
    let memory = KvMemory::new(stream, devices, page, device_pages, *host_pages).unwrap();
    for (location, pool) in pools.iter().enumerate() {
        let elements = bytemuck::cast_slice::<T, u16>(pool);
        stream.upload(elements, memory.pages(location, 0, pages[location])).unwrap();
    }
    memory
}

fn qo_indptr(qo_lens: &[u32]) -> Vec<i32> {
    let mut starts = vec![0];
    for &len in qo_lens {
        starts.push(starts[starts.len() - 1] + len as i32);
    }
    starts
}

/// The outputs of one run, which start as NaN.
fn prefill<T: PrefillElement>(
    stream: &Stream,
    memory: &KvMemory,
    problem: &PrefillProblem<T>,
    variant: PrefillVariant,
) -> (Vec<T>, Vec<f32>) {
    let table = DevicePageTable::upload(stream, &problem.kv.table.table(), memory).unwrap();
    let starts = qo_indptr(&problem.qo_lens);
    let plan = Prefill::plan(stream, variant, problem.shape, &starts, table.kv_lens()).unwrap();
    let q = Buffer::from_slice(stream, &problem.q).unwrap();
    let nan = bytemuck::cast::<u16, T>(0xffff);
    let out = Buffer::from_slice(stream, &vec![nan; plan.q_elements()]).unwrap();
    let lse = Buffer::from_slice(stream, &vec![f32::NAN; plan.lse_elements()]).unwrap();
    let args = PrefillArgs { table: &table, memory, q: &q, out: &out, lse: &lse };
    plan.run(stream, &args).unwrap();
    (stream.download(&out).unwrap(), stream.download(&lse).unwrap())
}

fn check_case<T: PrefillElement>(devices: &[Device], case: &PrefillCase, tolerance: Tolerance) {
    let stream = devices[0].new_stream().unwrap();
    let seed = fastrand::u64(..);
    let problem = case.problem::<T>(seed);
    let oracle = problem.oracle();
    let memory = upload_pools(&stream, devices, &problem);
    let mut variants = vec![PrefillVariant::Baseline];
    let fastest = PrefillVariant::fastest(&devices[0], &problem.shape).unwrap();
    if fastest != PrefillVariant::Baseline {
        variants.push(fastest);
    }
    for variant in variants {
        let (out, lse) = prefill(&stream, &memory, &problem, variant);
        if let Err(off) = oracle.check(&out, &lse, tolerance) {
            panic!("{}, {variant:?}, seed {seed}: {off}", case.name);
        }
        let bits = bytemuck::cast_slice::<T, u16>;
        let (again, _) = prefill(&stream, &memory, &problem, variant);
        assert!(bits(&out) == bits(&again), "{}, {variant:?} does not repeat", case.name);
    }
}

/// Each case in both types, its pages spread over the memory of all devices and of the host.
fn check_all(devices: &[Device], cases: Vec<PrefillCase>) {
    for case in cases {
        let case = PrefillCase { num_locations: devices.len() + 1, ..case };
        check_case::<bf16>(devices, &case, Tolerance::BF16);
        check_case::<f16>(devices, &case, Tolerance::F16);
    }
}

/// Batches whose items are many for each block, which the CPU executor would take minutes for.
fn large_cases() -> Vec<PrefillCase> {
    let case = |name, page_size, layout, lens: &[(u32, u32)]| PrefillCase {
        name,
        num_qo_heads: 32,
        page: KvPageShape {
            page_size,
            num_kv_heads: 8,
            head_dim: 128,
            layout,
            element: KvElement::Half,
        },
        qo_lens: lens.iter().map(|&(qo_len, _)| qo_len).collect(),
        kv_lens: lens.iter().map(|&(_, kv_len)| kv_len).collect(),
        num_locations: 1,
    };
    vec![
        case("one prompt", 16, KvLayout::Nhd, &[(1500, 1500)]),
        case("chunks and single tokens", 16, KvLayout::Hnd, &[(300, 2000), (1, 3001), (129, 700)]),
        case("pages of one token", 1, KvLayout::Nhd, &[(600, 700), (77, 77)]),
        case("pages of 24 tokens", 24, KvLayout::Nhd, &[(600, 700), (77, 77)]),
    ]
}

#[test]
fn prefill_is_the_oracle_on_the_cpu() {
    check_all(&[Device::cpu(), Device::cpu()], cases()[3..6].to_vec());
}

#[test]
#[ignore = "needs 1 GPU"]
fn prefill_is_the_oracle_on_a_gpu() {
    check_all(&[Device::cuda(0).unwrap()], cases());
}

#[test]
#[ignore = "needs 1 GPU"]
fn prefill_of_large_batches_is_right_on_a_gpu() {
    check_all(&[Device::cuda(0).unwrap()], large_cases());
}

#[test]
#[ignore = "needs 2 GPUs"]
fn prefill_reads_pages_of_a_peer() {
    let devices = [Device::cuda(0).unwrap(), Device::cuda(1).unwrap()];
    check_all(&devices, cases());
    check_all(&devices, large_cases());
}

#[test]
fn wrong_arguments_are_refused_before_any_launch() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    let case = PrefillCase { num_locations: 2, ..cases()[3].clone() };
    let problem = case.problem::<bf16>(1);
    let memory = upload_pools(&stream, &[device], &problem);
    let (qo_lens, kv_lens) = (&problem.qo_lens, problem.kv_lens());
    let plan = |variant, shape, starts: &[i32]| {
        Prefill::plan(&stream, variant, shape, starts, &kv_lens).map(|_| ()).unwrap_err()
    };

    let starts = qo_indptr(qo_lens);
    let mut small_heads = problem.shape;
    small_heads.page.head_dim = 64;
    let error = plan(PrefillVariant::Wgmma, small_heads, &starts);
    insta::assert_snapshot!(error, @"`head_dim` must be 128 for `wgmma`, got 64");
    let error = plan(PrefillVariant::Wgmma, problem.shape, &[0, 301, 302]);
    insta::assert_snapshot!(error, @"`qo_lens[0]` must be at most 300, got 301");
    let error = plan(PrefillVariant::Baseline, problem.shape, &[0, 3, 2]);
    insta::assert_snapshot!(error, @"`qo_indptr` must be ascending at 1, got 2");

    let table = DevicePageTable::upload(&stream, &problem.kv.table.table(), &memory).unwrap();
    let planned =
        Prefill::plan(&stream, PrefillVariant::Wgmma, problem.shape, &starts, &kv_lens).unwrap();
    let zeros = |len| Buffer::from_slice(&stream, &vec![bf16::ZERO; len]).unwrap();
    let args = PrefillArgs {
        table: &table,
        memory: &memory,
        q: &zeros(planned.q_elements() - 1),
        out: &zeros(planned.q_elements()),
        lse: &Buffer::from_slice(&stream, &vec![0.0; planned.lse_elements()]).unwrap(),
    };
    let error = planned.run(&stream, &args).unwrap_err();
    insta::assert_snapshot!(error, @"`q` must be 1024 elements long, got 1023");
}
