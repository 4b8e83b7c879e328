//! A pass for one token: every product is of one row, and takes the norm before it and the sum after it
//! along.
//!
//! ```text
//! x = embedding[token_id]
//! each layer:  qkv = rms_norm(x) Wqkv^T
//!              q, pages = biases, norms, rotation
//!              x += attention(q, pages) Wo^T
//!              h = silu(rms_norm(x) G^T) * (rms_norm(x) U^T)      with experts: routing, then of each
//!              x += h D^T                                         weighted
//! logits = rms_norm(x) lm_head^T
//! ```

use gpu_kernels::embedding::contract::EmbeddingShape;
use gpu_kernels::gemv::contract::{GemvExperts, GemvShape};
use gpu_kernels::moe_topk::contract::{StackedTopk, TopkShape};
use gpu_kernels::sampling::contract::SamplingShape;
use half::bf16;

use super::ModelConfig;
use super::config::{Experts, FeedForward};
use super::pages::LayeredKv;
use super::token_choice::TokenChoice;
use super::transformer::Transformer;
use super::weights::{FeedForwardWeights, LayerWeights, SwigluWeights};
use crate::device::{Buffer, Stream};
use crate::kernels::KernelError;
use crate::kernels::embedding::{GatherArgs, gather_rows};
use crate::kernels::gemv::{Gemv, GemvArgs, GemvChoice};
use crate::kernels::kv_append::Append;
use crate::kernels::moe_topk::{Topk, TopkArgs, TopkVariant};
use crate::kernels::paged_attention::{Decode, DecodeArgs, DecodeVariant};

/// Launchers and memory of a pass.
pub(super) struct OneToken {
    qkv_product: Gemv,
    o_product: Gemv,
    head_product: Gemv,
    /// By what they are of, used by all layers that have such.
    feed_forward: Vec<(FeedForward, FeedForwardPass)>,
    /// `[1]`
    token_ids: Buffer<i32>,
    /// The residual stream, `[hidden]`.
    x: Buffer<bf16>,
    qkv: Buffer<bf16>,
    q: Buffer<bf16>,
    attended: Buffer<bf16>,
    lse: Buffer<f32>,
    choice: TokenChoice,
}

/// What follows the attention of a layer.
struct FeedForwardPass {
    gate_up: Gemv,
    down: Gemv,
    h: Buffer<bf16>,
    routing: Option<Routing>,
}

/// Which experts the token visits.
struct Routing {
    router: Gemv,
    topk: Topk,
    logits: Buffer<bf16>,
    topk_ids: Buffer<i32>,
    topk_weights: Buffer<f32>,
}

/// The products of a pass.
struct Shapes {
    qkv: GemvShape,
    o: GemvShape,
    head: GemvShape,
}

impl Shapes {
    fn new(config: &ModelConfig) -> Self {
        let normed = |n| of_hidden(config, n);
        Self {
            qkv: normed(config.q_len() + 2 * config.kv_len()),
            o: GemvShape::new(config.hidden, config.q_len()),
            head: normed(config.vocab_size),
        }
    }
}

/// A product of the normalised residual stream.
fn of_hidden(config: &ModelConfig, n: u32) -> GemvShape {
    GemvShape { norm_eps: Some(config.norm_eps), ..GemvShape::new(n, config.hidden) }
}

/// Both products of what follows an attention.
fn feed_forward_shapes(config: &ModelConfig, layer: FeedForward) -> [GemvShape; 2] {
    let (intermediate, experts) = match layer {
        FeedForward::Dense { intermediate } => (intermediate, None),
        FeedForward::Experts(experts) => {
            let Experts { num_experts, top_k, intermediate, .. } = experts;
            let num_shared = experts.num_shared();
            (intermediate, Some(GemvExperts { num_experts, top_k, num_shared }))
        }
    };
    let gate_up = GemvShape { is_gated: true, experts, ..of_hidden(config, intermediate) };
    [gate_up, GemvShape { experts, ..GemvShape::new(config.hidden, intermediate) }]
}

