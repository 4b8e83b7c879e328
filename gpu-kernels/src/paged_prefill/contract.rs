//! What a prefill launch must be like, and what it does.

use std::vec::Vec;

use cuda_std::cpu::LaunchDims;
use cuda_std::tensor_map::{L2Promotion, Swizzle, Tiling};

use super::plan::PrefillPlan;
use super::{BlockShape, MAP_DIMENSIONS, MAX_MAPPED_LOCATIONS, WGMMA};
use crate::contract::{ContractError, Work, require, require_len};
use crate::kv_layout::{KvElement, KvPageShape};
use crate::paged_attention::AttentionParams;
use crate::paged_attention::contract::check_heads;

/// Sizes of a prefill launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrefillShape {
    /// Heads of `q` and `out`.
    pub num_qo_heads: u32,
    /// Shape of the KV pages.
    pub page: KvPageShape,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub sm_scale: f32,
}

impl PrefillShape {
    /// Query heads that share a KV head.
    pub fn group_size(&self) -> u32 {
        self.num_qo_heads / self.page.num_kv_heads
    }

    /// Refuses what the kernels do not take.
    ///
    /// With lengths that [check](Self::check_lengths), a
    /// [`PageTable`](crate::paged_attention::contract::PageTable) of those lengths that checks
    /// against the pools, the plan of both, and `q`, `out`, `lse` of the shapes that the room states,
    /// no thread of a launch with these [dims](Self::dims) then reaches out of bounds.
    pub fn check(&self) -> Result<(), ContractError> {
        check_heads(&self.page, self.num_qo_heads)?;
        let element = self.page.element;
        require(element == KvElement::Half, "element", "Half", std::format!("{element:?}"))?;
        require(
            self.sm_scale.is_finite() && self.sm_scale > 0.0,
            "sm_scale",
            "finite and above 0",
            self.sm_scale,
        )
    }

    /// Whether the kernels for Hopper take it.
    pub fn suits_wgmma(&self) -> bool {
        self.page.head_dim == 128
    }

    /// Whether the copy engine can load its tiles, from pools in `num_locations` places: a swizzled
    /// tile is made of boxes of a multiple of 8 tokens.
    pub fn suits_maps(&self, num_locations: usize) -> bool {
        let page_size = self.page.page_size;
        WGMMA.num_keys.is_multiple_of(page_size)
            && page_size.is_multiple_of(8)
            && num_locations <= MAX_MAPPED_LOCATIONS
    }

    /// A pool of `num_pages` pages, of which a box is what lies together of a page and the 32 rows
    /// that a warp loads: 64 elements of one head of K or V.
    pub fn map_tiling(&self, num_pages: usize) -> Tiling<MAP_DIMENSIONS> {
        let KvPageShape { page_size, num_kv_heads, head_dim, .. } = self.page;
        let strides = self.page.strides();
        Tiling {
            sizes: [head_dim, page_size, num_kv_heads, 2, num_pages as u32].map(u64::from),
            strides: [1, strides.token, strides.head, strides.value, strides.page].map(u64::from),
            tile: [64, page_size.min(32), 1, 1, 1],
            swizzle: Swizzle::Bytes128,
            l2_promotion: L2Promotion::Bytes128,
        }
    }

    /// Refuses requests with more queries than tokens, and batches without a query.
    pub fn check_lengths(&self, qo_lens: &[u32], kv_lens: &[u32]) -> Result<(), ContractError> {
        require_len("qo_lens", kv_lens.len(), qo_lens.len())?;
        for (i, (&qo_len, &kv_len)) in qo_lens.iter().zip(kv_lens).enumerate() {
            if qo_len > kv_len {
                let argument = std::format!("qo_lens[{i}]");
                return Err(ContractError::new(
                    &argument,
                    std::format!("at most {kv_len}"),
                    qo_len,
                ));
            }
        }
        let num_rows: u64 = qo_lens.iter().map(|&len| u64::from(len)).sum();
        let num_max_rows = u64::from(u32::MAX / (self.num_qo_heads * self.page.head_dim));
        require(
            (1..=num_max_rows).contains(&num_rows),
            "qo_lens",
            std::format!("1 to {num_max_rows} in all"),
            num_rows,
        )
    }

    /// The sizes that the kernels take, for pages in `num_locations` places.
    pub fn params(&self, num_locations: usize) -> AttentionParams {
        AttentionParams::new(&self.page, self.num_qo_heads, self.sm_scale, num_locations)
    }

    /// Elements of `q`, and of `out`.
    pub fn q_elements(&self, qo_lens: &[u32]) -> usize {
        self.lse_elements(qo_lens) * self.page.head_dim as usize
    }

    /// Elements of `lse`.
    pub fn lse_elements(&self, qo_lens: &[u32]) -> usize {
        qo_lens.iter().sum::<u32>() as usize * self.num_qo_heads as usize
    }

    /// The launch of a plan that was made for such blocks.
    pub fn dims(&self, plan: &PrefillPlan, block: BlockShape) -> LaunchDims {
        LaunchDims {
            grid: [plan.num_blocks(), 1, 1],
            block: [block.num_threads, 1, 1],
            shared_bytes: block.shared_bytes(self.page.head_dim),
        }
    }

    /// What the attention itself needs, with no variant's overhead: K and V of all tokens, q, out
    /// and lse once, and 4 flops for each element of the head, query head, and pair of a query and
    /// a token that it sees.
    pub fn work(&self, qo_lens: &[u32], kv_lens: &[u32]) -> Work {
        let row = u64::from(self.page.num_kv_heads * self.page.head_dim);
        let qo = self.q_elements(qo_lens) as u64;
        let num_tokens: u64 = kv_lens.iter().map(|&len| u64::from(len)).sum();
        let seen = |(&qo_len, &kv_len): (&u32, &u32)| {
            let (qo_len, kv_len) = (u64::from(qo_len), u64::from(kv_len));
            qo_len * (kv_len - qo_len) + qo_len * (qo_len + 1) / 2
        };
        let num_pairs: u64 = qo_lens.iter().zip(kv_lens).map(seen).sum();
        Work {
            read_bytes: 2 * (2 * num_tokens * row + qo),
            written_bytes: 2 * qo + 4 * self.lse_elements(qo_lens) as u64,
            flops: 4 * num_pairs * row * u64::from(self.group_size()),
        }
    }
}

/// Queries of each request, `[batch]`, from where each request's rows start: `[batch + 1]`, from 0.
///
/// # Errors
/// Starts that do not ascend from 0.
pub fn qo_lens(qo_indptr: &[i32]) -> Result<Vec<u32>, ContractError> {
    let first = qo_indptr.first().copied();
    let found = first.map_or_else(|| "nothing".into(), |first| std::format!("{first}"));
    require(first == Some(0), "qo_indptr[0]", 0, found)?;
    let mut lens = Vec::with_capacity(qo_indptr.len() - 1);
    for (b, ends) in qo_indptr.windows(2).enumerate() {
        require(ends[0] <= ends[1], "qo_indptr", std::format!("ascending at {b}"), ends[1])?;
        lens.push((ends[1] - ends[0]) as u32);
    }
    Ok(lens)
}
