//! A decode batch in the memory of some devices, as often as calls must find it cold.

use std::rc::Rc;

use anyhow::{Context, Result};
use gpu_kernels::contract::Work;
use gpu_kernels::paged_attention::contract::TileLoads;
use half::bf16;

use super::attention_output::AttentionOutput;
use super::placed_kv::{PlacedKv, Staging};
use super::{BatchElement, DecodeBatch};
use crate::device::{Buffer, Device, Stream};
use crate::harness::ceilings::HBM_READ;
use crate::harness::{Batch, Demand, Prepared, Sampler, Variant, stream_sampler};
use crate::kernels::paged_attention::{Decode, DecodeArgs, DecodeVariant};

/// A batch in the memory of some devices, ready to run on the first: both kernels over the same pages.
pub struct DecodeBench<T = bf16> {
    batch: Rc<DecodeBatch<T>>,
    stream: Stream,
    plan: Decode,
    /// The same contents, each time elsewhere.
    inputs: Vec<PlacedKv>,
    q: Buffer<T>,
    output: AttentionOutput<T>,
}

impl<T: BatchElement> DecodeBench<T> {
    /// Puts page `i` of the batch into location `location_of(i)`, pages of a location shuffled,
    /// so often that no cache holds all of it.
    ///
    /// # Errors
    /// Too little memory, no peer access, or a workload that the kernels do not take.
    pub fn new(
        devices: &[Device],
        batch: &Rc<DecodeBatch<T>>,
        location_of: impl Fn(usize) -> usize,
    ) -> Result<Self> {
        let device = devices.first().context("no device")?;
        let stream = device.new_stream()?;
        let workload = batch.workload();
        let shape = workload.shape();
        Ok(Self {
            inputs: PlacedKv::often(&stream, devices, &**batch, location_of, Staging::No)?,
            plan: Decode::plan_split(&stream, shape, &workload.kv_lens, workload.policy)?,
            q: Buffer::from_slice(&stream, batch.q())?,
            output: AttentionOutput::new(device, shape.q_elements(), shape.lse_elements())?,
            batch: batch.clone(),
            stream,
        })
    }

    /// The same bench, pages loaded in this way.
    ///
    /// # Errors
    /// A way that the device or the pages do not allow.
    pub fn with_loads(mut self, loads: TileLoads) -> Result<Self> {
        self.plan = self.plan.with_loads(&self.stream, loads)?;
        Ok(self)
    }

    /// Where it all runs.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Decodes the batch at one of its places.
    ///
    /// # Errors
    /// What the device says.
    pub fn run(&self, variant: DecodeVariant, input: usize) -> Result<()> {
        let PlacedKv { memory, table, .. } = &self.inputs[input];
        let AttentionOutput { out, lse } = &self.output;
        let args = DecodeArgs { table, memory, q: &self.q, out, lse };
        Ok(self.plan.run(&self.stream, variant, &args)?)
    }
}

fn kernel(variant: Variant) -> DecodeVariant {
    match variant {
        Variant::Baseline => DecodeVariant::Baseline,
        Variant::Optimized => DecodeVariant::Split,
    }
}

impl<T: BatchElement> Prepared for DecodeBench<T> {
    fn work(&self, _variant: Variant) -> Work {
        self.batch.workload().work()
    }

    fn demands(&self) -> Vec<Demand> {
        vec![Demand { ceiling: HBM_READ, amount: self.batch.workload().work().read_bytes }]
    }

    fn num_inputs(&self) -> usize {
        self.inputs.len()
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        stream_sampler(&self.stream, batch, move |input| self.run(kernel(variant), input))
    }

    fn verify(&self, variant: Variant) -> Result<String> {
        let (oracle, tolerance) = (self.batch.oracle(), self.batch.tolerance());
        let attend = |input| self.run(kernel(variant), input);
        self.output.verify(&self.stream, self.inputs.len(), oracle, tolerance, attend)
    }

    /// Overwrites the last page of the batch, in the last of its places.
    fn corrupt(&mut self) -> Result<()> {
        self.inputs.last().context("no inputs")?.corrupt::<T>(&self.stream)
    }
}
