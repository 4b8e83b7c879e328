//! Kernels of the rooms `moe_topk`, `moe_permute`, `token_pack` and `token_unpack`: 4096 tokens.

use anyhow::Result;
use cuda_std::float::E4m3;
use gpu_kernels::moe_permute::contract::PermuteShape;
use gpu_kernels::moe_permute::reference::Routing;
use gpu_kernels::moe_topk::contract::TopkShape;
use half::bf16;

use super::{KernelLaunch, Setting, kernel};
use crate::harness::Variant::{self, Baseline, Optimized};
use crate::kernels::moe_topk::TopkVariant::{self, Warp};
use crate::pairs::moe_permute::{Part, PermuteBench, TokenElement};
use crate::pairs::moe_topk::{Gating, TopkBench};

pub(super) fn launches() -> Vec<KernelLaunch> {
    let of_block = TopkVariant::Baseline;
    vec![
        kernel("moe_topk_select_baseline_bf16", select::<bf16>(of_block, 256)),
        kernel("moe_topk_select_baseline_f32", select::<f32>(of_block, 256)),
        kernel("moe_topk_select_warp_bf16_e64", select::<bf16>(Warp, 60)),
        kernel("moe_topk_select_warp_bf16_e128", select::<bf16>(Warp, 128)),
        kernel("moe_topk_select_warp_bf16_e256", select::<bf16>(Warp, 200)),
        kernel("moe_topk_select_warp_bf16_deepseek_v3", select::<bf16>(Warp, 256)),
        kernel("moe_topk_select_warp_bf16_e512", select::<bf16>(Warp, 512)),
        kernel("moe_topk_select_warp_f32_e64", select::<f32>(Warp, 60)),
        kernel("moe_topk_select_warp_f32_e128", select::<f32>(Warp, 128)),
        kernel("moe_topk_select_warp_f32_e256", select::<f32>(Warp, 200)),
        kernel("moe_topk_select_warp_f32_deepseek_v3", select::<f32>(Warp, 256)),
        kernel("moe_topk_select_warp_f32_e512", select::<f32>(Warp, 512)),
        kernel("moe_permute_count_baseline", part::<bf16>(Baseline, Part::Permute, 4096)),
        kernel("moe_permute_scan_baseline", part::<bf16>(Baseline, Part::Permute, 4096)),
        kernel("moe_permute_scatter_baseline", part::<bf16>(Baseline, Part::Permute, 4096)),
        kernel("moe_permute_sort_grid_x1", part::<bf16>(Optimized, Part::Permute, 4096)),
        kernel("moe_permute_sort_grid_x4", part::<bf16>(Optimized, Part::Permute, 16384)),
        kernel("token_pack_rows_baseline", part::<bf16>(Baseline, Part::Pack, 4096)),
        kernel("token_pack_rows_fanout", part::<bf16>(Optimized, Part::Pack, 4096)),
        kernel("token_unpack_sum_baseline_bf16", part::<bf16>(Baseline, Part::Unpack, 4096)),
        kernel("token_unpack_sum_baseline_fp8", part::<E4m3>(Baseline, Part::Unpack, 4096)),
        kernel("token_unpack_sum_wide_bf16", part::<bf16>(Optimized, Part::Unpack, 4096)),
        kernel("token_unpack_sum_wide_fp8", part::<E4m3>(Optimized, Part::Unpack, 4096)),
    ]
}

/// The choice of DeepSeek-V3 where there are 256 experts, else by softmax.
fn select<T: Gating>(
    variant: TopkVariant,
    num_experts: u32,
) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let num_tokens = setting.pick(4096, 5);
        let shape = match num_experts {
            256 => TopkShape::deepseek_v3(num_tokens),
            _ => TopkShape::softmax(num_tokens, num_experts, 4),
        };
        let bench = TopkBench::<T>::new(&setting.devices[0], shape, 1)?;
        setting.repeat(bench.stream(), |_| bench.run(variant, 0))
    }
}

/// One part of a permutation and what follows from it, after those that it builds on.
fn part<T: TokenElement>(
    variant: Variant,
    part: Part,
    num_tokens: u32,
) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let device = &setting.devices[0];
        // More pairs than the device sorts one a thread; their elements do not matter.
        let is_many = num_tokens > 4096;
        let num_tokens = match is_many {
            true if device.is_cuda() => num_tokens,
            true => 2048,
            false => setting.pick(num_tokens, 20),
        };
        let hidden = if is_many { 8 } else { setting.pick(7168, 64) };
        let shape = PermuteShape::new(num_tokens, 8, 256);
        let bench = PermuteBench::<T>::new(device, shape, hidden, Routing::Uniform, 1)?;
        if part != Part::Permute {
            bench.run(Optimized, Part::Permute, 0)?;
        }
        setting.repeat(bench.stream(), |_| bench.run(variant, part, 0))
    }
}
