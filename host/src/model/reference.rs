//! A forward pass in f64, as the families' definitions say it: slow, and what the kernels' is compared
//! with. It shares nothing with them but the configuration and the list of tensors.

use half::bf16;

use super::ModelError;
use super::config::{Experts, FeedForward, ModelConfig};
use super::weights::{
    FeedForwardWeights, LayerWeights, Stack, SwigluWeights, WeightSource, Weights, plan,
};

/// A model's weights in f64.
pub struct Reference {
    config: ModelConfig,
    weights: Weights<Vec<f64>>,
}

/// One row for each token.
type Rows = Vec<Vec<f64>>;

impl Reference {
    /// Reads all weights.
    ///
    /// # Errors
    /// What the source says.
    pub fn new(config: &ModelConfig, source: &dyn WeightSource) -> Result<Self, ModelError> {
        let read = |stack: Stack| -> Result<Vec<f64>, ModelError> {
            let mut values = Vec::new();
            for part in &stack.parts {
                source.check(part)?;
                let mut of_part = vec![bf16::ZERO; part.num_elements()];
                source.read(part, 0, &mut of_part)?;
                values.extend(of_part.into_iter().map(f64::from));
            }
            values.resize(stack.num_elements(), 0.0);
            Ok(values)
        };
        Ok(Self { config: config.clone(), weights: plan(config).try_map(&mut { read })? })
    }

    /// Logits after every token of a sequence.
    pub fn logits(&self, tokens: &[u32]) -> Rows {
        let Self { config, weights } = self;
        let hidden = config.hidden as usize;
        let embedding =
            |&token: &u32| weights.embedding[token as usize * hidden..][..hidden].to_vec();
        let mut x: Rows = tokens.iter().map(embedding).collect();
        for (of_layer, feed_forward) in weights.layers.iter().zip(&config.feed_forward) {
            let normed = self.norms(&x, &of_layer.input_norm);
            add(&mut x, self.attend(of_layer, &normed));
            let normed = self.norms(&x, &of_layer.post_attention_norm);
            add(&mut x, normed.iter().map(|row| feed(row, &of_layer.feed_forward, feed_forward)));
        }
        let lm_head = weights.lm_head.as_ref().unwrap_or(&weights.embedding);
        let normed = self.norms(&x, &weights.final_norm);
        normed.iter().map(|row| multiply(lm_head, row)).collect()
    }

    fn norms(&self, rows: &Rows, weight: &[f64]) -> Rows {
        rows.iter().map(|row| self.norm(row, weight)).collect()
    }

    fn norm(&self, row: &[f64], weight: &[f64]) -> Vec<f64> {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        let scale = (mean + f64::from(self.config.norm_eps)).sqrt().recip();
        row.iter().zip(weight).map(|(x, weight)| x * scale * weight).collect()
    }

    fn attend(&self, weights: &LayerWeights<Vec<f64>>, normed: &Rows) -> Rows {
        let config = &self.config;
        let head_dim = config.head_dim as usize;
        let (num_qo_heads, num_kv_heads) =
            (config.num_qo_heads as usize, config.num_kv_heads as usize);
        // For each token the heads of q, of k, and of v.
        let heads: Vec<Rows> = normed
            .iter()
            .enumerate()
            .map(|(position, row)| {
                let mut qkv = multiply(&weights.qkv, row);
                if let Some(bias) = &weights.qkv_bias {
                    qkv.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
                }
                let mut heads: Rows = qkv.chunks(head_dim).map(<[f64]>::to_vec).collect();
                for (index, head) in heads[..num_qo_heads + num_kv_heads].iter_mut().enumerate() {
                    let norm = if index < num_qo_heads { &weights.q_norm } else { &weights.k_norm };
                    if let Some(norm) = norm {
                        *head = self.norm(head, norm);
                    }
                    self.rotate(head, position);
                }
                heads
            })
            .collect();
        let attend_token = |token: usize| {
            let attended = (0..num_qo_heads).flat_map(|head| {
                let kv_head = head / (num_qo_heads / num_kv_heads);
                let scores: Vec<f64> = (0..=token)
                    .map(|other| {
                        let key = &heads[other][num_qo_heads + kv_head];
                        dot(&heads[token][head], key) / (head_dim as f64).sqrt()
                    })
                    .collect();
                let mut sum = vec![0.0; head_dim];
                for (weight, other) in softmax(&scores).into_iter().zip(&heads) {
                    let value = &other[num_qo_heads + num_kv_heads + kv_head];
                    sum.iter_mut().zip(value).for_each(|(sum, value)| *sum += weight * value);
                }
                sum
            });
            multiply(&weights.o, &attended.collect::<Vec<_>>())
        };
        (0..normed.len()).map(attend_token).collect()
    }

