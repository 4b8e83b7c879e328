//! Kernels of the rooms `gemm`, `gemv`, `expert_gemm`, `expert_gemm_fp8` and `shared_expert`: sizes of a
//! large model's layers.

use anyhow::Result;
use bytemuck::Pod;
use gpu_kernels::expert_gemm::contract::ExpertGemmShape;
use gpu_kernels::expert_gemm::reference::{offsets, random_rows};
use gpu_kernels::expert_gemm_fp8::contract::ExpertGemmFp8Shape;
use gpu_kernels::gemm::contract::GemmShape;
use gpu_kernels::gemm::plan::{GemmKernel, GemmPlan, GemmVariant};
use gpu_kernels::gemm::split_plan::{SplitPlan, SplitTile};
use gpu_kernels::gemv::contract::{GemvExperts, GemvShape};
use gpu_kernels::shared_expert::contract::SharedExpertShape;

use super::{KernelLaunch, Setting, kernel};
use crate::device::{Buffer, Stream};
use crate::kernels::KernelError;
use crate::kernels::expert_gemm::{ExpertGemm, ExpertGemmArgs, ExpertGemmVariant};
use crate::kernels::expert_gemm_fp8::{ExpertGemmFp8, ExpertGemmFp8Args, ExpertGemmFp8Variant};
use crate::kernels::gemm::{Gemm, GemmArgs, multiply_exactly};
use crate::kernels::gemv::{Gemv, GemvArgs, GemvChoice};
use crate::kernels::shared_expert::{
    SharedExpert, SharedExpertArgs, SharedExpertVariant, silu_mul,
};

pub(super) fn launches() -> Vec<KernelLaunch> {
    vec![
        kernel("gemm_baseline_bf16", product(GemmVariant::Baseline, 4096)),
        kernel("gemm_tma_bf16", product(GemmVariant::Tma, 4096)),
        kernel("gemm_paired_bf16", product(GemmVariant::Paired, 4096)),
        kernel("gemm_stream_bf16", product(GemmVariant::Stream, 128)),
        kernel("gemm_split1_64_bf16", split_product(0)),
        kernel("gemm_split2_64_bf16", split_product(1)),
        kernel("gemm_split4_128_bf16", split_product(2)),
        kernel("gemm_exact_bf16", exact_product),
        kernel("gemv_rows_bf16", one_row(OneRow::Plain)),
        kernel("gemv_gated_bf16", one_row(OneRow::Gated)),
        kernel("gemv_added_bf16", one_row(OneRow::Added)),
        kernel("gemv_experts_gated_bf16", one_row(OneRow::ExpertsGated)),
        kernel("gemv_experts_added_bf16", one_row(OneRow::ExpertsAdded)),
        kernel("expert_gemm_baseline_bf16", experts(ExpertGemmVariant::Baseline, false)),
        kernel("expert_gemm_grouped_bf16", experts(ExpertGemmVariant::Grouped, false)),
        kernel("expert_gemm_gated_bf16", experts(ExpertGemmVariant::Grouped, true)),
        kernel("expert_gemm_fp8_baseline", experts_fp8(ExpertGemmFp8Variant::Baseline)),
        kernel("expert_gemm_fp8_grouped", experts_fp8(ExpertGemmFp8Variant::Grouped)),
        kernel("shared_expert_silu_mul_bf16", separate_gate),
        kernel("shared_expert_gate_up_bf16", gate_in_product(SharedExpertVariant::Fused, 4096)),
        kernel("shared_expert_stream_bf16", gate_in_product(SharedExpertVariant::Stream, 128)),
        kernel("shared_expert_split_bf16", gate_in_product(SharedExpertVariant::Split, 128)),
    ]
}

/// Zeros: what is multiplied does not matter here.
fn zeros<T: Pod>(stream: &Stream, len: usize) -> Result<Buffer<T>> {
    Ok(stream.device().alloc_zeroed(len)?)
}

fn product(variant: GemmVariant, real_m: u32) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let (m, n, k) = setting.pick((real_m, 4096, 7168), (20, 40, 72));
        let shape = GemmShape { m, n, k };
        run_product(setting, |stream| Gemm::with_variant(stream, shape, variant))
    }
}

fn split_product(tile: usize) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let (m, n, k) = setting.pick((128, 4096, 7168), (20, 40, 264));
        let shape = GemmShape { m, n, k };
        let kernel = GemmKernel::Split(SplitPlan::new(shape, 1, SplitTile::ALL[tile]));
        run_product(setting, |stream| Gemm::with_plan(stream, GemmPlan { shape, kernel }))
    }
}

fn run_product(
    setting: &Setting<'_>,
    gemm: impl Fn(&Stream) -> Result<Gemm, KernelError>,
) -> Result<()> {
    let stream = setting.stream()?;
    let gemm = gemm(&stream)?;
    let shape = gemm.plan().shape;
    let a = zeros(&stream, shape.a_elements())?;
    let b = zeros(&stream, shape.b_elements())?;
    let c = zeros(&stream, shape.c_elements())?;
    setting.repeat(&stream, |_| Ok(gemm.run(&stream, GemmArgs { a: &a, b: &b, c: &c })?))
}

fn exact_product(setting: &Setting<'_>) -> Result<()> {
    let stream = setting.stream()?;
    let (m, n, k) = setting.pick((1024, 1024, 1024), (20, 40, 72));
    let shape = GemmShape { m, n, k };
    let (a, b) = (zeros(&stream, shape.a_elements())?, zeros(&stream, shape.b_elements())?);
    let c = stream.device().alloc(shape.c_elements())?;
    setting.repeat(&stream, |_| Ok(multiply_exactly(&stream, shape, &a, &b, &c)?))
}

