//! What a fill must be like, and what it does.

use std::format;

use super::{NUM_THREADS, SeededValuesParams, WORD};
use crate::contract::{ContractError, LaunchDims, Work, require};

/// Which part of a tensor is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeededValuesShape {
    /// Elements of a row of the tensor.
    pub row_len: u32,
    /// The first row of the part.
    pub first_row: u32,
    /// Its rows; may be 0.
    pub num_rows: u32,
    /// The first column of the part.
    pub first_column: u32,
    /// Its columns.
    pub num_columns: u32,
    /// The element of `out` that its first one goes to.
    pub first_out: usize,
}

impl SeededValuesShape {
    /// Refuses what the kernel does not take. With an `out` of the length told here, no thread of a
    /// launch with [these](Self::dims) dims then reaches out of bounds.
    pub fn check(&self) -> Result<(), ContractError> {
        let Self { row_len, first_row, num_rows, first_column, num_columns, first_out } = *self;
        for (argument, len) in [
            ("row_len", row_len as usize),
            ("first_column", first_column as usize),
            ("num_columns", num_columns as usize),
            ("first_out", first_out),
        ] {
            let needed = format!("a multiple of {WORD}");
            require(len.is_multiple_of(WORD as usize), argument, needed, len)?;
        }
        require(num_columns > 0, "num_columns", "at least 1", num_columns)?;
        require(
            first_column.checked_add(num_columns).is_some_and(|end| end <= row_len),
            "num_columns",
            format!("such that they end within a row of {row_len}"),
            format!("{num_columns} from {first_column} on"),
        )?;
        require(
            u64::from(num_rows) * u64::from(num_columns / WORD) <= i32::MAX as u64,
            "num_rows",
            format!("such that num_rows * num_columns / {WORD} is at most {}", i32::MAX),
            num_rows,
        )?;
        require(
            first_row.checked_add(num_rows).is_some(),
            "num_rows",
            format!("such that they end at row {} of the tensor", u32::MAX),
            format!("{num_rows} from {first_row} on"),
        )?;
        require(
            first_out.checked_add(self.num_elements()).is_some(),
            "first_out",
            "such that the last element that is made has a place behind it",
            first_out,
        )
    }

    /// The sizes that the kernel takes.
    pub fn params(&self, key: u64, reach: f32) -> SeededValuesParams {
        let Self { row_len, first_row, num_rows, first_column, num_columns, first_out } = *self;
        let first_element = u64::from(first_row) * u64::from(row_len) + u64::from(first_column);
        SeededValuesParams {
            key,
            first_element,
            first_out: first_out as u64,
            row_len,
            num_columns,
            num_rows,
            reach,
        }
    }

    /// Elements that are made.
    pub fn num_elements(&self) -> usize {
        self.num_rows as usize * self.num_columns as usize
    }

    /// Elements that `out` has at least.
    pub fn out_elements(&self) -> usize {
        self.first_out + self.num_elements()
    }

    /// The launch.
    pub fn dims(&self) -> LaunchDims {
        let num_words = self.num_rows * (self.num_columns / WORD);
        LaunchDims {
            grid: [num_words.div_ceil(NUM_THREADS), 1, 1],
            block: [NUM_THREADS, 1, 1],
            shared_bytes: 0,
        }
    }

    /// What it does.
    pub fn work(&self) -> Work {
        Work { read_bytes: 0, written_bytes: 2 * self.num_elements() as u64, flops: 0 }
    }
}
