//! The device layer on GPUs. A test that finds fewer than it says fails.

use std::env;
use std::process::Command;

use gpu_kernels::memory_read::contract::MemoryReadShape;
use gpu_kernels::memory_read::device::memory_read_16;

use super::tests::shared;
use super::*;

fn gpu() -> Device {
    Device::cuda(0).expect("this test needs 1 GPU")
}

fn two_gpus() -> [Device; 2] {
    [0, 1].map(|ordinal| Device::cuda(ordinal).expect("this test needs 2 GPUs"))
}

/// One test on the first GPU for each shared check.
macro_rules! on_a_gpu {
    ($($check:ident),* $(,)?) => {$(
        #[test]
        #[ignore = "needs 1 GPU"]
        fn $check() {
            shared::$check(&gpu()).unwrap();
        }
    )*};
}

on_a_gpu!(
    copies_move_exactly_their_range,
    pinned_memory_goes_both_ways,
    tensor_maps_take_what_their_rules_allow,
    fills_repeat_their_value,
    a_graph_replays_copies_and_fills,
    a_stream_joins_a_capture_through_an_event,
    a_graph_keeps_the_memory_of_its_copies,
    a_failed_capture_leaves_the_stream_usable,
    events_order_and_time,
    bad_ranges_are_refused,
    empty_buffers_are_fine,
);

#[test]
#[ignore = "needs 1 GPU"]
fn properties_are_those_of_a_gpu() {
    let device = gpu();
    let properties = device.properties().unwrap();
    assert!(properties.compute_capability.unwrap() >= (8, 0));
    assert!(properties.num_multiprocessors > 1 && properties.l2_bytes.unwrap() > 0);
    let memory = properties.memory.unwrap();
    assert!(0 < memory.free && memory.free <= memory.total);
    assert!(device.describe().starts_with("device: GPU 0, "), "{}", device.describe());
    assert!(driver_version().unwrap().unwrap() >= (11, 0));
}

#[test]
#[ignore = "needs 1 GPU"]
fn too_much_memory_is_an_error_with_numbers() {
    match gpu().alloc::<u8>(1 << 50) {
        Err(DeviceError::OutOfMemory { needed_bytes, total_bytes, .. }) => {
            assert_eq!(needed_bytes, 1 << 50);
            assert!(total_bytes > 0);
        }
        other => panic!("expected no room, got {other:?}"),
    }
}

#[test]
#[ignore = "needs 1 GPU"]
fn memory_outlives_its_buffer_until_the_copies_are_done() {
    let device = gpu();
    let stream = device.new_stream().unwrap();
    let result = device.alloc_zeroed::<u32>(1 << 24).unwrap();
    let source = Buffer::from_slice(&stream, &vec![5u32; 1 << 24]).unwrap();
    stream.copy(&source, &result).unwrap();
    drop(source);
    let _usurper = Buffer::from_slice(&device.new_stream().unwrap(), &vec![6u32; 1 << 24]).unwrap();
    assert!(result.to_vec(&stream).unwrap().iter().all(|&value| value == 5));
}

#[test]
#[ignore = "needs 1 GPU"]
fn streams_work_from_any_thread() {
    let device = gpu();
    let stream = device.new_stream().unwrap();
    let buffers: Vec<_> = (0..4).map(|_| device.alloc::<u32>(1024).unwrap()).collect();
    std::thread::scope(|scope| {
        for (i, buffer) in (0u32..).zip(&buffers) {
            let stream = &stream;
            scope.spawn(move || stream.fill(buffer, i).unwrap());
        }
    });
    for (i, buffer) in (0u32..).zip(&buffers) {
        assert_eq!(buffer.to_vec(&stream).unwrap(), [i; 1024]);
    }
}

#[test]
#[ignore = "needs 1 GPU"]
fn a_gpu_that_is_not_there_is_refused() {
    let error = Device::cuda(4096).unwrap_err().to_string();
    assert!(error.starts_with("GPU 4096 was asked for"), "{error}");
}

#[test]
#[ignore = "needs 1 GPU"]
fn gpu_and_cpu_memory_do_not_mix() {
    let (device, cpu) = (gpu(), Device::cpu());
    let stream = device.new_stream().unwrap();
    let (there, here) = (device.alloc_zeroed::<u8>(4).unwrap(), cpu.alloc_zeroed::<u8>(4).unwrap());
    assert!(matches!(stream.copy(&here, &there), Err(DeviceError::MixedDevices { .. })));
}

