//! Where the KV of a token lies.

use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

use crate::paged_attention::AttentionParams;

/// The batch's page table and the memory it points into.
#[derive(Clone, Copy)]
pub(super) struct PagedKv {
    pub(super) kv_indptr: Global<i32>,        // [batch + 1]
    pub(super) kv_indices: Global<i32>,       // [entries]
    pub(super) kv_page_rank: Global<i32>,     // [entries]
    pub(super) kv_last_page_len: Global<i32>, // [batch]
    pub(super) peer_kv_ptrs: Global<u64>,     // [locations]
    pub(super) params: AttentionParams,
}

/// One request's run of the page table.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    pub(super) first_entry: u32,
    pub(super) kv_len: u32,
}

impl PagedKv {
    /// The tokens of a request of the batch.
    #[inline(always)]
    pub(super) unsafe fn tokens_of(&self, request: u32) -> Tokens {
        let first_entry = self.kv_indptr.load(request as usize) as u32;
        let num_pages = self.kv_indptr.load(request as usize + 1) as u32 - first_entry;
        let last_page_len = self.kv_last_page_len.load(request as usize) as u32;
        let kv_len = match num_pages {
            0 => 0,
            _ => (num_pages - 1) * self.params.page_size + last_page_len,
        };
        Tokens { first_entry, kv_len }
    }

    /// Address of the K of one token and head, in elements of so many bytes; 0 past the end.
    #[inline(always)]
    pub(super) unsafe fn k_address(
        &self,
        tokens: Tokens,
        kv_head: u32,
        token: u32,
        element_bytes: u32,
    ) -> u64 {
        if token >= tokens.kv_len {
            return 0;
        }
        let (page_of_request, in_page) = page_and_token(&self.params, kv_head, token);
        let entry = (tokens.first_entry + page_of_request) as usize;
        let location = self.kv_page_rank.load(entry) as usize;
        let page = self.kv_indices.load(entry) as u64;
        let page_elements = u64::from(self.params.strides.page);
        let first = page * page_elements + u64::from(in_page);
        self.peer_kv_ptrs.load(location) + u64::from(element_bytes) * first
    }

    /// Bytes from a token's K to its V, in elements of so many bytes.
    #[inline(always)]
    pub(super) fn v_offset(&self, element_bytes: u32) -> u64 {
        u64::from(element_bytes) * u64::from(self.params.strides.value)
    }
}

/// Which page of its request a token lies in, and at which element of the page its K starts.
#[inline(always)]
pub(super) fn page_and_token(params: &AttentionParams, kv_head: u32, token: u32) -> (u32, u32) {
    let page = token / params.page_size;
    let token_of_page = token - page * params.page_size;
    (page, token_of_page * params.strides.token + kv_head * params.strides.head)
}

/// The address that lane `lane` holds.
#[inline(always)]
pub(crate) unsafe fn shuffle_address(address: u64, lane: u32) -> u64 {
    let (low, _) = warp::warp_shuffle_idx(FULL_MASK, address as u32, lane, WARP_SIZE);
    let (high, _) = warp::warp_shuffle_idx(FULL_MASK, (address >> 32) as u32, lane, WARP_SIZE);
    u64::from(high) << 32 | u64::from(low)
}
