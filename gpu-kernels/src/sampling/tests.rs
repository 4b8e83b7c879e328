use std::string::String;
use std::vec::Vec;

use half::bf16;

use super::SamplingRule;
use super::contract::SamplingShape;
use super::device::*;
use super::philox::philox;
use super::reference::{Logits, cases, check, check_argmax, choose, logits, rules};
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

/// Tokens and logprobs of one launch by rules.
macro_rules! choose {
    ($entry:ident, $device:expr, $shape:expr, $logits:expr, $rules:expr) => {{
        let shape: SamplingShape = $shape;
        let logits = DeviceMemory::from_slice($logits);
        let rules = DeviceMemory::<SamplingRule>::from_slice($rules);
        let token_ids = DeviceMemory::<i32>::poisoned(shape.batch as usize);
        let logprobs = DeviceMemory::<f32>::poisoned(shape.batch as usize);
        let kernel = $entry {
            logits: logits.view(),
            vocab_size: shape.vocab_size,
            rules: rules.view(),
            token_ids: token_ids.view_mut(),
            logprobs: logprobs.view_mut(),
        };
        $device.launch(shape.row_dims(), kernel);
        (token_ids.to_vec(), logprobs.to_vec())
    }};
}

#[test]
fn tokens_are_those_that_the_rules_draw() {
    for (shape, seed) in cases().into_iter().zip(1..) {
        for (kind, seed) in Logits::ALL.into_iter().zip(5 * seed..) {
            let (device, rules) = (TestDevice::seeded(seed), rules(shape.batch, seed));
            rules.iter().try_for_each(SamplingRule::check).unwrap();
            let logits = logits(&shape, kind, seed);
            let (ids, logprobs) = choose!(sampling_choose_row_f32, device, shape, &logits, &rules);
            check(&shape, &logits, &rules, &ids, &logprobs)
                .unwrap_or_else(|off| panic!("{shape:?}, {kind:?}, f32: {off}"));
            let halves: Vec<bf16> = logits.iter().map(|&x| bf16::from_f32(x)).collect();
            let rounded: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
            let (ids, logprobs) = choose!(sampling_choose_row_bf16, device, shape, &halves, &rules);
            check(&shape, &rounded, &rules, &ids, &logprobs)
                .unwrap_or_else(|off| panic!("{shape:?}, {kind:?}, bf16: {off}"));
        }
    }
}

/// Tokens and logprobs of one launch of several blocks per request.
macro_rules! choose_split {
    ($entry:ident, $device:expr, $shape:expr, $num_blocks:expr, $logits:expr, $rules:expr) => {{
        let shape: SamplingShape = $shape;
        let logits = DeviceMemory::from_slice($logits);
        let plan = shape.split($num_blocks, size_of_val(&$logits[0])).unwrap();
        let rules: Option<DeviceMemory<SamplingRule>> = $rules.map(DeviceMemory::from_slice);
        let token_ids = DeviceMemory::<i32>::poisoned(shape.batch as usize);
        let logprobs = DeviceMemory::<f32>::poisoned(shape.batch as usize);
        let arrived = DeviceMemory::from_slice(&std::vec![0u32; plan.arrived_elements()]);
        let candidates = DeviceMemory::<u64>::poisoned(plan.candidates_elements());
        let sums = DeviceMemory::<u64>::poisoned(plan.sums_elements());
        let histograms = DeviceMemory::<u32>::poisoned(plan.histograms_elements());
        let kernel = $entry {
            logits: logits.view(),
            rules: rules.as_ref().map_or(cuda_std::global::Global::null(), DeviceMemory::view),
            params: plan.params,
            arrived: arrived.view_mut(),
            candidates: candidates.view_mut(),
            sums: sums.view_mut(),
            histograms: histograms.view_mut(),
            token_ids: token_ids.view_mut(),
            logprobs: logprobs.view_mut(),
        };
        $device.launch(plan.dims(), kernel);
        assert!(arrived.to_vec().iter().all(|&count| count == 0), "the next launch finds {plan:?}");
        (token_ids.to_vec(), logprobs.to_vec())
    }};
}