/// XOR of all words, as the launch and the replays of its graph compute it.
#[test]
#[ignore = "needs 1 GPU"]
fn a_launch_runs_and_a_graph_replays_it() {
    let device = gpu();
    println!("{}", device.describe());
    let stream = device.new_stream().unwrap();
    let shape = MemoryReadShape { num_bytes: 1 << 22, num_blocks: 64 };
    shape.check().unwrap();
    let words: Vec<u32> =
        (0..shape.source_elements() as u32).map(|i: u32| i.wrapping_mul(i)).collect();
    let source = Buffer::from_slice(&stream, &words).unwrap();
    let out = device.alloc_zeroed::<u32>(shape.out_elements()).unwrap();
    let fold = |values: &[u32]| values.iter().fold(0, |folded, value| folded ^ value);
    let read = memory_read_16 {
        source: source.view(),
        num_pieces: shape.num_bytes as u64 / 16,
        out: out.view_mut(),
    };
    // SAFETY: sizes are the shape's, and the buffers live until the end.
    unsafe { stream.launch(shape.dims(), read) }.unwrap();
    assert_eq!(fold(&out.to_vec(&stream).unwrap()), fold(&words));

    let graph = stream
        // SAFETY: as above.
        .capture::<DeviceError>(|stream| unsafe { stream.launch(shape.dims(), read) })
        .unwrap();
    stream.fill_bytes(&out, 0).unwrap();
    graph.launch(&stream).unwrap();
    graph.launch(&stream).unwrap();
    assert_eq!(fold(&out.to_vec(&stream).unwrap()), fold(&words));
}

/// What a failing kernel leaves behind ends every other test's GPU, so it runs in its own process.
#[test]
#[ignore = "needs 1 GPU"]
fn a_kernel_that_leaves_its_memory_is_named_by_the_wait() {
    const CHILD: &str = "FARPAGE_TEST_FAULT";
    if env::var_os(CHILD).is_none() {
        let name = "device::gpu_tests::a_kernel_that_leaves_its_memory_is_named_by_the_wait";
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", name, "--ignored", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && text.contains("1 passed"), "{child:?}");
        return;
    }
    let device = gpu();
    let stream = device.new_stream().unwrap();
    let shape = MemoryReadShape { num_bytes: 1 << 30, num_blocks: 64 };
    let out = device.alloc_zeroed::<u32>(shape.out_elements()).unwrap();
    let nowhere = cuda_std::global::Global::for_cuda_launch(1 << 52, shape.source_elements());
    let num_pieces = shape.num_bytes as u64 / 16;
    let read = memory_read_16 { source: nowhere, num_pieces, out: out.view_mut() };
    // SAFETY: not in bounds, on purpose: the driver reports it, and this process ends.
    unsafe { stream.launch(shape.dims(), read) }.unwrap();
    let error = stream.synchronize().unwrap_err().to_string();
    assert!(error.starts_with("GPU 0 failed; launched last: memory_read_16: "), "{error}");
    assert!(error.contains("CUDA_ERROR_"), "{error}");
}

#[test]
#[ignore = "needs 2 GPUs"]
fn copies_between_gpus_arrive() {
    let [first, second] = two_gpus();
    let link = first.peer_link(&second).unwrap();
    println!("between them: {link}");
    if link.access {
        for _ in 0..2 {
            first.enable_peer_access(&second).unwrap();
            second.enable_peer_access(&first).unwrap();
        }
    }
    let streams = [first.new_stream().unwrap(), second.new_stream().unwrap()];
    let data: Vec<u32> = (0..1 << 20).collect();
    let here = Buffer::from_slice(&streams[0], &data).unwrap();
    for stream in &streams {
        let there = second.alloc_zeroed::<u32>(data.len()).unwrap();
        stream.copy(&here, &there).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(there.to_vec(&streams[1]).unwrap(), data);
    }
}

#[test]
#[ignore = "needs 2 GPUs"]
fn an_event_orders_streams_of_two_gpus() {
    let [first, second] = two_gpus();
    let (writing, reading) = (first.new_stream().unwrap(), second.new_stream().unwrap());
    let (here, there) =
        (first.alloc_zeroed::<u8>(1 << 26).unwrap(), second.alloc_zeroed::<u8>(1 << 26).unwrap());
    let filled = first.new_event().unwrap();
    writing.fill(&here, 3).unwrap();
    writing.record(&filled).unwrap();
    reading.wait(&filled).unwrap();
    reading.copy(&here, &there).unwrap();
    assert!(there.to_vec(&reading).unwrap().iter().all(|&byte| byte == 3));
}
