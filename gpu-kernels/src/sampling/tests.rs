use std::string::String;
use std::vec::Vec;

use half::bf16;

use super::contract::SamplingShape;
use super::device::{sampling_argmax_row_bf16, sampling_argmax_row_f32};
use super::reference::{Logits, cases, check_argmax, logits};
use crate::testing::{DeviceMemory, TestDevice};

/// Tokens and logprobs of one launch.
macro_rules! argmax {
    ($entry:ident, $device:expr, $shape:expr, $logits:expr) => {{
        let shape: SamplingShape = $shape;
        shape.check().unwrap();
        let logits = DeviceMemory::from_slice($logits);
        let token_ids = DeviceMemory::<i32>::poisoned(shape.batch as usize);
        let logprobs = DeviceMemory::<f32>::poisoned(shape.batch as usize);
        let kernel = $entry {
            logits: logits.view(),
            vocab_size: shape.vocab_size,
            token_ids: token_ids.view_mut(),
            logprobs: logprobs.view_mut(),
        };
        $device.launch(shape.row_dims(), kernel);
        (token_ids.to_vec(), logprobs.to_vec())
    }};
}

#[test]
fn the_most_likely_token_is_the_oracles() {
    for (shape, seed) in cases().into_iter().zip(1..) {
        for kind in Logits::ALL {
            let device = TestDevice::seeded(seed);
            let logits = logits(&shape, kind, seed);
            let (ids, logprobs) = argmax!(sampling_argmax_row_f32, device, shape, &logits);
            check_argmax(&shape, &logits, &ids, &logprobs)
                .unwrap_or_else(|off| panic!("{shape:?}, {kind:?}, f32: {off}"));
            let halves: Vec<bf16> = logits.iter().map(|&x| bf16::from_f32(x)).collect();
            let rounded: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
            let (ids, logprobs) = argmax!(sampling_argmax_row_bf16, device, shape, &halves);
            check_argmax(&shape, &rounded, &ids, &logprobs)
                .unwrap_or_else(|off| panic!("{shape:?}, {kind:?}, bf16: {off}"));
        }
    }
}

#[test]
fn of_equal_logits_the_lowest_id_wins_in_any_lane_order() {
    let shape = SamplingShape { batch: 1, vocab_size: 8192 };
    let mut logits = std::vec![-1.0f32; 8192];
    for id in [8191, 4100, 77, 300] {
        logits[id] = 2.5;
        for device in TestDevice::lane_orders() {
            let (ids, _) = argmax!(sampling_argmax_row_f32, device, shape, &logits);
            let lowest = logits.iter().position(|&logit| logit == 2.5).unwrap();
            assert_eq!(ids, [lowest as i32]);
        }
    }
}

#[test]
fn another_token_or_logprob_does_not_pass() {
    let shape = cases()[1];
    let logits = logits(&shape, Logits::Spread, 3);
    let device = TestDevice::ascending();
    let (ids, logprobs) = argmax!(sampling_argmax_row_f32, device, shape, &logits);
    check_argmax(&shape, &logits, &ids, &logprobs).unwrap();
    let mut other = ids.clone();
    other[1] += 1;
    assert!(check_argmax(&shape, &logits, &other, &logprobs).is_err());
    let mut other = logprobs.clone();
    other[2] *= 1.001;
    assert!(check_argmax(&shape, &logits, &ids, &other).is_err());
    other[2] = f32::NAN;
    assert!(check_argmax(&shape, &logits, &ids, &other).is_err());
}

#[test]
fn wrong_sizes_are_refused_in_words() {
    let wrong = [
        SamplingShape { batch: 1, vocab_size: 0 },
        SamplingShape { batch: 1, vocab_size: 50_257 },
        SamplingShape { batch: 1 << 17, vocab_size: 8 },
    ];
    let text: String = wrong.map(|shape| std::format!("{}\n", shape.check().unwrap_err())).concat();
    insta::assert_snapshot!(text, @"
    `vocab_size` must be a multiple of 8 up to 1048576, got 0
    `vocab_size` must be a multiple of 8 up to 1048576, got 50257
    `batch` must be at most 65536, got 131072
    ");
}
