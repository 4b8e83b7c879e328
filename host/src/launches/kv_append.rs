//! Kernels of the room `kv_append`: a prompt of 4096 tokens.

use anyhow::Result;
use gpu_kernels::kv_layout::KvElement;
use half::{bf16, f16};

use super::{KernelLaunch, Setting, kernel};
use crate::kernels::kv_append::AppendElement;
use crate::pairs::kv_append::{real_case, tiny_case};
use crate::pairs::{AppendBench, BatchElement};

pub(super) fn launches() -> Vec<KernelLaunch> {
    vec![
        kernel("kv_append_tokens_bf16", on_tokens(AppendBench::<bf16>::rotate_and_append)),
        kernel("kv_append_tokens_f16", on_tokens(AppendBench::<f16>::rotate_and_append)),
        kernel("kv_append_tokens_bf16_e4m3", to_e4m3(AppendBench::<bf16>::rotate_and_append)),
        kernel("kv_append_tokens_f16_e4m3", to_e4m3(AppendBench::<f16>::rotate_and_append)),
        kernel("kv_append_rotate_q_bf16", on_tokens(AppendBench::<bf16>::rotate_q)),
        kernel("kv_append_rotate_q_f16", on_tokens(AppendBench::<f16>::rotate_q)),
    ]
}

fn on_tokens<T: BatchElement + AppendElement>(
    launch: impl Fn(&AppendBench<T>, usize) -> Result<()>,
) -> impl Fn(&Setting<'_>) -> Result<()> {
    on_tokens_of(KvElement::Half, launch)
}

fn to_e4m3<T: BatchElement + AppendElement>(
    launch: impl Fn(&AppendBench<T>, usize) -> Result<()>,
) -> impl Fn(&Setting<'_>) -> Result<()> {
    on_tokens_of(KvElement::E4m3, launch)
}

fn on_tokens_of<T: BatchElement + AppendElement>(
    element: KvElement,
    launch: impl Fn(&AppendBench<T>, usize) -> Result<()>,
) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let mut case = setting.pick(real_case(&[(0, 4096)]), tiny_case(&[(3, 14)]));
        case.shape.page.element = element;
        let bench = AppendBench::new(&setting.devices[0], &case, 1)?;
        setting.repeat(bench.stream(), |call| launch(&bench, call % bench.num_inputs()))
    }
}
