//! What threads, warps and blocks do, against plain Rust.
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

mod common;

use bytemuck::{Pod, Zeroable};
use common::{assert_says, contents, dims, fault, fresh, holding, launch};
use cuda_std::cpu::LaunchDims;
use cuda_std::prelude::*;
use cuda_std::{Kernel, PtxTarget};
use half::{bf16, f16};

/// `y[i] += a * x[i]`.
#[kernel(threads = 64)]
pub unsafe fn saxpy(
    a: f32,
    /// `[n]`
    x: Global<f32>,
    /// `[n]`
    y: GlobalMut<f32>,
    n: u32,
) {
    let i = thread::index_1d();
    if i < n {
        let i = i as usize;
        y.store(i, y.load(i) + a * x.load(i));
    }
}

#[test]
fn saxpy_equals_plain_rust_with_a_ragged_last_block() {
    let n = 1000;
    let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let y = vec![1.0_f32; n];
    let (x_memory, y_memory) = (holding(&x), holding(&y));
    let kernel = saxpy { a: 0.5, x: x_memory.view(), y: y_memory.view_mut(), n: n as u32 };
    launch(dims(16, 64, 0), kernel).unwrap();
    let expected: Vec<f32> = x.iter().map(|x| 1.0 + 0.5 * x).collect();
    assert_eq!(contents::<f32>(&y_memory), expected);
}

#[test]
fn a_kernel_knows_its_entry() {
    assert_eq!(saxpy::NAME, "saxpy");
    assert_eq!(saxpy::PARAMS, ["a: f32", "x: Global<f32>", "y: GlobalMut<f32>", "n: u32"]);
    assert_eq!(saxpy::TARGET, PtxTarget::Portable);
    assert_eq!(saxpy::THREADS, Some(64));
}

#[test]
fn the_driver_finds_parameters_at_the_start_of_each_argument() {
    let memory = holding(&[0_u32; 4]);
    let x = Global::for_cuda_launch(0x7000_1234, 4);
    let kernel = saxpy { a: 2.0, x, y: memory.view_mut(), n: 4 };
    let params = kernel.params();
    assert_eq!(params.len(), 4);
    // SAFETY: a parameter's value starts where `params` says.
    unsafe {
        assert_eq!(*params[0].cast::<f32>(), 2.0);
        assert_eq!(*params[1].cast::<u64>(), 0x7000_1234);
        assert_eq!(*params[2].cast::<u64>(), memory.address());
        assert_eq!(*params[3].cast::<u32>(), 4);
    }
}

macro_rules! typed_copies {
    ($($name:ident: $T:ty;)*) => {$(
        /// Copies.
        #[kernel]
        pub unsafe fn $name(from: Global<$T>, to: GlobalMut<$T>) {
            copy_elements::<$T>(from, to);
        }
    )*};
}

typed_copies! {
    copy_u8: u8;
    copy_f16: f16;
    copy_u64: u64;
}

unsafe fn copy_elements<T: bytemuck::AnyBitPattern>(from: Global<T>, to: GlobalMut<T>) {
    let i = thread::index_1d() as usize;
    to.store(i, from.load(i));
}

#[test]
fn kernels_can_be_stamped_out() {
    assert_eq!(copy_f16::PARAMS, ["from: Global<f16>", "to: GlobalMut<f16>"]);
    let values: Vec<u8> = (0..32).collect();
    let (from, to) = (holding(&values), fresh::<u8>(32));
    launch(dims(1, 32, 0), copy_u8 { from: from.view(), to: to.view_mut() }).unwrap();
    launch(dims(1, 16, 0), copy_f16 { from: from.view(), to: to.view_mut() }).unwrap();
    launch(dims(1, 4, 0), copy_u64 { from: from.view(), to: to.view_mut() }).unwrap();
    assert_eq!(contents::<u8>(&to), values);
}

#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Place {
    thread: [u32; 3],
    block: [u32; 3],
}

