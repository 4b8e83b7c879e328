//! Where an attention kernel writes, and whether it wrote what it should.

use anyhow::{Result, anyhow};
use gpu_kernels::paged_attention::reference::{DecodeResult, Tolerance};
use half::bf16;

use super::BatchElement;
use crate::device::{Buffer, Device, Stream};

/// Outputs and log-sum-exps of a batch, in the memory of a device.
pub(super) struct AttentionOutput<T = bf16> {
    /// `[rows, num_qo_heads, head_dim]`
    pub(super) out: Buffer<T>,
    /// `[rows, num_qo_heads]`, base 2
    pub(super) lse: Buffer<f32>,
}

impl<T: BatchElement> AttentionOutput<T> {
    /// Room for so many elements.
    ///
    /// # Errors
    /// Too little memory.
    pub(super) fn new(device: &Device, out_elements: usize, lse_elements: usize) -> Result<Self> {
        Ok(Self { out: device.alloc(out_elements)?, lse: device.alloc(lse_elements)? })
    }

    /// Compares all of it, which starts as NaN, with the oracle, after an `attend` to each of
    /// `num_inputs` inputs; says what was compared.
    ///
    /// # Errors
    /// The first element that is off, and what `attend` says.
    pub(super) fn verify(
        &self,
        stream: &Stream,
        num_inputs: usize,
        oracle: &DecodeResult,
        tolerance: Tolerance,
        attend: impl Fn(usize) -> Result<()>,
    ) -> Result<String> {
        for input in 0..num_inputs {
            stream.fill(&self.out, T::from_f32(f32::NAN))?;
            stream.fill(&self.lse, f32::NAN)?;
            attend(input)?;
            let (out, lse) = (stream.download(&self.out)?, stream.download(&self.lse)?);
            oracle.check(&out, &lse, tolerance).map_err(|off| anyhow!("inputs {input}: {off}"))?;
        }
        let Tolerance { out, lse } = tolerance;
        Ok(format!(
            "{} outputs within {out}, {} lse within {lse} of f64, {num_inputs} times",
            oracle.out.len(),
            oracle.lse.len(),
        ))
    }
}
