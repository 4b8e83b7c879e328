//! The oracle.

use std::vec::Vec;

use half::bf16;

use super::contract::SeededValuesShape;
use super::value;

/// What is made, without what `out` holds before it.
pub fn fill(shape: &SeededValuesShape, key: u64, reach: f32) -> Vec<bf16> {
    let row_len = u64::from(shape.row_len);
    let element = |row: u32, column: u32| {
        u64::from(shape.first_row + row) * row_len + u64::from(shape.first_column + column)
    };
    let row = |row| {
        (0..shape.num_columns)
            .map(move |column| bf16::from_f32(value(key, element(row, column), reach)))
    };
    (0..shape.num_rows).flat_map(row).collect()
}

/// Parts that tests make: a word, a whole tensor, columns and rows out of the middle, uneven blocks,
/// rows whose elements are counted beyond 32 bits.
pub fn cases() -> [SeededValuesShape; 6] {
    [
        (8, 0, 1, 0, 8, 0),
        (64, 0, 5, 0, 64, 16),
        (64, 3, 7, 8, 16, 0),
        (4104, 1, 9, 0, 4104, 8),
        (128, 2, 257, 120, 8, 0),
        (1 << 30, 4, 6, 24, 8, 0),
    ]
    .map(|(row_len, first_row, num_rows, first_column, num_columns, first_out)| {
        SeededValuesShape { row_len, first_row, num_rows, first_column, num_columns, first_out }
    })
}
