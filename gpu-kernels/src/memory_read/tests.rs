use std::vec::Vec;

use super::contract::MemoryReadShape;
use super::device::memory_read_16;
use super::reference::{cases, fold};
use crate::testing::{DeviceMemory, TestDevice};

fn read(device: &TestDevice, shape: MemoryReadShape, source: &[u32]) -> Vec<u32> {
    shape.check().unwrap();
    let source = DeviceMemory::from_slice(source);
    let out = DeviceMemory::<u32>::poisoned(shape.out_elements());
    let kernel = memory_read_16 {
        source: source.view(),
        num_pieces: (shape.num_bytes / 16) as u64,
        out: out.view_mut(),
    };
    device.launch(shape.dims(), kernel);
    out.to_vec()
}

#[test]
fn every_word_is_read_once() {
    for shape in cases() {
        let mut rng = fastrand::Rng::with_seed(shape.num_bytes as u64);
        let source: Vec<u32> = (0..shape.source_elements()).map(|_| rng.u32(..)).collect();
        let out = read(&TestDevice::seeded(7), shape, &source);
        assert_eq!(fold(&out), fold(&source), "{shape:?}");
    }
}

#[test]
fn a_lost_word_shows() {
    let shape = cases()[1];
    let source = [0x1234_5678, 0, 0, 0];
    assert_ne!(fold(&read(&TestDevice::ascending(), shape, &source)), fold(&[0; 4]));
}

#[test]
fn odd_sizes_are_refused() {
    let error = MemoryReadShape { num_bytes: 24, num_blocks: 1 }.check().unwrap_err();
    insta::assert_snapshot!(error, @"`num_bytes` must be a multiple of 16, got 24");
    let error = MemoryReadShape { num_bytes: 16, num_blocks: 1 << 23 }.check().unwrap_err();
    insta::assert_snapshot!(error, @"`num_blocks` must be 1 to 8388607, got 8388608");
}
