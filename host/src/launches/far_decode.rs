//! Kernels of the rooms `far_decode` and `merge_states`: a batch of 16 requests of 4096 tokens, a
//! quarter of whose pages lie in a peer.

use std::rc::Rc;

use anyhow::Result;
use gpu_kernels::kv_layout::KvElement;
use gpu_kernels::paged_attention::contract::TileLoads::{self, Boxes, Pieces};
use half::{bf16, f16};

use super::{KernelLaunch, Setting, kernel};
use crate::kernels::far_decode::FarDecodeElement;
use crate::kernels::far_decode::OwnerWaits::{self, AtAGate, ForEvents, OnAllSms};
use crate::pairs::{BatchElement, DecodeBatch, DecodeWorkload, FarBench, FarWay, is_far};

pub(super) fn launches() -> Vec<KernelLaunch> {
    vec![
        two_gpus("far_decode_ask", travel::<bf16>(OnAllSms, Pieces, 128, 8)),
        two_gpus("far_decode_gate", travel::<bf16>(AtAGate, Pieces, 128, 8)),
        two_gpus("far_decode_attend_split_bf16_d64_g8", travel::<bf16>(OnAllSms, Pieces, 64, 8)),
        two_gpus("far_decode_attend_split_bf16_d64_g16", travel::<bf16>(OnAllSms, Pieces, 64, 16)),
        two_gpus("far_decode_attend_split_bf16_d128_g8", travel::<bf16>(OnAllSms, Pieces, 128, 8)),
        two_gpus(
            "far_decode_attend_split_bf16_d128_g16",
            travel::<bf16>(OnAllSms, Pieces, 128, 16),
        ),
        two_gpus("far_decode_attend_split_f16_d64_g8", travel::<f16>(OnAllSms, Pieces, 64, 8)),
        two_gpus("far_decode_attend_split_f16_d64_g16", travel::<f16>(OnAllSms, Pieces, 64, 16)),
        two_gpus("far_decode_attend_split_f16_d128_g8", travel::<f16>(OnAllSms, Pieces, 128, 8)),
        two_gpus("far_decode_attend_split_f16_d128_g16", travel::<f16>(OnAllSms, Pieces, 128, 16)),
        two_gpus("far_decode_attend_tiles_bf16_d64_g8", travel::<bf16>(OnAllSms, Boxes, 64, 8)),
        two_gpus("far_decode_attend_tiles_bf16_d64_g16", travel::<bf16>(OnAllSms, Boxes, 64, 16)),
        two_gpus("far_decode_attend_tiles_bf16_d128_g8", travel::<bf16>(OnAllSms, Boxes, 128, 8)),
        two_gpus("far_decode_attend_tiles_bf16_d128_g16", travel::<bf16>(OnAllSms, Boxes, 128, 16)),
        two_gpus("far_decode_attend_tiles_f16_d64_g8", travel::<f16>(OnAllSms, Boxes, 64, 8)),
        two_gpus("far_decode_attend_tiles_f16_d64_g16", travel::<f16>(OnAllSms, Boxes, 64, 16)),
        two_gpus("far_decode_attend_tiles_f16_d128_g8", travel::<f16>(OnAllSms, Boxes, 128, 8)),
        two_gpus("far_decode_attend_tiles_f16_d128_g16", travel::<f16>(OnAllSms, Boxes, 128, 16)),
        two_gpus("far_decode_attend_split_bf16_e4m3_d64_g8", over_e4m3::<bf16>(64, 8)),
        two_gpus("far_decode_attend_split_bf16_e4m3_d64_g16", over_e4m3::<bf16>(64, 16)),
        two_gpus("far_decode_attend_split_bf16_e4m3_d128_g8", over_e4m3::<bf16>(128, 8)),
        two_gpus("far_decode_attend_split_bf16_e4m3_d128_g16", over_e4m3::<bf16>(128, 16)),
        two_gpus("far_decode_attend_split_f16_e4m3_d64_g8", over_e4m3::<f16>(64, 8)),
        two_gpus("far_decode_attend_split_f16_e4m3_d64_g16", over_e4m3::<f16>(64, 16)),
        two_gpus("far_decode_attend_split_f16_e4m3_d128_g8", over_e4m3::<f16>(128, 8)),
        two_gpus("far_decode_attend_split_f16_e4m3_d128_g16", over_e4m3::<f16>(128, 16)),
        two_gpus("far_decode_merge_bf16", travel::<bf16>(OnAllSms, Pieces, 128, 8)),
        two_gpus("far_decode_merge_f16", travel::<f16>(OnAllSms, Pieces, 128, 8)),
        two_gpus("merge_states_bf16", travel::<bf16>(ForEvents, Pieces, 128, 8)),
        two_gpus("merge_states_f16", travel::<f16>(ForEvents, Pieces, 128, 8)),
    ]
}

fn two_gpus(
    name: &'static str,
    launch: impl Fn(&Setting<'_>) -> Result<()> + 'static,
) -> KernelLaunch {
    KernelLaunch { num_gpus: 2, ..kernel(name, launch) }
}

fn travel<T: BatchElement + FarDecodeElement>(
    waits: OwnerWaits,
    loads: TileLoads,
    head_dim: u32,
    group_size: u32,
) -> impl Fn(&Setting<'_>) -> Result<()> {
    travel_over::<T>(KvElement::Half, waits, loads, head_dim, group_size)
}

fn over_e4m3<T: BatchElement + FarDecodeElement>(
    head_dim: u32,
    group_size: u32,
) -> impl Fn(&Setting<'_>) -> Result<()> {
    travel_over::<T>(KvElement::E4m3, OnAllSms, Pieces, head_dim, group_size)
}

/// Decode of a batch whose heads have `head_dim` elements, `group_size` of them for a KV head, and
/// all of whose queries travel.
fn travel_over<T: BatchElement + FarDecodeElement>(
    element: KvElement,
    waits: OwnerWaits,
    loads: TileLoads,
    head_dim: u32,
    group_size: u32,
) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let (num_kv_heads, kv_lens) = setting.pick((8, vec![4096; 16]), (2, vec![20, 40]));
        let num_qo_heads = group_size * num_kv_heads;
        let travels = vec![true; kv_lens.len()];
        let mut workload =
            DecodeWorkload::new(num_qo_heads, num_kv_heads, kv_lens).head_dim(head_dim);
        workload.page.element = element;
        let batch = Rc::new(DecodeBatch::<T>::new(workload, 1));
        let bench = FarBench::new(setting.devices, &batch, |entry| usize::from(is_far(entry, 25)))?;
        let run = bench.plan(&FarWay::Travel { travels, waits })?;
        let run = bench.with_loads(run, loads)?;
        (0..setting.times).try_for_each(|call| bench.run(&run, call % bench.num_inputs()))?;
        bench.synchronize(&run)
    }
}