/// Writes each thread's indices.
#[kernel]
pub unsafe fn places(out: GlobalMut<u32>) {
    use thread::*;
    let block = block_idx_x() + grid_dim_x() * (block_idx_y() + grid_dim_y() * block_idx_z());
    let within = thread_idx_x() + block_dim_x() * (thread_idx_y() + block_dim_y() * thread_idx_z());
    let num_threads = block_dim_x() * block_dim_y() * block_dim_z();
    let first = 6 * (block * num_threads + within) as usize;
    let place = [thread_idx_x(), thread_idx_y(), thread_idx_z()];
    let block = [block_idx_x(), block_idx_y(), block_idx_z()];
    for i in 0..3 {
        out.store(first + i, place[i]);
        out.store(first + 3 + i, block[i]);
    }
    assert!(grid_dim_z() == 2 && warp::lane_id() == within % 32);
}

#[test]
fn indices_run_over_three_dimensions_x_fastest() {
    let (grid, block) = ([3, 2, 2], [5, 3, 4]);
    let out = fresh::<Place>(12 * 60);
    let size = LaunchDims { grid, block, shared_bytes: 0 };
    launch(size, places { out: out.view_mut() }).unwrap();
    let all = |[x, y, z]: [u32; 3]| {
        (0..z).flat_map(move |z| (0..y).flat_map(move |y| (0..x).map(move |x| [x, y, z])))
    };
    let expected: Vec<Place> =
        all(grid).flat_map(|b| all(block).map(move |thread| Place { thread, block: b })).collect();
    assert_eq!(contents::<Place>(&out), expected);
}

/// One result of each warp operation a lane, `[lanes, 8]`.
#[kernel]
pub unsafe fn warp_operations(out: GlobalMut<u32>) {
    let lane = warp::lane_id();
    let value = 100 + lane;
    let mask = warp::FULL_MASK;
    let (idx, idx_in) = warp::warp_shuffle_idx(mask, value, lane / 2, 8);
    let (xor, _) = warp::warp_shuffle_xor(mask, value, 5, 32);
    let (down, down_in) = warp::warp_shuffle_down(mask, value, 3, 16);
    let (up, up_in) = warp::warp_shuffle_up(mask, value, 3, 16);
    let odd = warp::warp_vote_ballot(mask, lane % 2 == 1);
    let votes = u32::from(warp::warp_vote_all(mask, lane < 32))
        + 2 * u32::from(warp::warp_vote_any(mask, lane == 40));
    let sum = warp::reduce_sum(lane as f32, 32) as u32;
    let max = warp::reduce_max(-(lane as f32), 8);
    let inside = u32::from(idx_in) + 2 * u32::from(down_in) + 4 * u32::from(up_in);
    let row = [idx, xor, down, up, odd, votes * 1000 + inside, sum, max.to_bits()];
    warp::sync_warp(mask);
    for (i, result) in row.into_iter().enumerate() {
        out.store(8 * lane as usize + i, result);
    }
}

#[test]
fn warp_operations_equal_their_definitions() {
    let out = fresh::<u32>(8 * 32);
    launch(dims(1, 32, 0), warp_operations { out: out.view_mut() }).unwrap();
    let rows = contents::<[u32; 8]>(&out);
    for lane in 0..32_u32 {
        let row = rows[lane as usize];
        let (eighth, half_warp) = (lane / 8 * 8, lane / 16 * 16);
        let down_in = lane + 3 < half_warp + 16;
        let up_in = lane >= half_warp + 3;
        assert_eq!(row[0], 100 + eighth + lane / 2 % 8, "idx of lane {lane}");
        assert_eq!(row[1], 100 + (lane ^ 5), "xor of lane {lane}");
        assert_eq!(row[2], 100 + if down_in { lane + 3 } else { lane }, "down of lane {lane}");
        assert_eq!(row[3], 100 + if up_in { lane - 3 } else { lane }, "up of lane {lane}");
        assert_eq!(row[4], 0xaaaa_aaaa);
        let inside = u32::from(lane / 2 < 8) + 2 * u32::from(down_in) + 4 * u32::from(up_in);
        assert_eq!(row[5], 1000 + inside, "votes of lane {lane}");
        assert_eq!(row[6], 31 * 16);
        assert_eq!(f32::from_bits(row[7]), -(eighth as f32));
    }
}