impl OneToken {
    /// A pass, if the kernels take such a model, and run on the device.
    pub(super) fn new(stream: &Stream, config: &ModelConfig) -> Result<Option<Self>, KernelError> {
        let device = stream.device();
        let shapes = Shapes::new(config);
        let of_layers = config.feed_forward.iter().flat_map(|&l| feed_forward_shapes(config, l));
        let takes_all = [shapes.qkv, shapes.o, shapes.head]
            .into_iter()
            .chain(of_layers)
            .all(|shape| shape.check().is_ok());
        if !takes_all || !device.has_hopper_kernels() {
            return Ok(None);
        }
        let mut feed_forward: Vec<(FeedForward, FeedForwardPass)> = Vec::new();
        for &layer in &config.feed_forward {
            if feed_forward.iter().all(|(made, _)| *made != layer) {
                feed_forward.push((layer, FeedForwardPass::new(stream, config, layer)?));
            }
        }
        let q_len = config.q_len() as usize;
        let sampling = SamplingShape { batch: 1, vocab_size: config.vocab_size };
        Ok(Some(Self {
            qkv_product: Gemv::new(device, shapes.qkv)?,
            o_product: Gemv::new(device, shapes.o)?,
            head_product: Gemv::new(device, shapes.head)?,
            feed_forward,
            token_ids: device.alloc(1)?,
            x: device.alloc(config.hidden as usize)?,
            qkv: device.alloc(shapes.qkv.out_elements())?,
            q: device.alloc(q_len)?,
            attended: device.alloc(q_len)?,
            lse: device.alloc(config.num_qo_heads as usize)?,
            choice: TokenChoice::new(device, sampling)?,
        }))
    }

    /// `[1]`, to be written before [`run`](Self::run).
    pub(super) fn token_ids(&self) -> &Buffer<i32> {
        &self.token_ids
    }

    /// The token after this one.
    pub(super) fn choice(&self) -> &TokenChoice {
        &self.choice
    }

    /// Issues the whole pass to `stream`, up to the logits.
    pub(super) fn run(
        &self,
        stream: &Stream,
        model: &Transformer,
        kv: &LayeredKv,
        append: &Append,
        decode: &Decode,
    ) -> Result<(), KernelError> {
        let (config, weights) = (model.config(), model.weights());
        let ModelConfig { vocab_size, hidden, .. } = *config;
        let embed = EmbeddingShape { num_rows: vocab_size, row_len: hidden, num_ids: 1 };
        let (table, row_ids, out) = (&weights.embedding, &self.token_ids, &self.x);
        gather_rows(stream, embed, GatherArgs { table, row_ids, out })?;
        for (layer, of_layer) in weights.layers.iter().enumerate() {
            self.attend(stream, model, of_layer, (kv, layer), append, decode)?;
            let which = config.feed_forward[layer];
            let made = self.feed_forward.iter().find(|(made, _)| *made == which);
            let (_, pass) = made.expect("made for all layers");
            pass.run(stream, of_layer, &self.x)?;
        }
        let head = GemvArgs {
            x: &self.x,
            norm_weight: Some(&weights.final_norm),
            b: weights.lm_head.as_ref().unwrap_or(&weights.embedding),
            out: self.choice.logits(),
        };
        self.head_product.run(stream, head)
    }

    fn attend(
        &self,
        stream: &Stream,
        model: &Transformer,
        weights: &LayerWeights<Buffer<bf16>>,
        (kv, layer): (&LayeredKv, usize),
        append: &Append,
        decode: &Decode,
    ) -> Result<(), KernelError> {
        let (config, memory) = (model.config(), kv.layer(layer));
        let norm_weight = Some(&weights.input_norm);
        let qkv = GemvArgs { x: &self.x, norm_weight, b: &weights.qkv, out: &self.qkv };
        self.qkv_product.run(stream, qkv)?;
        let qkv = model.append_args(weights, memory, &self.qkv, &self.q);
        append.run_qkv(stream, config.num_qo_heads, qkv)?;
        let (table, q, out, lse) = (append.table(), &self.q, &self.attended, &self.lse);
        let attention = DecodeArgs { table, memory, q, out, lse };
        decode.run(stream, DecodeVariant::Split, &attention)?;
        let o = GemvArgs { x: &self.attended, norm_weight: None, b: &weights.o, out: &self.x };
        self.o_product.add(stream, o)
    }
}

