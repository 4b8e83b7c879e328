//! A decode batch some of whose pages lie far, attended in any way there is.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use gpu_kernels::far_decode::sides::deal_pages;
use gpu_kernels::paged_attention::contract::TileLoads;
use half::bf16;

use super::attention_output::AttentionOutput;
use super::placed_kv::{PlacedKv, Staging};
use super::{BatchElement, DecodeBatch};
use crate::device::{Buffer, Device, Stream};
use crate::far::RequestBytes;
use crate::harness::{Batch, Sampler, streams_sampler};
use crate::kernels::far_decode::{
    FarDecode, FarDecodeArgs, FarDecodeElement, FarTables, OwnerWaits,
};
use crate::kernels::kv_page_copy::{CopyVariant, PageCopy};
use crate::kernels::paged_attention::{Decode, DecodeArgs, DecodeVariant, DevicePageTable};

/// Longest wait of a kernel for another GPU.
const DEADLINE: Duration = Duration::from_secs(2);

/// A batch in the memory of some devices, for the first.
pub struct FarBench<T = bf16> {
    batch: Rc<DecodeBatch<T>>,
    /// One for each device.
    streams: Vec<Stream>,
    /// The same contents, each time elsewhere.
    inputs: Vec<PlacedKv>,
    q: Buffer<T>,
    output: AttentionOutput<T>,
}

/// How far pages are attended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FarWay {
    /// Home pulls them: its kernel reads them in place.
    Pull,
    /// Home copies them over NVLink, then attends: what one does without such a kernel.
    CopyThenAttend,
    /// Where they lie, for requests whose queries travel.
    Travel {
        /// Of each request.
        travels: Vec<bool>,
        /// How owners wait.
        waits: OwnerWaits,
    },
}

/// One way, planned for a [`FarBench`].
pub struct FarRun(Kind);

enum Kind {
    Pull(Decode),
    Copy {
        plan: Decode,
        variant: CopyVariant,
        /// Of each of the inputs, with the table after the copy.
        copies: Vec<(PageCopy, DevicePageTable)>,
    },
    Travel {
        far: Box<FarDecode>,
        /// Of each of the inputs.
        tables: Vec<FarTables>,
        waits: OwnerWaits,
    },
}

