use std::collections::HashSet;
use std::vec::Vec;

use super::content;
use super::contract::MemoryWriteShape;
use super::device::{memory_write_16, memory_write_check_16};
use super::reference::{cases, words};
use crate::testing::{DeviceMemory, TestDevice, digest};

fn write(device: &TestDevice, shape: MemoryWriteShape, seed: u64) -> Vec<u32> {
    shape.check().unwrap();
    let target = DeviceMemory::<u32>::poisoned(shape.target_elements());
    let num_pieces = shape.num_pieces();
    device.launch(shape.dims(), memory_write_16 { target: target.view_mut(), num_pieces, seed });
    target.to_vec()
}

fn num_wrong(shape: MemoryWriteShape, target: &[u32], seed: u64) -> u32 {
    let target = DeviceMemory::from_slice(target);
    let num_wrong = DeviceMemory::<u32>::poisoned(shape.num_threads());
    let kernel = memory_write_check_16 {
        target: target.view(),
        num_pieces: shape.num_pieces(),
        seed,
        num_wrong: num_wrong.view_mut(),
    };
    TestDevice::seeded(3).launch(shape.dims(), kernel);
    num_wrong.to_vec().iter().sum()
}

#[test]
fn every_piece_is_written() {
    for shape in cases() {
        let written = write(&TestDevice::seeded(5), shape, 77);
        assert!(written == words(77, &shape), "{shape:?}");
        assert_eq!(num_wrong(shape, &written, 77), 0, "{shape:?}");
    }
}

#[test]
fn a_stale_a_damaged_and_a_misplaced_piece_are_counted() {
    let shape = cases()[5];
    let written = words(1, &shape);
    assert_eq!(u64::from(num_wrong(shape, &written, 2)), shape.num_pieces(), "of another seed");
    let last = written.len() - 1;
    for word in [0, 1, 2, 3, last] {
        let mut damaged = written.clone();
        damaged[word] ^= 1 << (word % 32);
        assert_eq!(num_wrong(shape, &damaged, 1), 1, "word {word}");
    }
    let mut swapped = written.clone();
    swapped.copy_within(0..4, 4 * 30_000);
    assert_eq!(num_wrong(shape, &swapped, 1), 1);
}

#[test]
fn pieces_differ_and_stay_as_they_are() {
    let pieces = |seed| (0..10_000).map(move |piece| content(seed, piece));
    let distinct: HashSet<[u32; 4]> = pieces(0).chain(pieces(1)).collect();
    assert_eq!(distinct.len(), 20_000);
    let content: Vec<u32> = pieces(1).flatten().collect();
    insta::assert_snapshot!(format_args!("{:016x}", digest(&content)), @"192526c1de28ebb5");
}

#[test]
fn odd_sizes_are_refused() {
    let error = MemoryWriteShape { num_bytes: 24, num_blocks: 1 }.check().unwrap_err();
    insta::assert_snapshot!(error, @"`num_bytes` must be a multiple of 16, got 24");
    let error = MemoryWriteShape { num_bytes: 16, num_blocks: 0 }.check().unwrap_err();
    insta::assert_snapshot!(error, @"`num_blocks` must be 1 to 4194303, got 0");
    assert!(MemoryWriteShape { num_bytes: 16, num_blocks: 1 << 22 }.check().is_err());
}
