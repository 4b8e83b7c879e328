//! Appending, and rotating queries, from the rows that one product made.

use cuda_std::prelude::*;
use half::bf16;

use super::{Lengths, Pages, Scaled, Share, Storage, Unscaled, Words};
use crate::kv_append::{AppendParams, QkvParams, THREAD_DIMS};
use crate::rms_norm::device::{squares, sum, weighted};

macro_rules! qkv_entries {
    ($(#[$doc:meta] $name:ident: $storage:expr, [$($scale:ident),*];)*) => {$(
        #[$doc]
        #[kernel(threads = 128, early = true)]
        pub unsafe fn $name(
            qkv: Global<bf16>,             // [num_tokens, (num_qo_heads + 2 num_kv_heads) * head_dim]
            qkv_bias: Global<bf16>,        // [(num_qo_heads + 2 num_kv_heads) * head_dim], or null
            q_norm: Global<bf16>,          // [head_dim], or null
            k_norm: Global<bf16>,          // [head_dim], or null
            $($scale: Global<f32>,)*       // [num_kv_heads]
            cos_sin_cache: Global<f32>,    // [num_max_positions, head_dim], or null
            append_indptr: Global<i32>,    // [batch + 1]
            kv_indptr: Global<i32>,        // [batch + 1]
            kv_indices: Global<i32>,       // [pages]
            kv_page_rank: Global<i32>,     // [pages]
            kv_last_page_len: Global<i32>, // [batch]
            peer_kv_ptrs: Global<u64>,     // [num_locations]
            params: QkvParams,
            q_out: GlobalMut<bf16>,        // [num_tokens, num_qo_heads, head_dim]
        ) {
            let lengths = Lengths { append_indptr, kv_indptr, kv_last_page_len };
            let pages = Pages { kv_indices, kv_page_rank, peer_kv_ptrs };
            let rows = Rows { qkv, qkv_bias, q_norm, k_norm };
            append_qkv(rows, cos_sin_cache, lengths, pages, $storage, params, q_out);
        }
    )*};
}

qkv_entries! {
    /// Normalises, rotates and appends joint rows.
    kv_append_qkv_bf16: Unscaled, [];
    /// Normalises, rotates and appends joint rows to pages of e4m3.
    kv_append_qkv_bf16_e4m3: Scaled { k_scale, v_scale }, [k_scale, v_scale];
}

/// Joint rows, and what is done to them first.
#[derive(Clone, Copy)]
struct Rows {
    qkv: Global<bf16>,      // [num_tokens, (num_qo_heads + 2 num_kv_heads) * head_dim]
    qkv_bias: Global<bf16>, // [(num_qo_heads + 2 num_kv_heads) * head_dim], or null
    q_norm: Global<bf16>,   // [head_dim], or null
    k_norm: Global<bf16>,   // [head_dim], or null
}

#[inline(always)]
unsafe fn append_qkv<S: Storage<bf16>>(
    rows: Rows,
    cos_sin_cache: Global<f32>, // [num_max_positions, head_dim], or null
    lengths: Lengths,
    pages: Pages,
    storage: S,
    params: QkvParams,
    q_out: GlobalMut<bf16>, // [num_tokens, num_qo_heads, head_dim]
) {
    grid::launch_dependents();
    let QkvParams { append, num_qo_heads, .. } = params;
    let num_kv_heads = append.num_heads;
    let joint = AppendParams { num_heads: num_qo_heads + 2 * num_kv_heads, ..append };
    // Lanes without a share take part in the sums of their warp.
    let (share, is_own) = Share::nearest(joint);
    let is_query = share.head < num_qo_heads;
    let is_value = share.head >= num_qo_heads + num_kv_heads;
    // Tables and angles are the host's: they are read while the product before this still runs.
    let place = lengths.place_of(share.token, append);
    let (request, position) = place.unwrap_or((0, 0));
    let angles = share.angles(cos_sin_cache, position, append);
    grid::wait_prerequisites();
    let words = rows.prepared(share, is_query, is_value, joint, params.norm_eps);
    if !is_own || place.is_none() {
        return;
    }
    if is_query {
        let rotated = share.turn::<bf16>(words, angles, append);
        let of_queries = AppendParams { num_heads: num_qo_heads, ..append };
        let place = share.first_element(of_queries);
        share.store::<bf16, Unscaled>(q_out, place, rotated, 1.0, append);
        return;
    }
    let before = if is_value { num_qo_heads + num_kv_heads } else { num_qo_heads };
    let share = Share { head: share.head - before, ..share };
    let (page, place) = share.destination::<S::Element>(lengths, pages, request, position, append);
    let [k_scale, v_scale] = storage.scales(share.head);
    if is_value {
        let place = place + append.strides.value as usize;
        share.store::<bf16, S>(page, place, words, v_scale, append);
    } else {
        let rotated = share.turn::<bf16>(words, angles, append);
        share.store::<bf16, S>(page, place, rotated, k_scale, append);
    }
}

impl Rows {
    /// A share with its bias, normalised unless it is one of V. All lanes of the warp call it.
    #[inline(always)]
    unsafe fn prepared(
        self,
        share: Share,
        is_query: bool,
        is_value: bool,
        joint: AppendParams,
        norm_eps: f32,
    ) -> Words {
        let mut words = share.load(self.qkv, share.first_element(joint), joint);
        if !self.qkv_bias.is_null() {
            let first = share.head * joint.head_dim + share.first_dim;
            let bias = share.load(self.qkv_bias, first as usize, joint);
            words = [sum(words[0], bias[0]), sum(words[1], bias[1])];
        }
        if !self.q_norm.is_null() {
            let of_share = squares(words[0]) + squares(words[1]);
            let of_head = warp::reduce_sum(of_share, joint.head_dim / THREAD_DIMS);
            let scale = float::reciprocal_sqrt(of_head / joint.head_dim as f32 + norm_eps);
            if !is_value {
                let weight = if is_query { self.q_norm } else { self.k_norm };
                let weights = share.load(weight, share.first_dim as usize, joint);
                words =
                    [weighted(words[0], scale, weights[0]), weighted(words[1], scale, weights[1])];
            }
        }
        words
    }
}