/// Half warps do different operations at the same time.
#[kernel]
pub unsafe fn half_warps(out: GlobalMut<u32>) {
    let lane = warp::lane_id();
    let result = if lane < 16 {
        warp::warp_shuffle_xor(0x0000_ffff, lane, 1, 16).0
    } else {
        warp::warp_vote_ballot(0xffff_0000, lane.is_multiple_of(4))
    };
    out.store(lane as usize, result);
}

#[test]
fn disjoint_masks_meet_apart() {
    let out = fresh::<u32>(32);
    launch(dims(1, 32, 0), half_warps { out: out.view_mut() }).unwrap();
    let expected: Vec<u32> =
        (0..32).map(|lane| if lane < 16 { lane ^ 1 } else { 0x1111_0000 }).collect();
    assert_eq!(contents::<u32>(&out), expected);
}

/// Over the even and the odd lanes apart: the largest number, and who has the same one.
#[kernel(threads = 32)]
pub unsafe fn halves_of_a_warp(numbers: Global<u32>, out: GlobalMut<u32>) {
    let lane = warp::lane_id() as usize;
    let number = numbers.load(lane);
    let results = if lane.is_multiple_of(2) {
        let mask = 0x5555_5555;
        [warp::warp_reduce_max(mask, number), warp::warp_match_any(mask, number)]
    } else {
        let mask = 0xaaaa_aaaa;
        [warp::warp_reduce_max(mask, number), warp::warp_match_any(mask, number)]
    };
    out.store(2 * lane, results[0]);
    out.store(2 * lane + 1, results[1]);
}

#[test]
fn maxima_and_matches_are_those_of_the_mask() {
    let numbers: Vec<u32> =
        (0..32_u32).map(|lane| (lane * 7 + 3) % 5 + (lane % 2) * 1000).collect();
    let (memory, out) = (holding(&numbers), fresh::<u32>(64));
    let kernel = halves_of_a_warp { numbers: memory.view(), out: out.view_mut() };
    launch(dims(1, 32, 0), kernel).unwrap();
    for (lane, row) in contents::<[u32; 2]>(&out).into_iter().enumerate() {
        let others = (0..32).filter(|other| other % 2 == lane % 2);
        let largest = others.clone().map(|other| numbers[other]).max().unwrap();
        let same = others
            .filter(|&other| numbers[other] == numbers[lane])
            .fold(0_u32, |lanes, other| lanes | 1 << other);
        assert_eq!(row, [largest, same], "lane {lane}");
    }
}

/// Sums each block's part of `x` through shared memory.
#[kernel(threads = 128)]
pub unsafe fn block_sum(x: Global<f32>, sums: GlobalMut<f32>) {
    let partial = shared::dynamic_shared_mem::<f32>();
    let t = thread::thread_idx_x() as usize;
    partial.store(t, x.load(thread::index_1d() as usize));
    thread::sync_threads();
    let mut half = 64;
    while half > 0 {
        if t < half {
            partial.store(t, partial.load(t) + partial.load(t + half));
        }
        thread::sync_threads();
        half /= 2;
    }
    if t == 0 {
        sums.store(thread::block_idx_x() as usize, partial.load(0));
    }
}

