//! A prefill batch in the memory of a device, as often as calls must find it cold.

use std::slice::from_ref;

use anyhow::{Context, Result, anyhow};
use gpu_kernels::paged_attention::reference::Tolerance;
use half::bf16;

use super::placed_kv::{PlacedKv, Staging};
use super::prefill_batch::TOLERANCE;
use super::{BatchElement, PrefillBatch};
use crate::device::{Buffer, Device, Stream};
use crate::harness::{Batch, Sampler, stream_sampler};
use crate::kernels::paged_prefill::{Prefill, PrefillArgs, PrefillElement, PrefillVariant};

/// A batch in the memory of a device, ready to run there.
pub struct PrefillBench<T = bf16> {
    batch: PrefillBatch<T>,
    stream: Stream,
    baseline: Prefill,
    fastest: Prefill,
    /// The same contents, each time elsewhere.
    inputs: Vec<PlacedKv>,
    q: Buffer<T>,
    out: Buffer<T>,
    lse: Buffer<f32>,
}

impl<T: BatchElement + PrefillElement> PrefillBench<T> {
    /// Puts the batch into the memory of `device`, its pages shuffled, so often that no cache holds
    /// all of it.
    ///
    /// # Errors
    /// Too little memory, or a workload that the kernels do not take.
    pub fn new(device: &Device, batch: PrefillBatch<T>) -> Result<Self> {
        let stream = device.new_stream()?;
        let workload = batch.workload();
        let shape = workload.shape();
        let plan = |variant| {
            let qo_indptr = workload.qo_indptr();
            Prefill::plan(&stream, variant, shape, &qo_indptr, &workload.kv_lens)
        };
        let baseline = plan(PrefillVariant::Baseline)?;
        let fastest = plan(PrefillVariant::fastest(device, &shape)?)?;
        Ok(Self {
            inputs: PlacedKv::often(&stream, from_ref(device), &batch, |_| 0, Staging::No)?,
            q: Buffer::from_slice(&stream, batch.q())?,
            out: device.alloc(baseline.q_elements())?,
            lse: device.alloc(baseline.lse_elements())?,
            baseline,
            fastest,
            batch,
            stream,
        })
    }

    /// The batch.
    pub fn batch(&self) -> &PrefillBatch<T> {
        &self.batch
    }

    /// How often the batch lies in memory.
    pub fn num_inputs(&self) -> usize {
        self.inputs.len()
    }

    /// Where it all runs.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Samples of the baseline, or of the fastest kernel.
    pub fn sampler(&self, variant: PrefillVariant, batch: Batch) -> Result<Sampler<'_>> {
        stream_sampler(&self.stream, batch, move |input| self.run(variant, input))
    }

    /// Attends, with the batch at one of its places; by the fastest kernel unless the baseline is
    /// asked for.
    ///
    /// # Errors
    /// What the device says.
    pub fn run(&self, variant: PrefillVariant, input: usize) -> Result<()> {
        let PlacedKv { memory, table, .. } = &self.inputs[input];
        let args = PrefillArgs { table, memory, q: &self.q, out: &self.out, lse: &self.lse };
        let plan = match variant {
            PrefillVariant::Baseline => &self.baseline,
            PrefillVariant::Wgmma => &self.fastest,
        };
        Ok(plan.run(&self.stream, &args)?)
    }

    /// Compares the whole output of a kernel, which starts as NaN, with the oracle, for the batch
    /// at every place.
    ///
    /// # Errors
    /// The first element that is off.
    pub fn verify(&self, variant: PrefillVariant) -> Result<String> {
        let oracle = self.batch.oracle();
        for input in 0..self.inputs.len() {
            self.stream.fill(&self.out, T::from_f32(f32::NAN))?;
            self.stream.fill(&self.lse, f32::NAN)?;
            self.run(variant, input)?;
            let (out, lse) = (self.stream.download(&self.out)?, self.stream.download(&self.lse)?);
            oracle
                .check(&out, &lse, TOLERANCE)
                .map_err(|off| anyhow!("inputs {input}, {variant:?}: {off}"))?;
        }
        let Tolerance { out, lse } = TOLERANCE;
        Ok(format!(
            "{} outputs within {out}, {} lse within {lse} of f64, {} times",
            oracle.out.len(),
            oracle.lse.len(),
            self.inputs.len(),
        ))
    }

    /// Overwrites the last page of the batch, in the last of its places.
    ///
    /// # Errors
    /// What the device says.
    pub fn corrupt(&mut self) -> Result<()> {
        self.inputs.last().context("no inputs")?.corrupt::<T>(&self.stream)
    }
}
