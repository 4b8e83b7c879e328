//! What a decode launch must be like, and what it does.

use std::ops::Range;
use std::vec::Vec;

use cuda_std::cpu::LaunchDims;
use cuda_std::tensor_map::{L2Promotion, Swizzle, Tiling};

use super::plan::{Dealing, DecodePlan};
use super::{
    AttentionParams, MAX_GROUP_SIZE, MAX_LOCATIONS, MAX_QO_HEADS, NUM_THREADS, TilesLayout,
    box_tokens, num_stages, split_shared_bytes,
};
use crate::contract::{ContractError, MAX_GRID_Y, Work, require, require_len, require_up_to};
use crate::kv_layout::{KvElement, KvPagePlace, KvPageShape, KvStrides};

/// Sizes of a decode launch: every request contributes one query token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeShape {
    /// Requests.
    pub batch: u32,
    /// Heads of `q` and `out`.
    pub num_qo_heads: u32,
    /// Shape of the KV pages.
    pub page: KvPageShape,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub sm_scale: f32,
}

/// How the split kernels bring K and V into shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TileLoads {
    /// 16 bytes a lane, by `cp.async`: pages of any size, on any GPU.
    Pieces,
    /// Boxes of 16 or 8 tokens, by tensor maps: pages of a multiple of 8 tokens in at most
    /// [`MAX_TILE_LOCATIONS`](super::MAX_TILE_LOCATIONS) places, on Hopper.
    Boxes,
}

impl TileLoads {
    /// How items come to the blocks of the kernel that loads so.
    pub const fn dealing(self) -> Dealing {
        match self {
            Self::Pieces => Dealing::Planned,
            Self::Boxes => Dealing::Claimed,
        }
    }
}

/// Which page holds which tokens of which request; all host slices.
#[derive(Clone, Copy, Debug)]
pub struct PageTable<'a> {
    /// Where a request's entries start: `[batch + 1]`, from 0.
    pub kv_indptr: &'a [i32],
    /// Page within its location: `[entries]`.
    pub kv_indices: &'a [i32],
    /// Location of each page: `[entries]`.
    pub kv_page_rank: &'a [i32],
    /// Tokens in each request's last page: `[batch]`, 0 if it has no page.
    pub kv_last_page_len: &'a [i32],
}

/// A [`PageTable`] that has its lists; at first that of no request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageLists {
    /// `[batch + 1]`
    pub kv_indptr: Vec<i32>,
    /// `[entries]`
    pub kv_indices: Vec<i32>,
    /// `[entries]`
    pub kv_page_rank: Vec<i32>,
    /// `[batch]`
    pub kv_last_page_len: Vec<i32>,
}

impl Default for PageLists {
    fn default() -> Self {
        Self {
            kv_indptr: std::vec![0],
            kv_indices: Vec::new(),
            kv_page_rank: Vec::new(),
            kv_last_page_len: Vec::new(),
        }
    }
}

impl PageLists {
    /// Adds a request of these pages, of which the last holds `last_page_len` tokens.
    pub fn push(&mut self, pages: impl IntoIterator<Item = KvPagePlace>, last_page_len: u32) {
        for page in pages {
            self.kv_indices.push(page.index as i32);
            self.kv_page_rank.push(page.rank as i32);
        }
        self.kv_indptr.push(self.kv_indices.len() as i32);
        self.kv_last_page_len.push(last_page_len as i32);
    }

    /// The page that entry `entry` names.
    pub fn place(&self, entry: usize) -> KvPagePlace {
        KvPagePlace { rank: self.kv_page_rank[entry] as u32, index: self.kv_indices[entry] as u32 }
    }

    /// The entries of a request.
    pub fn entries(&self, request: usize) -> Range<usize> {
        self.kv_indptr[request] as usize..self.kv_indptr[request + 1] as usize
    }

    /// The table.
    pub fn table(&self) -> PageTable<'_> {
        PageTable {
            kv_indptr: &self.kv_indptr,
            kv_indices: &self.kv_indices,
            kv_page_rank: &self.kv_page_rank,
            kv_last_page_len: &self.kv_last_page_len,
        }
    }
}

/// Most that the batches have which take turns in one place: a captured graph's plan and table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchMaxima {
    /// Requests.
    pub num_max_requests: u32,
    /// Entries of the page table: a page counts as often as requests name it.
    pub num_max_pages: u32,
}

impl BatchMaxima {
    /// A batch of this table, and no more.
    pub fn of(table: &PageTable<'_>) -> Self {
        Self {
            num_max_requests: table.kv_last_page_len.len() as u32,
            num_max_pages: table.kv_indices.len() as u32,
        }
    }

    /// A batch of requests of `kv_lens` tokens, and no more.
    pub fn of_lens(kv_lens: &[u32], page_size: u32) -> Self {
        Self {
            num_max_requests: kv_lens.len() as u32,
            num_max_pages: kv_lens.iter().map(|len| len.div_ceil(page_size)).sum(),
        }
    }

