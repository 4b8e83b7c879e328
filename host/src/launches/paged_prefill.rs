//! Kernels of the room `paged_prefill`: a prompt of 8192 tokens.

use anyhow::Result;
use half::{bf16, f16};

use super::{KernelLaunch, Setting, kernel};
use crate::harness::Prepared;
use crate::kernels::paged_prefill::PrefillElement;
use crate::kernels::paged_prefill::PrefillVariant::{self, Baseline, Wgmma};
use crate::pairs::{BatchElement, PrefillBatch, PrefillBench, PrefillWorkload};

pub(super) fn launches() -> Vec<KernelLaunch> {
    vec![
        kernel("paged_prefill_attend_baseline_bf16_d64", attend::<bf16>(Baseline, 64, 16)),
        kernel("paged_prefill_attend_baseline_bf16_d128", attend::<bf16>(Baseline, 128, 16)),
        kernel("paged_prefill_attend_baseline_f16_d64", attend::<f16>(Baseline, 64, 16)),
        kernel("paged_prefill_attend_baseline_f16_d128", attend::<f16>(Baseline, 128, 16)),
        kernel("paged_prefill_attend_wgmma_bf16_d128", attend::<bf16>(Wgmma, 128, 16)),
        kernel("paged_prefill_attend_wgmma_f16_d128", attend::<f16>(Wgmma, 128, 16)),
        kernel("paged_prefill_attend_wgmma_rows_bf16_d128", attend::<bf16>(Wgmma, 128, 1)),
        kernel("paged_prefill_attend_wgmma_rows_f16_d128", attend::<f16>(Wgmma, 128, 1)),
    ]
}

/// A prompt whose heads have `head_dim` elements, in pages of `page_size` tokens.
fn attend<T: BatchElement + PrefillElement>(
    variant: PrefillVariant,
    head_dim: u32,
    page_size: u32,
) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let (num_qo_heads, num_kv_heads, len) = setting.pick((32, 8, 8192), (2, 1, 300));
        let workload = PrefillWorkload::new(num_qo_heads, num_kv_heads, &[(len, len)])
            .head_dim(head_dim)
            .page_size(page_size);
        let bench = PrefillBench::new(&setting.devices[0], PrefillBatch::<T>::new(workload, 1))?;
        setting.repeat(bench.stream(), |call| bench.run(variant, call % bench.num_inputs()))
    }
}
