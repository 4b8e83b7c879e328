//! Decode through its launcher, on the CPU device and on GPUs, against the f64 oracle.
//!
//! GPU tests draw fresh inputs; the seed stands in the failure's message.

mod common;

use common::{gpus, upload_pools};
use cuda_std::float::E4m3;
use farpage::device::{Buffer, Device, Stream};
use farpage::kernels::paged_attention::{
    Decode, DecodeArgs, DecodeElement, DecodeVariant, DevicePageTable,
};
use farpage::kv::memory::KvMemory;
use gpu_kernels::kv_layout::{KvElement, KvLayout, KvPageShape};
use gpu_kernels::paged_attention::contract::{BatchMaxima, DecodeShape, TileLoads};
use gpu_kernels::paged_attention::plan::SplitPolicy;
use gpu_kernels::paged_attention::reference::{
    DecodeCase, DecodeProblem, StoredElement, Tolerance, cases,
};
use half::{bf16, f16};

const BATCH_INVARIANT: SplitPolicy = SplitPolicy::BatchInvariant { part_tokens: 256 };

/// The outputs of one run, which start as NaN. `loads`: other ones than the plan's own choice.
fn decode<T: DecodeElement, K: StoredElement>(
    stream: &Stream,
    memory: &KvMemory,
    problem: &DecodeProblem<T, K>,
    variant: DecodeVariant,
    loads: Option<TileLoads>,
    policy: SplitPolicy,
) -> (Vec<T>, Vec<f32>) {
    let shape = problem.shape;
    let table = DevicePageTable::upload(stream, &problem.table.table(), memory).unwrap();
    let q = Buffer::from_slice(stream, &problem.q).unwrap();
    let nan = bytemuck::cast::<u16, T>(0xffff);
    let out = Buffer::from_slice(stream, &vec![nan; shape.q_elements()]).unwrap();
    let lse = Buffer::from_slice(stream, &vec![f32::NAN; shape.lse_elements()]).unwrap();
    let mut plan = Decode::plan_split(stream, shape, table.kv_lens(), policy).unwrap();
    if let Some(loads) = loads {
        plan = plan.with_loads(stream, loads).unwrap();
    }
    let args = DecodeArgs { table: &table, memory, q: &q, out: &out, lse: &lse };
    plan.run(stream, variant, &args).unwrap();
    (stream.download(&out).unwrap(), stream.download(&lse).unwrap())
}

fn check_case<T: DecodeElement, K: StoredElement>(
    devices: &[Device],
    case: &DecodeCase,
    tolerance: Tolerance,
) {
    let stream = devices[0].new_stream().unwrap();
    let seed = fastrand::u64(..);
    let problem = case.problem_over::<T, K>(seed);
    let oracle = problem.oracle();
    let memory = upload_pools(&stream, devices, &problem);
    for (variant, loads, policy) in [
        (DecodeVariant::Baseline, None, SplitPolicy::Balanced),
        (DecodeVariant::Split, None, SplitPolicy::Balanced),
        (DecodeVariant::Split, None, BATCH_INVARIANT),
        (DecodeVariant::Split, Some(TileLoads::Pieces), SplitPolicy::Balanced),
        (DecodeVariant::Split, Some(TileLoads::Pieces), BATCH_INVARIANT),
    ] {
        let element = K::ELEMENT;
        let what =
            format!("{}, {element:?}, {variant:?}, {loads:?}, {policy:?}, seed {seed}", case.name);
        let (out, lse) = decode(&stream, &memory, &problem, variant, loads, policy);
        if let Err(off) = oracle.check(&out, &lse, tolerance) {
            panic!("{what}: {off}");
        }
        let (again, _) = decode(&stream, &memory, &problem, variant, loads, policy);
        assert!(bits(&out) == bits(&again), "{what}: does not repeat");
    }
}

fn bits<T: bytemuck::Pod>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// Every request of a case has the same bits alone as in its batch.
fn check_batch_invariance(device: &Device, case: &DecodeCase) {
    let stream = device.new_stream().unwrap();
    let case = DecodeCase { num_locations: 2, ..case.clone() };
    let seed = fastrand::u64(..);
    let problem = case.problem::<bf16>(seed);
    let memory = upload_pools(&stream, std::slice::from_ref(device), &problem);
    let split = |problem: &_| {
        decode(&stream, &memory, problem, DecodeVariant::Split, None, BATCH_INVARIANT)
    };
    let (out, lse) = split(&problem);
    for request in 0..case.kv_lens.len() {
        let (out_alone, lse_alone) = split(&problem.of_requests(&[request]));
        let of_request = |elements: usize| request * elements..(request + 1) * elements;
        let is_same = bits(&out_alone) == bits(&out[of_request(out_alone.len())])
            && bits(&lse_alone) == bits(&lse[of_request(lse_alone.len())]);
        assert!(is_same, "{}, request {request}, seed {seed}: other bits alone", case.name);
    }
}

