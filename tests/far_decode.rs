//! Decode whose queries travel, through its launcher, on CPU devices and on GPUs, against the f64
//! oracle.
//!
//! GPU tests draw fresh inputs; the seed stands in the failure's message.

mod common;

use std::thread;
use std::time::Duration;

use common::{gpus, upload_pools};
use cuda_std::float::E4m3;
use farpage::comm::World;
use farpage::device::{Buffer, Device, Stream};
use farpage::kernels::far_decode::{
    FarDecode, FarDecodeArgs, FarDecodeElement, FarTables, OwnerWaits,
};
use farpage::kv::memory::KvMemory;
use gpu_kernels::far_decode::sides::deal_pages;
use gpu_kernels::kv_layout::{KvElement, KvLayout, KvPageShape};
use gpu_kernels::paged_attention::contract::TileLoads;
use gpu_kernels::paged_attention::reference::{
    DecodeCase, DecodeProblem, StoredElement, Tolerance, cases,
};
use half::{bf16, f16};

const DEADLINE: Duration = Duration::from_secs(5);

/// Which request's pages of which location are attended by which of so many sides.
type SideOf = fn(request: usize, location: usize, num_sides: usize) -> usize;

/// All pages of peers travel; those of the host are home's.
fn owners_attend(_request: usize, location: usize, num_sides: usize) -> usize {
    if location < num_sides { location } else { 0 }
}

/// As before, but for every second request.
fn owners_attend_to_some(request: usize, location: usize, num_sides: usize) -> usize {
    if request.is_multiple_of(2) { owners_attend(request, location, num_sides) } else { 0 }
}

/// One problem, its pages dealt to the sides.
struct Far<'a, T, K> {
    streams: &'a [Stream],
    problem: &'a DecodeProblem<T, K>,
    memory: &'a KvMemory,
    tables: FarTables,
    far: FarDecode,
}

impl<'a, T: FarDecodeElement, K: StoredElement> Far<'a, T, K> {
    fn new(
        streams: &'a [Stream],
        problem: &'a DecodeProblem<T, K>,
        memory: &'a KvMemory,
        side_of: SideOf,
        deadline: Duration,
    ) -> Self {
        let num_sides = streams.len();
        let of_page = |request, location| side_of(request, location, num_sides);
        let table = problem.table.table();
        let sides = deal_pages(&table, problem.shape.page.page_size, num_sides, of_page);
        let tables = FarTables::upload(streams, &sides, memory).unwrap();
        let far = FarDecode::plan(streams, problem.shape, &tables.kv_lens(), deadline).unwrap();
        Self { streams, problem, memory, tables, far }
    }

    /// Several runs in a row, each with queries `q`, into outputs that start as NaN.
    fn run(&self, waits: OwnerWaits, q: &[T], num_runs: usize) -> (Vec<T>, Vec<f32>) {
        let (home, shape) = (&self.streams[0], self.problem.shape);
        let q = Buffer::from_slice(home, q).unwrap();
        let nan = bytemuck::cast::<u16, T>(0xffff);
        let out = Buffer::from_slice(home, &vec![nan; shape.q_elements()]).unwrap();
        let lse = Buffer::from_slice(home, &vec![f32::NAN; shape.lse_elements()]).unwrap();
        let (tables, memory) = (&self.tables, self.memory);
        let args = FarDecodeArgs { tables, memory, q: &q, out: &out, lse: &lse };
        for _ in 0..num_runs {
            self.far.run(self.streams, waits, &args).unwrap();
        }
        self.far.synchronize(self.streams).unwrap();
        (home.download(&out).unwrap(), home.download(&lse).unwrap())
    }
}

