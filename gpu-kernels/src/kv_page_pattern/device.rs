//! Filling pages, and summing up what they hold.

// A kernel is one unsafe program: its launch vouches for it.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc)]

use cuda_std::prelude::*;

use super::pattern::{checksum_term, content};
use super::{KvTokenPlace, NUM_THREADS, PatternParams, TOKENS_PER_BLOCK};
use crate::kv_layout::KvPagePlace;

/// One warp per 32 tokens, a word per lane and turn.
#[kernel(threads = 32)]
pub unsafe fn kv_page_pattern_fill(
    identities: Global<u64>,      // [num_tokens]
    places: Global<KvTokenPlace>, // [num_tokens]
    peer_kv_ptrs: Global<u64>,    // [num_locations]
    num_tokens: u32,
    params: PatternParams,
) {
    let first_token = thread::block_idx_x() * TOKENS_PER_BLOCK;
    let end_token = num_tokens.min(first_token + TOKENS_PER_BLOCK);
    let token_words = params.token_words();
    let num_words = (end_token - first_token) * token_words;
    let mut block_word = thread::thread_idx_x();
    while block_word < num_words {
        let token = (first_token + block_word / token_words) as usize;
        let word_idx = block_word % token_words;
        let place = places.load(token);
        let page = page_elements(place.page, peer_kv_ptrs, params);
        let element_idx = place.token_idx * params.strides.token + params.word_start(word_idx);
        let word = content(identities.load(token), word_idx, params.format);
        page.store_x4(element_idx as usize, word);
        block_word += NUM_THREADS;
    }
}

/// One warp per page.
#[kernel(threads = 32)]
pub unsafe fn kv_page_pattern_checksum(
    pages: Global<KvPagePlace>,    // [num_pages]
    num_valid_tokens: Global<u32>, // [num_pages]
    peer_kv_ptrs: Global<u64>,     // [num_locations]
    checksums: GlobalMut<u64>,     // [num_pages]
    params: PatternParams,
) {
    let page_idx = thread::block_idx_x() as usize;
    let lane = thread::thread_idx_x();
    let page = page_elements(pages.load(page_idx), peer_kv_ptrs, params);
    let num_valid = num_valid_tokens.load(page_idx);

    let mut lane_sum = 0u64;
    let mut word_idx = lane;
    while word_idx < params.token_words() {
        let word_start = params.word_start(word_idx);
        for token_idx in 0..num_valid {
            let word = page.load_x4((word_start + token_idx * params.strides.token) as usize);
            lane_sum = lane_sum.wrapping_add(checksum_term(word, token_idx, word_idx));
        }
        word_idx += NUM_THREADS;
    }

    let lane_sums = shared::dynamic_shared_mem::<u64>();
    lane_sums.store(lane as usize, lane_sum);
    thread::sync_threads();
    if lane == 0 {
        let mut page_sum = 0u64;
        for other in 0..NUM_THREADS as usize {
            page_sum = page_sum.wrapping_add(lane_sums.load(other));
        }
        checksums.store(page_idx, page_sum);
    }
}

/// The elements of a page, by their bits.
#[inline(always)]
unsafe fn page_elements(
    place: KvPagePlace,
    peer_kv_ptrs: Global<u64>, // [num_locations]
    params: PatternParams,
) -> GlobalMut<u16> {
    let page_elements = params.strides.page;
    let page_bytes = 2 * u64::from(page_elements);
    let pool = peer_kv_ptrs.load(place.rank as usize);
    GlobalMut::from_address(pool + u64::from(place.index) * page_bytes, page_elements as usize)
}
