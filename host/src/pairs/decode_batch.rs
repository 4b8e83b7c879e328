//! A decode batch of any size, whose KV follows from identities, so that all of it is checkable.

use std::sync::OnceLock;

use gpu_kernels::contract::Work;
use gpu_kernels::kv_layout::{KvElement, KvPageShape};
use gpu_kernels::kv_page_pattern::pattern::{ElementFormat, KvHalf, element, mix, token_identity};
use gpu_kernels::paged_attention::contract::DecodeShape;
use gpu_kernels::paged_attention::plan::SplitPolicy;
use gpu_kernels::paged_attention::reference::{DecodeResult, Tolerance, attend};
use half::{bf16, f16};
use rayon::prelude::*;

use super::placed_kv::{PagedBatch, pages_of};
use crate::kernels::paged_attention::DecodeElement;

/// Sizes of a batch to decode.
#[derive(Clone, Debug)]
pub struct DecodeWorkload {
    /// Heads of `q` and `out`.
    pub num_qo_heads: u32,
    /// Shape of the KV pages.
    pub page: KvPageShape,
    /// Tokens of each request.
    pub kv_lens: Vec<u32>,
    /// How the split kernel cuts the batch.
    pub policy: SplitPolicy,
}

impl DecodeWorkload {
    /// Requests of `kv_lens` tokens, `num_qo_heads` query and `num_kv_heads` KV heads of 128, in
    /// pages of 16.
    pub fn new(num_qo_heads: u32, num_kv_heads: u32, kv_lens: Vec<u32>) -> Self {
        let page = pages_of(num_kv_heads, 128);
        Self { num_qo_heads, page, kv_lens, policy: SplitPolicy::Balanced }
    }

    /// The same with heads of `head_dim` elements.
    #[must_use]
    pub fn head_dim(mut self, head_dim: u32) -> Self {
        self.page.head_dim = head_dim;
        self
    }

    /// The same in pages of `page_size` tokens.
    #[must_use]
    pub fn page_size(mut self, page_size: u32) -> Self {
        self.page.page_size = page_size;
        self
    }

    /// The same, cut so that a request's result does not depend on the others: parts of
    /// `part_tokens` tokens.
    #[must_use]
    pub fn batch_invariant(mut self, part_tokens: u32) -> Self {
        self.policy = SplitPolicy::BatchInvariant { part_tokens };
        self
    }

    /// The same with K and V stored in e4m3.
    #[must_use]
    pub fn over_e4m3(mut self) -> Self {
        self.page.element = KvElement::E4m3;
        self
    }

    /// Sizes of the decode launch.
    pub fn shape(&self) -> DecodeShape {
        DecodeShape {
            batch: self.kv_lens.len() as u32,
            num_qo_heads: self.num_qo_heads,
            page: self.page,
            sm_scale: 1.0 / (self.page.head_dim as f32).sqrt(),
        }
    }

    /// What decode of it must do.
    pub fn work(&self) -> Work {
        self.shape().work(self.kv_lens.iter().map(|&len| u64::from(len)).sum())
    }

    /// Tokens of each page of the batch, request by request: `[entries]`.
    pub fn page_tokens(&self) -> Vec<u32> {
        let page_size = self.page.page_size;
        let of_request = |&kv_len: &u32| {
            (0..kv_len.div_ceil(page_size)).map(move |i| (kv_len - i * page_size).min(page_size))
        };
        self.kv_lens.iter().flat_map(of_request).collect()
    }

    /// Bytes of K and V of a token.
    pub fn token_bytes(&self) -> u64 {
        self.page.page_bytes() as u64 / u64::from(self.page.page_size)
    }
}

/// An element type that a batch may be of.
pub trait BatchElement: DecodeElement + Send + Sync {
    /// As results spell it.
    const NAME: &'static str;
    /// How the contents of pages of this type become elements.
    const FORMAT: ElementFormat;
    /// How far a kernel's output may be from the oracle, over pages of this type.
    const TOLERANCE: Tolerance;
    /// The same, over pages of e4m3.
    const TOLERANCE_OVER_E4M3: Tolerance;
}

macro_rules! batch_element {
    ($T:ty, $name:literal, $format:ident, $over_e4m3:ident) => {
        impl BatchElement for $T {
            const NAME: &'static str = $name;
            const FORMAT: ElementFormat = ElementFormat::$format;
            const TOLERANCE: Tolerance = Tolerance::$format;
            const TOLERANCE_OVER_E4M3: Tolerance = Tolerance::$over_e4m3;
        }
    };
}

