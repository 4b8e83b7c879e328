//! The oracle, and the shapes that tests share.

use std::vec;
use std::vec::Vec;

use half::bf16;

use super::contract::EmbeddingShape;

/// One word, ragged blocks, rows longer than a block, more indices than rows.
pub fn cases() -> [EmbeddingShape; 4] {
    [(1, 8, 1), (10, 24, 33), (300, 2048, 5), (7, 64, 40)]
        .map(|(num_rows, row_len, num_ids)| EmbeddingShape { num_rows, row_len, num_ids })
}

/// A random table, and random indices of which every fourth is no row.
pub fn inputs(shape: &EmbeddingShape, seed: u64) -> (Vec<bf16>, Vec<i32>) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let table = (0..shape.table_elements()).map(|_| bf16::from_f32(rng.f32() - 0.5)).collect();
    let last = shape.num_rows as i32 - 1;
    let row_ids = (0..shape.num_ids)
        .map(|i| match i % 4 {
            3 => [-1, last + 1, i32::MIN, i32::MAX][rng.usize(0..4)],
            _ => rng.i32(0..=last),
        })
        .collect();
    (table, row_ids)
}

/// What `out` must be, bit by bit.
pub fn gather(shape: &EmbeddingShape, table: &[bf16], row_ids: &[i32]) -> Vec<bf16> {
    let row_len = shape.row_len as usize;
    let zeros = vec![bf16::ZERO; row_len];
    let row = |&id: &i32| match usize::try_from(id) {
        Ok(id) if id < shape.num_rows as usize => &table[id * row_len..][..row_len],
        _ => &zeros[..],
    };
    row_ids.iter().flat_map(row).copied().collect()
}
