//! Which tensors a configuration asks for, under each family's names.

use super::{FeedForwardWeights, LayerWeights, Part, Stack, SwigluWeights, Weights};
use crate::model::config::{Experts, Family, FeedForward, ModelConfig};

/// The stacks of a model.
pub fn plan(config: &ModelConfig) -> Weights<Stack> {
    let (hidden, vocab_size) = (config.hidden as usize, config.vocab_size as usize);
    let num_layers = config.num_layers();
    Weights {
        embedding: one("model.embed_tokens.weight", &[vocab_size, hidden]),
        layers: (0..num_layers).map(|layer| layer_plan(config, layer)).collect(),
        final_norm: one("model.norm.weight", &[hidden]),
        lm_head: match config.ties_embeddings {
            true => None,
            false => Some(one("lm_head.weight", &[vocab_size, hidden])),
        },
    }
}

fn stack(parts: impl IntoIterator<Item = Part>) -> Stack {
    Stack { parts: parts.into_iter().collect(), padding_elements: 0 }
}

fn one(tensor: impl Into<String>, shape: &[usize]) -> Stack {
    stack([Part::whole(tensor, shape)])
}

fn layer_plan(config: &ModelConfig, layer: usize) -> LayerWeights<Stack> {
    let prefix = format!("model.layers.{layer}.");
    let name = |rest: &str| format!("{prefix}{rest}");
    let (hidden, head_dim) = (config.hidden as usize, config.head_dim as usize);
    let (q_len, kv_len) = (config.q_len() as usize, config.kv_len() as usize);
    let qkv = [("q", q_len), ("k", kv_len), ("v", kv_len)];
    let norm_of = |which: &str| {
        let tensor = name(&format!("self_attn.{which}_norm.weight"));
        config.has_qk_norm.then(|| one(tensor, &[head_dim]))
    };
    LayerWeights {
        input_norm: one(name("input_layernorm.weight"), &[hidden]),
        qkv: stack(qkv.map(|(x, len)| {
            Part::whole(name(&format!("self_attn.{x}_proj.weight")), &[len, hidden])
        })),
        qkv_bias: config.has_qkv_bias.then(|| {
            let bias = |(x, len)| Part::whole(name(&format!("self_attn.{x}_proj.bias")), &[len]);
            stack(qkv.map(bias))
        }),
        q_norm: norm_of("q"),
        k_norm: norm_of("k"),
        o: one(name("self_attn.o_proj.weight"), &[hidden, q_len]),
        post_attention_norm: one(name("post_attention_layernorm.weight"), &[hidden]),
        feed_forward: match config.feed_forward[layer] {
            FeedForward::Dense { intermediate } => {
                let dense = Swiglu { prefix: name("mlp."), ..Swiglu::QWEN };
                FeedForwardWeights::Dense(dense.plan(hidden, intermediate as usize))
            }
            FeedForward::Experts(experts) => experts_plan(config.family, &prefix, hidden, experts),
        },
    }
}

/// What the parts of a SwiGLU are called.
struct Swiglu {
    prefix: String,
    gate: &'static str,
    up: &'static str,
    down: &'static str,
}

impl Swiglu {
    const QWEN: Self = Self {
        prefix: String::new(),
        gate: "gate_proj.weight",
        up: "up_proj.weight",
        down: "down_proj.weight",
    };
    const MIXTRAL: Self =
        Self { prefix: String::new(), gate: "w1.weight", up: "w3.weight", down: "w2.weight" };

    fn plan(&self, hidden: usize, intermediate: usize) -> SwigluWeights<Stack> {
        self.plan_cut(hidden, intermediate, intermediate)
    }

    /// As [`plan`](Self::plan), cut into SwiGLUs of `cut` elements between their products.
    fn plan_cut(&self, hidden: usize, intermediate: usize, cut: usize) -> SwigluWeights<Stack> {
        let name = |rest: &str| format!("{}{rest}", self.prefix);
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for start in (0..intermediate).step_by(cut) {
            for product in [self.gate, self.up] {
                let whole = Part::whole(name(product), &[intermediate, hidden]);
                gate_up.push(Part { rows: start..start + cut, ..whole });
            }
            let whole = Part::whole(name(self.down), &[hidden, intermediate]);
            down.push(Part { columns: start..start + cut, ..whole });
        }
        SwigluWeights { gate_up: stack(gate_up), down: stack(down) }
    }
}

fn experts_plan(
    family: Family,
    prefix: &str,
    hidden: usize,
    experts: Experts,
) -> FeedForwardWeights<Stack> {
    let intermediate = experts.intermediate as usize;
    let (block, names) = match family {
        Family::Mixtral => ("block_sparse_moe.", Swiglu::MIXTRAL),
        _ => ("mlp.", Swiglu::QWEN),
    };
    let router = format!("{prefix}{block}gate.weight");
    let mut router = one(router, &[experts.num_experts as usize, hidden]);
    let mut stacked = SwigluWeights { gate_up: stack([]), down: stack([]) };
    let mut add = |swiglu: SwigluWeights<Stack>| {
        stacked.gate_up.parts.extend(swiglu.gate_up.parts);
        stacked.down.parts.extend(swiglu.down.parts);
    };
    for expert in 0..experts.num_experts {
        let of_expert = Swiglu { prefix: format!("{prefix}{block}experts.{expert}."), ..names };
        add(of_expert.plan(hidden, intermediate));
    }
    if let Some(shared) = experts.shared_intermediate {
        let of_shared = Swiglu { prefix: format!("{prefix}{block}shared_expert."), ..names };
        add(of_shared.plan_cut(hidden, shared as usize, intermediate));
        let gate = format!("{prefix}{block}shared_expert_gate.weight");
        router.parts.push(Part::whole(gate, &[1, hidden]));
    }
    router.padding_elements = experts.num_columns() as usize * hidden - router.num_elements();
    FeedForwardWeights::Experts { router, experts: stacked }
}