    fn rotate(&self, head: &mut [f64], position: usize) {
        let half = head.len() / 2;
        let frequencies = self.config.rope.frequencies(self.config.head_dim);
        for (i, frequency) in frequencies.into_iter().enumerate() {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (x, y) = (head[i], head[i + half]);
            (head[i], head[i + half]) = (x * cos - y * sin, y * cos + x * sin);
        }
    }
}

fn feed(
    row: &[f64],
    weights: &FeedForwardWeights<Vec<f64>>,
    feed_forward: &FeedForward,
) -> Vec<f64> {
    match (weights, feed_forward) {
        (FeedForwardWeights::Dense(swiglu), _) => swiglu_of(row, &swiglu.gate_up, &swiglu.down),
        (FeedForwardWeights::Experts { router, experts }, FeedForward::Experts(sizes)) => {
            visit_experts(row, router, experts, sizes)
        }
        _ => unreachable!("weights were planned from this configuration"),
    }
}

fn visit_experts(
    row: &[f64],
    router: &[f64],
    weights: &SwigluWeights<Vec<f64>>,
    experts: &Experts,
) -> Vec<f64> {
    let num_experts = experts.num_experts as usize;
    let logits = multiply(router, row);
    let scores = softmax(&logits[..num_experts]);
    let mut chosen: Vec<usize> = (0..num_experts).collect();
    chosen.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    chosen.truncate(experts.top_k as usize);
    let all = match experts.renormalize {
        true => chosen.iter().map(|&expert| scores[expert]).sum(),
        false => 1.0,
    };
    let routed = chosen.into_iter().map(|expert| (expert, scores[expert] / all));
    let gate = 1.0 / (1.0 + (-logits.get(num_experts).copied().unwrap_or_default()).exp());
    let shared = (0..experts.num_shared() as usize).map(|part| (num_experts + part, gate));
    let expert_len = row.len() * experts.intermediate as usize;
    let mut sum = vec![0.0; row.len()];
    for (expert, weight) in routed.chain(shared) {
        let gate_up = &weights.gate_up[2 * expert * expert_len..][..2 * expert_len];
        let down = &weights.down[expert * expert_len..][..expert_len];
        let made = swiglu_of(row, gate_up, down);
        sum.iter_mut().zip(made).for_each(|(sum, made)| *sum += weight * made);
    }
    sum
}

fn swiglu_of(row: &[f64], gate_up: &[f64], down: &[f64]) -> Vec<f64> {
    let products = multiply(gate_up, row);
    let (gates, ups) = products.split_at(products.len() / 2);
    let h: Vec<f64> =
        gates.iter().zip(ups).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
    multiply(down, &h)
}

/// A matrix, row by row, times a vector.
fn multiply(matrix: &[f64], vector: &[f64]) -> Vec<f64> {
    matrix.chunks(vector.len()).map(|row| dot(row, vector)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - maximum).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

fn add(x: &mut Rows, delta: impl IntoIterator<Item = Vec<f64>>) {
    for (row, delta) in x.iter_mut().zip(delta) {
        row.iter_mut().zip(delta).for_each(|(x, delta)| *x += delta);
    }
}