impl<T: BatchElement + FarDecodeElement> FarBench<T> {
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
        let streams = devices.iter().map(Device::new_stream).collect::<Result<Vec<_>, _>>()?;
        let home = streams.first().context("no device")?;
        let shape = batch.workload().shape();
        Ok(Self {
            inputs: PlacedKv::often(home, devices, &**batch, location_of, Staging::ForPeersPages)?,
            q: Buffer::from_slice(home, batch.q())?,
            output: AttentionOutput::new(home.device(), shape.q_elements(), shape.lse_elements())?,
            batch: batch.clone(),
            streams,
        })
    }

    /// Whether it lies on GPUs.
    pub fn is_cuda(&self) -> bool {
        self.streams[0].device().is_cuda()
    }

    /// How often the batch lies in memory.
    pub fn num_inputs(&self) -> usize {
        self.inputs.len()
    }

    /// Where each request's bytes lie.
    pub fn request_bytes(&self) -> Vec<RequestBytes> {
        let workload = self.batch.workload();
        let num_owners = self.streams.len() - 1;
        let mut page_tokens = workload.page_tokens().into_iter();
        let table = &self.inputs[0].scattered.lists;
        let of_request = |ends: &[i32]| {
            let mut bytes = RequestBytes { far: vec![0; num_owners], ..RequestBytes::default() };
            let locations = &table.kv_page_rank[ends[0] as usize..ends[1] as usize];
            for (&location, tokens) in locations.iter().zip(&mut page_tokens) {
                let of_location = match location as usize {
                    0 => &mut bytes.near,
                    rank if rank <= num_owners => &mut bytes.far[rank - 1],
                    _ => &mut bytes.host,
                };
                *of_location += u64::from(tokens) * workload.token_bytes();
            }
            bytes
        };
        table.kv_indptr.windows(2).map(of_request).collect()
    }

    /// Plans and uploads what one way takes. If no query travels to a page it is a pull.
    ///
    /// # Errors
    /// Too little memory; a copy where no page is a peer's.
    pub fn plan(&self, way: &FarWay) -> Result<FarRun> {
        let workload = self.batch.workload();
        let num_sides = self.streams.len();
        if let FarWay::Travel { travels, waits } = way {
            let side_of = |request: usize, location: usize| match location {
                rank if travels[request] && rank < num_sides => rank,
                _ => 0,
            };
            let page_size = workload.page.page_size;
            let tables = self.inputs.iter().map(|input| {
                let sides = deal_pages(&input.scattered.table(), page_size, num_sides, side_of);
                FarTables::upload(&self.streams, &sides, &input.memory)
            });
            let tables = tables.collect::<Result<Vec<_>, _>>()?;
            let kv_lens = tables.first().context("no inputs")?.kv_lens();
            if kv_lens[1..].iter().flatten().any(|&kv_len| kv_len > 0) {
                let far = FarDecode::plan(&self.streams, workload.shape(), &kv_lens, DEADLINE)?;
                return Ok(FarRun(Kind::Travel { far: Box::new(far), tables, waits: *waits }));
            }
        }
        let (home, policy) = (&self.streams[0], workload.policy);
        let plan = Decode::plan_split(home, workload.shape(), &workload.kv_lens, policy)?;
        if *way == FarWay::CopyThenAttend {
            let copies = self.inputs.iter().map(|input| {
                let (moves, table) = input.staged();
                let table = DevicePageTable::upload(home, &table.table(), &input.memory)?;
                Ok((PageCopy::upload(home, &moves, &input.memory)?, table))
            });
            let copies = copies.collect::<Result<Vec<_>>>()?;
            let variant = CopyVariant::alone(home.device());
            return Ok(FarRun(Kind::Copy { plan, variant, copies }));
        }
        Ok(FarRun(Kind::Pull(plan)))
    }

    /// The same run, pages loaded in this way.
    ///
    /// # Errors
    /// A way that the device or the pages do not allow.
    pub fn with_loads(&self, run: FarRun, loads: TileLoads) -> Result<FarRun> {
        let home = &self.streams[0];
        Ok(FarRun(match run.0 {
            Kind::Pull(plan) => Kind::Pull(plan.with_loads(home, loads)?),
            Kind::Copy { plan, variant, copies } => {
                Kind::Copy { plan: plan.with_loads(home, loads)?, variant, copies }
            }
            Kind::Travel { far, tables, waits } => {
                let far = Box::new(far.with_loads(&self.streams, loads)?);
                Kind::Travel { far, tables, waits }
            }
        }))
    }

    /// Samples of one way.
    pub fn sampler<'a>(&'a self, run: &'a FarRun, batch: Batch) -> Result<Sampler<'a>> {
        let streams = match run.0 {
            Kind::Pull(_) | Kind::Copy { .. } => &self.streams[..1],
            Kind::Travel { .. } => &self.streams,
        };
        streams_sampler(streams, batch, move |input| self.run(run, input))
    }

    /// Attends once, from one of the inputs.
    ///
    /// # Errors
    /// What the device says.
    pub fn run(&self, run: &FarRun, input: usize) -> Result<()> {
        let PlacedKv { memory, table, .. } = &self.inputs[input];
        let (q, AttentionOutput { out, lse }) = (&self.q, &self.output);
        Ok(match &run.0 {
            Kind::Pull(plan) => {
                let args = DecodeArgs { table, memory, q, out, lse };
                plan.run(&self.streams[0], DecodeVariant::Split, &args)
            }
            Kind::Copy { plan, variant, copies } => {
                let (copy, table) = &copies[input];
                copy.run(&self.streams[0], *variant, memory)?;
                let args = DecodeArgs { table, memory, q, out, lse };
                plan.run(&self.streams[0], DecodeVariant::Split, &args)
            }
            Kind::Travel { far, tables, waits } => {
                let args = FarDecodeArgs { tables: &tables[input], memory, q, out, lse };
                far.run(&self.streams, *waits, &args)
            }
        }?)
    }

    /// Waits for all devices.
    ///
    /// # Errors
    /// What the devices say; a GPU that waited for another in vain.
    pub fn synchronize(&self, run: &FarRun) -> Result<()> {
        match &run.0 {
            Kind::Pull(_) | Kind::Copy { .. } => self.streams[0].synchronize()?,
            Kind::Travel { far, .. } => far.synchronize(&self.streams)?,
        }
        Ok(())
    }

    /// Compares the whole output of one way with the oracle, for the batch at every place.
    ///
    /// # Errors
    /// The first element that is off; a GPU that waited for another in vain.
    pub fn verify(&self, run: &FarRun) -> Result<String> {
        let attend = |input| {
            self.run(run, input)?;
            self.synchronize(run)
        };
        let (oracle, tolerance) = (self.batch.oracle(), self.batch.tolerance());
        self.output.verify(&self.streams[0], self.inputs.len(), oracle, tolerance, attend)
    }

    /// Overwrites the last page of the batch, in the last of its places.
    ///
    /// # Errors
    /// What the device says.
    pub fn corrupt(&mut self) -> Result<()> {
        self.inputs.last().context("no inputs")?.corrupt::<T>(&self.streams[0])
    }
}
