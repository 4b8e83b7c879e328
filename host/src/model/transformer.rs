//! A model on a device: its configuration, weights, and the angles of its positions.

use std::sync::Arc;

use half::bf16;

use super::weights::{LayerWeights, LoadProgress, WeightSource, Weights, load};
use super::{ModelConfig, ModelError};
use crate::device::{Buffer, Stream};
use crate::kernels::kv_append::{QkNorms, QkvArgs};
use crate::kv::memory::KvMemory;

/// A model whose weights are on a device, ready for passes over tokens.
pub struct Transformer {
    config: ModelConfig,
    weights: Weights<Buffer<bf16>>,
    /// `[num_max_positions, head_dim]`
    cos_sin_cache: Buffer<f32>,
    num_max_positions: u32,
}

impl Transformer {
    /// Loads weights for sequences of at most `num_max_positions` tokens, and no more than the
    /// configuration allows.
    ///
    /// # Errors
    /// As [`load`].
    pub fn load(
        stream: &Arc<Stream>,
        config: ModelConfig,
        source: &dyn WeightSource,
        num_max_positions: u32,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, ModelError> {
        let weights = load(stream, &config, source, progress)?;
        let num_max_positions = num_max_positions.min(config.num_max_positions);
        let cache = config.rope.cos_sin_cache(config.head_dim, num_max_positions);
        let cos_sin_cache = Buffer::from_slice(stream, &cache)?;
        Ok(Self { config, weights, cos_sin_cache, num_max_positions })
    }

    /// What it is made of.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Tokens of a sequence, at most.
    pub fn num_max_positions(&self) -> u32 {
        self.num_max_positions
    }

    pub(super) fn weights(&self) -> &Weights<Buffer<bf16>> {
        &self.weights
    }

    /// How the joint rows `qkv` of a layer's product become K and V in `memory`, and q in `q_out`.
    pub(super) fn append_args<'a>(
        &'a self,
        layer: &'a LayerWeights<Buffer<bf16>>,
        memory: &'a KvMemory,
        qkv: &'a Buffer<bf16>,
        q_out: &'a Buffer<bf16>,
    ) -> QkvArgs<'a> {
        let norms = layer.q_norm.as_ref().zip(layer.k_norm.as_ref());
        QkvArgs {
            memory,
            qkv,
            qkv_bias: layer.qkv_bias.as_ref(),
            norms: norms.map(|(q, k)| QkNorms { q, k, eps: self.config.norm_eps }),
            q_out,
            cos_sin_cache: Some(&self.cos_sin_cache),
        }
    }
}
