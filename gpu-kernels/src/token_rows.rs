//! Hidden states of tokens, and copies of them in the order of experts.
//!
//! `x` `[num_tokens, hidden]` has a row for each token, `rows` `[num_max_rows, hidden]` one for
//! each (token, slot) pair, found by `pair_rows` `[num_tokens, top_k]` of
//! [`moe_permute`](crate::moe_permute). A pair whose row is -1, or not below `num_max_rows`, is
//! dropped: nothing is written for it, and it adds nothing to its token.
//!
//! A row in fp8 has a scale in f32 for each 128 elements (the last for what is left), in a tensor
//! of its own: `[…, hidden.div_ceil(128)]`; an element is worth itself times its scale.

use std::format;

use crate::contract::{ContractError, require, require_multiple, require_up_to};
use crate::token_unpack::SCALE_BLOCK;

/// Largest row.
const MAX_HIDDEN: u32 = 1 << 20;
/// Most slots of a token.
const MAX_TOP_K: u32 = 512;

/// How the elements of a row lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowFormat {
    /// bf16.
    Bf16,
    /// fp8 e4m3, with a scale for each [`SCALE_BLOCK`] elements.
    Fp8,
}

impl RowFormat {
    /// As messages spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
        }
    }
}

/// Sizes of tokens and of their rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenRows {
    /// Tokens; may be 0.
    pub num_tokens: u32,
    /// Slots of a token.
    pub top_k: u32,
    /// Elements of a row: a multiple of 8, in fp8 of 16.
    pub hidden: u32,
    /// Their type.
    pub format: RowFormat,
    /// Rows that there is memory for.
    pub num_max_rows: u32,
}

impl TokenRows {
    /// Refuses what no kernel over rows takes.
    pub fn check(&self) -> Result<(), ContractError> {
        let Self { num_tokens, top_k, hidden, num_max_rows, .. } = *self;
        let multiple = 16 / self.element_bytes();
        require_multiple("hidden", multiple, MAX_HIDDEN, hidden)?;
        require_up_to("top_k", MAX_TOP_K, top_k)?;
        require(num_tokens <= 1 << 20, "num_tokens", "at most 2^20", num_tokens)?;
        let num_scales = u64::from(num_tokens) * u64::from(self.num_scales());
        require(
            u32::try_from(num_scales).is_ok(),
            "num_tokens",
            "such that they have fewer than 2^32 scales",
            format!("{num_tokens} of {} scales", self.num_scales()),
        )?;
        require(num_max_rows <= 1 << 30, "num_max_rows", "at most 2^30", num_max_rows)
    }

    fn element_bytes(&self) -> u32 {
        match self.format {
            RowFormat::Bf16 => 2,
            RowFormat::Fp8 => 1,
        }
    }

    /// Bytes of a row, a multiple of 16.
    pub fn row_bytes(&self) -> u32 {
        self.hidden * self.element_bytes()
    }

    /// Scales of a row.
    pub fn num_scales(&self) -> u32 {
        match self.format {
            RowFormat::Bf16 => 0,
            RowFormat::Fp8 => self.hidden.div_ceil(SCALE_BLOCK),
        }
    }

    /// Elements of `pair_rows`.
    pub fn num_pairs(&self) -> usize {
        self.num_tokens as usize * self.top_k as usize
    }

    /// Elements of `x`.
    pub fn x_elements(&self) -> usize {
        self.num_tokens as usize * self.hidden as usize
    }

    /// Elements of `rows`.
    pub fn rows_elements(&self) -> usize {
        self.num_max_rows as usize * self.hidden as usize
    }

    /// Elements of the scales of `x`.
    pub fn x_scales(&self) -> usize {
        self.num_tokens as usize * self.num_scales() as usize
    }

    /// Elements of the scales of `rows`.
    pub fn rows_scales(&self) -> usize {
        self.num_max_rows as usize * self.num_scales() as usize
    }

    /// Bytes of one row with its scales.
    pub fn bytes_with_scales(&self) -> u64 {
        u64::from(self.row_bytes() + 4 * self.num_scales())
    }
}
