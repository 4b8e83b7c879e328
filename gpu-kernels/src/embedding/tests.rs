use std::string::String;

use half::bf16;

use super::contract::EmbeddingShape;
use super::device::embedding_gather_bf16;
use super::reference::{cases, gather, inputs};
use crate::testing::{DeviceMemory, TestDevice};

#[test]
fn every_case_is_the_oracle() {
    for (shape, seed) in cases().into_iter().zip(1..) {
        shape.check().unwrap();
        let (table, row_ids) = inputs(&shape, seed);
        let table_memory = DeviceMemory::from_slice(&table);
        let id_memory = DeviceMemory::from_slice(&row_ids);
        let out = DeviceMemory::<bf16>::poisoned(shape.out_elements());
        let kernel = embedding_gather_bf16 {
            table: table_memory.view(),
            row_ids: id_memory.view(),
            params: shape.params(),
            out: out.view_mut(),
        };
        TestDevice::seeded(seed).launch(shape.dims(), kernel);
        let got = out.to_vec();
        assert!(got == gather(&shape, &table, &row_ids), "{shape:?}");
        if shape.num_ids > 1 {
            let mut other = row_ids.clone();
            other.rotate_left(1);
            assert!(got != gather(&shape, &table, &other), "{shape:?}: other rows pass");
        }
    }
}

#[test]
fn wrong_sizes_are_refused_in_words() {
    let good = cases()[1];
    let wrong = [
        EmbeddingShape { row_len: 0, ..good },
        EmbeddingShape { row_len: 12, ..good },
        EmbeddingShape { num_rows: 0, ..good },
        EmbeddingShape { num_ids: 1 << 30, ..good },
    ];
    let text: String = wrong.map(|shape| std::format!("{}\n", shape.check().unwrap_err())).concat();
    insta::assert_snapshot!(text, @"
    `row_len` must be a multiple of 8, got 0
    `row_len` must be a multiple of 8, got 12
    `num_rows` must be 1 to 2147483647, got 0
    `num_ids` must be such that num_ids * row_len / 8 is at most 2147483647, got 1073741824
    ");
}

#[test]
fn launches_and_work_follow_from_the_sizes() {
    let shape = EmbeddingShape { num_rows: 10, row_len: 24, num_ids: 43 };
    assert_eq!(shape.dims().grid, [2, 1, 1]);
    assert_eq!(shape.work().read_bytes, 2 * 43 * 24 + 4 * 43);
}
