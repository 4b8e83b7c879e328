use std::string::String;
use std::vec::Vec;

use half::bf16;

use super::contract::SeededValuesShape;
use super::device::seeded_values_fill_bf16;
use super::reference::{cases, fill};
use super::value;
use crate::testing::{DeviceMemory, TestDevice, digest};

const KEY: u64 = 0x1234_5678_9abc_def0;

fn filled(shape: &SeededValuesShape, reach: f32) -> Vec<bf16> {
    shape.check().unwrap();
    let out = DeviceMemory::<bf16>::poisoned(shape.out_elements());
    let kernel = seeded_values_fill_bf16 { out: out.view_mut(), params: shape.params(KEY, reach) };
    TestDevice::seeded(3).launch(shape.dims(), kernel);
    let mut out = out.written();
    assert!(out.drain(..shape.first_out).all(|element| element.is_none()), "{shape:?}");
    out.into_iter().map(|element| element.expect("it was made")).collect()
}

#[test]
fn every_case_is_the_oracle() {
    for shape in cases() {
        for reach in [0.027, 1.75] {
            let got = filled(&shape, reach);
            assert!(got == fill(&shape, KEY, reach), "{shape:?}");
            assert!(got != fill(&shape, KEY + 4, reach), "{shape:?}: another key passes");
        }
    }
}

#[test]
fn a_part_is_a_part_of_the_whole() {
    let part = cases()[2];
    let whole = SeededValuesShape {
        first_row: 0,
        num_rows: part.first_row + part.num_rows,
        first_column: 0,
        num_columns: part.row_len,
        ..part
    };
    let whole = filled(&whole, 1.0);
    let rows = whole.chunks(part.row_len as usize).skip(part.first_row as usize);
    let columns = part.first_column as usize..(part.first_column + part.num_columns) as usize;
    let cut: Vec<bf16> = rows.flat_map(|row| row[columns.clone()].to_vec()).collect();
    assert!(filled(&part, 1.0) == cut);
}

#[test]
fn values_are_evenly_spread_and_stay_as_they_are() {
    let values: Vec<bf16> =
        (0..40_000).map(|element| bf16::from_f32(value(KEY, element, 2.0))).collect();
    let (mut sum, mut squares) = (0.0, 0.0);
    for value in &values {
        let value = value.to_f64();
        assert!(value.abs() <= 2.0);
        sum += value;
        squares += value * value;
    }
    let (mean, square) = (sum / 40_000.0, squares / 40_000.0);
    assert!(mean.abs() < 0.02 && (square - 4.0 / 3.0).abs() < 0.02, "{mean}, {square}");
    let bits: Vec<u32> = values.iter().map(|value| u32::from(value.to_bits())).collect();
    insta::assert_snapshot!(std::format_args!("{:016x}", digest(&bits)), @"58331ee6add67901");
}

#[test]
fn wrong_sizes_are_refused_in_words() {
    let good = cases()[2];
    let wrong = [
        SeededValuesShape { row_len: 60, ..good },
        SeededValuesShape { first_column: 4, ..good },
        SeededValuesShape { num_columns: 12, ..good },
        SeededValuesShape { num_columns: 0, ..good },
        SeededValuesShape { first_column: 56, ..good },
        SeededValuesShape { num_rows: u32::MAX, ..good },
        SeededValuesShape { first_out: 4, ..good },
        SeededValuesShape { first_row: u32::MAX - 5, ..good },
        SeededValuesShape { first_out: usize::MAX - 7, ..good },
    ];
    let text: String = wrong.map(|shape| std::format!("{}\n", shape.check().unwrap_err())).concat();
    insta::assert_snapshot!(text, @"
    `row_len` must be a multiple of 8, got 60
    `first_column` must be a multiple of 8, got 4
    `num_columns` must be a multiple of 8, got 12
    `num_columns` must be at least 1, got 0
    `num_columns` must be such that they end within a row of 64, got 16 from 56 on
    `num_rows` must be such that num_rows * num_columns / 8 is at most 2147483647, got 4294967295
    `first_out` must be a multiple of 8, got 4
    `num_rows` must be such that they end at row 4294967295 of the tensor, got 7 from 4294967290 on
    `first_out` must be such that the last element that is made has a place behind it, got 18446744073709551608
    ");
}
