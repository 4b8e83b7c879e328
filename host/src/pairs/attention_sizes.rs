//! The sizes of an attention shape, as results tell them.

use gpu_kernels::kv_layout::KvElement;
use serde::Serialize;

use super::{BatchElement, DecodeWorkload, PrefillWorkload};

/// Causal attention over a paged KV cache: what another program has to know to run the same.
///
/// Of each request, the queries are those of its last tokens.
#[derive(Clone, Debug, Serialize)]
pub struct AttentionSizes {
    /// Type of q, K and V: `bf16` or `f16`.
    pub element: &'static str,
    /// In what K and V are stored: the same, or `e4m3`.
    pub kv_element: &'static str,
    /// Heads of q.
    pub num_qo_heads: u32,
    /// Heads of K and V.
    pub num_kv_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Tokens of a page.
    pub page_size: u32,
    /// Query tokens of each request; 1 in decode.
    pub qo_lens: Vec<u32>,
    /// Tokens of each request.
    pub kv_lens: Vec<u32>,
}

impl AttentionSizes {
    /// Those of a decode batch of `T`.
    pub fn of_decode<T: BatchElement>(workload: &DecodeWorkload) -> Self {
        Self {
            element: T::NAME,
            kv_element: match workload.page.element {
                KvElement::Half => T::NAME,
                KvElement::E4m3 => "e4m3",
            },
            num_qo_heads: workload.num_qo_heads,
            num_kv_heads: workload.page.num_kv_heads,
            head_dim: workload.page.head_dim,
            page_size: workload.page.page_size,
            qo_lens: vec![1; workload.kv_lens.len()],
            kv_lens: workload.kv_lens.clone(),
        }
    }
    /// Those of a prefill batch of `T`.
    pub fn of_prefill<T: BatchElement>(workload: &PrefillWorkload) -> Self {
        Self {
            element: T::NAME,
            kv_element: T::NAME,
            num_qo_heads: workload.num_qo_heads,
            num_kv_heads: workload.page.num_kv_heads,
            head_dim: workload.page.head_dim,
            page_size: workload.page.page_size,
            qo_lens: workload.qo_lens.clone(),
            kv_lens: workload.kv_lens.clone(),
        }
    }
}
