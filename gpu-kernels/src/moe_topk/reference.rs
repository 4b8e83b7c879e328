//! The choice in f64, what any right answer must be like, and the cases that tests share.

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::Scoring;
use super::contract::{GroupLimit, TopkShape};

/// How far a score of the kernels, a sum of them, or a weight over the scaling factor may be from
/// the oracle's, times 1 plus the oracle's magnitude.
pub const TOLERANCE: f64 = 4e-6;

/// What the oracle knows of one token.
struct Token<'a> {
    shape: &'a TopkShape,
    logits: Vec<f64>,
    bias: &'a [f32],
    scores: Vec<f64>,
    /// What the choice goes by.
    choices: Vec<f64>,
}

/// The logit as the choice counts it.
fn clean(logit: f32) -> f64 {
    f64::from(if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) })
}

impl<'a> Token<'a> {
    fn new(shape: &'a TopkShape, row: &[f32], bias: &'a [f32]) -> Self {
        let logits: Vec<f64> = row.iter().map(|&logit| clean(logit)).collect();
        let scores: Vec<f64> = match shape.scoring {
            Scoring::SIGMOID => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
            _ => {
                let maximum = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let of = |x: &f64| if *x == f64::NEG_INFINITY { 0.0 } else { (x - maximum).exp() };
                let sum: f64 = logits.iter().map(of).sum();
                logits.iter().map(|x| if sum > 0.0 { of(x) / sum } else { 0.0 }).collect()
            }
        };
        let biased = |(e, score): (usize, &f64)| match score + f64::from(bias[e]) {
            choice if choice.is_nan() => f64::NEG_INFINITY,
            choice => choice,
        };
        let choices = match shape.has_bias {
            true => scores.iter().enumerate().map(biased).collect(),
            false => logits.clone(),
        };
        Self { shape, logits, bias, scores, choices }
    }

    /// Whether one choice, or a group's value, is surely better than another.
    fn is_better(better: f64, worse: f64) -> bool {
        better > worse && better - worse > TOLERANCE * (1.0 + worse.abs())
    }

    /// The same for two experts' choices, which without a bias are the logits, and exact.
    fn is_better_choice(&self, better: usize, worse: usize) -> bool {
        let (better, worse) = (self.choices[better], self.choices[worse]);
        if self.shape.has_bias { Self::is_better(better, worse) } else { better > worse }
    }

    fn group_of(&self, expert: usize) -> usize {
        let num_groups = self.shape.group_limit.map_or(1, |limit| limit.num_groups as usize);
        expert / (self.logits.len() / num_groups)
    }

    /// For each group: whether it may be kept, and whether it must be.
    fn groups(&self) -> Vec<(bool, bool)> {
        let Some(GroupLimit { num_groups, num_topk_groups }) = self.shape.group_limit else {
            return vec![(true, true)];
        };
        let value = |group: usize| {
            let of = if self.shape.has_bias { &self.choices } else { &self.scores };
            let experts = (0..self.logits.len()).filter(|&e| self.group_of(e) == group);
            let mut values: Vec<f64> = experts.map(|e| of[e]).collect();
            values.sort_by(|a, b| b.total_cmp(a));
            values.iter().take(2).sum::<f64>()
        };
        let values: Vec<f64> = (0..num_groups as usize).map(value).collect();
        let count = |is: &dyn Fn(f64) -> bool| values.iter().filter(|&&v| is(v)).count();
        let num_kept = num_topk_groups as usize;
        let verdict = |&value: &f64| {
            let num_better = count(&|other| Self::is_better(other, value));
            // Itself included.
            let num_not_worse = count(&|other| !Self::is_better(value, other));
            (num_better < num_kept, num_not_worse <= num_kept)
        };
        values.iter().map(verdict).collect()
    }

    fn is_same_input(&self, a: usize, b: usize) -> bool {
        let same_bias = !self.shape.has_bias || self.bias[a].to_bits() == self.bias[b].to_bits();
        self.logits[a] == self.logits[b] && same_bias && self.group_of(a) == self.group_of(b)
    }

