//! Combine token by token, in f32 and in the order of ranks, as the formula says.

use std::vec::Vec;

use half::bf16;

use crate::dispatch::contract::ExchangeShape;
use crate::dispatch::reference::ranks_of;

/// The sums of rank `source`'s tokens, from the partial results of all ranks.
pub fn combine(
    shape: &ExchangeShape,
    partials: &[Vec<bf16>], // [ep_size] of [ep_size, num_max_tokens, hidden]
    source: usize,
    topk_ids: &[i32], // [num_tokens, topk]
) -> Vec<bf16> {
    let hidden = shape.hidden as usize;
    let mut out = Vec::with_capacity(topk_ids.len() / shape.topk as usize * hidden);
    for (token, ids) in topk_ids.chunks(shape.topk as usize).enumerate() {
        let slot = source * shape.num_max_tokens_per_rank as usize + token;
        let mut sums = std::vec![0.0f32; hidden];
        for rank in ranks_of(shape, ids) {
            let row = &partials[rank as usize][slot * hidden..(slot + 1) * hidden];
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value.to_f32());
        }
        out.extend(sums.into_iter().map(bf16::from_f32));
    }
    out
}
