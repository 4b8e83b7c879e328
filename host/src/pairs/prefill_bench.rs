//! A prefill batch in the memory of a device, as often as calls must find it cold.

use std::slice::from_ref;

use anyhow::{Context, Result};
use gpu_kernels::contract::Work;
use half::bf16;

use super::attention_output::AttentionOutput;
use super::placed_kv::{PlacedKv, Staging};
use super::prefill_batch::TOLERANCE;
use super::{BatchElement, PrefillBatch};
use crate::device::{Buffer, Device, Stream};
use crate::harness::ceilings::DENSE_BF16;
use crate::harness::{Batch, Demand, Prepared, Sampler, Variant, stream_sampler};
use crate::kernels::paged_prefill::{Prefill, PrefillArgs, PrefillElement, PrefillVariant};

/// A batch in the memory of a device, ready to run there: both kernels over the same pages.
pub struct PrefillBench<T = bf16> {
    batch: PrefillBatch<T>,
    stream: Stream,
    baseline: Prefill,
    fastest: Prefill,
    /// The same contents, each time elsewhere.
    inputs: Vec<PlacedKv>,
    q: Buffer<T>,
    output: AttentionOutput<T>,
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
            output: AttentionOutput::new(device, baseline.q_elements(), baseline.lse_elements())?,
            baseline,
            fastest,
            batch,
            stream,
        })
    }

    /// Where it all runs.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Attends, with the batch at one of its places; by the fastest kernel unless the baseline is
    /// asked for.
    ///
    /// # Errors
    /// What the device says.
    pub fn run(&self, variant: PrefillVariant, input: usize) -> Result<()> {
        let PlacedKv { memory, table, .. } = &self.inputs[input];
        let AttentionOutput { out, lse } = &self.output;
        let args = PrefillArgs { table, memory, q: &self.q, out, lse };
        let plan = match variant {
            PrefillVariant::Baseline => &self.baseline,
            PrefillVariant::Wgmma => &self.fastest,
        };
        Ok(plan.run(&self.stream, &args)?)
    }
}

fn kernel(variant: Variant) -> PrefillVariant {
    match variant {
        Variant::Baseline => PrefillVariant::Baseline,
        Variant::Optimized => PrefillVariant::Wgmma,
    }
}

impl<T: BatchElement + PrefillElement> Prepared for PrefillBench<T> {
    fn work(&self, _variant: Variant) -> Work {
        self.batch.workload().work()
    }

    fn demands(&self) -> Vec<Demand> {
        vec![Demand { ceiling: DENSE_BF16, amount: self.batch.workload().work().flops }]
    }

    fn num_inputs(&self) -> usize {
        self.inputs.len()
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        stream_sampler(&self.stream, batch, move |input| self.run(kernel(variant), input))
    }

    fn verify(&self, variant: Variant) -> Result<String> {
        let attend = |input| self.run(kernel(variant), input);
        let (num_inputs, oracle) = (self.inputs.len(), self.batch.oracle());
        self.output.verify(&self.stream, num_inputs, oracle, TOLERANCE, attend)
    }

    /// Overwrites the last page of the batch, in the last of its places.
    fn corrupt(&mut self) -> Result<()> {
        self.inputs.last().context("no inputs")?.corrupt::<T>(&self.stream)
    }
}
