//! What appending tokens must be like, and what it does.

use std::collections::HashMap;
use std::format;

use super::{AppendParams, NUM_THREADS, QkvParams, Rotation, THREAD_DIMS};
use crate::contract::{ContractError, LaunchDims, Work, require, require_len, require_up_to};
use crate::kv_layout::{KvPagePlace, KvPageShape};
use crate::paged_attention::MAX_QO_HEADS;
use crate::paged_attention::contract::PageTable;

/// Which dimensions of a head rotary embedding turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// `(i, i + head_dim / 2)`: NeoX, Llama.
    HalfSplit,
    /// `(2i, 2i + 1)`: GPT-J.
    Interleaved,
}

/// Rotary embedding by a cache of cosines and sines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rope {
    /// Which dimensions turn together.
    pub style: RopeStyle,
    /// Rows of `cos_sin_cache`.
    pub num_max_positions: u32,
}

/// Sizes of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendShape {
    /// Requests.
    pub batch: u32,
    /// New tokens of all requests.
    pub num_tokens: u32,
    /// Shape of the KV pages.
    pub page: KvPageShape,
    /// Whether and how K is rotated.
    pub rope: Option<Rope>,
}

/// Whose tokens are appended where; all host slices.
#[derive(Clone, Copy, Debug)]
pub struct AppendLists<'a> {
    /// Where a request's new tokens start: `[batch + 1]`, from 0 to `num_tokens`.
    pub append_indptr: &'a [i32],
    /// Pages of each request, with room for the new tokens: its lengths include them.
    pub table: PageTable<'a>,
}

impl AppendShape {
    /// Refuses what the kernels do not take.
    ///
    /// With [lists that check out](Self::check_lists), pools as large as stated there, and tensors
    /// of the shapes that the room states, no thread of a launch with [these](Self::dims)
    /// [dims](Self::rotate_q_dims) then reaches out of bounds, and no two write the same element.
    pub fn check(&self) -> Result<(), ContractError> {
        self.page.check()?;
        require(
            self.page.head_dim.is_multiple_of(THREAD_DIMS),
            "head_dim",
            format!("a multiple of {THREAD_DIMS}"),
            self.page.head_dim,
        )?;
        require(self.batch > 0, "batch", "at least 1", self.batch)?;
        require(self.num_tokens > 0, "num_tokens", "at least 1", self.num_tokens)?;
        self.check_elements("num_kv_heads", self.page.num_kv_heads)
    }

    /// Refuses query heads that *rotate_q* does not take, and queries without a rotation.
    pub fn check_q(&self, num_qo_heads: u32) -> Result<(), ContractError> {
        self.check()?;
        require(self.rope.is_some(), "rope", "given, to rotate q", "none")?;
        require_up_to("num_qo_heads", MAX_QO_HEADS, num_qo_heads)?;
        self.check_elements("num_qo_heads", num_qo_heads)
    }