/// Captures a run once, and replays it for batches of other requests, lengths and pages.
fn check_replays(device: &Device, variant: DecodeVariant, policy: SplitPolicy) {
    let stream = device.new_stream().unwrap();
    let seed = fastrand::u64(..);
    let case = DecodeCase {
        name: "taking turns",
        num_qo_heads: 8,
        page: KvPageShape {
            page_size: 16,
            num_kv_heads: 2,
            head_dim: 64,
            layout: KvLayout::Nhd,
            element: KvElement::Half,
        },
        kv_lens: vec![100, 0, 17, 700, 16, 333],
        num_locations: 2,
    };
    let problem = case.problem::<bf16>(seed);
    let memory = upload_pools(&stream, std::slice::from_ref(device), &problem);
    let maxima = BatchMaxima { num_max_requests: 4, num_max_pages: 80 };
    let shape = DecodeShape { batch: maxima.num_max_requests, ..problem.shape };

    let mut table = DevicePageTable::for_replay(&stream, maxima, &memory).unwrap();
    let mut plan = Decode::for_replay(&stream, shape, maxima.num_max_pages, policy).unwrap();
    let q = device.alloc_zeroed::<bf16>(shape.q_elements()).unwrap();
    let out = device.alloc::<bf16>(shape.q_elements()).unwrap();
    let lse = device.alloc::<f32>(shape.lse_elements()).unwrap();
    let graph = stream
        .capture(|stream| {
            let args = DecodeArgs { table: &table, memory: &memory, q: &q, out: &out, lse: &lse };
            plan.run(stream, variant, &args)
        })
        .unwrap();

    let batches: [&[usize]; 6] = [&[0, 1, 2, 3], &[5], &[3, 5], &[], &[4, 2, 0], &[3, 2, 5, 1]];
    for requests in batches {
        let batch = problem.of_requests(requests);
        table.update(&stream, &batch.table.table(), &memory).unwrap();
        plan.replan(&stream, &table).unwrap();
        stream.fill(&out, bf16::NAN).unwrap();
        stream.fill(&lse, f32::NAN).unwrap();
        stream.upload(&batch.q, q.slice(..batch.q.len())).unwrap();
        graph.launch(&stream).unwrap();
        let of_batch = |elements: usize| elements / shape.batch as usize * requests.len();
        let out = stream.download(out.slice(..of_batch(out.len()))).unwrap();
        let lse = stream.download(lse.slice(..of_batch(lse.len()))).unwrap();
        if let Err(off) = batch.oracle().check(&out, &lse, Tolerance::BF16) {
            panic!("requests {requests:?}, {variant:?}, {policy:?}, seed {seed}: {off}");
        }
    }
}

fn check_all_replays(device: &Device) {
    for variant in DecodeVariant::ALL {
        for policy in [SplitPolicy::Balanced, SplitPolicy::BatchInvariant { part_tokens: 64 }] {
            check_replays(device, variant, policy);
        }
    }
}

/// Each case in all types, its pages spread over the memory of all devices and of the host.
fn check_all(devices: &[Device], cases: Vec<DecodeCase>) {
    for case in cases {
        let case = DecodeCase { num_locations: devices.len() + 1, ..case };
        check_case::<bf16, bf16>(devices, &case, Tolerance::BF16);
        check_case::<f16, f16>(devices, &case, Tolerance::F16);
        check_case::<bf16, E4m3>(devices, &case, Tolerance::BF16_OVER_E4M3);
        check_case::<f16, E4m3>(devices, &case, Tolerance::F16_OVER_E4M3);
    }
}

/// Batches as large as real ones, which the CPU executor would take minutes for.
fn large_cases() -> Vec<DecodeCase> {
    let case = |name, page_size, layout, kv_lens| DecodeCase {
        name,
        num_qo_heads: 64,
        page: KvPageShape {
            page_size,
            num_kv_heads: 8,
            head_dim: 128,
            layout,
            element: KvElement::Half,
        },
        kv_lens,
        num_locations: 1,
    };
    vec![
        case("even batch", 16, KvLayout::Nhd, vec![1000; 32]),
        case("one long, many short", 16, KvLayout::Hnd, [vec![100; 40], vec![20_000]].concat()),
        case(
            "some long, many middling",
            16,
            KvLayout::Nhd,
            [vec![200; 30], vec![9000; 2]].concat(),
        ),
        case("one alone", 16, KvLayout::Nhd, vec![5003]),
        case("one alone, in parts of one length", 16, KvLayout::Nhd, vec![8192]),
        case("pages of one token", 1, KvLayout::Nhd, vec![700, 0, 1300]),
    ]
}

#[test]
fn decode_is_the_oracle_on_the_cpu() {
    check_all(&[Device::cpu(), Device::cpu()], cases()[..5].to_vec());
}

#[test]
#[ignore = "needs 1 GPU"]
fn decode_is_the_oracle_on_a_gpu() {
    check_all(&gpus(1), cases());
}

#[test]
#[ignore = "needs 1 GPU"]
fn decode_of_large_batches_is_right_on_a_gpu() {
    check_all(&gpus(1), large_cases());
}