#[test]
fn blocks_share_memory_behind_barriers_under_any_order() {
    let x: Vec<f32> = (0..1024).map(|i| (i % 17) as f32).collect();
    let expected: Vec<f32> = x.chunks(128).map(|part| part.iter().sum()).collect();
    let memory = holding(&x);
    for seed in 0..20 {
        let sums = fresh::<f32>(8);
        let kernel = block_sum { x: memory.view(), sums: sums.view_mut() };
        // SAFETY: accesses are checked, and the launch ends here.
        unsafe { common::seeded(seed).launch(dims(8, 128, 512), kernel) }.unwrap();
        assert_eq!(contents::<f32>(&sums), expected, "seed {seed}");
    }
}

/// Moves elements of each size through shared memory.
#[kernel]
pub unsafe fn shared_elements(from: Global<u32>, to: GlobalMut<u32>) {
    let bytes = shared::dynamic_shared_mem::<u8>();
    let words = bytes.cast::<u32>();
    words.store_x4(0, from.load_x4(0));
    words.offset(4).store_x2(0, from.load_x2(4));
    bytes.cast::<u16>().store(12, from.load(6) as u16);
    bytes.store(26, (from.load(6) >> 16) as u8);
    bytes.store(27, (from.load(6) >> 24) as u8);
    bytes.cast::<u64>().store(4, u64::from(from.load(7)));
    to.store_x4(0, words.load_x4(0));
    to.store_x2(4, words.load_x2(4));
    to.store(6, words.load(6));
    to.store(7, bytes.cast::<u64>().load(4) as u32);
}

#[test]
fn elements_of_every_size_share_their_bytes() {
    let values: Vec<u32> = (0..8).map(|i| 0x0102_0304 * (i + 1)).collect();
    let (from, to) = (holding(&values), fresh::<u32>(8));
    launch(dims(1, 1, 48), shared_elements { from: from.view(), to: to.view_mut() }).unwrap();
    assert_eq!(contents::<u32>(&to), values);
}

/// Rounds pairs of floats to 16 bits, and applies the fast functions.
#[kernel]
pub unsafe fn floats(x: Global<f32>, packed: GlobalMut<u32>, out: GlobalMut<f32>) {
    let i = thread::index_1d() as usize;
    let (low, high) = (x.load(2 * i), x.load(2 * i + 1));
    packed.store(2 * i, bf16::pack(low, high));
    packed.store(2 * i + 1, f16::pack(low, high));
    let [low, high] = bf16::unpack(bf16::pack(low, high));
    let [h_low, h_high] = f16::unpack(f16::pack(low, high));
    out.store_x4(8 * i, [low, high, h_low, h_high].map(f32::to_bits));
    let fast = [
        float::exp2(low),
        float::log2(low),
        float::reciprocal(low),
        float::reciprocal_sqrt(high.abs()),
    ];
    out.store_x4(8 * i + 4, fast.map(f32::to_bits));
}

#[test]
fn floats_round_to_nearest_even() {
    // Ties between neighbours of bf16, with even and odd lower bits, and plain values.
    let x = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 0.5, f32::NEG_INFINITY, 3.0, 1e-3, 2.0, 65504.0];
    let (memory, packed, out) = (holding(&x), fresh::<u32>(8), fresh::<f32>(32));
    let (packed_mut, out_mut) = (packed.view_mut(), out.view_mut());
    launch(dims(1, 4, 0), floats { x: memory.view(), packed: packed_mut, out: out_mut }).unwrap();
    let packed = contents::<[[u16; 2]; 2]>(&packed);
    let out = contents::<[f32; 8]>(&out);
    for (i, pair) in x.chunks(2).enumerate() {
        assert_eq!(packed[i][0], [0, 1].map(|k| bf16::from_f32(pair[k]).to_bits()));
        assert_eq!(packed[i][1], [0, 1].map(|k| f16::from_f32(pair[k]).to_bits()));
        let b = [0, 1].map(|k| bf16::from_f32(pair[k]).to_f32());
        assert_eq!(out[i][..2], b);
        assert_eq!(out[i][2..4], [0, 1].map(|k| f16::from_f32(b[k]).to_f32()));
        assert_eq!(out[i][4..], [b[0].exp2(), b[0].log2(), 1.0 / b[0], 1.0 / b[1].abs().sqrt()]);
    }
    assert_eq!(packed[0][0], [0x3f80, 0x3f82], "ties go to the even neighbour");
}

