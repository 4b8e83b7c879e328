//! The kernels: baseline and wgmma; one body for each, one entry for each type and size.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll; iterators put them into local memory.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

mod baseline;
mod consumer;
mod loads;
mod output;
mod producer;
mod ring;
mod softmax;

use cuda_std::prelude::*;
use cuda_std::wgmma::NUM_THREADS as WARPGROUP;
use half::{bf16, f16};

use super::{BASELINE, KvMaps, MAP_DIMENSIONS, MAX_MAPPED_LOCATIONS, PrefillItem, WGMMA};
use crate::paged_attention::AttentionParams;
use baseline::attend_baseline;
use consumer::Consumer;
use loads::Pages;
use output::Output;
use producer::{ByPages, ByRows, LoadTile, Producer};

/// What blocks work on.
#[derive(Clone, Copy)]
struct Items {
    items: Global<u32>,       // [items, PrefillItem::WORDS]
    block_items: Global<u32>, // [blocks + 1]
}

impl Items {
    /// The first item of this block, and one past the last.
    #[inline(always)]
    unsafe fn of_block(&self) -> (u32, u32) {
        let block = thread::block_idx_x() as usize;
        (self.block_items.load(block), self.block_items.load(block + 1))
    }

    #[inline(always)]
    unsafe fn load(&self, idx: u32) -> PrefillItem {
        let item = self.items.offset(idx as usize * PrefillItem::WORDS);
        let [first_row, num_rows, qo_head, first_position] = item.load_x4(0);
        let [first_entry, ..] = item.load_x4(4);
        PrefillItem { first_row, num_rows, qo_head, first_position, first_entry, padding: [0; 3] }
    }
}

macro_rules! baseline_entries {
    ($($(#[$doc:meta])* $name:ident: $T:ty, $D:literal;)*) => {$(
        const _: () = assert!(BASELINE.num_threads == 128);

        $(#[$doc])*
        #[kernel(threads = 128, min_blocks = 2)]
        pub unsafe fn $name(
            kv_indices: Global<i32>,   // [entries]
            kv_page_rank: Global<i32>, // [entries]
            peer_kv_ptrs: Global<u64>, // [num_locations]
            params: AttentionParams,
            items: Global<u32>,        // [items, PrefillItem::WORDS]
            block_items: Global<u32>,  // [blocks + 1]
            q: Global<$T>,             // [total_qo_len, num_qo_heads, head_dim]
            out: GlobalMut<$T>,        // [total_qo_len, num_qo_heads, head_dim]
            lse: GlobalMut<f32>,       // [total_qo_len, num_qo_heads]
        ) {
            let pages = Pages::new(kv_indices, kv_page_rank, peer_kv_ptrs, params);
            let output = Output { out, lse, num_qo_heads: params.num_qo_heads };
            attend_baseline::<$T, $D>(pages, Items { items, block_items }, q, output);
        }
    )*};
}

baseline_entries! {
    /// 64 queries a block, on `mma`.
    paged_prefill_attend_baseline_bf16_d64: bf16, 64;
    /// 64 queries a block, on `mma`.
    paged_prefill_attend_baseline_bf16_d128: bf16, 128;
    /// 64 queries a block, on `mma`.
    paged_prefill_attend_baseline_f16_d64: f16, 64;
    /// 64 queries a block, on `mma`.
    paged_prefill_attend_baseline_f16_d128: f16, 128;
}

/// The body of a block on `wgmma`: one warpgroup loads, two multiply.
#[inline(always)]
unsafe fn attend_wgmma<T: HalfFloat, L: LoadTile, const BY_ROWS: bool>(
    pages: impl FnOnce() -> Pages,
    loads: L,
    items: Items,
    q: Global<T>, // [total_qo_len, num_qo_heads, 128]
    sm_scale_log2: f32,
    output: Output<T>,
) {
    ring::set_up_barriers(L::ARRIVALS);
    if thread::thread_idx_x() < WARPGROUP {
        wgmma::give_registers::<{ producer::REGISTERS }>();
        Producer::<T, L>::new(pages(), loads, q).run(items);
    } else {
        wgmma::take_registers::<{ consumer::REGISTERS }>();
        Consumer::<T, BY_ROWS>::new(sm_scale_log2, output).run(items);
    }
}

macro_rules! wgmma_entries {
    ($($T:ty: $pages:ident, $rows:ident;)*) => {$(
        const _: () = assert!(WGMMA.num_threads == 384);

        /// 128 queries a block and turn, on `wgmma`; pages of a multiple of 8 tokens, by the copy
        /// engine.
        #[kernel(target = "sm_90a", threads = 384, min_blocks = 1)]
        pub unsafe fn $pages(
            kv_maps: TensorMaps<u16, MAP_DIMENSIONS, MAX_MAPPED_LOCATIONS>, // [num_locations]
            kv_indices: Global<i32>,   // [entries]
            kv_page_rank: Global<i32>, // [entries]
            peer_kv_ptrs: Global<u64>, // [num_locations]
            params: AttentionParams,
            items: Global<u32>,        // [items, PrefillItem::WORDS]
            block_items: Global<u32>,  // [blocks + 1]
            q: Global<$T>,             // [total_qo_len, num_qo_heads, 128]
            out: GlobalMut<$T>,        // [total_qo_len, num_qo_heads, 128]
            lse: GlobalMut<f32>,       // [total_qo_len, num_qo_heads]
        ) {
            let maps: &KvMaps = &kv_maps;
            let loads = ByPages { maps, tokens_at_once: params.page_size.min(32) };
            attend_wgmma::<$T, _, false>(
                || Pages::new(kv_indices, kv_page_rank, peer_kv_ptrs, params),
                loads,
                Items { items, block_items },
                q,
                params.sm_scale_log2,
                Output { out, lse, num_qo_heads: params.num_qo_heads },
            );
        }

        /// 128 queries a block and turn, on `wgmma`; pages of any size, row by row.
        #[kernel(target = "sm_90a", threads = 384, min_blocks = 1)]
        pub unsafe fn $rows(
            kv_indices: Global<i32>,   // [entries]
            kv_page_rank: Global<i32>, // [entries]
            peer_kv_ptrs: Global<u64>, // [num_locations]
            params: AttentionParams,
            items: Global<u32>,        // [items, PrefillItem::WORDS]
            block_items: Global<u32>,  // [blocks + 1]
            q: Global<$T>,             // [total_qo_len, num_qo_heads, 128]
            out: GlobalMut<$T>,        // [total_qo_len, num_qo_heads, 128]
            lse: GlobalMut<f32>,       // [total_qo_len, num_qo_heads]
        ) {
            attend_wgmma::<$T, _, true>(
                || Pages::new(kv_indices, kv_page_rank, peer_kv_ptrs, params),
                ByRows,
                Items { items, block_items },
                q,
                params.sm_scale_log2,
                Output { out, lse, num_qo_heads: params.num_qo_heads },
            );
        }
    )*};
}

wgmma_entries! {
    bf16: paged_prefill_attend_wgmma_bf16_d128, paged_prefill_attend_wgmma_rows_bf16_d128;
    f16: paged_prefill_attend_wgmma_f16_d128, paged_prefill_attend_wgmma_rows_f16_d128;
}
