//! The device layer on the CPU. [`shared`] holds what a GPU must do, too.

use cuda_std::cpu::ExecutorConfig;
use cuda_std::prelude::*;
use cuda_std::tensor_map::{L2Promotion, Swizzle, Tiling};

use super::*;

/// Checks that hold on every kind of device; each takes a device that it may allocate from.
pub(super) mod shared {
    use super::*;

    pub(in crate::device) fn copies_move_exactly_their_range(device: &Device) -> Result<()> {
        let stream = device.new_stream()?;
        let source = Buffer::from_slice(&stream, &(0..100u32).collect::<Vec<_>>())?;
        let destination = device.alloc_zeroed::<u32>(100)?;
        stream.copy(source.slice(10..20), destination.slice(50..60))?;
        stream.copy(source.slice(..0), destination.slice(100..))?;
        let mut expected = vec![0; 100];
        expected[50..60].copy_from_slice(&(10..20).collect::<Vec<_>>());
        assert_eq!(destination.to_vec(&stream)?, expected);
        assert_eq!(stream.download(destination.slice(49..=50))?, [0, 10]);
        Ok(())
    }

    pub(in crate::device) fn pinned_memory_goes_both_ways(device: &Device) -> Result<()> {
        let stream = device.new_stream()?;
        let pinned = device.alloc_pinned::<u64>(33)?;
        let data: Vec<u64> = (0..32).map(|i| i * 0x0101_0101_0101).collect();
        pinned.write(1, &data)?;
        let memory = device.alloc::<u64>(33)?;
        stream.copy(&pinned, &memory)?;
        stream.copy(memory.slice(1..17), pinned.slice(17..33))?;
        stream.synchronize()?;
        let mut seen = vec![1; 33];
        pinned.read(0, &mut seen)?;
        assert_eq!(seen[0], 0);
        assert_eq!(seen[1..17], data[..16]);
        assert_eq!(seen[17..33], data[..16]);
        // SAFETY: the stream is idle.
        assert_eq!(unsafe { pinned.as_slice() }, seen);
        Ok(())
    }

    /// Tilings of each rank, with and without a swizzle, over buffers and parts of them.
    pub(in crate::device) fn tensor_maps_take_what_their_rules_allow(
        device: &Device,
    ) -> Result<()> {
        fn try_rank<const RANK: usize>(device: &Device) -> Result<()> {
            let buffer = device.alloc::<u16>(64 << (2 * RANK))?;
            for swizzle in [Swizzle::None, Swizzle::Bytes128] {
                let l2_promotion = L2Promotion::Bytes128;
                let (mut sizes, mut strides, mut tile) = ([4; RANK], [64; RANK], [2; RANK]);
                (sizes[0], strides[0], tile[0]) = (64, 1, 64);
                // The outermost dimension has the smallest stride.
                for (d, stride) in strides.iter_mut().enumerate().skip(1) {
                    *stride = 64 << (2 * (RANK - 1 - d));
                }
                let tiling = Tiling { sizes, strides, tile, swizzle, l2_promotion };
                buffer.tensor_map(&tiling)?;
                buffer.slice(8..8 + tiling.span() as usize).tensor_map(&tiling)?;
                let short = buffer.slice(8..7 + tiling.span() as usize).tensor_map(&tiling);
                assert!(matches!(short, Err(DeviceError::Tiling(_))));
                let crooked = buffer.slice(1..).tensor_map(&tiling);
                assert!(matches!(crooked, Err(DeviceError::Tiling(_))));
            }
            Ok(())
        }
        try_rank::<2>(device)?;
        try_rank::<3>(device)?;
        try_rank::<4>(device)?;
        try_rank::<5>(device)?;
        let pinned = device.alloc_pinned::<u32>(1 << 10)?;
        let tiling = Tiling {
            sizes: [32, 32],
            strides: [1, 32],
            tile: [4, 32],
            swizzle: Swizzle::None,
            l2_promotion: L2Promotion::None,
        };
        pinned.tensor_map(&tiling)?;
        let outside = pinned.slice(..1 << 11).tensor_map(&tiling);
        assert!(matches!(outside, Err(DeviceError::OutOfRange { .. })));
        Ok(())
    }