/// Counts threads in global and in shared memory.
#[kernel]
pub unsafe fn count(total: GlobalMut<u32>, seen: GlobalMut<u32>) {
    let counter = shared::dynamic_shared_mem::<u32>();
    if thread::thread_idx_x() == 0 {
        counter.store(0, 0);
    }
    thread::sync_threads();
    atomic::fetch_add_shared(counter, 0, 1);
    thread::sync_threads();
    if thread::thread_idx_x() == 0 {
        let before = atomic::fetch_add_relaxed_gpu(total, 0, counter.load(0));
        let arrival = atomic::fetch_add_acq_rel_gpu(total, 1, 1);
        seen.store(arrival as usize, before);
    }
    atomic::fence_acq_rel_gpu();
}

#[test]
fn arrivals_of_blocks_are_numbered_without_gaps() {
    let (total, seen) = (holding(&[0_u32, 0]), fresh::<u32>(50));
    launch(dims(50, 96, 4), count { total: total.view_mut(), seen: seen.view_mut() }).unwrap();
    assert_eq!(contents::<u32>(&total), [50 * 96, 50]);
    let mut seen = contents::<u32>(&seen);
    seen.sort_unstable();
    assert_eq!(seen, (0..50).map(|i| 96 * i).collect::<Vec<u32>>());
}

/// Every thread adds one, `rounds` times.
#[kernel]
pub unsafe fn hammer(total: GlobalMut<u32>, rounds: u32) {
    for _ in 0..rounds {
        atomic::fetch_add_relaxed_gpu(total, 0, 1);
        atomic::fetch_add_acq_rel_gpu(total, 1, 1);
    }
}

#[test]
fn workers_that_add_at_the_same_time_lose_nothing() {
    let total = holding(&[0_u32, 0]);
    launch(dims(64, 32, 0), hammer { total: total.view_mut(), rounds: 4000 }).unwrap();
    assert_eq!(contents::<u32>(&total), [64 * 32 * 4000; 2]);
}

/// Hands four words on, each raised by one.
#[kernel]
pub unsafe fn four_at_once(from: Global<u32>, to: GlobalMut<u32>) {
    let first = 4 * thread::index_1d() as usize;
    let [a, b, c, d] = atomic::load_relaxed_sys_x4(from, first);
    atomic::store_relaxed_sys_x4(to, first, [a + 1, b + 1, c + 1, d + 1]);
}

#[test]
fn four_words_move_at_once_and_aligned() {
    let words: Vec<u32> = (0..256).collect();
    let (from, to) = (holding(&words), fresh::<u32>(256));
    let kernel = four_at_once { from: from.view(), to: to.view_mut() };
    launch(dims(2, 32, 0), kernel).unwrap();
    assert_eq!(contents::<u32>(&to), (1..257).collect::<Vec<u32>>());

    // SAFETY: within the allocation; the kernel's accesses are checked.
    let off = four_at_once { from: unsafe { from.view().offset(1) }, to: to.view_mut() };
    assert_says(&fault(dims(1, 32, 0), off), &["load of 16 bytes", "is not aligned to 16"]);
}

/// The clock goes forward.
#[kernel]
pub unsafe fn clock(out: GlobalMut<u64>) {
    let before = thread::global_timer_ns();
    warp::sync_warp(warp::FULL_MASK);
    out.store(thread::index_1d() as usize, thread::global_timer_ns() - before);
}

#[test]
fn the_clock_goes_forward() {
    let out = fresh::<u64>(32);
    launch(dims(1, 32, 0), clock { out: out.view_mut() }).unwrap();
    assert!(contents::<u64>(&out).iter().all(|&ns| ns < 1_000_000_000));
}
