//! What a model is made of, as its `config.json` says it.
//!
//! Nothing is guessed: a field that this reader does not know is refused by its name, as is one
//! whose value asks for something that the forward pass does not do (a sliding window that is in
//! use, another activation), because ignoring it would give wrong tokens without a word. Fields that
//! concern training alone are listed in [`fields`], and skipped.

mod families;
mod fields;
mod rope;
mod shapes;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;

use super::ModelError;
use fields::Fields;
pub use rope::{RopeConfig, RopeScaling};
pub use shapes::NamedShape;

/// Which architecture a checkpoint is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// `LlamaForCausalLM`
    Llama,
    /// `Qwen2ForCausalLM`
    Qwen2,
    /// `Qwen3ForCausalLM`
    Qwen3,
    /// `MixtralForCausalLM`
    Mixtral,
    /// `Qwen2MoeForCausalLM`
    Qwen2Moe,
    /// `Qwen3MoeForCausalLM`
    Qwen3Moe,
}

/// A decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Whose names its tensors have.
    pub family: Family,
    /// Rows of the embedding, and logits.
    pub vocab_size: u32,
    /// Elements of a token's hidden state.
    pub hidden: u32,
    /// Heads of queries.
    pub num_qo_heads: u32,
    /// Heads of K and V.
    pub num_kv_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Tokens of a sequence, at most.
    pub num_max_positions: u32,
    /// Added to the mean square in every normalisation.
    pub norm_eps: f32,
    /// How positions turn queries and keys.
    pub rope: RopeConfig,
    /// Whether q, k and v have biases.
    pub has_qkv_bias: bool,
    /// Whether heads of q and k are normalised.
    pub has_qk_norm: bool,
    /// Whether logits are products with the embedding itself.
    pub ties_embeddings: bool,
    /// One for each layer.
    pub feed_forward: Vec<FeedForward>,
    /// Tokens after which nothing follows.
    pub end_tokens: Vec<u32>,
}

/// What a layer does after its attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// One SwiGLU for all tokens.
    Dense {
        /// Elements between its two products.
        intermediate: u32,
    },
    /// The best experts of each token.
    Experts(Experts),
}

/// Experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// How many.
    pub num_experts: u32,
    /// How many a token visits.
    pub top_k: u32,
    /// Elements between the two products of one.
    pub intermediate: u32,
    /// Whether a token's weights are divided by their sum.
    pub renormalize: bool,
    /// Elements between the two products of the expert that every token visits, through a gate of
    /// its own; if there is one.
    pub shared_intermediate: Option<u32>,
}

impl Experts {
    /// Experts of the size of the others that the one which every token visits is cut into.
    pub fn num_shared(&self) -> u32 {
        self.shared_intermediate.map_or(0, |shared| shared / self.intermediate)
    }

    /// Rows of the router, with the gate of shared experts, rounded up to what products take.
    pub fn num_columns(&self) -> u32 {
        let num_gates = u32::from(self.shared_intermediate.is_some());
        (self.num_experts + num_gates).next_multiple_of(8)
    }
}

impl ModelConfig {
    /// Reads `config.json` of a folder, and the end tokens of `generation_config.json` if there is
    /// one.
    ///
    /// # Errors
    /// A file that cannot be read, a field that is missing, unknown or contradicts another.
    pub fn from_folder(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        let mut config = Self::from_json(&read(&path)?, &path)?;
        let path = folder.join("generation_config.json");
        if path.is_file() {
            let mut fields = Fields::parse(&read(&path)?, &path)?;
            config.end_tokens.extend(fields.take_tokens("eos_token_id")?);
            config.end_tokens.sort_unstable();
            config.end_tokens.dedup();
        }
        Ok(config)
    }

    /// Reads a configuration; `path` is for errors.
    ///
    /// # Errors
    /// As [`from_folder`](Self::from_folder).
    pub fn from_json(json: &str, path: &Path) -> Result<Self, ModelError> {
        families::read(Fields::parse(json, path)?)
    }

    /// Layers.
    pub fn num_layers(&self) -> usize {
        self.feed_forward.len()
    }

    /// Elements of the queries of a token.
    pub fn q_len(&self) -> u32 {
        self.num_qo_heads * self.head_dim
    }

    /// Elements of K, and of V, of a token.
    pub fn kv_len(&self) -> u32 {
        self.num_kv_heads * self.head_dim
    }

    /// Whether any layer has experts.
    pub fn has_experts(&self) -> bool {
        self.feed_forward.iter().any(|layer| matches!(layer, FeedForward::Experts(_)))
    }
}

fn read(path: &Path) -> Result<String, ModelError> {
    fs::read_to_string(path).map_err(|source| ModelError::file(path, source))
}
