//! The kernels that measure ceilings, through their launchers, on the CPU device and on GPUs.

use farpage::device::{Buffer, Device, Stream};
use farpage::kernels::memory_write::MemoryWrite;
use farpage::kernels::tensor_peak::TensorPeak;
use gpu_kernels::memory_write::contract::MemoryWriteShape;
use gpu_kernels::memory_write::reference;
use gpu_kernels::tensor_peak::NUM_STEPS;
use gpu_kernels::tensor_peak::contract::TensorPeakShape;
use gpu_kernels::tensor_peak::contract::TensorPeakVariant::{self, Mma};
use gpu_kernels::tensor_peak::reference::{MAX_RELATIVE_ERROR, cases};

/// A piece that no write leaves there.
const POISON: u8 = 0xff;

/// Writes the memory of `owner` from the device of `stream`, and compares all of it.
fn check_writes(stream: &Stream, owner: &Device, shapes: &[MemoryWriteShape]) {
    for shape in shapes {
        let seed = fastrand::u64(..);
        let target = owner.alloc::<u32>(shape.target_elements()).unwrap();
        let owner_stream = owner.new_stream().unwrap();
        owner_stream.fill_bytes(&target, POISON).unwrap();
        owner_stream.synchronize().unwrap();

        let write = MemoryWrite::with_num_blocks(stream, &target, shape.num_blocks).unwrap();
        assert_eq!(write.num_bytes(), shape.num_bytes);
        assert_eq!(write.num_wrong_pieces(stream, seed).unwrap(), shape.num_pieces());
        write.run(stream, seed).unwrap();
        assert_eq!(write.num_wrong_pieces(stream, seed).unwrap(), 0, "{shape:?}, seed {seed}");
        let written = target.to_vec(&owner_stream).unwrap();
        assert!(written == reference::words(seed, shape), "{shape:?}, seed {seed}");
    }
}

#[test]
fn writes_equal_their_reference_on_the_cpu() {
    let device = Device::cpu();
    check_writes(&device.new_stream().unwrap(), &device, &reference::cases());
}

#[test]
fn a_buffer_of_odd_words_is_refused() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    let target = Buffer::from_slice(&stream, &[0_u32; 6]).unwrap();
    let error = MemoryWrite::new(&stream, &target).err().unwrap();
    insta::assert_snapshot!(error, @"`num_bytes` must be a multiple of 16, got 24");
}

/// Launchers and buffers go; the graphs still have what their kernels use.
#[test]
fn a_graph_keeps_what_is_written_and_multiplied() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    let graph_of_writes = {
        let target = device.alloc::<u32>(1 << 10).unwrap();
        let write = MemoryWrite::with_num_blocks(&stream, &target, 2).unwrap();
        stream.capture(|stream| write.run(stream, 1)).unwrap()
    };
    let graph_of_products = {
        let shape = TensorPeakShape { variant: Mma, num_blocks: 1, num_steps: 1 };
        let peak = TensorPeak::new(&stream, shape, 1).unwrap();
        stream.capture(|stream| peak.run(stream)).unwrap()
    };
    graph_of_writes.launch(&stream).unwrap();
    graph_of_products.launch(&stream).unwrap();
}

/// All blocks that a GPU holds at once, and the few that overlap with other work.
fn large_writes() -> [MemoryWriteShape; 2] {
    [132, 8].map(|num_blocks| MemoryWriteShape { num_bytes: 16 * 12_345_678, num_blocks })
}

#[test]
#[ignore = "needs 1 GPU"]
fn writes_equal_their_reference_on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    let stream = device.new_stream().unwrap();
    check_writes(&stream, &device, &reference::cases());
    check_writes(&stream, &device, &large_writes());
}

#[test]
#[ignore = "needs 1 GPU"]
fn writes_beyond_64_gib_reach_their_place() {
    let device = Device::cuda(0).unwrap();
    let stream = device.new_stream().unwrap();
    let target = device.alloc::<u32>((65 << 30) / 4).unwrap();
    let write = MemoryWrite::new(&stream, &target).unwrap();
    write.run(&stream, 5).unwrap();
    assert_eq!(write.num_wrong_pieces(&stream, 5).unwrap(), 0);
    let last = stream.download(target.slice(target.len() - 4..)).unwrap();
    assert_eq!(last, gpu_kernels::memory_write::content(5, (target.len() / 4 - 1) as u64));
}

#[test]
#[ignore = "needs 2 GPUs"]
fn writes_reach_the_memory_of_a_peer() {
    let (first, second) = (Device::cuda(0).unwrap(), Device::cuda(1).unwrap());
    for (writer, owner) in [(&first, &second), (&second, &first)] {
        writer.enable_peer_access(owner).unwrap();
        let stream = writer.new_stream().unwrap();
        check_writes(&stream, owner, &reference::cases());
        check_writes(&stream, owner, &large_writes());
    }
}

fn check_products(stream: &Stream, shapes: &[TensorPeakShape]) {
    for &shape in shapes {
        let seed = fastrand::u64(..);
        let peak = TensorPeak::new(stream, shape, seed).unwrap();
        assert_eq!(peak.flops(), shape.work().flops);
        peak.run(stream).unwrap();
        let error = peak.relative_error(stream).unwrap();
        assert!(error < MAX_RELATIVE_ERROR, "{shape:?}, seed {seed}: {error}");
        println!("{shape:?}: relative error {error:.1e}");
    }
}

#[test]
fn products_equal_their_reference_on_the_cpu() {
    check_products(&Device::cpu().new_stream().unwrap(), &cases());
}

#[test]
fn a_measurement_of_no_steps_is_refused() {
    let device = Device::cpu();
    let shape = TensorPeak::fastest_shape(&device, 0).unwrap();
    assert_eq!(shape.variant, TensorPeakVariant::Wgmma);
    let error = TensorPeak::new(&device.new_stream().unwrap(), shape, 0).err().unwrap();
    insta::assert_snapshot!(error, @"`num_steps` must be at least 1, got 0");
}

#[test]
#[ignore = "needs 1 GPU"]
fn products_equal_their_reference_on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    let fastest = TensorPeak::fastest_shape(&device, NUM_STEPS).unwrap();
    let portable = TensorPeakShape { variant: Mma, ..fastest };
    let runs_here = |shape: &TensorPeakShape| [fastest.variant, Mma].contains(&shape.variant);
    let shapes: Vec<TensorPeakShape> = cases().into_iter().filter(runs_here).collect();
    let stream = device.new_stream().unwrap();
    check_products(&stream, &shapes);
    check_products(&stream, &[fastest, portable]);
}
