//! The oracle, and the shapes that tests and benches share.

use std::format;
use std::string::String;
use std::vec::Vec;

use super::NO_TOKEN;
use super::contract::SamplingShape;

/// How far a logarithm of a probability may be from the oracle's, times 1 plus its magnitude.
pub const TOLERANCE: f64 = 1e-5;

/// How logits are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// As those of a model: most tokens unlikely, a few not.
    Spread,
    /// Of eight values: the largest comes often.
    Ties,
    /// With rows of NaN and minus infinity, and elements of them and of infinity.
    Broken,
}

impl Logits {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Spread, Self::Ties, Self::Broken];
}

/// One piece, ragged threads, several pieces a thread, several requests.
pub fn cases() -> [SamplingShape; 4] {
    [(1, 8), (3, 1000), (2, 4104), (5, 12_808)]
        .map(|(batch, vocab_size)| SamplingShape { batch, vocab_size })
}

/// Random logits.
pub fn logits(shape: &SamplingShape, kind: Logits, seed: u64) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut logits = Vec::with_capacity(shape.logits_elements());
    for row in 0..shape.batch {
        // A sum of uniform numbers is nearly normal.
        let mut normal = || (0..4).map(|_| rng.f32() - 0.5).sum::<f32>() * 3.0;
        let of_row = (0..shape.vocab_size).map(|_| match kind {
            Logits::Spread | Logits::Broken => 3.0 * normal(),
            Logits::Ties => normal().round().clamp(-4.0, 3.0),
        });
        let start = logits.len();
        logits.extend(of_row);
        if kind == Logits::Broken {
            let row_logits = &mut logits[start..];
            match row % 4 {
                0 => row_logits.fill(f32::NAN),
                1 => row_logits.fill(f32::NEG_INFINITY),
                2 => row_logits[rng.usize(0..shape.vocab_size as usize)] = f32::INFINITY,
                _ => {}
            }
            for _ in 0..shape.vocab_size / 8 {
                let place = rng.usize(0..shape.vocab_size as usize);
                row_logits[place] = if rng.bool() { f32::NAN } else { f32::NEG_INFINITY };
            }
        }
    }
    logits
}

/// The logit as the choice counts it.
fn clean(logit: f32) -> f64 {
    f64::from(if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) })
}

/// The most likely token of a row, and the logarithm of its probability.
fn argmax(row: &[f32]) -> (i32, f64) {
    let logits: Vec<f64> = row.iter().map(|&logit| clean(logit)).collect();
    let maximum = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if maximum == f64::NEG_INFINITY {
        return (NO_TOKEN, maximum);
    }
    let token = logits.iter().position(|&logit| logit == maximum).expect("it is one of them");
    let sum: f64 = logits.iter().map(|logit| (logit - maximum).exp()).sum();
    (token as i32, -sum.ln())
}

/// Refuses tokens that are not the most likely ones, the lowest of equals, and logarithms of
/// probabilities that are off.
///
/// # Errors
/// The first request that is wrong.
pub fn check_argmax(
    shape: &SamplingShape,
    logits: &[f32],
    token_ids: &[i32],
    logprobs: &[f32],
) -> Result<(), String> {
    let batch = shape.batch as usize;
    if (token_ids.len(), logprobs.len()) != (batch, batch) {
        return Err(format!("{} tokens and {} logprobs", token_ids.len(), logprobs.len()));
    }
    for (b, row) in logits.chunks(shape.vocab_size as usize).enumerate() {
        let (token, want) = argmax(row);
        if token_ids[b] != token {
            return Err(format!("request {b} has token {}, not {token}", token_ids[b]));
        }
        let got = f64::from(logprobs[b]);
        let is_close = got == want || (got - want).abs() <= TOLERANCE * (1.0 + want.abs());
        if !is_close {
            return Err(format!("request {b} has logprob {got}, the oracle has {want}"));
        }
    }
    Ok(())
}
