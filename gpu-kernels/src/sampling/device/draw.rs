//! Which tokens may be drawn, and what decides between them.

use cuda_std::prelude::*;

use super::block::Candidate;
use crate::moe_topk::device::score::key_of;
use crate::sampling::philox::token_words;
use crate::sampling::{STEPS_PER_OCTAVE, SamplingRule};

/// The rule of a request whose most likely token has the logit `maximum`.
#[derive(Clone, Copy)]
pub(super) struct Draw {
    rule: SamplingRule,
    maximum: f32,
    /// Octaves of likelihood for each unit of a logit.
    octaves: f32,
}

impl Draw {
    /// What is there to draw, unless the rule takes the most likely token.
    #[inline(always)]
    pub(super) fn new(rule: SamplingRule, maximum: f32) -> Option<Self> {
        let octaves = core::f32::consts::LOG2_E / rule.temperature;
        // A temperature so small that steps overflow draws the most likely token, too.
        let is_drawn = rule.temperature > 0.0 && octaves * (STEPS_PER_OCTAVE as f32) < f32::MAX;
        let draws = is_drawn && rule.top_k != 1 && maximum > f32::NEG_INFINITY;
        draws.then_some(Self { rule, maximum, octaves })
    }

    /// How many tokens are at most kept.
    #[inline(always)]
    pub(super) fn top_k(&self) -> Option<u32> {
        (self.rule.top_k > 0).then_some(self.rule.top_k)
    }

    /// How much of the probability is kept.
    #[inline(always)]
    pub(super) fn top_p(&self) -> Option<f32> {
        (self.rule.top_p < 1.0).then_some(self.rule.top_p)
    }

    /// Steps that a logit lies below the maximum, `NUM_STEPS` or more where it is never drawn under
    /// a limit. Greater for lower logits.
    #[inline(always)]
    pub(super) fn steps(&self, logit: f32) -> u32 {
        ((self.maximum - logit) * (self.octaves * STEPS_PER_OCTAVE as f32)) as u32
    }

    /// What decides: the tokens' logits at this temperature, in octaves, with noise. The noise is
    /// such that the token with the most is each with its probability (Gumbel's trick).
    #[inline(always)]
    fn score(&self, logit: f32, word: u32) -> f32 {
        noise(word) - (self.maximum - logit) * self.octaves
    }

    /// The best of four tokens from `first` on that are within reach.
    #[inline(always)]
    pub(super) fn best(&self, logits: [f32; 4], first: u32, reach: u32) -> Candidate {
        let mut best = Candidate::NONE;
        let nearest = logits[0].max(logits[1]).max(logits[2].max(logits[3]));
        if self.steps(nearest) <= reach {
            let words = token_words(self.rule.seed, self.rule.position, first / 4);
            for i in 0..4 {
                if self.steps(logits[i]) <= reach {
                    let key = key_of(self.score(logits[i], words[i]));
                    best = best.max(Candidate::new(key, first + i as u32));
                }
            }
        }
        best
    }
}

/// Likelihood of a token so many steps below the most likely one, in units of `2^-31`.
#[inline(always)]
pub(super) fn likelihood(steps: u32) -> u32 {
    let octaves = steps as f32 * (1.0 / STEPS_PER_OCTAVE as f32);
    (float::exp2(31.0 - octaves) + 0.5) as u32
}

/// Below this, logarithms of `1 - x` are taken by their series, which is exact to 1e-6 there.
const SERIES_BELOW: f32 = 1.0 / 64.0;

/// `-log2(-ln(1 - x))` for a uniform `x` in (0, 1): noise after Gumbel, in octaves.
#[inline(always)]
fn noise(word: u32) -> f32 {
    let x = (word as f32 + 0.5) * (1.0 / 4_294_967_296.0);
    let series = x * (1.0 + x * (0.5 + x * (1.0 / 3.0)));
    let logarithm = float::log2(1.0 - x) * -core::f32::consts::LN_2;
    -float::log2(if x < SERIES_BELOW { series } else { logarithm })
}

/// The rule of a request.
#[inline(always)]
pub(super) unsafe fn load_rule(rules: Global<SamplingRule>, request: usize) -> SamplingRule {
    let words = rules.offset(request).cast::<u32>();
    let [seed_low, seed_high] = [words.load(0), words.load(1)];
    SamplingRule {
        seed: u64::from(seed_high) << 32 | u64::from(seed_low),
        position: words.load(2),
        top_k: words.load(3),
        temperature: f32::from_bits(words.load(4)),
        top_p: f32::from_bits(words.load(5)),
    }
}
