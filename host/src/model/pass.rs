//! One pass through all layers, for a number of tokens: launchers and memory, made once.
//!
//! ```text
//! x = embedding[token_ids]
//! each layer:  normed = rms_norm(x += delta)       the sum with the last layer's, if it left one
//!              qkv = normed Wqkv^T                 one product
//!              q, pages = biases, norms, rotation  one launch
//!              delta = attention(q, pages) Wo^T
//!              normed = rms_norm(x += delta)
//!              delta = swiglu(normed)              or x += experts(normed)
//! logits = rms_norm(x += delta) lm_head^T          of the last token of each sequence
//! ```
//!
//! bf16 between kernels, f32 inside of them.

use gpu_kernels::embedding::contract::EmbeddingShape;
use gpu_kernels::gemm::contract::GemmShape;
use gpu_kernels::rms_norm::contract::RmsNormShape;
use gpu_kernels::sampling::contract::SamplingShape;
use gpu_kernels::shared_expert::contract::SharedExpertShape;
use half::bf16;

use super::ModelConfig;
use super::config::{Experts, FeedForward};
use super::engine::{EngineError, KvPages};
use super::experts::ExpertsPass;
use super::pages::LayeredKv;
use super::token_choice::TokenChoice;
use super::transformer::Transformer;
use super::weights::{FeedForwardWeights, LayerWeights};
use crate::device::{Buffer, Stream};
use crate::kernels::KernelError;
use crate::kernels::embedding::{GatherArgs, gather_rows};
use crate::kernels::gemm::{Gemm, GemmArgs};
use crate::kernels::kv_append::Append;
use crate::kernels::paged_attention::{Decode, DecodeArgs, DecodeVariant};
use crate::kernels::paged_prefill::{Prefill, PrefillArgs};
use crate::kernels::rms_norm::{RmsNormArgs, add_rms_norm, rms_norm};
use crate::kernels::shared_expert::{SharedExpert, SharedExpertArgs};

/// How a pass attends.
pub(super) enum Attention<'a> {
    /// One token of each sequence.
    Decode(&'a Decode),
    /// Any number of tokens of each.
    Prefill(&'a Prefill),
}

/// How many tokens a pass takes, and of how many of them logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PassShape {
    pub num_tokens: u32,
    /// If as many as tokens: of every token, in order.
    pub num_logit_rows: u32,
    /// Whether what comes of a token must not depend on what else is in the pass.
    pub is_batch_invariant: bool,
    /// Whether experts come one after the other, when the host knows their tokens.
    pub one_by_one: bool,
}

impl PassShape {
    /// A product of the pass.
    pub fn product(&self, stream: &Stream, shape: GemmShape) -> Result<Gemm, KernelError> {
        match self.is_batch_invariant {
            true => Gemm::batch_invariant(stream, shape),
            false => Gemm::new(stream, shape),
        }
    }

    fn swiglu(
        &self,
        stream: &Stream,
        shape: SharedExpertShape,
    ) -> Result<SharedExpert, KernelError> {
        match self.is_batch_invariant {
            true => SharedExpert::batch_invariant(stream, shape),
            false => SharedExpert::new(stream, shape),
        }
    }
}

/// Launchers and memory of a pass.
pub(super) struct Pass {
    shape: PassShape,
    norm: RmsNormShape,
    qkv_product: Gemm,
    o_product: Gemm,
    /// By their elements between the two products.
    dense: Vec<(u32, SharedExpert)>,
    experts: Vec<(Experts, ExpertsPass)>,
    /// `[num_tokens]`
    token_ids: Buffer<i32>,
    /// The residual stream, `[num_tokens, hidden]`, as the next two.
    x: Buffer<bf16>,
    normed: Buffer<bf16>,
    delta: Buffer<bf16>,
    qkv: Buffer<bf16>,
    q: Buffer<bf16>,
    attended: Buffer<bf16>,
    lse: Buffer<f32>,
    head: Option<Head>,
}

/// What turns hidden states to tokens.
struct Head {
    product: Gemm,
    /// The tokens whose logits are wanted, and their hidden states; none if that is all of them.
    gathered: Option<(Buffer<i32>, Buffer<bf16>)>,
    choice: TokenChoice,
}

/// Whether `delta` is still to be added to the residual stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delta {
    Pending,
    Added,
}