    /// Refuses maxima that kernels cannot count.
    pub fn check(self) -> Result<(), ContractError> {
        require_up_to("num_max_requests", i32::MAX as u32, self.num_max_requests)?;
        require_up_to("num_max_pages", i32::MAX as u32, self.num_max_pages)
    }

    /// Refuses a batch that is larger.
    pub fn check_holds(self, batch: Self) -> Result<(), ContractError> {
        require(
            batch.num_max_requests <= self.num_max_requests,
            "requests",
            std::format!("at most num_max_requests = {}", self.num_max_requests),
            batch.num_max_requests,
        )?;
        require(
            batch.num_max_pages <= self.num_max_pages,
            "pages",
            std::format!("at most num_max_pages = {}", self.num_max_pages),
            batch.num_max_pages,
        )
    }
}

/// Refuses pages and query heads that no attention takes, of one token or of many.
pub(crate) fn check_heads(page: &KvPageShape, num_qo_heads: u32) -> Result<(), ContractError> {
    page.check()?;
    let KvPageShape { num_kv_heads, head_dim, .. } = *page;
    require(head_dim == 64 || head_dim == 128, "head_dim", "64 or 128", head_dim)?;
    require(
        (1..=MAX_QO_HEADS).contains(&num_qo_heads) && num_qo_heads.is_multiple_of(num_kv_heads),
        "num_qo_heads",
        std::format!("a multiple of num_kv_heads = {num_kv_heads} up to {MAX_QO_HEADS}"),
        num_qo_heads,
    )
}

impl DecodeShape {
    /// Query heads that share a KV head.
    pub fn group_size(&self) -> u32 {
        self.num_qo_heads / self.page.num_kv_heads
    }

    /// Tiles of 8 query heads that the group takes.
    pub fn head_tiles(&self) -> u32 {
        self.group_size().div_ceil(8)
    }

    /// Refuses what the kernels do not take.
    ///
    /// With a [`PageTable`] that [checks](PageTable::check) against the pools, and `q`, `out`,
    /// `lse` of the shapes that the room states, no thread of a launch with
    /// [these](Self::baseline_dims) [dims](Self::split_dims) then reaches out of bounds.
    pub fn check(&self) -> Result<(), ContractError> {
        check_heads(&self.page, self.num_qo_heads)?;
        require(
            self.group_size() <= MAX_GROUP_SIZE,
            "num_qo_heads / num_kv_heads",
            std::format!("at most {MAX_GROUP_SIZE}"),
            self.group_size(),
        )?;
        require(self.sm_scale.is_finite(), "sm_scale", "finite", self.sm_scale)?;
        require_up_to("batch", MAX_GRID_Y, self.batch)
    }

    /// The sizes that the kernels take, for pages in `num_locations` places.
    pub fn params(&self, num_locations: usize) -> AttentionParams {
        AttentionParams::new(&self.page, self.num_qo_heads, self.sm_scale, num_locations)
    }

    /// Elements of `q`, and of `out`.
    pub fn q_elements(&self) -> usize {
        self.lse_elements() * self.page.head_dim as usize
    }

    /// Elements of `lse`.
    pub fn lse_elements(&self) -> usize {
        self.batch as usize * self.num_qo_heads as usize
    }

    /// Launch of the baseline kernel.
    pub fn baseline_dims(&self) -> LaunchDims {
        LaunchDims {
            grid: [self.page.num_kv_heads, self.batch, 1],
            block: [NUM_THREADS, 1, 1],
            shared_bytes: MAX_GROUP_SIZE * self.page.head_dim * 4,
        }
    }

    /// Launch of the split kernel.
    pub fn split_dims(&self, plan: &DecodePlan) -> LaunchDims {
        LaunchDims {
            grid: [plan.num_blocks, 1, 1],
            block: [NUM_THREADS, 1, 1],
            shared_bytes: split_shared_bytes(self.page.head_dim, self.head_tiles()),
        }
    }

    /// How the split kernels best load the pages on Hopper: as boxes, if those are whole pages or
    /// whole parts of a page, of 16-bit elements.
    pub fn loads(&self) -> TileLoads {
        match self.page.element {
            KvElement::Half if self.page.page_size.is_multiple_of(8) => TileLoads::Boxes,
            _ => TileLoads::Pieces,
        }
    }

    /// Launch of the tiles kernel.
    pub fn tiles_dims(&self, plan: &DecodePlan) -> LaunchDims {
        let head_dim = self.page.head_dim;
        let layout = TilesLayout::new(head_dim, self.head_tiles(), num_stages(2 * head_dim));
        LaunchDims { shared_bytes: layout.bytes(), ..self.split_dims(plan) }
    }