    /// Refuses lists that do not fit together, reach outside the pools of `pool_pages` pages (one
    /// pool a location), write a page twice, or take positions that the rotary cache lacks.
    pub fn check_lists(
        &self,
        lists: &AppendLists,
        pool_pages: &[usize],
    ) -> Result<(), ContractError> {
        let AppendLists { append_indptr, table } = lists;
        let page_size = self.page.page_size;
        table.check(self.batch, page_size, pool_pages)?;
        require_len("append_indptr", self.batch as usize + 1, append_indptr.len())?;
        require(append_indptr[0] == 0, "append_indptr[0]", 0, append_indptr[0])?;
        let num_listed = append_indptr[self.batch as usize];
        require(
            u32::try_from(num_listed) == Ok(self.num_tokens),
            &format!("append_indptr[{}]", self.batch),
            format!("num_tokens = {}", self.num_tokens),
            num_listed,
        )?;

        let mut written_by = HashMap::new();
        for (b, kv_len) in table.kv_lens(page_size).into_iter().enumerate() {
            let (start, end) = (append_indptr[b], append_indptr[b + 1]);
            let num_new = u32::try_from(i64::from(end) - i64::from(start)).ok();
            let num_new = num_new.filter(|&num_new| num_new <= kv_len).ok_or_else(|| {
                ContractError::new(
                    &format!("append_indptr[{}]", b + 1),
                    format!("{start} to {start} + {kv_len}, the tokens of request {b}"),
                    end,
                )
            })?;
            if num_new == 0 {
                continue;
            }
            if let Some(rope) = self.rope {
                require(
                    kv_len <= rope.num_max_positions,
                    &format!("length of request {b}"),
                    format!("at most num_max_positions = {}", rope.num_max_positions),
                    kv_len,
                )?;
            }
            let first_page = (kv_len - num_new) / page_size;
            let entries =
                table.kv_indptr[b] as usize + first_page as usize..table.kv_indptr[b + 1] as usize;
            for entry in entries {
                let page = KvPagePlace {
                    rank: table.kv_page_rank[entry] as u32,
                    index: table.kv_indices[entry] as u32,
                };
                if let Some(earlier) = written_by.insert(page, entry) {
                    return Err(ContractError::new(
                        &format!("kv_indices[{entry}]"),
                        "a page that no other entry appends to",
                        format!("{page}, as kv_indices[{earlier}]"),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Elements of `k`, and of `v`.
    pub fn kv_elements(&self) -> usize {
        self.num_tokens as usize * (self.page.num_kv_heads * self.page.head_dim) as usize
    }

    /// Elements of `q`, and of `q_out`.
    pub fn q_elements(&self, num_qo_heads: u32) -> usize {
        self.num_tokens as usize * (num_qo_heads * self.page.head_dim) as usize
    }

    /// Elements of `cos_sin_cache`.
    pub fn cache_elements(&self) -> usize {
        let rows = self.rope.map_or(0, |rope| rope.num_max_positions);
        rows as usize * self.page.head_dim as usize
    }

    /// The sizes that the append kernels take.
    pub fn params(&self) -> AppendParams {
        AppendParams {
            batch: self.batch,
            num_tokens: self.num_tokens,
            num_heads: self.page.num_kv_heads,
            head_dim: self.page.head_dim,
            page_size: self.page.page_size,
            rotation: match self.rope.map(|rope| rope.style) {
                None => Rotation::NONE,
                Some(RopeStyle::HalfSplit) => Rotation::HALF_SPLIT,
                Some(RopeStyle::Interleaved) => Rotation::INTERLEAVED,
            },
            strides: self.page.strides(),
        }
    }

    /// The sizes that the query kernels take.
    pub fn q_params(&self, num_qo_heads: u32) -> AppendParams {
        AppendParams { num_heads: num_qo_heads, ..self.params() }
    }

    /// Launch of an append kernel.
    pub fn dims(&self) -> LaunchDims {
        self.dims_for(self.page.num_kv_heads)
    }

    /// Launch of a query kernel.
    pub fn rotate_q_dims(&self, num_qo_heads: u32) -> LaunchDims {
        self.dims_for(num_qo_heads)
    }

    /// What an append moves and computes.
    pub fn work(&self) -> Work {
        let kv_elements = self.kv_elements() as u64;
        let written_bytes = 2 * kv_elements * u64::from(self.page.element.bytes());
        Work { written_bytes, ..self.rotated_work(kv_elements, 2 * kv_elements) }
    }

    /// What rotating the queries moves and computes.
    pub fn rotate_q_work(&self, num_qo_heads: u32) -> Work {
        let q_elements = self.q_elements(num_qo_heads) as u64;
        self.rotated_work(q_elements, q_elements)
    }

    fn rotated_work(&self, rotated: u64, moved: u64) -> Work {
        let (cache_bytes, flops) = match self.rope {
            Some(_) => {
                (4 * u64::from(self.num_tokens) * u64::from(self.page.head_dim), 3 * rotated)
            }
            None => (0, 0),
        };
        Work { read_bytes: 2 * moved + cache_bytes, written_bytes: 2 * moved, flops }
    }

    /// Launch of a kernel with a thread for each share of `num_heads` heads of a token.
    fn dims_for(&self, num_heads: u32) -> LaunchDims {
        let threads = self.num_tokens * num_heads * (self.page.head_dim / THREAD_DIMS);
        LaunchDims {
            grid: [threads.div_ceil(NUM_THREADS), 1, 1],
            block: [NUM_THREADS, 1, 1],
            shared_bytes: 0,
        }
    }

    /// Kernels count threads in 32 bits, the last block's idle ones included.
    fn check_elements(&self, argument: &str, num_heads: u32) -> Result<(), ContractError> {
        let threads = u64::from(self.num_tokens)
            * u64::from(num_heads)
            * u64::from(self.page.head_dim / THREAD_DIMS);
        require(
            threads <= i32::MAX as u64,
            argument,
            format!("such that num_tokens * {argument} * head_dim / 16 is at most {}", i32::MAX),
            format!("{threads} for {num_heads} heads"),
        )
    }
}

/// Sizes of an append from the rows that one product makes of a token: its heads of q, of K, of V.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkvShape {
    /// The append itself.
    pub append: AppendShape,
    /// Heads of q.
    pub num_qo_heads: u32,
    /// Whether rows get a bias.
    pub has_bias: bool,
    /// Added to the mean square of a head, where heads of q and of K are normalised.
    pub norm_eps: Option<f32>,
}

impl QkvShape {
    /// Refuses what the kernels do not take; the promise is that of [`AppendShape::check`].
    pub fn check(&self) -> Result<(), ContractError> {
        self.append.check()?;
        require_up_to("num_qo_heads", MAX_QO_HEADS, self.num_qo_heads)?;
        self.append.check_elements("heads", self.num_row_heads())?;
        let head_dim = self.append.page.head_dim;
        if let Some(eps) = self.norm_eps {
            require(
                head_dim.is_power_of_two(),
                "head_dim",
                "a power of two, to be normalised",
                head_dim,
            )?;
            require(eps.is_finite() && eps >= 0.0, "norm_eps", "0 or a positive number", eps)?;
        }
        Ok(())
    }

    fn num_row_heads(&self) -> u32 {
        self.num_qo_heads + 2 * self.append.page.num_kv_heads
    }

    /// Elements of `qkv`.
    pub fn qkv_elements(&self) -> usize {
        self.append.q_elements(self.num_row_heads())
    }

    /// Elements of `qkv_bias`.
    pub fn bias_elements(&self) -> usize {
        let row = (self.num_row_heads() * self.append.page.head_dim) as usize;
        if self.has_bias { row } else { 0 }
    }

    /// Elements of `q_norm`, and of `k_norm`.
    pub fn norm_elements(&self) -> usize {
        self.norm_eps.map_or(0, |_| self.append.page.head_dim as usize)
    }

    /// The sizes that the kernels take.
    pub fn params(&self) -> QkvParams {
        QkvParams {
            append: self.append.params(),
            num_qo_heads: self.num_qo_heads,
            norm_eps: self.norm_eps.unwrap_or(0.0),
        }
    }

    /// The launch.
    pub fn dims(&self) -> LaunchDims {
        self.append.dims_for(self.num_row_heads())
    }

    /// What it moves and computes.
    pub fn work(&self) -> Work {
        let (append, q) = (self.append.work(), self.append.rotate_q_work(self.num_qo_heads));
        let weights = self.bias_elements() + 2 * self.norm_elements();
        Work {
            // The row of the rotation's cache serves q and K.
            read_bytes: append.read_bytes
                + 2 * self.append.q_elements(self.num_qo_heads) as u64
                + 2 * weights as u64,
            written_bytes: append.written_bytes + q.written_bytes,
            flops: append.flops + q.flops + 4 * self.qkv_elements() as u64,
        }
    }
}
