//! Sizes of a layer, and what they make of the rooms'.

use gpu_kernels::contract::{ContractError, require};
use gpu_kernels::dispatch::contract::ExchangeShape;
use gpu_kernels::expert_gemm::contract::ExpertGemmShape;
use gpu_kernels::moe_permute::contract::PermuteShape;
use gpu_kernels::moe_topk::contract::TopkShape;
use gpu_kernels::shared_expert::contract::SharedExpertShape;
use gpu_kernels::token_pack::contract::PackShape;
use gpu_kernels::token_rows::{RowFormat, TokenRows};
use gpu_kernels::token_unpack::contract::UnpackShape;

/// Sizes of a layer on one rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerShape {
    /// Ranks, experts, ids of a token, columns, and tokens of a rank at most: the same on all.
    pub exchange: ExchangeShape,
    /// Tokens of this rank; may be 0.
    pub num_tokens: u32,
    /// Columns between the products of an expert.
    pub intermediate: u32,
    /// The same of the shared expert.
    pub shared_intermediate: u32,
    /// How logits choose experts; none where ids and weights are given.
    pub topk: Option<TopkShape>,
}

impl LayerShape {
    /// Refuses what the rooms do not take, and sizes that do not fit each other.
    ///
    /// # Errors
    /// The size, what is needed, and what it is.
    pub fn check(&self) -> Result<(), ContractError> {
        self.exchange.check()?;
        self.exchange.check_tokens(self.num_tokens as usize)?;
        if let Some(topk) = &self.topk {
            topk.check()?;
            let Self { exchange, num_tokens, .. } = self;
            require(
                topk.num_tokens == *num_tokens,
                "topk.num_tokens",
                num_tokens,
                topk.num_tokens,
            )?;
            let (needed, got) = (exchange.num_experts, topk.num_experts);
            require(needed == got, "topk.num_experts", needed, got)?;
            require(exchange.topk == topk.top_k, "topk.top_k", exchange.topk, topk.top_k)?;
        }
        self.permute().check()?;
        self.pack().check()?;
        self.unpack().check()?;
        self.expert_gate_up().check()?;
        self.expert_down().check()?;
        self.shared().map_or(Ok(()), |shared| shared.check())
    }

    /// Experts of a rank.
    pub fn num_local_experts(&self) -> u32 {
        self.exchange.num_experts / self.exchange.ep_size
    }

    /// Elements of `x`, and of `out`.
    pub fn x_elements(&self) -> usize {
        self.num_tokens as usize * self.exchange.hidden as usize
    }

    /// Elements of `topk_ids`, and of `topk_weights`.
    pub fn topk_elements(&self) -> usize {
        self.num_tokens as usize * self.exchange.topk as usize
    }

    /// Received slots, sorted by expert.
    pub fn permute(&self) -> PermuteShape {
        let num_slots = self.exchange.num_slots() as u32;
        PermuteShape::new(num_slots, self.exchange.topk, self.num_local_experts())
    }

    /// Received slots and their rows. There is room for the worst routing: every id of every slot.
    pub fn rows(&self) -> TokenRows {
        TokenRows {
            num_tokens: self.exchange.num_slots() as u32,
            top_k: self.exchange.topk,
            hidden: self.exchange.hidden,
            format: RowFormat::Bf16,
            num_max_rows: self.permute().num_max_rows() as u32,
        }
    }

    /// Slots to rows.
    pub fn pack(&self) -> PackShape {
        let num_local_experts = self.num_local_experts();
        PackShape { rows: self.rows(), num_local_experts, zero_padding: false }
    }

    /// Rows to slots.
    pub fn unpack(&self) -> UnpackShape {
        UnpackShape { rows: self.rows(), has_addend: false }
    }

    /// The experts' first product, with its gate.
    pub fn expert_gate_up(&self) -> ExpertGemmShape {
        ExpertGemmShape {
            num_rows: self.rows().num_max_rows,
            num_experts: self.num_local_experts(),
            n: self.intermediate,
            k: self.exchange.hidden,
            is_gated: true,
        }
    }

    /// The experts' second product.
    pub fn expert_down(&self) -> ExpertGemmShape {
        let (n, k) = (self.exchange.hidden, self.intermediate);
        ExpertGemmShape { n, k, is_gated: false, ..self.expert_gate_up() }
    }

    /// The shared expert; none without tokens.
    pub fn shared(&self) -> Option<SharedExpertShape> {
        (self.num_tokens > 0).then_some(SharedExpertShape {
            num_tokens: self.num_tokens,
            hidden: self.exchange.hidden,
            intermediate: self.shared_intermediate,
        })
    }

    /// Routed and shared results: rows of one slot each, and an addend.
    pub fn add(&self) -> UnpackShape {
        let num_tokens = self.num_tokens;
        let rows = TokenRows { num_tokens, top_k: 1, num_max_rows: num_tokens, ..self.rows() };
        UnpackShape { rows, has_addend: true }
    }
}