impl Pass {
    pub(super) fn new(
        stream: &Stream,
        config: &ModelConfig,
        shape: PassShape,
    ) -> Result<Self, KernelError> {
        let device = stream.device();
        let PassShape { num_tokens, num_logit_rows, .. } = shape;
        let ModelConfig { hidden, .. } = *config;
        let of_hidden = |n| GemmShape { m: num_tokens, n, k: hidden };
        let qkv = of_hidden(config.q_len() + 2 * config.kv_len());
        let o = GemmShape { m: num_tokens, n: hidden, k: config.q_len() };
        let (mut dense, mut experts) = (Vec::new(), Vec::new());
        for layer in &config.feed_forward {
            match *layer {
                FeedForward::Dense { intermediate } => {
                    if find(&dense, intermediate).is_none() {
                        let swiglu = SharedExpertShape { num_tokens, hidden, intermediate };
                        dense.push((intermediate, shape.swiglu(stream, swiglu)?));
                    }
                }
                FeedForward::Experts(of_layer) => {
                    if find(&experts, of_layer).is_none() {
                        let pass = ExpertsPass::new(stream, of_layer, shape, hidden)?;
                        let pass = if shape.one_by_one { pass.one_by_one(stream)? } else { pass };
                        experts.push((of_layer, pass));
                    }
                }
            }
        }
        let hidden_states = || device.alloc(num_tokens as usize * hidden as usize);
        let num_q = num_tokens as usize * config.q_len() as usize;
        Ok(Self {
            shape,
            norm: RmsNormShape { num_rows: num_tokens, row_len: hidden, eps: config.norm_eps },
            qkv_product: shape.product(stream, qkv)?,
            o_product: shape.product(stream, o)?,
            dense,
            experts,
            token_ids: device.alloc(num_tokens as usize)?,
            x: hidden_states()?,
            normed: hidden_states()?,
            delta: hidden_states()?,
            qkv: device.alloc(qkv.c_elements())?,
            q: device.alloc(num_q)?,
            attended: device.alloc(num_q)?,
            lse: device.alloc((num_tokens * config.num_qo_heads) as usize)?,
            head: match num_logit_rows {
                0 => None,
                _ => Some(Head::new(stream, config, shape)?),
            },
        })
    }

    pub(super) fn shape(&self) -> PassShape {
        self.shape
    }

    /// `[num_tokens]`, to be written before [`run`](Self::run).
    pub(super) fn token_ids(&self) -> &Buffer<i32> {
        &self.token_ids
    }

    /// Tokens whose logits are wanted, `[num_logit_rows]`, to be written before; none if that is
    /// every one, or no one.
    pub(super) fn logit_rows(&self) -> Option<&Buffer<i32>> {
        self.head.as_ref().and_then(|head| head.gathered.as_ref()).map(|(row_ids, _)| row_ids)
    }

    /// The tokens after those whose logits are wanted, if any are.
    pub(super) fn choice(&self) -> Option<&TokenChoice> {
        self.head.as_ref().map(|head| &head.choice)
    }

    /// Issues the whole pass to `stream`, up to the logits; calls `after_layer` when all that writes a layer's pages
    /// is issued.
    pub(super) fn run(
        &self,
        stream: &Stream,
        model: &Transformer,
        kv: &mut LayeredKv,
        append: &Append,
        attention: &Attention<'_>,
        after_layer: &mut dyn FnMut(usize, &mut dyn KvPages) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let weights = model.weights();
        let embed = EmbeddingShape {
            num_rows: model.config().vocab_size,
            row_len: model.config().hidden,
            num_ids: self.shape.num_tokens,
        };
        let (table, row_ids, out) = (&weights.embedding, &self.token_ids, &self.x);
        let mut delta = Delta::Added;
        gather_rows(stream, embed, GatherArgs { table, row_ids, out })?;
        for (layer, of_layer) in weights.layers.iter().enumerate() {
            self.attend(stream, model, of_layer, (kv, layer), append, attention, delta)?;
            after_layer(layer, kv)?;
            delta = self.feed_forward(stream, model, layer)?;
        }
        self.normalize(stream, &weights.final_norm, delta)?;
        if let Some(head) = &self.head {
            let lm_head = weights.lm_head.as_ref().unwrap_or(&weights.embedding);
            head.run(stream, self.shape.num_tokens, &self.normed, lm_head)?;
        }
        Ok(())
    }

