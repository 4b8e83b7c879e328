//! A prefill batch of any size, whose text is made of few words, so that all of it is checkable.

use std::sync::OnceLock;

use gpu_kernels::contract::Work;
use gpu_kernels::kv_layout::KvPageShape;
use gpu_kernels::kv_page_pattern::pattern::{KvHalf, element, mix, token_identity};
use gpu_kernels::paged_prefill::contract::PrefillShape;
use gpu_kernels::paged_prefill::reference::{PrefillResult, Tolerance};
use half::bf16;
use rayon::prelude::*;

use super::BatchElement;
use super::placed_kv::{PagedBatch, pages_of};

/// Words of a batch. The oracle looks at each once and not at each token, and outputs stay as large
/// as means of this many values, however long the text.
const NUM_WORDS: u64 = 64;

/// How far a kernel may be from the oracle, whose outputs are about 0.1: what 16 bits of the weights
/// and of the output leave.
pub const TOLERANCE: Tolerance = Tolerance { out: 5e-3, lse: 2e-3 };

/// Sizes of a batch to prefill.
#[derive(Clone, Debug)]
pub struct PrefillWorkload {
    /// Heads of `q` and `out`.
    pub num_qo_heads: u32,
    /// Shape of the KV pages.
    pub page: KvPageShape,
    /// Queries of each request.
    pub qo_lens: Vec<u32>,
    /// Tokens of each request, its queries' own included.
    pub kv_lens: Vec<u32>,
}

impl PrefillWorkload {
    /// Requests of `(queries, tokens)`, with heads of 128, in pages of 16.
    pub fn new(num_qo_heads: u32, num_kv_heads: u32, requests: &[(u32, u32)]) -> Self {
        let page = pages_of(num_kv_heads, 128);
        let (qo_lens, kv_lens) = requests.iter().copied().unzip();
        Self { num_qo_heads, page, qo_lens, kv_lens }
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

    /// Sizes of the launch.
    pub fn shape(&self) -> PrefillShape {
        PrefillShape {
            num_qo_heads: self.num_qo_heads,
            page: self.page,
            sm_scale: 1.0 / (self.page.head_dim as f32).sqrt(),
        }
    }

    /// What prefill of it must do.
    pub fn work(&self) -> Work {
        self.shape().work(&self.qo_lens, &self.kv_lens)
    }

    /// Where each request's queries start: `[batch + 1]`.
    pub fn qo_indptr(&self) -> Vec<i32> {
        let starts = self.qo_lens.iter().scan(0, |end, &len| {
            *end += len as i32;
            Some(*end)
        });
        [0].into_iter().chain(starts).collect()
    }
}

/// A batch's contents, which follow from a seed, and what attention over them gives.
pub struct PrefillBatch<T = bf16> {
    workload: PrefillWorkload,
    seed: u64,
    q: Vec<T>,
    oracle: OnceLock<PrefillResult>,
}

/// Keys or values of every word, for a KV head.
type Rows = Vec<Vec<f64>>;

impl<T: BatchElement> PrefillBatch<T> {
    /// The batch of this seed.
    pub fn new(workload: PrefillWorkload, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let num_elements = workload.shape().q_elements(&workload.qo_lens);
        let q = (0..num_elements).map(|_| T::from_f32(4.0 * rng.f32() - 2.0)).collect();
        Self { workload, seed, q, oracle: OnceLock::new() }
    }

    /// Its sizes.
    pub fn workload(&self) -> &PrefillWorkload {
        &self.workload
    }

    /// The queries: `[total_qo_len, num_qo_heads, head_dim]`.
    pub fn q(&self) -> &[T] {
        &self.q
    }

    fn word(&self, request: usize, token: u32) -> u64 {
        mix(token_identity(mix(self.seed).wrapping_add(request as u64), token.into())) % NUM_WORDS
    }

    fn identity_of(&self, word: u64) -> u64 {
        token_identity(mix(!self.seed), word)
    }

    /// Attention in f64 over what the identities say the pages hold; worked out once.
    pub fn oracle(&self) -> &PrefillResult {
        self.oracle.get_or_init(|| self.attend())
    }

    fn attend(&self) -> PrefillResult {
        let PrefillWorkload { num_qo_heads, page, qo_lens, kv_lens } = &self.workload;
        let group_size = (num_qo_heads / page.num_kv_heads) as usize;
        let rows = |half, kv_head| -> Rows {
            let of_word = |word| {
                let identity = self.identity_of(word);
                let of_dim = |dim| element(identity, half, kv_head, dim, page, T::FORMAT);
                (0..page.head_dim).map(|dim| f64::from(of_dim(dim))).collect()
            };
            (0..NUM_WORDS).map(of_word).collect()
        };
        let of_heads = |half| (0..page.num_kv_heads).map(|head| rows(half, head)).collect();
        let (keys, values): (Vec<Rows>, Vec<Rows>) =
            (of_heads(KvHalf::Key), of_heads(KvHalf::Value));

        let row_elements = (num_qo_heads * page.head_dim) as usize;
        let mut queries = self.q.chunks_exact(row_elements);
        let mut rows = Vec::new();
        for (request, (&qo_len, &kv_len)) in qo_lens.iter().zip(kv_lens).enumerate() {
            let mut counts = vec![0.0; NUM_WORDS as usize];
            for token in 0..kv_len {
                counts[self.word(request, token) as usize] += 1.0;
                if token + qo_len >= kv_len {
                    rows.push((counts.clone(), queries.next().expect("a query for each row")));
                }
            }
        }
        let heads: Vec<_> = rows
            .par_iter()
            .flat_map_iter(|(counts, row)| {
                row.chunks_exact(page.head_dim as usize).enumerate().map(|(head, q)| {
                    let kv_head = head / group_size;
                    self.attend_to_words(q, counts, &keys[kv_head], &values[kv_head])
                })
            })
            .collect();
        let mut result = PrefillResult::default();
        heads.into_iter().for_each(|head| result.push(head));
        result
    }

    /// One query over tokens of which `counts` are each word's: output and log-sum-exp in base 2.
    fn attend_to_words(
        &self,
        q: &[T],
        counts: &[f64],
        keys: &Rows,
        values: &Rows,
    ) -> (Vec<f64>, f64) {
        let sm_scale = f64::from(self.workload.shape().sm_scale);
        let q: Vec<f64> = q.iter().map(|&x| T::to_f64(x)).collect();
        let dot = |key: &Vec<f64>| key.iter().zip(&q).map(|(k, q)| k * q).sum::<f64>();
        // Scores are below 100: the sum of their exponentials is a number.
        let weights: Vec<f64> = keys
            .iter()
            .zip(counts)
            .map(|(key, count)| count * (sm_scale * dot(key)).exp())
            .collect();
        let sum: f64 = weights.iter().sum();
        let mut out = vec![0.0; q.len()];
        for (weight, value) in weights.iter().zip(values) {
            for (out, v) in out.iter_mut().zip(value) {
                *out += weight / sum * v;
            }
        }
        (out, sum.log2())
    }
}

impl<T: BatchElement> PagedBatch for PrefillBatch<T> {
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

    /// What a token's word has.
    fn identity(&self, request: usize, token: u32) -> u64 {
        self.identity_of(self.word(request, token))
    }
}
