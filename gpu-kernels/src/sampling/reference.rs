//! The oracle, and the shapes that tests and benches share.

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::contract::SamplingShape;
use super::philox::token_words;
use super::{NO_TOKEN, NUM_STEPS, STEPS_PER_OCTAVE, SamplingRule};

/// How far a logarithm of a probability may be from the oracle's, times 1 plus its magnitude.
pub const TOLERANCE: f64 = 1e-5;

/// How far the score of a token may be from the oracle's, in octaves.
const SCORE_TOLERANCE: f64 = 1e-4;
/// How far the mass that top_p keeps may be from it.
const MASS_TOLERANCE: f64 = 1e-4;

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

/// Rules of every kind: greedy, temperatures, each limit alone, both, limits that keep one token or
/// all.
pub fn rules(batch: u32, seed: u64) -> Vec<SamplingRule> {
    let kinds = [
        (1.0, 0, 1.0),
        (0.0, 5, 0.5),
        (0.7, 0, 0.9),
        (1.3, 40, 1.0),
        (1.0, 20, 0.8),
        (0.5, 1, 1.0),
        (2.0, 0, 1e-6),
        (0.01, 3, 0.999),
        (1.0, 1 << 20, 0.999_999),
    ];
    let rule = |b: u32| {
        let (temperature, top_k, top_p) = kinds[(seed as usize + b as usize) % kinds.len()];
        let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(b / 2));
        SamplingRule { seed, position: 1000 * b + 7, top_k, temperature, top_p }
    };
    (0..batch).map(rule).collect()
}

/// A row, a rule, and what follows in f64.
struct Draw<'a> {
    rule: &'a SamplingRule,
    /// How many octaves a token is less likely than the most likely one.
    distances: Vec<f64>,
}

impl Draw<'_> {
    /// Whether a token must be kept, and whether it may be.
    fn kept(&self) -> Vec<(bool, bool)> {
        let rule = self.rule;
        let mut kept: Vec<(bool, bool)> = self.distances.iter().map(|_| (true, true)).collect();
        let step = |distance: f64| 2.0 / f64::from(STEPS_PER_OCTAVE) + 1e-6 * distance;
        let end = f64::from(NUM_STEPS / STEPS_PER_OCTAVE);
        let limit = |kept: &mut [(bool, bool)], must_to: f64, may_to: f64| {
            for (&distance, kept) in self.distances.iter().zip(kept) {
                kept.0 &= distance <= must_to.min(end - step(end));
                kept.1 &= distance <= may_to.min(end + step(end));
            }
        };
        let mut sorted = self.distances.clone();
        sorted.sort_by(f64::total_cmp);
        if rule.top_k > 0 {
            let last = sorted.get(rule.top_k as usize - 1).copied().unwrap_or(f64::INFINITY);
            limit(&mut kept, last, last + step(last));
        }
        if rule.top_p < 1.0 {
            let num_kept = kept.iter().filter(|kept| kept.1).count();
            sorted.truncate(num_kept);
            let total: f64 = sorted.iter().map(|distance| (-distance).exp2()).sum();
            let part = |off: f64| (f64::from(rule.top_p) + off) * total;
            // The mass of what is surely more likely than a token, and of what may be.
            let (mut must_to, mut may_to) = (0.0, 0.0);
            let (mut more, mut surely_more, mut surely) = (0.0, 0.0, 0);
            for &distance in &sorted {
                while sorted[surely] < distance - step(distance) {
                    surely_more += (-sorted[surely]).exp2();
                    surely += 1;
                }
                if more < part(-MASS_TOLERANCE) {
                    must_to = distance;
                }
                if surely_more < part(MASS_TOLERANCE) {
                    may_to = distance;
                }
                more += (-distance).exp2();
            }
            limit(&mut kept, must_to, may_to + step(may_to));
        }
        kept
    }

    /// What decides between tokens.
    fn scores(&self) -> Vec<f64> {
        let score = |(token, distance): (usize, &f64)| {
            let words = token_words(self.rule.seed, self.rule.position, token as u32 / 4);
            let uniform = (f64::from(words[token % 4]) + 0.5) / 4_294_967_296.0;
            -(-(-uniform).ln_1p()).log2() - distance
        };
        self.distances.iter().enumerate().map(score).collect()
    }
}