    pub(in crate::device) fn fills_repeat_their_value(device: &Device) -> Result<()> {
        let stream = device.new_stream()?;
        let bytes = device.alloc::<u8>(7)?;
        stream.fill(&bytes, 0xab)?;
        assert_eq!(bytes.to_vec(&stream)?, [0xab; 7]);
        let halves = device.alloc_zeroed::<u16>(5)?;
        stream.fill(halves.slice(1..4), 0x1234)?;
        assert_eq!(halves.to_vec(&stream)?, [0, 0x1234, 0x1234, 0x1234, 0]);
        let floats = device.alloc::<f32>(9)?;
        stream.fill(&floats, -1.5)?;
        assert_eq!(floats.to_vec(&stream)?, [-1.5; 9]);
        let wide = device.alloc::<u64>(3)?;
        assert!(matches!(stream.fill(&wide, 1), Err(DeviceError::FillPattern { value_bytes: 8 })));
        stream.fill_bytes(&wide, 1)?;
        assert_eq!(wide.to_vec(&stream)?, [0x0101_0101_0101_0101; 3]);
        Ok(())
    }

    pub(in crate::device) fn a_graph_replays_copies_and_fills(device: &Device) -> Result<()> {
        let stream = device.new_stream()?;
        let [a, b] = [device.alloc_zeroed::<i32>(64)?, device.alloc_zeroed::<i32>(64)?];
        let graph = stream.capture::<DeviceError>(|stream| {
            stream.copy(&a, &b)?;
            stream.fill(a.slice(..32), 7)
        })?;
        assert_eq!(a.to_vec(&stream)?, [0; 64], "a capture runs nothing");
        graph.launch(&stream)?;
        assert_eq!((a.to_vec(&stream)?[0], b.to_vec(&stream)?[0]), (7, 0));
        graph.launch(&stream)?;
        assert_eq!((b.to_vec(&stream)?[31], b.to_vec(&stream)?[32]), (7, 0));
        Ok(())
    }

    pub(in crate::device) fn a_stream_joins_a_capture_through_an_event(
        device: &Device,
    ) -> Result<()> {
        let (stream, side) = (device.new_stream()?, device.new_stream()?);
        let [fork, join] = [device.new_event()?, device.new_event()?];
        let buffer = device.alloc_zeroed::<i32>(4)?;
        let graph = stream.capture::<DeviceError>(|stream| {
            stream.record(&fork)?;
            side.wait(&fork)?;
            side.fill(&buffer, 9)?;
            assert!(matches!(side.synchronize(), Err(DeviceError::DuringCapture { .. })));
            side.record(&join)?;
            stream.wait(&join)
        })?;
        assert_eq!(buffer.to_vec(&stream)?, [0; 4], "the side stream was captured");
        graph.launch(&stream)?;
        assert_eq!(buffer.to_vec(&stream)?, [9; 4]);
        side.fill(&buffer, 1)?;
        assert_eq!(buffer.to_vec(&side)?, [1; 4], "after the capture the side stream works again");
        Ok(())
    }

    pub(in crate::device) fn a_graph_keeps_the_memory_of_its_copies(device: &Device) -> Result<()> {
        let stream = device.new_stream()?;
        let result = device.alloc_zeroed::<u32>(8)?;
        let graph = {
            let source = Buffer::from_slice(&stream, &[3u32; 8])?;
            stream.capture::<DeviceError>(|stream| stream.copy(&source, &result))?
        };
        // Something else would take the freed memory's place.
        let _usurper = Buffer::from_slice(&stream, &[4u32; 8])?;
        graph.launch(&stream)?;
        assert_eq!(result.to_vec(&stream)?, [3; 8]);
        Ok(())
    }

    pub(in crate::device) fn a_failed_capture_leaves_the_stream_usable(
        device: &Device,
    ) -> Result<()> {
        let stream = device.new_stream()?;
        let buffer = device.alloc_zeroed::<u8>(4)?;
        let failed = stream.capture::<DeviceError>(|stream| {
            stream.fill(&buffer, 1)?;
            stream.copy(buffer.slice(..2), buffer.slice(..3))
        });
        assert!(matches!(failed, Err(DeviceError::LengthMismatch { .. })));
        stream.fill(buffer.slice(..1), 5)?;
        assert_eq!(buffer.to_vec(&stream)?, [5, 0, 0, 0]);
        Ok(())
    }

