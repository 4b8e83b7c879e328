//! The simulated engine notices what a model would answer wrongly.

use super::*;
use crate::kv::Location;
use crate::model::engine::{EngineError, PageCopy, Sampled, Sampling};

fn local(slots: &[u32]) -> Vec<Location> {
    slots.iter().map(|&slot| Location { rank: 0, slot }).collect()
}

fn sequence(tokens: &[u32], num_cached_tokens: usize, slots: &[u32]) -> StepSequence {
    StepSequence {
        request: RequestId(u64::from(slots[0])),
        tokens: tokens.to_vec(),
        num_cached_tokens,
        pages: local(slots),
        sampling: Some(Sampling::GREEDY),
    }
}

fn engine() -> SimulatedEngine {
    SimulatedEngine::new(SMALL, &[16, 4], Clock::simulated())
}

fn token(engine: &mut SimulatedEngine, sequence: StepSequence) -> u32 {
    let sampled = engine.step(&Step { sequences: vec![sequence] }).unwrap();
    let [Sampled { token, .. }] = sampled[..] else { panic!("{sampled:?}") };
    token
}

/// Tokens of several steps: one alone could be the same by chance.
fn tokens(engine: &mut SimulatedEngine, num_cached: usize, slots: &[u32]) -> Vec<u32> {
    let mut last = 1;
    let next = |position| {
        last = token(engine, sequence(&[last], position, slots));
        last
    };
    (num_cached..num_cached + 3).map(next).collect()
}

#[test]
fn chunks_and_whole_prompts_give_the_same() {
    let prompt = prompt(3, 9);
    let (mut whole, mut chunks) = (engine(), engine());
    let want = token(&mut whole, sequence(&prompt, 0, &[5, 1, 9]));
    token(&mut chunks, sequence(&prompt[..3], 0, &[2]));
    token(&mut chunks, sequence(&prompt[3..8], 3, &[2, 7]));
    assert_eq!(token(&mut chunks, sequence(&prompt[8..], 8, &[2, 7, 0])), want);
    assert_eq!(tokens(&mut whole, 9, &[5, 1, 9]), tokens(&mut chunks, 9, &[2, 7, 0]));
}

#[test]
fn wrong_pages_and_wrong_counts_give_other_tokens() {
    let filled = || {
        let mut engine = engine();
        token(&mut engine, sequence(&prompt(3, 9), 0, &[0, 1, 2]));
        token(&mut engine, sequence(&prompt(4, 9), 0, &[3, 4, 5]));
        engine
    };
    let right = tokens(&mut filled(), 9, &[0, 1, 2]);
    for (what, num_cached, slots) in [
        ("swapped", 9, [1, 0, 2]),
        ("another's", 9, [0, 4, 2]),
        ("never written", 9, [6, 1, 2]),
        ("a count too small", 8, [0, 1, 2]),
    ] {
        assert_ne!(tokens(&mut filled(), num_cached, &slots), right, "{what}");
    }
}

#[test]
fn pages_move_between_tiers_and_engines_by_layer() {
    let (mut from, mut to) = (engine(), engine());
    token(&mut from, sequence(&prompt(3, 9), 0, &[0, 1, 2]));
    let far = Location { rank: 1, slot: 3 };
    let near = Location { rank: 0, slot: 8 };
    let pages = from.pages();
    pages.copy(&[PageCopy { source: local(&[1])[0], destination: far }]).unwrap();
    pages.copy(&[PageCopy { source: far, destination: near }]).unwrap();
    for layer in 0..SMALL.num_layers {
        let bytes = from.pages().export(layer, &local(&[0, 8, 2])).unwrap();
        assert_eq!(bytes.len(), 3 * from.limits().layer_page_bytes);
        to.pages().import(layer, &local(&[9, 3, 4]), &bytes).unwrap();
        assert!(to.pages().import(layer, &local(&[9]), &bytes).is_err());
    }
    assert_eq!(tokens(&mut from, 9, &[0, 8, 2]), tokens(&mut to, 9, &[9, 3, 4]));
    assert!(to.pages().export(0, &local(&[16])).is_err());
}

#[test]
fn steps_that_are_wrong_are_refused_before_anything_is_done() {
    let mut engine = engine();
    let mut refused = |sequences: Vec<StepSequence>| {
        let error = engine.step(&Step { sequences }).unwrap_err();
        assert_eq!(matches!(error, EngineError::Request { .. }), error.request().is_some());
        error.to_string()
    };
    assert_eq!(refused(vec![]), "step: sequences: needs 1 to 8, got 0");
    assert_eq!(refused(vec![sequence(&[], 4, &[0])]), "request 0: tokens: needs at least 1, got 0");
    assert_eq!(refused(vec![sequence(&[1], 4, &[0])]), "request 0: pages: needs 2, got 1");
    let unknown = sequence(&[1], 0, &[16]);
    assert_eq!(
        refused(vec![unknown]),
        "request 16: pages: needs slots that there are, got rank 0 slot 16"
    );
    let twice = refused(vec![sequence(&[1], 4, &[0, 2]), sequence(&[1], 4, &[1, 2])]);
    assert!(twice.starts_with("step: sequences: needs requests once, and pages"), "{twice}");
    let read = refused(vec![sequence(&[1], 4, &[0, 2]), sequence(&[1], 8, &[1, 2, 3])]);
    assert!(read.starts_with("step: pages: needs pages that one writes and nobody"), "{read}");
}

#[test]
fn layers_are_told_in_order_while_time_passes() {
    let clock = Clock::simulated();
    let mut engine = SimulatedEngine::new(SMALL, &[16, 4], clock.clone());
    let step = Step { sequences: vec![sequence(&prompt(1, 9), 0, &[0, 1, 2])] };
    let mut seen = Vec::new();
    let after_layer = &mut |layer, _: &mut dyn crate::model::engine::KvPages| {
        seen.push((layer, clock.now_us()));
        Ok(())
    };
    engine.step_by_layer(&step, after_layer).unwrap();
    let us = SMALL.step_us(&step);
    assert_eq!(seen, [(0, us / 2.0), (1, us)]);
    // 0.1 ms for the weights, 10 µs to start, and next to nothing for the KV.
    assert!((us - 110.0).abs() < 0.1, "{us}");
}
