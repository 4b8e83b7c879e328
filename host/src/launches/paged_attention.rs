//! Kernels of the room `paged_attention`: a batch of 16 requests of 4096 tokens.

use std::rc::Rc;

use anyhow::Result;
use gpu_kernels::kv_layout::KvElement;
use gpu_kernels::paged_attention::contract::TileLoads::{self, Boxes, Pieces};
use half::{bf16, f16};

use super::{KernelLaunch, Setting, kernel};
use crate::harness::Prepared;
use crate::kernels::paged_attention::DecodeVariant::{self, Baseline, Split};
use crate::pairs::{BatchElement, DecodeBatch, DecodeBench, DecodeWorkload};

pub(super) fn launches() -> Vec<KernelLaunch> {
    vec![
        kernel("paged_attention_decode_baseline_bf16_d64", baseline::<bf16>(64)),
        kernel("paged_attention_decode_baseline_bf16_d128", baseline::<bf16>(128)),
        kernel("paged_attention_decode_baseline_f16_d64", baseline::<f16>(64)),
        kernel("paged_attention_decode_baseline_f16_d128", baseline::<f16>(128)),
        kernel("paged_attention_decode_split_bf16_d64_g8", split::<bf16>(Pieces, 64, 8)),
        kernel("paged_attention_decode_split_bf16_d64_g16", split::<bf16>(Pieces, 64, 16)),
        kernel("paged_attention_decode_split_bf16_d128_g8", split::<bf16>(Pieces, 128, 8)),
        kernel("paged_attention_decode_split_bf16_d128_g16", split::<bf16>(Pieces, 128, 16)),
        kernel("paged_attention_decode_split_f16_d64_g8", split::<f16>(Pieces, 64, 8)),
        kernel("paged_attention_decode_split_f16_d64_g16", split::<f16>(Pieces, 64, 16)),
        kernel("paged_attention_decode_split_f16_d128_g8", split::<f16>(Pieces, 128, 8)),
        kernel("paged_attention_decode_split_f16_d128_g16", split::<f16>(Pieces, 128, 16)),
        kernel("paged_attention_decode_tiles_bf16_d64_g8", split::<bf16>(Boxes, 64, 8)),
        kernel("paged_attention_decode_tiles_bf16_d64_g16", split::<bf16>(Boxes, 64, 16)),
        kernel("paged_attention_decode_tiles_bf16_d128_g8", split::<bf16>(Boxes, 128, 8)),
        kernel("paged_attention_decode_tiles_bf16_d128_g16", split::<bf16>(Boxes, 128, 16)),
        kernel("paged_attention_decode_tiles_f16_d64_g8", split::<f16>(Boxes, 64, 8)),
        kernel("paged_attention_decode_tiles_f16_d64_g16", split::<f16>(Boxes, 64, 16)),
        kernel("paged_attention_decode_tiles_f16_d128_g8", split::<f16>(Boxes, 128, 8)),
        kernel("paged_attention_decode_tiles_f16_d128_g16", split::<f16>(Boxes, 128, 16)),
        kernel("paged_attention_decode_baseline_bf16_e4m3_d64", e4m3::<bf16>(Baseline, 64, 8)),
        kernel("paged_attention_decode_baseline_bf16_e4m3_d128", e4m3::<bf16>(Baseline, 128, 8)),
        kernel("paged_attention_decode_split_bf16_e4m3_d64_g8", e4m3::<bf16>(Split, 64, 8)),
        kernel("paged_attention_decode_split_bf16_e4m3_d64_g16", e4m3::<bf16>(Split, 64, 16)),
        kernel("paged_attention_decode_split_bf16_e4m3_d128_g8", e4m3::<bf16>(Split, 128, 8)),
        kernel("paged_attention_decode_split_bf16_e4m3_d128_g16", e4m3::<bf16>(Split, 128, 16)),
        kernel("paged_attention_decode_baseline_f16_e4m3_d64", e4m3::<f16>(Baseline, 64, 8)),
        kernel("paged_attention_decode_baseline_f16_e4m3_d128", e4m3::<f16>(Baseline, 128, 8)),
        kernel("paged_attention_decode_split_f16_e4m3_d64_g8", e4m3::<f16>(Split, 64, 8)),
        kernel("paged_attention_decode_split_f16_e4m3_d64_g16", e4m3::<f16>(Split, 64, 16)),
        kernel("paged_attention_decode_split_f16_e4m3_d128_g8", e4m3::<f16>(Split, 128, 8)),
        kernel("paged_attention_decode_split_f16_e4m3_d128_g16", e4m3::<f16>(Split, 128, 16)),
    ]
}

fn baseline<T: BatchElement>(head_dim: u32) -> impl Fn(&Setting<'_>) -> Result<()> {
    decode::<T>(Baseline, Pieces, KvElement::Half, head_dim, 8)
}

fn split<T: BatchElement>(
    loads: TileLoads,
    head_dim: u32,
    group_size: u32,
) -> impl Fn(&Setting<'_>) -> Result<()> {
    decode::<T>(Split, loads, KvElement::Half, head_dim, group_size)
}

fn e4m3<T: BatchElement>(
    variant: DecodeVariant,
    head_dim: u32,
    group_size: u32,
) -> impl Fn(&Setting<'_>) -> Result<()> {
    decode::<T>(variant, Pieces, KvElement::E4m3, head_dim, group_size)
}

/// Decode of a batch whose heads have `head_dim` elements, `group_size` of them for a KV head.
fn decode<T: BatchElement>(
    variant: DecodeVariant,
    loads: TileLoads,
    element: KvElement,
    head_dim: u32,
    group_size: u32,
) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let (num_kv_heads, kv_lens) = setting.pick((8, vec![4096; 16]), (2, vec![20, 40]));
        let num_qo_heads = group_size * num_kv_heads;
        let mut workload =
            DecodeWorkload::new(num_qo_heads, num_kv_heads, kv_lens).head_dim(head_dim);
        workload.page.element = element;
        let batch = Rc::new(DecodeBatch::<T>::new(workload, 1));
        let bench = DecodeBench::new(setting.devices, &batch, |_| 0)?.with_loads(loads)?;
        setting.repeat(bench.stream(), |call| bench.run(variant, call % bench.num_inputs()))
    }
}