/// Kernels of the room `gemv`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OneRow {
    Plain,
    Gated,
    Added,
    ExpertsGated,
    ExpertsAdded,
}

fn one_row(kernel: OneRow) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let stream = setting.stream()?;
        let has_experts = matches!(kernel, OneRow::ExpertsGated | OneRow::ExpertsAdded);
        let is_gated = matches!(kernel, OneRow::Gated | OneRow::ExpertsGated);
        let adds = matches!(kernel, OneRow::Added | OneRow::ExpertsAdded);
        let real = match (has_experts, is_gated) {
            (false, false) => (4096, 4096),
            (false, true) => (14_336, 4096),
            (true, true) => (1408, 2048),
            (true, false) => (2048, 1408),
        };
        let (n, k) = setting.pick(real, (40, 72));
        let experts = GemvExperts { num_experts: 60, top_k: 4, num_shared: 4 };
        let shape = GemvShape {
            is_gated,
            norm_eps: (!adds).then_some(1e-6),
            experts: has_experts.then_some(experts),
            ..GemvShape::new(n, k)
        };
        let gemv = Gemv::new(stream.device(), shape)?;
        let x = zeros(&stream, shape.row_elements())?;
        let norm = zeros(&stream, shape.norm_elements())?;
        let norm_weight = (!adds).then_some(&norm);
        let b = zeros(&stream, shape.b_elements())?;
        let out = zeros(&stream, shape.out_elements())?;
        let topk_ids = Buffer::from_slice(&stream, &[7, 3, 59, 12, 60, 61, 62, 63])?;
        let topk_weights = stream.device().alloc_zeroed(topk_ids.len())?;
        let choice = GemvChoice { topk_ids: &topk_ids, topk_weights: &topk_weights };
        let args = GemvArgs { x: &x, norm_weight, b: &b, out: &out };
        setting.repeat(&stream, |_| {
            let launched = match kernel {
                OneRow::Plain | OneRow::Gated => gemv.run(&stream, args),
                OneRow::Added => gemv.add(&stream, args),
                OneRow::ExpertsGated => gemv.run_experts(&stream, choice, args),
                OneRow::ExpertsAdded => gemv.add_experts(&stream, choice, args),
            };
            Ok(launched?)
        })
    }
}

fn experts(variant: ExpertGemmVariant, is_gated: bool) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let stream = setting.stream()?;
        let (num_rows, num_experts, n, k) = setting.pick((8192, 32, 4096, 7168), (30, 3, 40, 72));
        let shape = ExpertGemmShape { num_rows, num_experts, n, k, is_gated };
        let product = ExpertGemm::with_variant(&stream, shape, variant)?;
        let rows_of = random_rows(num_rows, num_experts, 1);
        let expert_offsets = Buffer::from_slice(&stream, &offsets(&rows_of))?;
        let a = zeros(&stream, shape.a_elements())?;
        let b = zeros(&stream, shape.b_elements())?;
        let c = zeros(&stream, shape.c_elements())?;
        let args = ExpertGemmArgs { a: &a, b: &b, expert_offsets: &expert_offsets, c: &c };
        setting.repeat(&stream, |_| Ok(product.run(&stream, args)?))
    }
}

fn experts_fp8(variant: ExpertGemmFp8Variant) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let stream = setting.stream()?;
        let (num_rows, num_experts, n, k) = setting.pick((8192, 32, 4096, 7168), (30, 3, 40, 272));
        let shape = ExpertGemmFp8Shape { num_rows, num_experts, n, k };
        let product = ExpertGemmFp8::with_variant(&stream, shape, variant)?;
        let rows_of = random_rows(num_rows, num_experts, 1);
        let args = ExpertGemmFp8Args {
            a: &zeros(&stream, shape.a_elements())?,
            a_scales: &zeros(&stream, shape.a_scales())?,
            b: &zeros(&stream, shape.b_elements())?,
            b_scales: &zeros(&stream, shape.b_scales())?,
            expert_offsets: &Buffer::from_slice(&stream, &offsets(&rows_of))?,
            c: &zeros(&stream, shape.c_elements())?,
        };
        setting.repeat(&stream, |_| Ok(product.run(&stream, args)?))
    }
}

fn shared_expert_shape(setting: &Setting<'_>, real_tokens: u32) -> SharedExpertShape {
    let (num_tokens, hidden, intermediate) = setting.pick((real_tokens, 7168, 2048), (20, 72, 72));
    SharedExpertShape { num_tokens, hidden, intermediate }
}

fn separate_gate(setting: &Setting<'_>) -> Result<()> {
    let (stream, shape) = (setting.stream()?, shared_expert_shape(setting, 4096));
    let gate_up = zeros(&stream, 2 * shape.h_elements())?;
    let h = zeros(&stream, shape.h_elements())?;
    setting.repeat(&stream, |_| Ok(silu_mul(&stream, shape, &gate_up, &h)?))
}

fn gate_in_product(
    variant: SharedExpertVariant,
    real_tokens: u32,
) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let stream = setting.stream()?;
        let shape = shared_expert_shape(setting, real_tokens);
        let expert = SharedExpert::with_variant(&stream, shape, variant)?;
        let [first, second] = shape.products();
        let (x, y) = (zeros(&stream, shape.x_elements())?, zeros(&stream, shape.x_elements())?);
        let gate_up = zeros(&stream, first.b_elements())?;
        let down = zeros(&stream, second.b_elements())?;
        let args = SharedExpertArgs { x: &x, gate_up: &gate_up, down: &down, y: &y };
        setting.repeat(&stream, |_| Ok(expert.run(&stream, args)?))
    }
}