    pub(in crate::device) fn events_order_and_time(device: &Device) -> Result<()> {
        let (first, second) =
            (device.new_stream()?, device.new_stream_with_priority(StreamPriority::High)?);
        let [start, end] = [device.new_event()?, device.new_event()?];
        assert!(matches!(start.elapsed_us(&end), Err(DeviceError::NotRecorded)));
        let buffer = device.alloc_zeroed::<u8>(1 << 20)?;
        first.record(&start)?;
        first.fill(&buffer, 1)?;
        first.record(&end)?;
        second.wait(&end)?;
        assert_eq!(second.download(buffer.slice((1 << 20) - 1..))?, [1]);
        end.synchronize()?;
        assert!(end.is_done()? && first.is_idle()?);
        assert!(start.elapsed_us(&end)? >= 0.0);
        Ok(())
    }

    pub(in crate::device) fn bad_ranges_are_refused(device: &Device) -> Result<()> {
        let stream = device.new_stream()?;
        let buffer = device.alloc_zeroed::<u32>(8)?;
        let refused = stream.copy(buffer.slice(..4), buffer.slice(5..9)).unwrap_err();
        assert_eq!(refused.to_string(), "copy: elements 5..9 of a buffer of 8");
        let refused = stream.copy(buffer.slice(..4), buffer.slice(4..7)).unwrap_err();
        assert_eq!(refused.to_string(), "copy: source has 4 elements, destination 3");
        let refused = stream.upload(&[1, 2], buffer.slice(7..9)).unwrap_err();
        assert_eq!(refused.to_string(), "copy from the host: elements 7..9 of a buffer of 8");
        assert!(stream.fill(buffer.slice(9..), 0).is_err());
        assert!(stream.download(buffer.slice(3..9)).is_err());
        assert_eq!(buffer.to_vec(&stream)?, [0; 8]);
        let pinned = device.alloc_pinned::<u32>(2)?;
        assert!(pinned.read(1, &mut [0, 0]).is_err());
        assert!(pinned.write(2, &[1]).is_err());
        assert!(pinned.write(usize::MAX, &[1]).is_err());
        Ok(())
    }

    pub(in crate::device) fn empty_buffers_are_fine(device: &Device) -> Result<()> {
        let stream = device.new_stream()?;
        let [a, b] = [device.alloc::<f32>(0)?, device.alloc_zeroed::<f32>(0)?];
        stream.copy(&a, &b)?;
        stream.fill(&a, 1.0)?;
        stream.upload(&[], &a)?;
        assert!(a.to_vec(&stream)?.is_empty());
        let pinned = device.alloc_pinned::<f32>(0)?;
        stream.copy(&pinned, &a)?;
        pinned.read(0, &mut [])?;
        Ok(())
    }
}

/// One test on the CPU for each shared check.
macro_rules! on_the_cpu {
    ($($check:ident),* $(,)?) => {$(
        #[test]
        fn $check() {
            shared::$check(&Device::cpu()).unwrap();
        }
    )*};
}

on_the_cpu!(
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

mod kernels {
    #![allow(unsafe_op_in_unsafe_fn)]

    use super::*;

    /// `y[i] += x[i]`, one thread an element.
    #[kernel(threads = 32)]
    pub unsafe fn device_test_add(x: Global<i32>, y: GlobalMut<i32>) {
        let i = thread::index_1d() as usize;
        y.store(i, y.load(i) + x.load(i));
    }
}

use kernels::device_test_add;

const ONE_WARP: LaunchDims = LaunchDims { grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0 };

#[test]
fn a_launch_runs_and_a_graph_replays_it() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    let x = Buffer::from_slice(&stream, &(0..32).collect::<Vec<i32>>()).unwrap();
    let y = Buffer::from_slice(&stream, &[100; 32]).unwrap();
    let add = device_test_add { x: x.view(), y: y.view_mut() };
    // SAFETY: 32 threads, 32 elements, and both buffers live until the end.
    unsafe { stream.launch(ONE_WARP, add) }.unwrap();
    let graph = stream
        // SAFETY: as above.
        .capture::<DeviceError>(|stream| unsafe { stream.launch(ONE_WARP, add) })
        .unwrap();
    graph.launch(&stream).unwrap();
    graph.launch(&stream).unwrap();
    let expected: Vec<i32> = (0..32).map(|i| 100 + 3 * i).collect();
    assert_eq!(y.to_vec(&stream).unwrap(), expected);
}