    fn check_ids(&self, ids: &[usize]) -> Result<(), String> {
        let groups = self.groups();
        for (slot, &id) in ids.iter().enumerate() {
            let earlier = &ids[..slot];
            if id >= self.logits.len() {
                return Err(format!("slot {slot} has expert {id}, and there is none such"));
            }
            if earlier.contains(&id) {
                return Err(format!("slot {slot} repeats expert {id}"));
            }
            if !groups[self.group_of(id)].0 {
                return Err(format!("slot {slot} has expert {id}, whose group is not kept"));
            }
            let passed_over = (0..self.logits.len()).find(|&other| {
                let must = groups[self.group_of(other)].1 && self.is_better_choice(other, id);
                let ties_before = other < id && self.is_same_input(other, id);
                (must || ties_before) && !earlier.contains(&other)
            });
            if let Some(other) = passed_over {
                return Err(format!("slot {slot} has expert {id}, before it comes {other}"));
            }
        }
        let mut used: Vec<usize> = ids.iter().map(|&id| self.group_of(id)).collect();
        used.sort_unstable();
        used.dedup();
        let limit = self.shape.group_limit.map_or(1, |limit| limit.num_topk_groups as usize);
        if used.len() > limit {
            return Err(format!("its experts are of {} groups, {limit} are kept", used.len()));
        }
        Ok(())
    }

    /// Weights of these experts.
    fn weights(&self, ids: &[usize]) -> Vec<f64> {
        let sum: f64 = ids.iter().map(|&id| self.scores[id]).sum();
        let scale = match self.shape.renormalize {
            true if sum > 0.0 => 1.0 / sum,
            true => 0.0,
            false => 1.0,
        };
        let factor = f64::from(self.shape.routed_scaling_factor);
        ids.iter().map(|&id| self.scores[id] * scale * factor).collect()
    }

    fn check_weights(&self, ids: &[usize], weights: &[f32]) -> Result<(), String> {
        let factor = f64::from(self.shape.routed_scaling_factor).abs();
        for (slot, (&got, want)) in weights.iter().zip(self.weights(ids)).enumerate() {
            let allowed = TOLERANCE * (factor + want.abs());
            let is_close = (f64::from(got) - want).abs() <= allowed;
            if !is_close {
                return Err(format!("slot {slot} weighs {got}, the oracle has {want}"));
            }
        }
        Ok(())
    }
}

/// Scores of all tokens' experts. `[num_tokens, num_experts]`
pub fn scores(shape: &TopkShape, gating_output: &[f32]) -> Vec<f64> {
    let no_bias = vec![0.0; shape.num_experts as usize];
    let rows = gating_output.chunks(shape.num_experts as usize);
    rows.flat_map(|row| Token::new(shape, row, &no_bias).scores).collect()
}

/// Refuses a choice unless every id and every weight could be the oracle's: ids that scores within
/// [`TOLERANCE`] of each other may swap, equal inputs come by ascending id.
///
/// `gating_output` `[num_tokens, num_experts]`, `bias` `[num_experts]` if the shape has one.
///
/// # Errors
/// The first token that is wrong, and why.
pub fn check(
    shape: &TopkShape,
    gating_output: &[f32],
    bias: &[f32],
    topk_ids: &[i32],
    topk_weights: &[f32],
) -> Result<(), String> {
    if topk_ids.len() != shape.topk_elements() || topk_weights.len() != shape.topk_elements() {
        let got = (topk_ids.len(), topk_weights.len());
        return Err(format!("{got:?} ids and weights, not {} of each", shape.topk_elements()));
    }
    let top_k = shape.top_k as usize;
    for (i, row) in gating_output.chunks(shape.num_experts as usize).enumerate() {
        let token = Token::new(shape, row, bias);
        let ids = &topk_ids[i * top_k..][..top_k];
        let weights = &topk_weights[i * top_k..][..top_k];
        let ids: Vec<usize> =
            ids.iter().map(|&id| usize::try_from(id).unwrap_or(usize::MAX)).collect();
        token
            .check_ids(&ids)
            .and_then(|()| token.check_weights(&ids, weights))
            .map_err(|off| format!("token {i}: {off}"))?;
    }
    Ok(())
}

