//! A decode batch in the memory of some devices, as often as calls must find it cold.

use std::rc::Rc;

use anyhow::{Context, Result, anyhow};
use gpu_kernels::kv_layout::KvPagePlace;
use gpu_kernels::kv_page_pattern::KvTokenPlace;
use gpu_kernels::paged_attention::reference::{ScatteredTable, Tolerance};
use half::bf16;

use super::{BatchElement, DecodeBatch, num_cold_inputs};
use crate::device::{Buffer, Device, Stream};
use crate::harness::{Batch, Sampler, stream_sampler};
use crate::kernels::kv_page_pattern::PatternFill;
use crate::kernels::paged_attention::{Decode, DecodeArgs, DecodeVariant, DevicePageTable};
use crate::kv::memory::KvMemory;

/// A value that no page holds: those are below 1.
const CORRUPTED: f32 = 1e4;

/// A batch in the memory of some devices, ready to run on the first.
pub struct DecodeBench<T = bf16> {
    batch: Rc<DecodeBatch<T>>,
    stream: Stream,
    plan: Decode,
    /// The same contents, each time elsewhere.
    inputs: Vec<PlacedKv>,
    q: Buffer<T>,
    out: Buffer<T>,
    lse: Buffer<f32>,
}

/// The batch's K and V, and the table that finds them.
struct PlacedKv {
    memory: KvMemory,
    table: DevicePageTable,
    last_page: KvPagePlace,
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
        let num_inputs = num_cold_inputs(device, workload.work())?;
        let inputs = (0..num_inputs as u64)
            .map(|input| PlacedKv::new(&stream, devices, batch, input, &location_of));
        Ok(Self {
            inputs: inputs.collect::<Result<_>>()?,
            plan: Decode::plan_split(&stream, shape, &workload.kv_lens, workload.policy)?,
            q: Buffer::from_slice(&stream, batch.q())?,
            out: device.alloc(shape.q_elements())?,
            lse: device.alloc(shape.lse_elements())?,
            batch: batch.clone(),
            stream,
        })
    }

    /// How often the batch lies in memory.
    pub fn num_inputs(&self) -> usize {
        self.inputs.len()
    }

    /// Where it all runs.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Samples of one kernel.
    pub fn sampler(&self, variant: DecodeVariant, batch: Batch) -> Result<Sampler<'_>> {
        stream_sampler(&self.stream, batch, move |input| self.run(variant, input))
    }

    /// Decodes the batch at one of its places.
    ///
    /// # Errors
    /// What the device says.
    pub fn run(&self, variant: DecodeVariant, input: usize) -> Result<()> {
        let PlacedKv { memory, table, .. } = &self.inputs[input];
        let args = DecodeArgs { table, memory, q: &self.q, out: &self.out, lse: &self.lse };
        Ok(self.plan.run(&self.stream, variant, &args)?)
    }

    /// Compares the whole output of one kernel, which starts as NaN, with the oracle, for the
    /// batch at every place.
    ///
    /// # Errors
    /// The first element that is off.
    pub fn verify(&self, variant: DecodeVariant) -> Result<String> {
        let (oracle, tolerance) = (self.batch.oracle(), T::TOLERANCE);
        for input in 0..self.inputs.len() {
            self.stream.fill(&self.out, T::from_f32(f32::NAN))?;
            self.stream.fill(&self.lse, f32::NAN)?;
            self.run(variant, input)?;
            let (out, lse) = (self.stream.download(&self.out)?, self.stream.download(&self.lse)?);
            oracle
                .check(&out, &lse, tolerance)
                .map_err(|off| anyhow!("inputs {input}, {variant:?}: {off}"))?;
        }
        let Tolerance { out, lse } = tolerance;
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
        let PlacedKv { memory, last_page, .. } = self.inputs.last().context("no inputs")?;
        let bits = |value| bytemuck::cast::<T, u16>(T::from_f32(value));
        // Keys that give a middling score, and values that stand out among those of any number of
        // tokens.
        let half = memory.shape().page_elements() / 2;
        let page = [vec![bits(0.0); half], vec![bits(CORRUPTED); half]].concat();
        let place = memory.pages(last_page.rank as usize, last_page.index as usize, 1);
        Ok(self.stream.upload(&page, place)?)
    }
}

impl PlacedKv {
    fn new<T: BatchElement>(
        stream: &Stream,
        devices: &[Device],
        batch: &DecodeBatch<T>,
        shuffle: u64,
        location_of: impl Fn(usize) -> usize,
    ) -> Result<Self> {
        let (kv_lens, page) = (&batch.workload().kv_lens, batch.workload().page);
        let mut rng = fastrand::Rng::with_seed(shuffle);
        let num_locations = devices.len() + 1;
        let scattered =
            ScatteredTable::new(kv_lens, page.page_size, num_locations, location_of, &mut rng);
        let (&host_pages, device_pages) = scattered.pages_of.split_last().context("no location")?;
        let memory = KvMemory::new(stream, devices, page, device_pages, host_pages)?;
        fill(stream, batch, &memory, &scattered)?;
        let num_entries = scattered.kv_indices.len();
        Ok(Self {
            table: DevicePageTable::upload(stream, &scattered.table(), &memory)?,
            last_page: place_of(&scattered, num_entries.checked_sub(1).context("no tokens")?),
            memory,
        })
    }
}

fn place_of(table: &ScatteredTable, entry: usize) -> KvPagePlace {
    KvPagePlace { rank: table.kv_page_rank[entry] as u32, index: table.kv_indices[entry] as u32 }
}

/// Writes K and V of every token, each of which is its request's and position's.
fn fill<T: BatchElement>(
    stream: &Stream,
    batch: &DecodeBatch<T>,
    memory: &KvMemory,
    scattered: &ScatteredTable,
) -> Result<()> {
    let page_size = memory.shape().page_size;
    let (mut identities, mut places) = (Vec::new(), Vec::new());
    for (request, &kv_len) in batch.workload().kv_lens.iter().enumerate() {
        for token in 0..kv_len {
            let entry = scattered.kv_indptr[request] as usize + (token / page_size) as usize;
            let token_idx = token % page_size;
            places.push(KvTokenPlace { page: place_of(scattered, entry), token_idx });
            identities.push(batch.identity(request, token));
        }
    }
    let fill = PatternFill::upload(stream, T::FORMAT, &identities, &places, memory)?;
    fill.run(stream, memory)?;
    // The lists go when this returns.
    Ok(stream.synchronize()?)
}