#[test]
fn a_launch_of_the_wrong_size_is_refused() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    let x = device.alloc_zeroed::<i32>(64).unwrap();
    let add = device_test_add { x: x.view(), y: x.view_mut() };
    let launch = |grid, block| {
        // SAFETY: refused, or in bounds.
        unsafe { stream.launch(LaunchDims { grid, block, shared_bytes: 0 }, add) }
    };
    for (grid, block, needed) in [
        ([1, 1, 1], [64, 1, 1], "needs the kernel's 32 threads, got [64, 1, 1]"),
        ([0, 1, 1], [32, 1, 1], "needs at least one block"),
        ([1, 1, 1], [32, 0, 1], "needs 1 to 1024 threads"),
        ([1, 1, 1], [64, 32, 1], "needs 1 to 1024 threads"),
    ] {
        let refused = launch(grid, block).unwrap_err().to_string();
        assert!(refused.starts_with("launch of device_test_add: "), "{refused}");
        assert!(refused.contains(needed), "{refused}");
    }
}

#[test]
fn a_fault_names_the_device_and_the_kernel() {
    let device = Device::cpu_with(ExecutorConfig { num_workers: 1, ..Default::default() }, 3);
    let stream = device.new_stream().unwrap();
    let (x, y) = (device.alloc::<i32>(32).unwrap(), device.alloc_zeroed::<i32>(31).unwrap());
    let add = |x: &Buffer<i32>| device_test_add { x: x.view(), y: y.view_mut() };
    // SAFETY: not in bounds, which the executor reports.
    let unwritten = unsafe { stream.launch(ONE_WARP, add(&x)) }.unwrap_err().to_string();
    assert!(unwritten.starts_with("CPU rank 3: kernel device_test_add"), "{unwritten}");
    assert!(unwritten.contains("nothing wrote"), "{unwritten}");
    stream.fill(&x, 1).unwrap();
    // SAFETY: as above.
    let outside = unsafe { stream.launch(ONE_WARP, add(&x)) }.unwrap_err().to_string();
    assert!(outside.contains("out of bounds"), "{outside}");
}

#[test]
fn copies_keep_what_was_not_written_unwritten() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    let (x, y) = (device.alloc::<i32>(32).unwrap(), device.alloc_zeroed::<i32>(32).unwrap());
    let copy = device.alloc::<i32>(32).unwrap();
    stream.copy(&x, &copy).unwrap();
    let add = device_test_add { x: copy.view(), y: y.view_mut() };
    // SAFETY: in bounds.
    let unwritten = unsafe { stream.launch(ONE_WARP, add) }.unwrap_err().to_string();
    assert!(unwritten.contains("nothing wrote"), "{unwritten}");
}

#[test]
fn copies_in_opposite_directions_end() {
    let device = Device::cpu();
    let [a, b] = [(); 2].map(|()| device.alloc_zeroed::<u8>(4096).unwrap());
    let copy_often = |from: &Buffer<u8>, to: &Buffer<u8>| {
        let stream = device.new_stream().unwrap();
        (0..2000).for_each(|_| stream.copy(from, to).unwrap());
    };
    std::thread::scope(|scope| {
        scope.spawn(|| copy_often(&a, &b));
        scope.spawn(|| copy_often(&b, &a));
    });
}

#[test]
fn nothing_waits_inside_of_a_capture() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    let buffer = device.alloc_zeroed::<u8>(4).unwrap();
    let error = stream
        .capture::<DeviceError>(|stream| buffer.to_vec(stream).map(drop))
        .err()
        .expect("a capture that waits fails")
        .to_string();
    assert_eq!(error, "copy to the host: not while the stream is being captured into a graph");
}
