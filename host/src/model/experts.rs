//! The experts of a layer, for a batch of one size: routing, two grouped products, the sum.

use gpu_kernels::expert_gemm::contract::ExpertGemmShape;
use gpu_kernels::gemm::contract::GemmShape;
use gpu_kernels::moe_permute::contract::PermuteShape;
use gpu_kernels::moe_topk::contract::{StackedTopk, TopkShape};
use gpu_kernels::token_pack::contract::PackShape;
use gpu_kernels::token_rows::{RowFormat, TokenRows};
use gpu_kernels::token_unpack::contract::UnpackShape;
use half::bf16;

use super::config::Experts;
use super::pass::PassShape;
use super::weights::SwigluWeights;
use crate::device::{Buffer, Stream};
use crate::kernels::KernelError;
use crate::kernels::expert_gemm::{ExpertGemm, ExpertGemmArgs};
use crate::kernels::gemm::{Gemm, GemmArgs};
use crate::kernels::moe_permute::{Permutation, Permute, PermuteVariant};
use crate::kernels::moe_topk::{Topk, TopkArgs, TopkVariant};
use crate::kernels::token_pack::{Pack, PackArgs, PackVariant};
use crate::kernels::token_unpack::{Unpack, UnpackArgs, UnpackVariant};

/// Launchers and memory for the experts of one size, used by all layers that have such.
pub(super) struct ExpertsPass {
    router: Gemm,
    topk: Topk,
    permute: Permute,
    permutation: Permutation,
    pack: Pack,
    gate_up: ExpertGemm,
    down: ExpertGemm,
    unpack: Unpack,
    logits: Buffer<bf16>,
    topk_ids: Buffer<i32>,
    topk_weights: Buffer<f32>,
    packed: Buffer<bf16>,
    h: Buffer<bf16>,
    rows: Buffer<bf16>,
    /// For each expert the offsets that leave all rows to it which are its own, if they come one by one.
    own_offsets: Option<Vec<Buffer<i32>>>,
}

impl ExpertsPass {
    pub(super) fn new(
        stream: &Stream,
        experts: Experts,
        pass: PassShape,
        hidden: u32,
    ) -> Result<Self, KernelError> {
        let device = stream.device();
        let num_tokens = pass.num_tokens;
        let Experts { top_k, intermediate, .. } = experts;
        let num_experts = experts.num_experts + experts.num_shared();
        let num_slots = top_k + experts.num_shared();
        let num_rows = num_tokens * num_slots;
        let num_columns = experts.num_columns();
        let softmax = TopkShape::softmax(num_tokens, experts.num_experts, top_k);
        let stacked = StackedTopk {
            choice: TopkShape { renormalize: experts.renormalize, ..softmax },
            num_columns,
            num_shared: experts.num_shared(),
        };
        let sorted = PermuteShape::new(num_tokens, num_slots, num_experts);
        let rows = TokenRows {
            num_tokens,
            top_k: num_slots,
            hidden,
            format: RowFormat::Bf16,
            num_max_rows: num_rows,
        };
        let router = GemmShape { m: num_tokens, n: num_columns, k: hidden };
        let gated =
            ExpertGemmShape { num_rows, num_experts, n: intermediate, k: hidden, is_gated: true };
        let down = ExpertGemmShape { n: hidden, k: intermediate, is_gated: false, ..gated };
        Ok(Self {
            router: pass.product(stream, router)?,
            topk: Topk::stacked(stacked)?,
            permute: Permute::new(device, sorted)?,
            permutation: Permutation::new(device, sorted)?,
            pack: Pack::new(PackShape {
                rows,
                num_local_experts: num_experts,
                zero_padding: false,
            })?,
            gate_up: ExpertGemm::new(stream, gated)?,
            down: ExpertGemm::new(stream, down)?,
            unpack: Unpack::new(UnpackShape { rows, has_addend: true })?,
            logits: device.alloc(router.c_elements())?,
            topk_ids: device.alloc(stacked.topk_elements())?,
            topk_weights: device.alloc(stacked.topk_elements())?,
            packed: device.alloc(rows.rows_elements())?,
            h: device.alloc(gated.c_elements())?,
            rows: device.alloc(rows.rows_elements())?,
            own_offsets: None,
        })
    }

    /// The same, its experts one after the other: as soon as the host has read how many tokens each has.
    pub(super) fn one_by_one(self, stream: &Stream) -> Result<Self, KernelError> {
        // A tile reads rows behind its expert's, which no expert before has written yet.
        stream.fill_bytes(&self.h, 0)?;
        let num_experts = self.down.shape().num_experts as usize;
        let offsets = (0..num_experts).map(|_| stream.device().alloc(num_experts + 1));
        Ok(Self { own_offsets: Some(offsets.collect::<Result<_, _>>()?), ..self })
    }

    /// Adds to the residual stream `x` what the experts make of `normed`, both
    /// `[num_tokens, hidden]`.
    pub(super) fn run(
        &self,
        stream: &Stream,
        router: &Buffer<bf16>,
        experts: &SwigluWeights<Buffer<bf16>>,
        normed: &Buffer<bf16>,
        x: &Buffer<bf16>,
    ) -> Result<(), KernelError> {
        self.router.run(stream, GemmArgs { a: normed, b: router, c: &self.logits })?;
        let (topk_ids, topk_weights) = (&self.topk_ids, &self.topk_weights);
        let choice = TopkArgs { gating_output: &self.logits, bias: None, topk_ids, topk_weights };
        self.topk.run(stream, TopkVariant::Warp, &choice)?;
        self.permute.run(stream, PermuteVariant::Grid, topk_ids, &self.permutation)?;
        let pack = PackArgs {
            x: normed,
            x_scales: None,
            permutation: &self.permutation,
            rows: &self.packed,
            row_scales: None,
        };
        self.pack.run(stream, PackVariant::Fanout, &pack)?;
        let offsets = self.permutation.expert_offsets();
        match &self.own_offsets {
            None => self.multiply(stream, experts, offsets)?,
            Some(own_offsets) => {
                let begins = offsets.to_vec(stream)?;
                for (expert, own) in own_offsets.iter().enumerate() {
                    let (begin, end) = (begins[expert], begins[expert + 1]);
                    if begin < end {
                        stream.fill(own.slice(..=expert), begin)?;
                        stream.fill(own.slice(expert + 1..), end)?;
                        self.multiply(stream, experts, own)?;
                    }
                }
            }
        }
        let sum = UnpackArgs {
            rows: &self.rows,
            row_scales: None,
            pair_rows: self.permutation.pair_rows(),
            topk_weights,
            addend: Some(x),
            out: x,
        };
        self.unpack.run(stream, UnpackVariant::Wide, &sum)
    }
}

impl ExpertsPass {
    /// Both products of the rows that `expert_offsets` deals to experts.
    fn multiply(
        &self,
        stream: &Stream,
        experts: &SwigluWeights<Buffer<bf16>>,
        expert_offsets: &Buffer<i32>,
    ) -> Result<(), KernelError> {
        let gate_up =
            ExpertGemmArgs { a: &self.packed, b: &experts.gate_up, expert_offsets, c: &self.h };
        self.gate_up.run(stream, gate_up)?;
        let down = ExpertGemmArgs { a: &self.h, b: &experts.down, expert_offsets, c: &self.rows };
        self.down.run(stream, down)
    }
}