    /// Norm, attention and its product: leaves `delta` to be added.
    #[expect(clippy::too_many_arguments, reason = "a step of `run`, which has all of them at hand")]
    fn attend(
        &self,
        stream: &Stream,
        model: &Transformer,
        weights: &LayerWeights<Buffer<bf16>>,
        (kv, layer): (&LayeredKv, usize),
        append: &Append,
        attention: &Attention<'_>,
        delta: Delta,
    ) -> Result<(), KernelError> {
        let config = model.config();
        let memory = kv.layer(layer);
        self.normalize(stream, &weights.input_norm, delta)?;
        let qkv = GemmArgs { a: &self.normed, b: &weights.qkv, c: &self.qkv };
        self.qkv_product.run(stream, qkv)?;
        let qkv = model.append_args(weights, memory, &self.qkv, &self.q);
        append.run_qkv(stream, config.num_qo_heads, qkv)?;
        let (table, q, out, lse) = (append.table(), &self.q, &self.attended, &self.lse);
        match attention {
            Attention::Decode(decode) => {
                let args = DecodeArgs { table, memory, q, out, lse };
                decode.run(stream, DecodeVariant::Split, &args)?;
            }
            Attention::Prefill(prefill) => {
                prefill.run(stream, &PrefillArgs { table, memory, q, out, lse })?;
            }
        }
        let o = GemmArgs { a: &self.attended, b: &weights.o, c: &self.delta };
        self.o_product.run(stream, o)
    }

    /// What follows the attention of a layer.
    fn feed_forward(
        &self,
        stream: &Stream,
        model: &Transformer,
        layer: usize,
    ) -> Result<Delta, KernelError> {
        let weights = &model.weights().layers[layer];
        self.normalize(stream, &weights.post_attention_norm, Delta::Pending)?;
        match (&weights.feed_forward, model.config().feed_forward[layer]) {
            (FeedForwardWeights::Dense(swiglu), FeedForward::Dense { intermediate }) => {
                let args = SharedExpertArgs {
                    x: &self.normed,
                    gate_up: &swiglu.gate_up,
                    down: &swiglu.down,
                    y: &self.delta,
                };
                find(&self.dense, intermediate).expect("made for all layers").run(stream, args)?;
                Ok(Delta::Pending)
            }
            (FeedForwardWeights::Experts { router, experts }, FeedForward::Experts(of_layer)) => {
                let pass = find(&self.experts, of_layer).expect("made for all layers");
                pass.run(stream, router, experts, &self.normed, &self.x)?;
                Ok(Delta::Added)
            }
            _ => unreachable!("weights were planned from this configuration"),
        }
    }

    fn normalize(
        &self,
        stream: &Stream,
        weight: &Buffer<bf16>,
        delta: Delta,
    ) -> Result<(), KernelError> {
        let args = RmsNormArgs { x: &self.x, weight, out: &self.normed };
        match delta {
            Delta::Pending => add_rms_norm(stream, self.norm, &self.delta, args),
            Delta::Added => rms_norm(stream, self.norm, args),
        }
    }
}

/// What was made for this key.
fn find<K: PartialEq, V>(made: &[(K, V)], key: K) -> Option<&V> {
    made.iter().find(|(of, _)| *of == key).map(|(_, value)| value)
}

impl Head {
    fn new(stream: &Stream, config: &ModelConfig, shape: PassShape) -> Result<Self, KernelError> {
        let device = stream.device();
        let PassShape { num_tokens, num_logit_rows, .. } = shape;
        let ModelConfig { hidden, vocab_size, .. } = *config;
        let product = GemmShape { m: num_logit_rows, n: vocab_size, k: hidden };
        let gathered = match num_logit_rows == num_tokens {
            true => None,
            false => {
                Some((device.alloc(num_logit_rows as usize)?, device.alloc(product.a_elements())?))
            }
        };
        Ok(Self {
            product: shape.product(stream, product)?,
            gathered,
            choice: TokenChoice::new(device, SamplingShape { batch: num_logit_rows, vocab_size })?,
        })
    }

    fn run(
        &self,
        stream: &Stream,
        num_tokens: u32,
        normed: &Buffer<bf16>,
        lm_head: &Buffer<bf16>,
    ) -> Result<(), KernelError> {
        let GemmShape { m, k, .. } = self.product.plan().shape;
        let mut states = normed;
        if let Some((row_ids, out)) = &self.gathered {
            let shape = EmbeddingShape { num_rows: num_tokens, row_len: k, num_ids: m };
            gather_rows(stream, shape, GatherArgs { table: normed, row_ids, out })?;
            states = out;
        }
        let logits = self.choice.logits();
        self.product.run(stream, GemmArgs { a: states, b: lm_head, c: logits })
    }
}
