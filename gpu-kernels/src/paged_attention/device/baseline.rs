//! One block for each (KV head, request), plain loads.

use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

use super::kv_format::KvFormat;
use super::paged_kv::{PagedKv, shuffle_address};
use crate::paged_attention::{AttentionParams, NUM_THREADS, NUM_WARPS};

/// Block = (KV head, request), warp = query head, lane = token, then head dimension.
#[inline(always)]
pub(super) unsafe fn decode_baseline<T: HalfFloat, const D: usize, F: KvFormat>(
    kv: PagedKv,
    format: F,
    q: Global<T>,        // [batch, num_qo_heads, D]
    out: GlobalMut<T>,   // [batch, num_qo_heads, D]
    lse: GlobalMut<f32>, // [batch, num_qo_heads]
) {
    let AttentionParams { num_qo_heads, group_size, sm_scale_log2, .. } = kv.params;
    let (kv_head, request) = (thread::block_idx_x(), thread::block_idx_y());
    let (warp_idx, lane) = (thread::thread_idx_x() / WARP_SIZE, warp::lane_id());
    let tokens = kv.tokens_of(request);
    let first_row = request * num_qo_heads + kv_head * group_size;

    let q_group = shared::dynamic_shared_mem::<f32>(); // [group_size, D]
    let q_pairs = q.offset(first_row as usize * D).cast::<u32>();
    let mut pair = thread::thread_idx_x();
    while pair < group_size * D as u32 / 2 {
        let [low, high] = T::unpack(q_pairs.load(pair as usize));
        q_group.store_x2(2 * pair as usize, [low.to_bits(), high.to_bits()]);
        pair += NUM_THREADS;
    }
    thread::sync_threads();

    let dims_per_lane = D / 32;
    let scales = format.scales(kv_head);
    let sm_scale_log2 = sm_scale_log2 * scales.k;
    let mut head = warp_idx;
    while head < group_size {
        let q_row = q_group.offset(head as usize * D);
        let (mut maximum, mut sum, mut output) = (f32::NEG_INFINITY, 0.0, [0.0f32; 4]);
        let mut first_token = 0;
        while first_token < tokens.kv_len {
            let k_address = kv.k_address(tokens, kv_head, first_token + lane, F::BYTES);
            let score = match k_address {
                0 => f32::NEG_INFINITY,
                _ => sm_scale_log2 * F::dot::<D>(row_at::<F, D>(k_address), q_row),
            };
            let new_maximum = maximum.max(warp::reduce_max(score, WARP_SIZE));
            let rescale = float::exp2(maximum - new_maximum);
            let weight = float::exp2(score - new_maximum);
            sum = sum * rescale + warp::reduce_sum(weight, WARP_SIZE);
            maximum = new_maximum;
            for d in 0..4 {
                output[d] *= rescale;
            }
            let num_tokens = (tokens.kv_len - first_token).min(WARP_SIZE);
            let mut of_lane = 0;
            while of_lane < num_tokens {
                let (weight, _) = warp::warp_shuffle_idx(FULL_MASK, weight, of_lane, WARP_SIZE);
                let v_address = shuffle_address(k_address, of_lane) + kv.v_offset(F::BYTES);
                let v = F::elements_of_lane::<D>(row_at::<F, D>(v_address), lane);
                for d in 0..4 {
                    output[d] += weight * v[d];
                }
                of_lane += 1;
            }
            first_token += WARP_SIZE;
        }
        let row = (first_row + head) as usize;
        let normalize = if sum > 0.0 { float::reciprocal(sum) * scales.v } else { 0.0 };
        let out_row = out.offset(row * D + lane as usize * dims_per_lane).cast::<u32>();
        let mut d = 0;
        while d < dims_per_lane {
            out_row.store(d / 2, T::pack(output[d] * normalize, output[d + 1] * normalize));
            d += 2;
        }
        if lane == 0 {
            lse.store(row, maximum + float::log2(sum));
        }
        head += NUM_WARPS;
    }
}

/// The bytes of a row at an address.
#[inline(always)]
unsafe fn row_at<F: KvFormat, const D: usize>(address: u64) -> Global<u8> {
    Global::from_address(address, F::BYTES as usize * D)
}
