//! How the K and V of some tokens lie in a page.
//!
//! A page holds K and V of `page_size` tokens of one layer in one contiguous piece, so that it
//! moves as one: `[2, page_size, num_kv_heads, head_dim]` ([`KvLayout::Nhd`]) or
//! `[2, num_kv_heads, page_size, head_dim]` ([`KvLayout::Hnd`]), K first. Kernels see strides and
//! never ask which.

use bytemuck::{Pod, Zeroable};

/// Order of the dimensions of a page, as FlashInfer and vLLM name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvLayout {
    /// `[2, page_size, num_kv_heads, head_dim]`
    Nhd,
    /// `[2, num_kv_heads, page_size, head_dim]`
    Hnd,
}

/// In what K and V are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvElement {
    /// 16 bits: bf16 or f16, as the queries.
    #[default]
    Half,
    /// 8 bits: [`E4m3`](cuda_std::float::E4m3), times a factor of the head, for K and for V.
    E4m3,
}

impl KvElement {
    /// Bytes of an element.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Half => 2,
            Self::E4m3 => 1,
        }
    }
}

/// Distances within a page, in elements; what kernels take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct KvStrides {
    /// From a token to the next.
    pub token: u32,
    /// From a head to the next.
    pub head: u32,
    /// From K to V.
    pub value: u32,
    /// From a page to the next.
    pub page: u32,
}

/// Where a page lies: page `index` of location `rank`, as `kv_indices` and `kv_page_rank` say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct KvPagePlace {
    /// Location: an entry of `peer_kv_ptrs`.
    pub rank: u32,
    /// Page within the location.
    pub index: u32,
}

#[cfg(feature = "host")]
impl core::fmt::Display for KvPagePlace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "page {} of location {}", self.index, self.rank)
    }
}

#[cfg(feature = "host")]
impl KvPagePlace {
    /// Whether the place is in one of the pools of `pool_pages` pages, one pool a location.
    pub fn lies_in(self, pool_pages: &[usize]) -> bool {
        pool_pages.get(self.rank as usize).is_some_and(|&pages| (self.index as usize) < pages)
    }

    /// Refuses a place outside the pools of `pool_pages` pages, one pool a location.
    pub fn check(
        self,
        argument: &str,
        pool_pages: &[usize],
    ) -> Result<(), crate::contract::ContractError> {
        use crate::contract::require;
        let pages = pool_pages.get(self.rank as usize).copied();
        require(
            pages.is_some(),
            argument,
            std::format!("in one of {} locations", pool_pages.len()),
            std::format!("location {}", self.rank),
        )?;
        require(
            pages.is_some_and(|pages| (self.index as usize) < pages),
            argument,
            std::format!("one of the {} pages of location {}", pages.unwrap_or(0), self.rank),
            std::format!("page {}", self.index),
        )
    }
}

/// Shape of the pages of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvPageShape {
    /// Tokens of a page.
    pub page_size: u32,
    /// Heads of K, and of V.
    pub num_kv_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Order of the dimensions.
    pub layout: KvLayout,
    /// In what K and V are stored.
    pub element: KvElement,
}

impl KvPageShape {
    /// Elements of a page, K and V.
    pub const fn page_elements(&self) -> usize {
        2 * (self.page_size * self.num_kv_heads * self.head_dim) as usize
    }

    /// Bytes of a page, K and V.
    pub const fn page_bytes(&self) -> usize {
        self.element.bytes() as usize * self.page_elements()
    }

    /// The same bytes as pages of 16-bit elements, two elements of 8 bits in each: for what moves
    /// or fills pages and does not ask what they mean.
    pub const fn as_halves(self) -> Self {
        let head_dim = self.head_dim * self.element.bytes() / 2;
        Self { head_dim, element: KvElement::Half, ..self }
    }

    /// Where a page's elements lie.
    pub const fn strides(&self) -> KvStrides {
        let half_page = self.page_size * self.num_kv_heads * self.head_dim;
        let (token, head) = match self.layout {
            KvLayout::Nhd => (self.num_kv_heads * self.head_dim, self.head_dim),
            KvLayout::Hnd => (self.head_dim, self.page_size * self.head_dim),
        };
        KvStrides { token, head, value: half_page, page: 2 * half_page }
    }

    /// Refuses shapes that no kernel takes: pages of 1 to 64 tokens and 1 to 256 heads, heads of a
    /// whole number of 16-byte pieces up to 256 elements.
    #[cfg(feature = "host")]
    pub fn check(&self) -> Result<(), crate::contract::ContractError> {
        use crate::contract::{require_multiple, require_up_to};
        require_up_to("page_size", 64, self.page_size)?;
        require_up_to("num_kv_heads", 256, self.num_kv_heads)?;
        require_multiple("head_dim", 16 / self.element.bytes(), 256, self.head_dim)
    }
}