fn is_greedy(rule: &SamplingRule) -> bool {
    rule.temperature == 0.0 || rule.top_k == 1
}

fn draw<'a>(logits: &[f64], maximum: f64, rule: &'a SamplingRule) -> Draw<'a> {
    let octaves = std::f64::consts::LOG2_E / f64::from(rule.temperature);
    Draw { rule, distances: logits.iter().map(|logit| (maximum - logit) * octaves).collect() }
}

/// The token of a row by a rule, in f64.
pub fn choose(row: &[f32], rule: &SamplingRule) -> i32 {
    let (best, _) = argmax(row);
    if best == NO_TOKEN || is_greedy(rule) {
        return best;
    }
    let logits: Vec<f64> = row.iter().map(|&logit| clean(logit)).collect();
    let draw = draw(&logits, logits[best as usize], rule);
    let scores = draw.scores();
    let kept = draw.kept();
    let candidates = (0..row.len()).filter(|&token| kept[token].0);
    let best = candidates.max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    best.map_or(NO_TOKEN, |token| token as i32)
}

/// Refuses a token that the rule does not choose, and a logarithm of its probability that is off.
fn check_token(row: &[f32], rule: &SamplingRule, token: i32, logprob: f32) -> Result<(), String> {
    let (best, log_best) = argmax(row);
    let logits: Vec<f64> = row.iter().map(|&logit| clean(logit)).collect();
    if best == NO_TOKEN || is_greedy(rule) {
        if token != best {
            return Err(format!("has token {token}, not {best}"));
        }
    } else {
        let draw = draw(&logits, logits[best as usize], rule);
        let (kept, scores) = (draw.kept(), draw.scores());
        let Some(&(_, true)) = usize::try_from(token).ok().and_then(|token| kept.get(token)) else {
            return Err(format!("has token {token}, which is not kept by {rule:?}"));
        };
        let score = scores[token as usize];
        let better = (0..row.len()).find(|&i| kept[i].0 && scores[i] > score + SCORE_TOLERANCE);
        if let Some(better) = better {
            return Err(format!("has token {token}, where {rule:?} draws {better}"));
        }
    }
    let want = match token {
        NO_TOKEN => log_best,
        token => logits[token as usize] - logits[best as usize] + log_best,
    };
    let got = f64::from(logprob);
    let is_close = got == want || (got - want).abs() <= TOLERANCE * (1.0 + want.abs());
    match is_close {
        true => Ok(()),
        false => Err(format!("has logprob {got}, the oracle has {want}")),
    }
}

/// Refuses tokens that the rules do not choose (of equals the lowest id, where it is the most likely
/// one that is asked for), and logarithms of probabilities that are off.
///
/// # Errors
/// The first request that is wrong.
pub fn check(
    shape: &SamplingShape,
    logits: &[f32],
    rules: &[SamplingRule],
    token_ids: &[i32],
    logprobs: &[f32],
) -> Result<(), String> {
    let batch = shape.batch as usize;
    if (token_ids.len(), logprobs.len(), rules.len()) != (batch, batch, batch) {
        return Err(format!("{} tokens and {} logprobs", token_ids.len(), logprobs.len()));
    }
    for (b, row) in logits.chunks(shape.vocab_size as usize).enumerate() {
        check_token(row, &rules[b], token_ids[b], logprobs[b])
            .map_err(|off| format!("request {b} {off}"))?;
    }
    Ok(())
}

/// [`check`] for the most likely tokens.
///
/// # Errors
/// As there.
pub fn check_argmax(
    shape: &SamplingShape,
    logits: &[f32],
    token_ids: &[i32],
    logprobs: &[f32],
) -> Result<(), String> {
    let rules = vec![SamplingRule::GREEDY; shape.batch as usize];
    check(shape, logits, &rules, token_ids, logprobs)
}
