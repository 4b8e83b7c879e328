//! The device layer on GPUs. A test that finds fewer than it says fails.

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
