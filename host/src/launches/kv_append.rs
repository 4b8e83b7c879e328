//! Kernels of the room `kv_append`: a prompt of 4096 tokens.

use anyhow::Result;
use half::{bf16, f16};

use super::{KernelLaunch, Setting, kernel};
use crate::kernels::kv_append::AppendElement;
use crate::pairs::kv_append::{real_case, tiny_case};
use crate::pairs::{AppendBench, BatchElement};

pub(super) fn launches() -> Vec<KernelLaunch> {
    vec![
        kernel("kv_append_tokens_bf16", on_tokens(AppendBench::<bf16>::rotate_and_append)),
        kernel("kv_append_tokens_f16", on_tokens(AppendBench::<f16>::rotate_and_append)),
        kernel("kv_append_rotate_q_bf16", on_tokens(AppendBench::<bf16>::rotate_q)),
        kernel("kv_append_rotate_q_f16", on_tokens(AppendBench::<f16>::rotate_q)),
    ]
}

fn on_tokens<T: BatchElement + AppendElement>(
    launch: impl Fn(&AppendBench<T>, usize) -> Result<()>,
) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let case = setting.pick(real_case(&[(0, 4096)]), tiny_case(&[(3, 14)]));
        let bench = AppendBench::new(&setting.devices[0], &case, 1)?;
        setting.repeat(bench.stream(), |call| launch(&bench, call % bench.num_inputs()))
    }
}
