//! The oracle.

use std::vec::Vec;

use super::content;
use super::contract::MemoryWriteShape;

/// What `target` holds after a write of this seed.
pub fn words(seed: u64, shape: &MemoryWriteShape) -> Vec<u32> {
    (0..shape.num_pieces()).flat_map(|piece| content(seed, piece)).collect()
}

/// Sizes that tests write: nothing, less than a thread's share, uneven shares, whole rounds, many.
pub fn cases() -> [MemoryWriteShape; 6] {
    [
        (0, 1),
        (16, 2),
        (16 * 1025, 3),
        (16 * 8 * 1024, 1),
        (16 * (2 * 8 * 1024 + 7 * 1024), 2),
        (16 * 50_001, 2),
    ]
    .map(|(num_bytes, num_blocks)| MemoryWriteShape { num_bytes, num_blocks })
}
