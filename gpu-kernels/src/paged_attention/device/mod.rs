//! The kernels: baseline, split and tiles; one body for each, one entry for each type and size.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll; iterators put them into local memory.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

mod baseline;
pub(crate) mod handshake;
pub(crate) mod kv_format;
pub(crate) mod merge;
pub(crate) mod output;
pub(crate) mod paged_kv;
mod softmax;
pub(crate) mod split;
pub(crate) mod tile_loader;
pub(crate) mod tiles;
mod work_item;

use cuda_std::prelude::*;
use half::{bf16, f16};

use super::{AttentionParams, MAX_GROUP_SIZE, MAX_TILE_LOCATIONS};
use baseline::decode_baseline;
use handshake::AtHome;
use kv_format::{E4m3s, Halves};
use merge::Parts;
use output::DecodeOutput;
use paged_kv::PagedKv;
use split::{Pages, decode_split};
use tile_loader::{POOL_RANK, TilePages};
use tiles::decode_tiles;

const _: () = assert!(MAX_GROUP_SIZE == 16, "entries exist for one and two tiles of 8 heads");

macro_rules! baseline_entries {
    ($($(#[$doc:meta])* $name:ident: $T:ty, $D:literal, $Format:ty = $format:expr, [$($scale:ident),*];)*) => {$(
        $(#[$doc])*
        #[kernel(threads = 256)]
        pub unsafe fn $name(
            kv_indptr: Global<i32>,        // [batch + 1]
            kv_indices: Global<i32>,       // [entries]
            kv_page_rank: Global<i32>,     // [entries]
            kv_last_page_len: Global<i32>, // [batch]
            peer_kv_ptrs: Global<u64>,     // [locations]
            params: AttentionParams,
            $($scale: Global<f32>,)*       // [num_kv_heads]
            q: Global<$T>,                 // [batch, num_qo_heads, head_dim]
            out: GlobalMut<$T>,            // [batch, num_qo_heads, head_dim]
            lse: GlobalMut<f32>,           // [batch, num_qo_heads]
        ) {
            let kv = PagedKv { kv_indptr, kv_indices, kv_page_rank, kv_last_page_len, peer_kv_ptrs, params };
            decode_baseline::<$T, $D, $Format>(kv, $format, q, out, lse);
        }
    )*};
}

baseline_entries! {
    /// Decode, one block for each (KV head, request).
    paged_attention_decode_baseline_bf16_d64: bf16, 64, Halves<bf16> = Halves::new(), [];
    /// Decode, one block for each (KV head, request).
    paged_attention_decode_baseline_bf16_d128: bf16, 128, Halves<bf16> = Halves::new(), [];
    /// Decode, one block for each (KV head, request).
    paged_attention_decode_baseline_f16_d64: f16, 64, Halves<f16> = Halves::new(), [];
    /// Decode, one block for each (KV head, request).
    paged_attention_decode_baseline_f16_d128: f16, 128, Halves<f16> = Halves::new(), [];
    /// Decode, one block for each (KV head, request), over e4m3.
    paged_attention_decode_baseline_bf16_e4m3_d64: bf16, 64, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// Decode, one block for each (KV head, request), over e4m3.
    paged_attention_decode_baseline_bf16_e4m3_d128: bf16, 128, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// Decode, one block for each (KV head, request), over e4m3.
    paged_attention_decode_baseline_f16_e4m3_d64: f16, 64, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// Decode, one block for each (KV head, request), over e4m3.
    paged_attention_decode_baseline_f16_e4m3_d128: f16, 128, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
}

macro_rules! split_entries {
    ($($(#[$doc:meta])* $name:ident: $T:ty, $D:literal, $HT:literal, $STAGES:literal, $AHEAD:literal, $Format:ty = $format:expr, [$($scale:ident),*];)*) => {$(
        $(#[$doc])*
        #[kernel(threads = 256, min_blocks = 1, early = true)]
        pub unsafe fn $name(
            kv_indices: Global<i32>,     // [entries]
            kv_page_rank: Global<i32>,   // [entries]
            peer_kv_ptrs: Global<u64>,   // [num_locations]
            params: AttentionParams,
            $($scale: Global<f32>,)*     // [num_kv_heads]
            items: Global<u32>,          // [items, WorkItem::WORDS]
            q: Global<$T>,               // [batch, num_qo_heads, head_dim]
            out: GlobalMut<$T>,          // [batch, num_qo_heads, head_dim]
            lse: GlobalMut<f32>,         // [batch, num_qo_heads]
            partial_out: GlobalMut<f32>, // [parts, group_size, head_dim]
            partial_lse: GlobalMut<f32>, // [parts, group_size]
            arrived: GlobalMut<u32>,     // [meetings], 0 before and after
        ) {
            let pages = Pages::new(kv_indices, kv_page_rank, peer_kv_ptrs, params);
            let group_size = params.group_size;
            let parts = Parts { out: partial_out, lse: partial_lse, arrived, group_size };
            let output = DecodeOutput { out, lse, parts };
            decode_split::<$T, $D, $HT, $STAGES, $AHEAD, $T, AtHome, $Format>(pages, $format, items, q, output, AtHome);
        }
    )*};
}

split_entries! {
    /// Decode by equal shares, groups of up to 8 heads.
    paged_attention_decode_split_bf16_d64_g8: bf16, 64, 1, 4, 3, Halves<bf16> = Halves::new(), [];
    /// Decode by equal shares, groups of up to 16 heads.
    paged_attention_decode_split_bf16_d64_g16: bf16, 64, 2, 4, 3, Halves<bf16> = Halves::new(), [];
    /// Decode by equal shares, groups of up to 8 heads.
    paged_attention_decode_split_bf16_d128_g8: bf16, 128, 1, 2, 1, Halves<bf16> = Halves::new(), [];
    /// Decode by equal shares, groups of up to 16 heads.
    paged_attention_decode_split_bf16_d128_g16: bf16, 128, 2, 2, 1, Halves<bf16> = Halves::new(), [];
    /// Decode by equal shares, groups of up to 8 heads.
    paged_attention_decode_split_f16_d64_g8: f16, 64, 1, 4, 3, Halves<f16> = Halves::new(), [];
    /// Decode by equal shares, groups of up to 16 heads.
    paged_attention_decode_split_f16_d64_g16: f16, 64, 2, 4, 3, Halves<f16> = Halves::new(), [];
    /// Decode by equal shares, groups of up to 8 heads.
    paged_attention_decode_split_f16_d128_g8: f16, 128, 1, 2, 1, Halves<f16> = Halves::new(), [];
    /// Decode by equal shares, groups of up to 16 heads.
    paged_attention_decode_split_f16_d128_g16: f16, 128, 2, 2, 1, Halves<f16> = Halves::new(), [];
    /// Decode by equal shares, groups of up to 8 heads, over e4m3.
    paged_attention_decode_split_bf16_e4m3_d64_g8: bf16, 64, 1, 4, 3, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// Decode by equal shares, groups of up to 16 heads, over e4m3.
    paged_attention_decode_split_bf16_e4m3_d64_g16: bf16, 64, 2, 4, 3, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// Decode by equal shares, groups of up to 8 heads, over e4m3.
    paged_attention_decode_split_bf16_e4m3_d128_g8: bf16, 128, 1, 4, 3, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// Decode by equal shares, groups of up to 16 heads, over e4m3.
    paged_attention_decode_split_bf16_e4m3_d128_g16: bf16, 128, 2, 4, 3, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// Decode by equal shares, groups of up to 8 heads, over e4m3.
    paged_attention_decode_split_f16_e4m3_d64_g8: f16, 64, 1, 4, 3, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// Decode by equal shares, groups of up to 16 heads, over e4m3.
    paged_attention_decode_split_f16_e4m3_d64_g16: f16, 64, 2, 4, 3, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// Decode by equal shares, groups of up to 8 heads, over e4m3.
    paged_attention_decode_split_f16_e4m3_d128_g8: f16, 128, 1, 4, 3, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// Decode by equal shares, groups of up to 16 heads, over e4m3.
    paged_attention_decode_split_f16_e4m3_d128_g16: f16, 128, 2, 4, 3, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
}

macro_rules! tiles_entries {
    ($($(#[$doc:meta])* $name:ident: $T:ty, $D:literal, $HT:literal, $STAGES:literal;)*) => {$(
        $(#[$doc])*
        #[kernel(threads = 256, min_blocks = 1, early = true, target = "sm_90a")]
        pub unsafe fn $name(
            pools: TensorMaps<$T, POOL_RANK, { MAX_TILE_LOCATIONS as usize }>, // [locations]
            kv_indices: Global<i32>,     // [entries]
            kv_page_rank: Global<i32>,   // [entries]
            params: AttentionParams,
            items: Global<u32>,          // [items, WorkItem::WORDS]
            q: Global<$T>,               // [batch, num_qo_heads, head_dim]
            out: GlobalMut<$T>,          // [batch, num_qo_heads, head_dim]
            lse: GlobalMut<f32>,         // [batch, num_qo_heads]
            partial_out: GlobalMut<f32>, // [parts, group_size, head_dim]
            partial_lse: GlobalMut<f32>, // [parts, group_size]
            arrived: GlobalMut<u32>,     // [1 + meetings * group_size], 0 before and after
        ) {
            let pages = TilePages { pools, kv_indices, kv_page_rank, params };
            let group_size = params.group_size;
            let (claimed, arrived) = (arrived, arrived.offset(1));
            let parts = Parts { out: partial_out, lse: partial_lse, arrived, group_size };
            let output = DecodeOutput { out, lse, parts };
            decode_tiles::<$T, $D, $HT, $STAGES, $T, AtHome>(pages, items, claimed, q, output, AtHome);
        }
    )*};
}

tiles_entries! {
    /// Decode by equal shares, pages by tensor maps, groups of up to 8 heads.
    paged_attention_decode_tiles_bf16_d64_g8: bf16, 64, 1, 4;
    /// Decode by equal shares, pages by tensor maps, groups of up to 16 heads.
    paged_attention_decode_tiles_bf16_d64_g16: bf16, 64, 2, 4;
    /// Decode by equal shares, pages by tensor maps, groups of up to 8 heads.
    paged_attention_decode_tiles_bf16_d128_g8: bf16, 128, 1, 2;
    /// Decode by equal shares, pages by tensor maps, groups of up to 16 heads.
    paged_attention_decode_tiles_bf16_d128_g16: bf16, 128, 2, 2;
    /// Decode by equal shares, pages by tensor maps, groups of up to 8 heads.
    paged_attention_decode_tiles_f16_d64_g8: f16, 64, 1, 4;
    /// Decode by equal shares, pages by tensor maps, groups of up to 16 heads.
    paged_attention_decode_tiles_f16_d64_g16: f16, 64, 2, 4;
    /// Decode by equal shares, pages by tensor maps, groups of up to 8 heads.
    paged_attention_decode_tiles_f16_d128_g8: f16, 128, 1, 2;
    /// Decode by equal shares, pages by tensor maps, groups of up to 16 heads.
    paged_attention_decode_tiles_f16_d128_g16: f16, 128, 2, 2;
}