batch_element!(bf16, "bf16", BF16, BF16_OVER_E4M3);
batch_element!(f16, "f16", F16, F16_OVER_E4M3);

/// A batch's contents, which follow from a seed, and what attention over them gives.
pub struct DecodeBatch<T = bf16> {
    workload: DecodeWorkload,
    seed: u64,
    q: Vec<T>,
    oracle: OnceLock<DecodeResult>,
}

impl<T: BatchElement> DecodeBatch<T> {
    /// The batch of this seed.
    pub fn new(workload: DecodeWorkload, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let num_elements = workload.shape().q_elements();
        let q = (0..num_elements).map(|_| T::from_f32(4.0 * rng.f32() - 2.0)).collect();
        Self { workload, seed, q, oracle: OnceLock::new() }
    }

    /// Its sizes.
    pub fn workload(&self) -> &DecodeWorkload {
        &self.workload
    }

    /// The queries: `[batch, num_qo_heads, head_dim]`.
    pub fn q(&self) -> &[T] {
        &self.q
    }

    /// How far a kernel's output may be from the oracle.
    pub fn tolerance(&self) -> Tolerance {
        match self.workload.page.element {
            KvElement::Half => T::TOLERANCE,
            KvElement::E4m3 => T::TOLERANCE_OVER_E4M3,
        }
    }

    /// Attention in f64 over what the identities say the pages hold; worked out once.
    pub fn oracle(&self) -> &DecodeResult {
        self.oracle.get_or_init(|| self.attend())
    }

    fn attend(&self) -> DecodeResult {
        let DecodeWorkload { page, kv_lens, .. } = &self.workload;
        let shape = self.workload.shape();
        let (row, group) = (page.head_dim as usize, shape.group_size() as usize);
        let [k_scale, v_scale] = self.scales();
        let rows = |request: usize, half, kv_head: u32| -> Vec<Vec<f64>> {
            let scale = match half {
                KvHalf::Key => k_scale[kv_head as usize],
                KvHalf::Value => v_scale[kv_head as usize],
            };
            let of_token = |token| {
                let identity = self.identity(request, token);
                let of_dim =
                    |dim| scale * element(identity, half, kv_head, dim, page, self.format());
                (0..page.head_dim).map(|dim| f64::from(of_dim(dim))).collect()
            };
            (0..kv_lens[request]).map(of_token).collect()
        };
        let num_groups = kv_lens.len() * page.num_kv_heads as usize;
        let heads: Vec<(Vec<f64>, f64)> = (0..num_groups)
            .into_par_iter()
            .flat_map_iter(|group_idx| {
                let request = group_idx / page.num_kv_heads as usize;
                let kv_head = (group_idx % page.num_kv_heads as usize) as u32;
                let keys = rows(request, KvHalf::Key, kv_head);
                let values = rows(request, KvHalf::Value, kv_head);
                self.q[group_idx * group * row..][..group * row].chunks(row).map(move |q| {
                    let q: Vec<f64> = q.iter().map(|&x| T::to_f64(x)).collect();
                    attend(&q, &keys, &values, f64::from(shape.sm_scale))
                })
            })
            .collect();
        let mut result = DecodeResult::default();
        heads.into_iter().for_each(|head| result.push(head));
        result
    }
}

impl<T: BatchElement> PagedBatch for DecodeBatch<T> {
    type Element = T;

    fn page(&self) -> KvPageShape {
        self.workload.page
    }

    fn kv_lens(&self) -> &[u32] {
        &self.workload.kv_lens
    }

    fn work(&self) -> Work {
        self.workload.work()
    }

    fn identity(&self, request: usize, token: u32) -> u64 {
        token_identity(mix(self.seed).wrapping_add(request as u64), u64::from(token))
    }

    fn format(&self) -> ElementFormat {
        match self.workload.page.element {
            KvElement::Half => T::FORMAT,
            KvElement::E4m3 => ElementFormat::E4M3,
        }
    }

    fn scales(&self) -> [Vec<f32>; 2] {
        let KvPageShape { element, num_kv_heads, .. } = self.workload.page;
        [2, 3].map(|step: u32| {
            let scale = |head: u32| match element {
                KvElement::Half => 1.0,
                KvElement::E4m3 => 0.75 + 0.125 * (step * head % 5) as f32,
            };
            (0..num_kv_heads).map(scale).collect()
        })
    }
}