/// What logits are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// Normal, as a router's.
    Spread,
    /// Of few values, so that many are equal.
    Tied,
    /// With NaN, infinities, and numbers whose exponential f32 does not hold.
    Wild,
}

impl Logits {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Spread, Self::Tied, Self::Wild];

    fn draw(self, rng: &mut fastrand::Rng) -> f32 {
        match self {
            Self::Spread => (0..4).map(|_| 2.0 * rng.f32() - 1.0).sum(),
            Self::Tied => rng.i32(-2..3) as f32 * 0.5,
            Self::Wild => match rng.u32(..8) {
                0 => f32::NAN,
                1 => f32::NEG_INFINITY,
                2 => 100.0 * (rng.f32() - 0.5),
                3 => f32::INFINITY,
                4 => -0.0,
                _ => rng.f32(),
            },
        }
    }
}

/// One choice.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is special about it.
    pub name: &'static str,
    /// Its sizes and rules.
    pub shape: TopkShape,
}

impl Case {
    /// Logits `[num_tokens, num_experts]` and bias `[num_experts]` or empty, from a seed.
    pub fn inputs(&self, logits: Logits, seed: u64) -> (Vec<f32>, Vec<f32>) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let gating = (0..self.shape.gating_elements()).map(|_| logits.draw(&mut rng)).collect();
        let num_biases = self.shape.bias_elements();
        let bias = match logits {
            Logits::Tied => (0..num_biases).map(|_| rng.i32(-1..2) as f32).collect(),
            _ => (0..num_biases).map(|_| 0.2 * (rng.f32() - 0.5)).collect(),
        };
        (gating, bias)
    }
}

/// Edge cases, few tokens each.
pub fn cases() -> Vec<Case> {
    let softmax = TopkShape::softmax;
    let groups = |num_groups, num_topk_groups| Some(GroupLimit { num_groups, num_topk_groups });
    let sigmoid = |num_tokens, num_experts, top_k| TopkShape {
        scoring: Scoring::SIGMOID,
        ..softmax(num_tokens, num_experts, top_k)
    };
    vec![
        Case { name: "one expert", shape: softmax(3, 1, 1) },
        Case { name: "7 experts, all of them", shape: softmax(5, 7, 7) },
        Case {
            name: "7 groups of one expert, 3 kept",
            shape: TopkShape { group_limit: groups(7, 3), has_bias: true, ..sigmoid(6, 7, 3) },
        },
        Case { name: "60 experts, softmax", shape: softmax(9, 60, 4) },
        Case {
            name: "60 experts, softmax not renormalized",
            shape: TopkShape { renormalize: false, ..softmax(4, 60, 4) },
        },
        Case {
            name: "6 groups of 10, softmax with bias",
            shape: TopkShape { group_limit: groups(6, 2), has_bias: true, ..softmax(5, 60, 8) },
        },
        Case {
            name: "8 groups of 8, softmax",
            shape: TopkShape { group_limit: groups(8, 3), ..softmax(5, 64, 6) },
        },
        Case {
            name: "3 groups of 32, sigmoid, scaled",
            shape: TopkShape {
                group_limit: groups(3, 2),
                routed_scaling_factor: -1.5,
                ..sigmoid(4, 96, 8)
            },
        },
        Case {
            name: "128 experts with bias, top-1",
            shape: TopkShape { has_bias: true, renormalize: false, ..softmax(5, 128, 1) },
        },
        Case { name: "131 experts", shape: sigmoid(4, 131, 9) },
        Case { name: "DeepSeek-V3", shape: TopkShape::deepseek_v3(9) },
        Case {
            name: "as DeepSeek-V3, top 6",
            shape: TopkShape { top_k: 6, ..TopkShape::deepseek_v3(7) },
        },
        Case { name: "256 experts", shape: softmax(7, 256, 8) },
        Case { name: "512 experts, top-16", shape: sigmoid(3, 512, 16) },
        Case {
            name: "512 experts in 16 groups",
            shape: TopkShape { group_limit: groups(16, 5), has_bias: true, ..softmax(2, 512, 16) },
        },
    ]
}