#[test]
fn several_blocks_draw_what_the_rules_say() {
    // 12808 logits make four slices; six blocks are one group of four, or six of one.
    for (shape, seed) in cases().into_iter().zip(20..) {
        for (kind, seed) in Logits::ALL.into_iter().zip(7 * seed..) {
            let (device, rules) = (TestDevice::seeded(seed), rules(shape.batch, seed));
            let logits = logits(&shape, kind, seed);
            let some = Some(&rules[..]);
            let (ids, logprobs) =
                choose_split!(sampling_choose_split_f32, device, shape, 6, &logits, some);
            check(&shape, &logits, &rules, &ids, &logprobs)
                .unwrap_or_else(|off| panic!("{shape:?}, {kind:?}, f32: {off}"));
            let halves: Vec<bf16> = logits.iter().map(|&x| bf16::from_f32(x)).collect();
            let rounded: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
            let (ids, logprobs) =
                choose_split!(sampling_choose_split_bf16, device, shape, 20, &halves, some);
            check(&shape, &rounded, &rules, &ids, &logprobs)
                .unwrap_or_else(|off| panic!("{shape:?}, {kind:?}, bf16: {off}"));
        }
    }
}

#[test]
fn no_rules_take_the_most_likely_tokens() {
    let (shape, none) = (cases()[3], None::<&[SamplingRule]>);
    let logits = logits(&shape, Logits::Ties, 5);
    let device = TestDevice::seeded(3);
    let (ids, logprobs) = choose_split!(sampling_choose_split_f32, device, shape, 9, &logits, none);
    check_argmax(&shape, &logits, &ids, &logprobs).unwrap();
    let of_rows = argmax!(sampling_argmax_row_f32, device, shape, &logits);
    assert_eq!((ids, logprobs), of_rows, "both sum in the same fixed point");
}

#[test]
fn how_a_row_is_cut_changes_no_bit() {
    let shape = SamplingShape { batch: 3, vocab_size: 17_000 };
    let logits = logits(&shape, Logits::Spread, 12);
    for first in [0, 2, 5] {
        let rules = Some(&rules(9, 0)[first..first + 3]);
        let cut = |num_blocks| {
            let device = TestDevice::ascending();
            choose_split!(sampling_choose_split_f32, device, shape, num_blocks, &logits, rules)
        };
        let whole = cut(1);
        for num_blocks in [6, 15] {
            assert_eq!(cut(num_blocks), whole, "{num_blocks} blocks, rules from {first} on");
        }
    }
}

#[test]
fn rows_are_cut_by_what_runs_at_once() {
    let plan = |batch, vocab_size, num_blocks, logit_bytes| {
        let split = SamplingShape { batch, vocab_size }.split(num_blocks, logit_bytes)?;
        let params = split.params;
        Some((params.num_slices, params.slice_len, split.num_groups))
    };
    assert_eq!(plan(32, 151_936, 132, 4), Some((4, 37_984, 32)));
    assert_eq!(plan(64, 151_936, 132, 4), Some((3, 50_648, 44)));
    assert_eq!(plan(64, 151_936, 132, 2), Some((2, 75_968, 64)));
    assert_eq!(plan(1, 151_936, 132, 2), Some((8, 18_992, 1)));
    assert_eq!(plan(1, 1000, 132, 2), Some((1, 1000, 1)));
    assert_eq!(plan(1, 1 << 20, 132, 4), None);
    assert_eq!(plan(1, 151_936, 2, 4), None);
}

#[test]
fn a_choice_depends_on_its_row_and_rule_alone() {
    let shape = SamplingShape { batch: 9, vocab_size: 1000 };
    let (logits, rules) = (logits(&shape, Logits::Spread, 3), rules(9, 0));
    let (ids, logprobs) =
        choose!(sampling_choose_row_f32, TestDevice::seeded(1), shape, &logits, &rules);
    let one = SamplingShape { batch: 1, ..shape };
    for (b, row) in logits.chunks(1000).enumerate() {
        let alone =
            choose!(sampling_choose_row_f32, TestDevice::seeded(2), one, row, &rules[b..=b]);
        assert_eq!(alone.0, [ids[b]]);
        assert_eq!(alone.1[0].to_bits(), logprobs[b].to_bits());
    }
}