impl FeedForwardPass {
    fn new(stream: &Stream, config: &ModelConfig, layer: FeedForward) -> Result<Self, KernelError> {
        let device = stream.device();
        let [gate_up, down] = feed_forward_shapes(config, layer);
        Ok(Self {
            gate_up: Gemv::new(device, gate_up)?,
            down: Gemv::new(device, down)?,
            h: device.alloc(gate_up.out_elements())?,
            routing: match layer {
                FeedForward::Dense { .. } => None,
                FeedForward::Experts(experts) => Some(Routing::new(stream, config, experts)?),
            },
        })
    }

    /// Adds to the residual stream `x` what this makes of it.
    fn run(
        &self,
        stream: &Stream,
        weights: &LayerWeights<Buffer<bf16>>,
        x: &Buffer<bf16>,
    ) -> Result<(), KernelError> {
        let norm = &weights.post_attention_norm;
        match (&weights.feed_forward, &self.routing) {
            (FeedForwardWeights::Dense(SwigluWeights { gate_up, down }), None) => {
                self.gate_up.run(stream, self.gate_up_args(x, norm, gate_up))?;
                self.down.add(stream, self.down_args(down, x))
            }
            (FeedForwardWeights::Experts { router, experts }, Some(routing)) => {
                let SwigluWeights { gate_up, down } = experts;
                let choice = routing.run(stream, x, norm, router)?;
                self.gate_up.run_experts(stream, choice, self.gate_up_args(x, norm, gate_up))?;
                self.down.add_experts(stream, choice, self.down_args(down, x))
            }
            _ => unreachable!("weights were planned from this configuration"),
        }
    }

    fn gate_up_args<'a>(
        &'a self,
        x: &'a Buffer<bf16>,
        norm: &'a Buffer<bf16>,
        b: &'a Buffer<bf16>,
    ) -> GemvArgs<'a> {
        GemvArgs { x, norm_weight: Some(norm), b, out: &self.h }
    }

    fn down_args<'a>(&'a self, b: &'a Buffer<bf16>, x: &'a Buffer<bf16>) -> GemvArgs<'a> {
        GemvArgs { x: &self.h, norm_weight: None, b, out: x }
    }
}

impl Routing {
    fn new(stream: &Stream, config: &ModelConfig, experts: Experts) -> Result<Self, KernelError> {
        let device = stream.device();
        let softmax = TopkShape::softmax(1, experts.num_experts, experts.top_k);
        let stacked = StackedTopk {
            choice: TopkShape { renormalize: experts.renormalize, ..softmax },
            num_columns: experts.num_columns(),
            num_shared: experts.num_shared(),
        };
        Ok(Self {
            router: Gemv::new(device, of_hidden(config, experts.num_columns()))?,
            topk: Topk::stacked(stacked)?,
            logits: device.alloc(experts.num_columns() as usize)?,
            topk_ids: device.alloc(stacked.topk_elements())?,
            topk_weights: device.alloc(stacked.topk_elements())?,
        })
    }

    fn run(
        &self,
        stream: &Stream,
        x: &Buffer<bf16>,
        norm: &Buffer<bf16>,
        router: &Buffer<bf16>,
    ) -> Result<GemvChoice<'_>, KernelError> {
        let args = GemvArgs { x, norm_weight: Some(norm), b: router, out: &self.logits };
        self.router.run(stream, args)?;
        let (topk_ids, topk_weights) = (&self.topk_ids, &self.topk_weights);
        let choice = TopkArgs { gating_output: &self.logits, bias: None, topk_ids, topk_weights };
        self.topk.run(stream, TopkVariant::Warp, &choice)?;
        Ok(GemvChoice { topk_ids, topk_weights })
    }
}
