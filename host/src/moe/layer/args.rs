//! What a layer reads and writes.

use gpu_kernels::contract::{ContractError, require, require_len};
use half::bf16;

use super::LayerShape;
use crate::device::{Buffer, Event};

/// One rank's weights.
pub struct LayerWeights {
    /// `[num_local_experts, 2 intermediate, hidden]`, an expert's gates first
    pub gate_up: Buffer<bf16>,
    /// `[num_local_experts, hidden, intermediate]`
    pub down: Buffer<bf16>,
    /// `[2 shared_intermediate, hidden]`, gates first
    pub shared_gate_up: Buffer<bf16>,
    /// `[hidden, shared_intermediate]`
    pub shared_down: Buffer<bf16>,
}

/// Where ids and weights come from.
#[derive(Clone, Copy)]
pub enum RoutingArgs<'a> {
    /// The layer chooses.
    Logits {
        /// `[num_tokens, num_experts]`
        gating_output: &'a Buffer<f32>,
        /// `[num_experts]`, if the choice has one
        bias: Option<&'a Buffer<f32>>,
    },
    /// Somebody has chosen.
    Chosen {
        /// `[num_tokens, topk]`, -1 for none
        topk_ids: &'a Buffer<i32>,
        /// `[num_tokens, topk]`
        topk_weights: &'a Buffer<f32>,
    },
}

/// Rows that are still on their way when a call begins.
#[derive(Clone, Copy)]
pub struct Arriving<'a> {
    /// `[num_tokens, hidden]`: what is dispatched, in place of the layer's `x`
    pub x: &'a Buffer<bf16>,
    /// Recorded where they are there.
    pub event: &'a Event,
}

/// What one call of a layer reads and writes.
#[derive(Clone, Copy)]
pub struct LayerArgs<'a> {
    /// `[num_tokens, hidden]`
    pub x: &'a Buffer<bf16>,
    /// None: `x` itself is dispatched, at once.
    pub arriving: Option<Arriving<'a>>,
    /// Logits if the shape has a choice, else ids and weights.
    pub routing: RoutingArgs<'a>,
    /// This rank's.
    pub weights: &'a LayerWeights,
    /// `[num_tokens, hidden]`
    pub out: &'a Buffer<bf16>,
}

impl LayerArgs<'_> {
    /// Refuses lengths that do not fit the shape.
    pub(super) fn check(&self, shape: &LayerShape) -> Result<(), ContractError> {
        require_len("x", shape.x_elements(), self.x.len())?;
        require_len("out", shape.x_elements(), self.out.len())?;
        let arriving_len = self.arriving.map_or(shape.x_elements(), |arriving| arriving.x.len());
        require_len("arriving.x", shape.x_elements(), arriving_len)?;
        let LayerWeights { gate_up, down, shared_gate_up, shared_down } = self.weights;
        require_len("gate_up", shape.expert_gate_up().b_elements(), gate_up.len())?;
        require_len("down", shape.expert_down().b_elements(), down.len())?;
        let shared = shape.shared_intermediate as usize * shape.exchange.hidden as usize;
        require_len("shared_gate_up", 2 * shared, shared_gate_up.len())?;
        require_len("shared_down", shared, shared_down.len())?;
        match (self.routing, &shape.topk) {
            (RoutingArgs::Logits { gating_output, bias }, Some(topk)) => {
                require_len("gating_output", topk.gating_elements(), gating_output.len())?;
                require_len("bias", topk.bias_elements(), bias.map_or(0, Buffer::len))
            }
            (RoutingArgs::Chosen { topk_ids, topk_weights }, None) => {
                require_len("topk_ids", shape.topk_elements(), topk_ids.len())?;
                require_len("topk_weights", shape.topk_elements(), topk_weights.len())
            }
            (RoutingArgs::Logits { .. }, None) => {
                require(false, "routing", "ids and weights, for the shape has no choice", "logits")
            }
            (RoutingArgs::Chosen { .. }, Some(_)) => {
                require(false, "routing", "logits, for the shape has a choice", "ids and weights")
            }
        }
    }
}
