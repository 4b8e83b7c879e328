//! What a product of one row must be like, and what it does.

use std::format;

use cuda_std::cpu::LaunchDims;

use super::{
    GemvParams, HEAD_BYTES, MAX_NORMED_LEN, MAX_ROW_LEN, MAX_STAGES, NUM_THREADS, NUM_WARPS,
    STAGE_BYTES, WORD,
};
use crate::contract::{
    ContractError, MAX_SHARED_BYTES, Work, require, require_multiple, require_up_to,
};

/// Sizes of a product of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GemvShape {
    /// Results, of an expert if there are several.
    pub n: u32,
    /// Elements of a row of weights.
    pub k: u32,
    /// Whether a result has two rows of weights: a gate, and what it scales.
    pub is_gated: bool,
    /// Whether the multiplied row is normalised first, and what is added to its mean square.
    pub norm_eps: Option<f32>,
    /// Whose weights they are, if not one's for all tokens.
    pub experts: Option<GemvExperts>,
}

/// The experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemvExperts {
    /// Those that a token chooses among.
    pub num_experts: u32,
    /// Those it chooses.
    pub top_k: u32,
    /// Those behind them, which every token visits.
    pub num_shared: u32,
}

impl GemvExperts {
    /// Slots of a token.
    pub fn num_slots(&self) -> u32 {
        self.top_k + self.num_shared
    }

    /// Experts that have weights.
    pub fn num_stored(&self) -> u32 {
        self.num_experts + self.num_shared
    }
}

/// Largest `n`: places are counted in 32 bits.
const MAX_RESULTS: u32 = 1 << 20;
/// Most experts, and most slots.
const MAX_EXPERTS: u32 = 1024;

impl GemvShape {
    /// A product without gate, norm and experts.
    pub fn new(n: u32, k: u32) -> Self {
        Self { n, k, is_gated: false, norm_eps: None, experts: None }
    }

    /// Refuses what the kernels do not take. With arguments of the lengths told here, no thread then
    /// reaches out of bounds, whatever the chosen ids are.
    pub fn check(&self) -> Result<(), ContractError> {
        require_multiple("n", WORD, MAX_RESULTS, self.n)?;
        require_multiple("k", WORD, MAX_RESULTS, self.k)?;
        if let Some(GemvExperts { num_experts, top_k, num_shared }) = self.experts {
            require_up_to("num_experts", MAX_EXPERTS, num_experts)?;
            let needed = format!("1 to `num_experts`, {num_experts}");
            require((1..=num_experts).contains(&top_k), "top_k", needed, top_k)?;
            let needed = format!("at most {MAX_EXPERTS}");
            require(num_shared <= MAX_EXPERTS, "num_shared", needed, num_shared)?;
            let is_normalised = self.norm_eps.is_some();
            let needed = "none where the results of experts are added up";
            require(self.is_gated || !is_normalised, "norm_eps", needed, "one")?;
        }
        let longest = if self.norm_eps.is_some() { MAX_NORMED_LEN } else { MAX_ROW_LEN };
        let row_len = self.row_len();
        let needed = format!("such that a row of at most {longest} elements is multiplied");
        require(row_len <= u64::from(longest), "k", needed, row_len)?;
        let eps = self.norm_eps.unwrap_or(0.0);
        require(eps.is_finite() && eps >= 0.0, "norm_eps", "0 or a positive number", eps)
    }

    /// Elements of the multiplied row: all slots' rows, for experts that add up.
    fn row_len(&self) -> u64 {
        match self.experts {
            Some(experts) if !self.is_gated => u64::from(experts.num_slots()) * u64::from(self.k),
            _ => self.k.into(),
        }
    }

    /// Elements of what is multiplied.
    pub fn row_elements(&self) -> usize {
        self.row_len() as usize
    }

    /// Elements of the norm's weights.
    pub fn norm_elements(&self) -> usize {
        if self.norm_eps.is_some() { self.k as usize } else { 0 }
    }

    /// Elements of the weights.
    pub fn b_elements(&self) -> usize {
        let num_stored = self.experts.map_or(1, |experts| experts.num_stored());
        num_stored as usize * self.rows_of_one() as usize * self.k as usize
    }

    fn rows_of_one(&self) -> u32 {
        if self.is_gated { 2 * self.n } else { self.n }
    }

    /// Elements of the results: one row, of gated experts one for each slot.
    pub fn out_elements(&self) -> usize {
        match self.experts {
            Some(experts) if self.is_gated => experts.num_slots() as usize * self.n as usize,
            _ => self.n as usize,
        }
    }

    /// Elements of `topk_ids`, and of `topk_weights`.
    pub fn topk_elements(&self) -> usize {
        self.experts.map_or(0, |experts| experts.num_slots() as usize)
    }

    /// Pairs of rows that a warp takes at a time.
    fn num_units(&self) -> u32 {
        if self.is_gated { self.out_elements() as u32 } else { self.n / 2 }
    }

    /// Stages that a warp's ring has beside the row.
    fn num_stages(&self) -> u32 {
        let room = MAX_SHARED_BYTES - HEAD_BYTES - 2 * self.row_elements();
        MAX_STAGES.min((room / (NUM_WARPS as usize * STAGE_BYTES)) as u32)
    }

    /// Launch on a GPU of `num_sms` SMs.
    pub fn dims(&self, num_sms: u32) -> LaunchDims {
        let ring_bytes = self.num_stages() as usize * NUM_WARPS as usize * STAGE_BYTES;
        LaunchDims {
            grid: [self.num_units().div_ceil(NUM_WARPS).min(num_sms), 1, 1],
            block: [NUM_THREADS, 1, 1],
            shared_bytes: (HEAD_BYTES + 2 * self.row_elements() + ring_bytes) as u32,
        }
    }

    /// The sizes as kernels take them.
    pub fn params(&self) -> GemvParams {
        let experts =
            self.experts.unwrap_or(GemvExperts { num_experts: 1, top_k: 1, num_shared: 0 });
        GemvParams {
            n: self.n,
            k: self.k,
            num_stages: self.num_stages(),
            eps: self.norm_eps.unwrap_or(0.0),
            num_experts: experts.num_experts,
            top_k: experts.top_k,
            num_shared: experts.num_shared,
        }
    }

    /// What must be read and written: the weights of each slot's expert, and the rows.
    pub fn work(&self) -> Work {
        let num_slots = self.experts.map_or(1, |experts| experts.num_slots());
        let weights = u64::from(num_slots) * u64::from(self.rows_of_one()) * u64::from(self.k);
        Work {
            read_bytes: 2 * (weights + self.row_len() + self.norm_elements() as u64),
            written_bytes: 2 * self.out_elements() as u64,
            flops: 2 * weights,
        }
    }
}