#[test]
fn a_request_has_the_same_bits_alone_and_in_a_batch_on_the_cpu() {
    cases()[..5].iter().for_each(|case| check_batch_invariance(&Device::cpu(), case));
}

#[test]
#[ignore = "needs 1 GPU"]
fn a_request_has_the_same_bits_alone_and_in_a_batch_on_a_gpu() {
    let gpu = &gpus(1)[0];
    cases().iter().chain(&large_cases()).for_each(|case| check_batch_invariance(gpu, case));
}

#[test]
fn a_captured_graph_takes_other_batches_on_the_cpu() {
    check_all_replays(&Device::cpu());
}

#[test]
#[ignore = "needs 1 GPU"]
fn a_captured_graph_takes_other_batches_on_a_gpu() {
    check_all_replays(&gpus(1)[0]);
}

#[test]
fn batches_past_the_maxima_change_nothing() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    let page = KvPageShape {
        page_size: 16,
        num_kv_heads: 1,
        head_dim: 64,
        layout: KvLayout::Nhd,
        element: KvElement::Half,
    };
    let kv_lens = vec![30, 1, 90];
    let case = DecodeCase { name: "too many", num_qo_heads: 1, page, kv_lens, num_locations: 2 };
    let problem = case.problem::<bf16>(1);
    let memory = upload_pools(&stream, &[device], &problem);
    let maxima = BatchMaxima { num_max_requests: 2, num_max_pages: 6 };
    let mut table = DevicePageTable::for_replay(&stream, maxima, &memory).unwrap();

    let small = problem.of_requests(&[0, 1]);
    table.update(&stream, &small.table.table(), &memory).unwrap();
    let mut refused = |requests: &[usize]| {
        let batch = problem.of_requests(requests);
        let error = table.update(&stream, &batch.table.table(), &memory).unwrap_err();
        assert_eq!(table.kv_lens(), [30, 1]);
        error
    };
    insta::assert_snapshot!(refused(&[0, 1, 2]), @"`requests` must be at most num_max_requests = 2, got 3");
    insta::assert_snapshot!(refused(&[2, 0]), @"`pages` must be at most num_max_pages = 6, got 8");
    let during_capture =
        stream.capture(|stream| table.update(stream, &small.table.table(), &memory));
    insta::assert_snapshot!(during_capture.err().unwrap(), @"update of a plan or a table: not while the stream is being captured into a graph");

    let shape = DecodeShape { batch: 2, ..problem.shape };
    let plan = |num_max_pages| {
        Decode::for_replay(&stream, shape, num_max_pages, SplitPolicy::Balanced).unwrap()
    };
    let mut plan_of_seven = plan(7);
    let error = plan_of_seven.replan(&stream, &table).unwrap_err();
    insta::assert_snapshot!(error, @"`table` must be made for 2 requests and 7 pages, as planned, got one for 2 and 6");
    assert_eq!(plan_of_seven.split_plan(), plan(6).split_plan());
}

#[test]
#[ignore = "needs 2 GPUs"]
fn decode_reads_pages_of_a_peer() {
    check_all(&gpus(2), cases());
    check_all(&gpus(2), large_cases());
}

#[test]
fn wrong_arguments_are_refused_before_any_launch() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    let case = DecodeCase { num_locations: 2, ..cases()[0].clone() };
    let shape = case.shape();
    let problem = case.problem::<bf16>(1);
    let memory = upload_pools(&stream, &[device], &problem);

    let mut table = problem.table.table();
    table.kv_indices = &[7];
    let error = DevicePageTable::upload(&stream, &table, &memory).unwrap_err().to_string();
    assert!(error.starts_with("`kv_indices[0]` must be a page of location"), "{error}");

    let mut wrong = shape;
    wrong.num_qo_heads = 17;
    let error = Decode::plan(&stream, wrong, &[1]).err().unwrap();
    insta::assert_snapshot!(error, @"`num_qo_heads / num_kv_heads` must be at most 16, got 17");
    let policy = SplitPolicy::BatchInvariant { part_tokens: 8 };
    let error = Decode::plan_split(&stream, shape, &[1], policy).err().unwrap();
    insta::assert_snapshot!(error, @"`part_tokens` must be a multiple of 16, got 8");

    let table = DevicePageTable::upload(&stream, &problem.table.table(), &memory).unwrap();
    let zeros = |len| Buffer::from_slice(&stream, &vec![bf16::ZERO; len]).unwrap();
    let args = DecodeArgs {
        table: &table,
        memory: &memory,
        q: &zeros(shape.q_elements() - 1),
        out: &zeros(shape.q_elements()),
        lse: &Buffer::from_slice(&stream, &vec![0.0; shape.lse_elements()]).unwrap(),
    };
    let run = |kv_len| {
        let plan = Decode::plan(&stream, shape, &[kv_len]).unwrap();
        plan.run(&stream, DecodeVariant::Split, &args).unwrap_err()
    };
    insta::assert_snapshot!(run(2), @"`table` must be of the lengths planned for, got others");
    insta::assert_snapshot!(run(1), @"`q` must be 1024 elements long, got 1023");
}