    /// A location of `num_pages` pages, at least one, as the tiles kernel loads it: 64 elements,
    /// tokens, blocks of 64 elements, heads, K and V of each page.
    pub fn pool_tiling(&self, num_pages: usize) -> Tiling<5> {
        let KvPageShape { page_size, num_kv_heads, head_dim, .. } = self.page;
        let KvStrides { token, head, value, .. } = self.page.strides();
        let blocks = head_dim / 64;
        Tiling {
            sizes: [64, page_size, blocks, num_kv_heads, 2 * num_pages as u32].map(u64::from),
            strides: [1, token, 64, head, value].map(u64::from),
            tile: [64, box_tokens(page_size), blocks, 1, 2],
            swizzle: Swizzle::Bytes128,
            l2_promotion: L2Promotion::None,
        }
    }

    /// Counters: of claims, and where the parts of `num_meetings` pairs meet.
    pub fn arrived_elements(&self, num_meetings: u32) -> usize {
        1 + num_meetings as usize * self.group_size() as usize
    }

    /// Elements of the workspace for the partial outputs of `num_parts` parts.
    pub fn partial_elements(&self, num_parts: u32) -> usize {
        self.partial_lse_elements(num_parts) * self.page.head_dim as usize
    }

    /// Elements of the workspace for their log-sum-exps.
    pub fn partial_lse_elements(&self, num_parts: u32) -> usize {
        num_parts as usize * self.group_size() as usize
    }

    /// What the attention itself needs, with no variant's overhead: K and V of `num_tokens` in
    /// all, q, out and lse once.
    pub fn work(&self, num_tokens: u64) -> Work {
        let row = u64::from(self.page.num_kv_heads * self.page.head_dim);
        let qo = self.q_elements() as u64;
        Work {
            read_bytes: u64::from(self.page.element.bytes()) * 2 * num_tokens * row + 2 * qo,
            written_bytes: 2 * qo + 4 * self.lse_elements() as u64,
            flops: 4 * num_tokens * row * u64::from(self.group_size()),
        }
    }
}

impl PageTable<'_> {
    /// Refuses a table whose entries do not fit together, or reach outside the pools of
    /// `pool_pages` pages, one pool a location.
    pub fn check(
        &self,
        batch: u32,
        page_size: u32,
        pool_pages: &[usize],
    ) -> Result<(), ContractError> {
        require(
            (1..=MAX_LOCATIONS as usize).contains(&pool_pages.len()),
            "locations",
            std::format!("1 to {MAX_LOCATIONS}"),
            pool_pages.len(),
        )?;
        require_len("kv_indptr", batch as usize + 1, self.kv_indptr.len())?;
        require_len("kv_last_page_len", batch as usize, self.kv_last_page_len.len())?;
        require_len("kv_page_rank", self.kv_indices.len(), self.kv_page_rank.len())?;
        require(self.kv_indptr[0] == 0, "kv_indptr[0]", 0, self.kv_indptr[0])?;
        for (b, ends) in self.kv_indptr.windows(2).enumerate() {
            require(ends[0] <= ends[1], "kv_indptr", std::format!("ascending at {b}"), ends[1])?;
            let num_tokens = i64::from(ends[1] - ends[0]) * i64::from(page_size);
            require(
                i32::try_from(num_tokens).is_ok(),
                "kv_indptr",
                std::format!("such that request {b} has at most {} tokens", i32::MAX),
                std::format!("{} pages of {page_size}", ends[1] - ends[0]),
            )?;
            let last = self.kv_last_page_len[b];
            let allowed = if ends[0] == ends[1] { 0..=0 } else { 1..=page_size as i32 };
            require(
                allowed.contains(&last),
                &std::format!("kv_last_page_len[{b}]"),
                std::format!("{} to {}", allowed.start(), allowed.end()),
                last,
            )?;
        }
        let entries = *self.kv_indptr.last().unwrap_or(&0);
        require_len("kv_indices", entries as usize, self.kv_indices.len())?;
        for (i, (&index, &rank)) in self.kv_indices.iter().zip(self.kv_page_rank).enumerate() {
            // A table has tens of thousands of entries: messages are made only for what is wrong.
            let pages = usize::try_from(rank).ok().and_then(|rank| pool_pages.get(rank));
            if pages.is_some_and(|&pages| usize::try_from(index).is_ok_and(|page| page < pages)) {
                continue;
            }
            require(
                usize::try_from(rank).is_ok_and(|r| r < pool_pages.len()),
                &std::format!("kv_page_rank[{i}]"),
                std::format!("0 to {}", pool_pages.len() - 1),
                rank,
            )?;
            require(
                usize::try_from(index).is_ok_and(|page| page < pool_pages[rank as usize]),
                &std::format!("kv_indices[{i}]"),
                std::format!(
                    "a page of location {rank}, 0 to {}",
                    pool_pages[rank as usize] as i64 - 1
                ),
                index,
            )?;
        }
        Ok(())
    }

    /// Tokens of each request: `[batch]`. The table must have passed [`check`](Self::check).
    pub fn kv_lens(&self, page_size: u32) -> Vec<u32> {
        self.kv_indptr
            .windows(2)
            .zip(self.kv_last_page_len)
            .map(|(ends, &last)| match (ends[1] - ends[0]) as u32 {
                0 => 0,
                pages => (pages - 1) * page_size + last as u32,
            })
            .collect()
    }
}
