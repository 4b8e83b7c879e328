//! Kernels of the room `kv_append`: a prompt of 4096 tokens.

use anyhow::Result;
use gpu_kernels::kv_append::reference::QkvProblem;
use gpu_kernels::kv_layout::KvElement;
use half::{bf16, f16};

use super::{KernelLaunch, Setting, kernel};
use crate::device::Buffer;
use crate::kernels::kv_append::{Append, AppendElement, QkNorms, QkvArgs};
use crate::kv::memory::KvMemory;
use crate::pairs::kv_append::{real_case, tiny_case};
use crate::pairs::{AppendBench, BatchElement};

pub(super) fn launches() -> Vec<KernelLaunch> {
    vec![
        kernel("kv_append_tokens_bf16", on_tokens(AppendBench::<bf16>::rotate_and_append)),
        kernel("kv_append_tokens_f16", on_tokens(AppendBench::<f16>::rotate_and_append)),
        kernel("kv_append_tokens_bf16_e4m3", to_e4m3(AppendBench::<bf16>::rotate_and_append)),
        kernel("kv_append_tokens_f16_e4m3", to_e4m3(AppendBench::<f16>::rotate_and_append)),
        kernel("kv_append_qkv_bf16", joint_rows(KvElement::Half)),
        kernel("kv_append_qkv_bf16_e4m3", joint_rows(KvElement::E4m3)),
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

/// With a bias and normalised heads.
fn joint_rows(element: KvElement) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let stream = setting.stream()?;
        let mut case = setting.pick(real_case(&[(0, 4096)]), tiny_case(&[(3, 14)]));
        case.shape.page.element = element;
        let problem = QkvProblem::new(case, true, Some(1e-6), 1);
        let (page, pages_of) = (problem.case.shape.page, &problem.case.table.pages_of);
        let memory = KvMemory::new(&stream, setting.devices, page, pages_of, 0)?;
        let append = Append::upload(&stream, problem.shape.append, &problem.case.lists(), &memory)?;
        let upload = |elements: &[bf16]| Buffer::from_slice(&stream, elements);
        let (qkv, qkv_bias) = (upload(&problem.qkv)?, upload(&problem.qkv_bias)?);
        let (q_norm, k_norm) = (upload(&problem.norms[0])?, upload(&problem.norms[1])?);
        let cos_sin_cache = Buffer::from_slice(&stream, &problem.cos_sin_cache)?;
        let num_qo_heads = problem.shape.num_qo_heads;
        let q_out = stream.device().alloc(problem.shape.append.q_elements(num_qo_heads))?;
        let args = QkvArgs {
            memory: &memory,
            qkv: &qkv,
            qkv_bias: Some(&qkv_bias),
            norms: Some(QkNorms { q: &q_norm, k: &k_norm, eps: 1e-6 }),
            cos_sin_cache: Some(&cos_sin_cache),
            q_out: &q_out,
        };
        setting.repeat(&stream, |_| Ok(append.run_qkv(&stream, num_qo_heads, args)?))
    }
}