fn check_case<T: FarDecodeElement, K: StoredElement>(
    devices: &[Device],
    case: &DecodeCase,
    tolerance: Tolerance,
) {
    let streams: Vec<Stream> = devices.iter().map(|device| device.new_stream().unwrap()).collect();
    let seed = fastrand::u64(..);
    let problem = case.problem_over::<T, K>(seed);
    let memory = upload_pools(&streams[0], devices, &problem);
    // Other queries than those before, of which nothing may be left.
    let mut turned = problem.clone();
    turned.q.reverse();
    let oracles = [problem.oracle(), turned.oracle()];
    let sides: [SideOf; 3] = [owners_attend, owners_attend_to_some, owners_attend];
    // Pages loaded as the device likes it best, and, by turns of one kind of wait, in pieces.
    let in_pieces = OwnerWaits::ALL[fastrand::usize(..3)];
    for (side_of, waits) in sides.into_iter().zip(OwnerWaits::ALL) {
        let of_page = |request, location| side_of(request, location, devices.len());
        let sides = deal_pages(&problem.table.table(), case.page.page_size, devices.len(), of_page);
        // Small cases may happen to have no page where queries travel to.
        if !sides[1..].iter().any(|side| !side.kv_indices.is_empty()) {
            continue;
        }
        let mut far = Far::new(&streams, &problem, &memory, side_of, DEADLINE);
        if waits == in_pieces {
            far.far = far.far.with_loads(&streams, TileLoads::Pieces).unwrap();
        }
        for ((q, num_runs), oracle) in [(&problem.q, 1), (&turned.q, 3)].into_iter().zip(&oracles) {
            let (out, lse) = far.run(waits, q, num_runs);
            if let Err(off) = oracle.check(&out, &lse, tolerance) {
                panic!("{}, {:?}, {waits:?}, seed {seed}: {off}", case.name, K::ELEMENT);
            }
        }
        let bits = bytemuck::cast_slice::<T, u16>;
        let [(once, _), (again, _)] = [1, 2].map(|runs| far.run(waits, &problem.q, runs));
        assert!(bits(&once) == bits(&again), "{}, {waits:?} does not repeat", case.name);
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

#[test]
fn queries_that_travel_give_the_oracle_on_the_cpu() {
    check_all(&[Device::cpu(), Device::cpu()], cases()[..5].to_vec());
}

#[test]
fn two_owners_answer_on_the_cpu() {
    check_all(&[Device::cpu(), Device::cpu(), Device::cpu()], cases()[13..].to_vec());
}

#[test]
#[ignore = "needs 2 GPUs"]
fn queries_that_travel_give_the_oracle_on_gpus() {
    check_all(&gpus(2), cases());
}

#[test]
#[ignore = "needs 2 GPUs"]
fn queries_of_large_batches_travel_on_gpus() {
    let case = |name, layout, kv_lens| DecodeCase {
        name,
        num_qo_heads: 64,
        page: KvPageShape {
            page_size: 16,
            num_kv_heads: 8,
            head_dim: 128,
            layout,
            element: KvElement::Half,
        },
        kv_lens,
        num_locations: 1,
    };
    let even = case("even batch", KvLayout::Nhd, vec![1000; 32]);
    let uneven =
        case("one long, many short", KvLayout::Hnd, [vec![100; 40], vec![20_000]].concat());
    for case in [even, uneven] {
        let case = DecodeCase { num_locations: 3, ..case };
        check_case::<bf16, bf16>(&gpus(2), &case, Tolerance::BF16);
        check_case::<bf16, E4m3>(&gpus(2), &case, Tolerance::BF16_OVER_E4M3);
    }
}

/// An owner that nobody asks: its wait ends, and says so.
fn not_asked(devices: &[Device]) -> String {
    let streams: Vec<Stream> = devices.iter().map(|device| device.new_stream().unwrap()).collect();
    let case = DecodeCase { num_locations: 3, ..cases()[13].clone() };
    let problem = case.problem::<bf16>(1);
    let memory = upload_pools(&streams[0], devices, &problem);
    let deadline = Duration::from_millis(20);
    let far = Far::new(&streams, &problem, &memory, owners_attend, deadline);
    let q = Buffer::from_slice(&streams[0], &problem.q).unwrap();
    let lse = Buffer::from_slice(&streams[0], &vec![0.0; problem.shape.lse_elements()]).unwrap();
    let args = FarDecodeArgs { tables: &far.tables, memory: &memory, q: &q, out: &q, lse: &lse };
    far.far.attend(1, &streams[1], OwnerWaits::OnAllSms, &args).unwrap();
    far.far.synchronize(&streams).unwrap_err().to_string()
}

/// Each rank driven by a thread of its own, so that the waits are real on the CPU, too.
#[test]
fn ranks_on_threads_of_their_own_wait_for_each_other() {
    let devices = World::cpu(2).devices().to_vec();
    let streams: Vec<Stream> = devices.iter().map(|device| device.new_stream().unwrap()).collect();
    let case = DecodeCase { num_locations: 3, ..cases()[13].clone() };
    let problem = case.problem::<bf16>(9);
    let memory = upload_pools(&streams[0], &devices, &problem);
    let far = Far::new(&streams, &problem, &memory, owners_attend, DEADLINE);
    let q = Buffer::from_slice(&streams[0], &problem.q).unwrap();
    let out = devices[0].alloc(problem.shape.q_elements()).unwrap();
    let lse = devices[0].alloc(problem.shape.lse_elements()).unwrap();
    let args = FarDecodeArgs { tables: &far.tables, memory: &memory, q: &q, out: &out, lse: &lse };
    let (oracle, waits) = (problem.oracle(), OwnerWaits::OnAllSms);
    for _ in 0..4 {
        thread::scope(|scope| {
            scope.spawn(|| far.far.attend(1, &streams[1], waits, &args).unwrap());
            far.far.ask(&streams[0], &args).unwrap();
            far.far.attend(0, &streams[0], waits, &args).unwrap();
            far.far.merge(&streams[0], &args).unwrap();
        });
        far.far.synchronize(&streams).unwrap();
        let (out, lse) = (streams[0].download(&out).unwrap(), streams[0].download(&lse).unwrap());
        oracle.check(&out, &lse, Tolerance::BF16).unwrap();
    }
}

#[test]
fn a_wait_that_nobody_ends_is_reported_on_the_cpu() {
    insta::assert_snapshot!(not_asked(&[Device::cpu(), Device::cpu()]), @"rank 1 waited 20ms for rank 0: expected count 1, saw 0");
}

#[test]
#[ignore = "needs 2 GPUs"]
fn a_wait_that_nobody_ends_is_reported_on_gpus() {
    assert_eq!(not_asked(&gpus(2)), "rank 1 waited 20ms for rank 0: expected count 1, saw 0");
}

#[test]
fn wrong_arguments_are_refused_before_any_launch() {
    let devices = [Device::cpu(), Device::cpu()];
    let streams: Vec<Stream> = devices.iter().map(|device| device.new_stream().unwrap()).collect();
    let case = DecodeCase { num_locations: 3, ..cases()[13].clone() };
    let problem = case.problem::<bf16>(1);
    let memory = upload_pools(&streams[0], &devices, &problem);
    let shape = problem.shape;
    let plan = |kv_lens: &[Vec<u32>]| {
        FarDecode::plan(&streams, shape, kv_lens, DEADLINE).err().unwrap().to_string()
    };
    let nobody = vec![vec![1; 3], vec![0; 3]];
    insta::assert_snapshot!(plan(&nobody), @"`num_owners` must be 1 to 32, got 0");
    insta::assert_snapshot!(plan(&nobody[..1]), @"`kv_lens` must be 2 elements long, got 1");

    let far = Far::new(&streams, &problem, &memory, owners_attend, DEADLINE);
    let zeros = |len| Buffer::from_slice(&streams[0], &vec![bf16::ZERO; len]).unwrap();
    let args = FarDecodeArgs {
        tables: &far.tables,
        memory: &memory,
        q: &zeros(shape.q_elements() - 1),
        out: &zeros(shape.q_elements()),
        lse: &Buffer::from_slice(&streams[0], &vec![0.0; shape.lse_elements()]).unwrap(),
    };
    let error = far.far.run(&streams, OwnerWaits::OnAllSms, &args).unwrap_err();
    insta::assert_snapshot!(error, @"`q` must be 3072 elements long, got 3071");

    let others = Far::new(&streams, &problem, &memory, |_, _, _| 1, DEADLINE);
    let args = FarDecodeArgs { tables: &others.tables, q: &zeros(shape.q_elements()), ..args };
    let error = far.far.run(&streams, OwnerWaits::OnAllSms, &args).unwrap_err();
    insta::assert_snapshot!(error, @"`table` must be of the lengths planned for, got others");
}