#[test]
fn another_position_seed_or_limit_does_not_pass() {
    let shape = SamplingShape { batch: 5, vocab_size: 1000 };
    let logits = logits(&shape, Logits::Spread, 8);
    let rule = SamplingRule { seed: 3, position: 4, top_k: 30, temperature: 2.0, top_p: 0.9 };
    let device = TestDevice::ascending();
    let chosen =
        |rule: SamplingRule| choose!(sampling_choose_row_f32, device, shape, &logits, &[rule; 5]);
    let (ids, logprobs) = chosen(rule);
    let verdict = |rule| check(&shape, &logits, &[rule; 5], &ids, &logprobs);
    verdict(rule).unwrap();
    assert!(verdict(SamplingRule { position: 5, ..rule }).is_err());
    assert!(verdict(SamplingRule { seed: 4, ..rule }).is_err());
    assert!(verdict(SamplingRule { temperature: 0.0, ..rule }).is_err());
    let (ids, logprobs) = chosen(SamplingRule { temperature: 20.0, top_k: 0, top_p: 1.0, ..rule });
    let error = check(&shape, &logits, &[rule; 5], &ids, &logprobs).unwrap_err();
    assert!(error.contains("not kept"), "{error}");
}

#[test]
fn random_words_are_those_that_were_published() {
    let bits = u32::MAX;
    assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(philox([bits; 4], [bits; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
    let words = philox(counter, [0xa409_3822, 0x299f_31d0]);
    assert_eq!(words, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
}

#[test]
fn draws_have_their_probabilities() {
    // 32 tokens of which 16 come in pairs of equals; top_p keeps those above the last of them.
    let row: Vec<f32> = (0..32).map(|token| -0.25 * (token / 2) as f32).collect();
    let num_draws = 40_000;
    for (top_k, top_p) in [(0, 1.0), (10, 1.0), (0, 0.8), (20, 0.9)] {
        let mut counts = [0u32; 32];
        for position in 0..num_draws {
            let rule = SamplingRule { seed: 11, position, top_k, temperature: 0.8, top_p };
            counts[choose(&row, &rule) as usize] += 1;
        }
        let weight = |token: usize| (f64::from(row[token]) / 0.8).exp();
        let mut kept = if top_k == 0 { 32 } else { top_k as usize };
        let of_k: f64 = (0..kept).map(weight).sum();
        if top_p < 1.0 {
            let sum = |num: usize| (0..num).map(weight).sum::<f64>();
            kept = (1..=kept).find(|&num| sum(num) >= f64::from(top_p) * of_k).unwrap();
            // Both of a pair.
            kept += kept % 2;
        }
        let total: f64 = (0..kept).map(weight).sum();
        let mut chi_squared = 0.0;
        for (token, &count) in counts.iter().enumerate() {
            if token >= kept {
                assert_eq!(count, 0, "token {token} is drawn under {top_k}, {top_p}");
                continue;
            }
            let expected = f64::from(num_draws) * weight(token) / total;
            chi_squared += (f64::from(count) - expected).powi(2) / expected;
        }
        // The mean is kept - 1; so far off is one in a hundred thousand.
        let limit = kept as f64 + 6.0 * (2.0 * kept as f64).sqrt();
        assert!(chi_squared < limit, "{chi_squared} for {kept} tokens under {top_k}, {top_p}");
    }
}

#[test]
fn rules_that_choose_nothing_are_refused_in_words() {
    let wrong = [
        SamplingRule { temperature: -1.0, ..SamplingRule::GREEDY },
        SamplingRule { temperature: f32::NAN, ..SamplingRule::GREEDY },
        SamplingRule { top_p: 0.0, ..SamplingRule::GREEDY },
        SamplingRule { top_p: 1.5, ..SamplingRule::GREEDY },
    ];
    let text: String = wrong.map(|rule| std::format!("{}\n", rule.check().unwrap_err())).concat();
    insta::assert_snapshot!(text, @"
    `temperature` must be 0 or a positive number, got -1
    `temperature` must be 0 or a positive number, got NaN
    `top_p` must be above 0 and at most 1, got 0
    `top_p` must be above 0 and at most 1, got 1.5
    ");
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
