//! The plane of real bytes: the kernels, on GPUs or on the CPU.

use std::collections::HashMap;

use gpu_kernels::kv_append::contract::{AppendLists, AppendShape};
use gpu_kernels::kv_layout::KvPagePlace;
use gpu_kernels::kv_page_copy::KvPageMove;
use gpu_kernels::kv_page_pattern::KvTokenPlace;
use gpu_kernels::kv_page_pattern::pattern::page_checksum;
use gpu_kernels::paged_attention::contract::{DecodeShape, PageLists};
use gpu_kernels::paged_attention::reference::Tolerance;
use half::bf16;

use super::oracle::{FORMAT, expected, identity, queries, token_elements};
use super::{
    Attended, DataPlane, DecodeBatch, Plan, PlaneError, TokenRun, TokenSource, WrongOutput,
};
use crate::device::{
    Buffer, Device, DeviceChoice, DeviceError, Event, Stream, StreamPriority, executor_config,
};
use crate::kernels::kv_append::{Append, AppendArgs};
use crate::kernels::kv_page_copy::{CopyVariant, PageCopy};
use crate::kernels::kv_page_pattern::{PatternChecksum, PatternFill};
use crate::kernels::paged_attention::{Decode, DecodeArgs, DecodeVariant, DevicePageTable};
use crate::kv::memory::KvMemory;
use crate::kv::{Location, Migration, MigrationId};

/// KV in bf16 in the memory of one or more devices and of the host.
///
/// Kernels that decode depends on run on one stream, migrations beside them on another. Neither
/// waits for the other but where the pool's rules ask for it: a migration starts after what was
/// written before it, and its destinations are read after it was finished.
pub struct DevicePlane {
    memory: KvMemory,
    devices: Vec<Device>,
    compute: Stream,
    migrations: Stream,
    copy_variant: CopyVariant,
    num_qo_heads: u32,
    sm_scale: f32,
    moving: HashMap<MigrationId, Moving>,
    /// Lists that kernels in flight still read.
    in_use: Vec<InUse>,
}

/// A migration's list, and the event after its last copy.
struct Moving {
    _copy: PageCopy,
    done: Event,
}

/// What a kernel in flight reads.
enum InUse {
    Fill { _fill: PatternFill },
    Append { _append: Append, _kv: [Buffer<bf16>; 2] },
}

impl DevicePlane {
    /// Memory for the plan's pages on as many devices as it has GPUs.
    ///
    /// # Errors
    /// Fewer GPUs than the plan asks for, no peer access between them, no room for the pages.
    pub fn new(choice: DeviceChoice, plan: &Plan) -> Result<Self, DeviceError> {
        let devices = open_devices(choice, plan.budgets.num_ranks as usize)?;
        let compute = devices[0].new_stream_with_priority(StreamPriority::High)?;
        let migrations = devices[0].new_stream()?;
        let shape = plan.decode_shape(1);
        let device_pages: Vec<usize> =
            (0..plan.budgets.num_ranks).map(|rank| plan.budgets.capacity(rank) as usize).collect();
        let host_pages = plan.budgets.host_pages as usize;
        Ok(Self {
            memory: KvMemory::new(&compute, &devices, shape.page, &device_pages, host_pages)?,
            copy_variant: CopyVariant::overlapping(&devices[0]),
            devices,
            compute,
            migrations,
            num_qo_heads: shape.num_qo_heads,
            sm_scale: shape.sm_scale,
            moving: HashMap::new(),
            in_use: Vec::new(),
        })
    }

    /// Which devices, and why: the first line of a report.
    pub fn describe(&self) -> String {
        let others = self.devices.len() - 1;
        let mut text = self.devices[0].describe();
        if others > 0 {
            text += &format!(", and {others} more that lend memory");
        }
        text
    }

    fn shape(&self, batch: usize) -> DecodeShape {
        DecodeShape {
            batch: batch as u32,
            num_qo_heads: self.num_qo_heads,
            page: self.memory.shape(),
            sm_scale: self.sm_scale,
        }
    }

    /// Frees the lists of fills and appends once nothing reads them any more.
    fn free_lists(&mut self) -> Result<(), DeviceError> {
        if self.compute.is_idle()? {
            self.in_use.clear();
        }
        Ok(())
    }
}

/// The chosen device, and its peers.
fn open_devices(choice: DeviceChoice, count: usize) -> Result<Vec<Device>, DeviceError> {
    let first = Device::select(choice)?;
    let mut devices = Vec::with_capacity(count);
    for rank in 1..count {
        devices.push(if first.is_cuda() {
            Device::cuda(rank)?
        } else {
            Device::cpu_with(executor_config(), rank)
        });
    }
    devices.insert(0, first);
    Ok(devices)
}

impl DataPlane for DevicePlane {
    fn fill(&mut self, runs: &[TokenRun]) -> Result<(), PlaneError> {
        let num_tokens = runs.iter().map(|run| run.num_tokens as usize).sum();
        if num_tokens == 0 {
            return Ok(());
        }
        let mut identities = Vec::with_capacity(num_tokens);
        let mut places = Vec::with_capacity(num_tokens);
        for run in runs {
            for offset in 0..run.num_tokens {
                let token_idx = run.source.token_idx + u64::from(offset);
                identities.push(identity(TokenSource { token_idx, ..run.source }));
                places.push(KvTokenPlace {
                    page: run.at.into(),
                    token_idx: run.first_token_idx + offset,
                });
            }
        }
        let fill = PatternFill::upload(&self.compute, FORMAT, &identities, &places, &self.memory)?;
        fill.run(&self.compute, &self.memory)?;
        self.in_use.push(InUse::Fill { _fill: fill });
        Ok(self.free_lists()?)
    }

    fn append(&mut self, tokens: &[TokenRun]) -> Result<(), PlaneError> {
        let shape = self.shape(1);
        let num_tokens = tokens.len() as u32;
        let row = (shape.page.num_kv_heads * shape.page.head_dim) as usize;
        let (mut k, mut v) = (Vec::new(), Vec::new());
        for token in tokens {
            let elements = token_elements(identity(token.source), &shape);
            k.extend_from_slice(&elements[..row]);
            v.extend_from_slice(&elements[row..]);
        }
        // Without rotation a token's place is all that matters: each is given as the last of a
        // sequence that consists of its page.
        let mut pages = PageLists::default();
        for token in tokens {
            pages.push([token.at.into()], token.first_token_idx + 1);
        }
        let lists = AppendLists { append_indptr: &pages.kv_indptr, table: pages.table() };
        let shape = AppendShape { batch: num_tokens, num_tokens, page: shape.page, rope: None };
        let append = Append::upload(&self.compute, shape, &lists, &self.memory)?;
        let kv = [Buffer::from_slice(&self.compute, &k)?, Buffer::from_slice(&self.compute, &v)?];
        let args = AppendArgs { memory: &self.memory, k: &kv[0], v: &kv[1], cos_sin_cache: None };
        append.run(&self.compute, &args)?;
        self.in_use.push(InUse::Append { _append: append, _kv: kv });
        Ok(self.free_lists()?)
    }

    fn start_moves(&mut self, migration: &Migration) -> Result<(), PlaneError> {
        let moves: Vec<KvPageMove> = migration
            .moves
            .iter()
            .map(|m| KvPageMove { src: m.from.into(), dst: m.to.into() })
            .collect();
        // Uploading waits for the stream it is given, which must not be the one with the copies.
        let copy = PageCopy::upload(&self.compute, &moves, &self.memory)?;
        let written = self.devices[0].new_event()?;
        self.compute.record(&written)?;
        self.migrations.wait(&written)?;
        copy.run(&self.migrations, self.copy_variant, &self.memory)?;
        let done = self.devices[0].new_event()?;
        self.migrations.record(&done)?;
        self.moving.insert(migration.id, Moving { _copy: copy, done });
        Ok(())
    }

    fn finish_moves(&mut self, migration: MigrationId) -> Result<Option<f64>, PlaneError> {
        let moving = self.moving.remove(&migration).ok_or("a migration that was never started")?;
        let from = std::time::Instant::now();
        moving.done.synchronize()?;
        let waited_us = from.elapsed().as_secs_f64() * 1e6;
        Ok(self.devices[0].is_cuda().then_some(waited_us))
    }

    fn checksums(&mut self, pages: &[Location]) -> Result<Vec<u64>, PlaneError> {
        let full = vec![self.memory.shape().page_size; pages.len()];
        let pages: Vec<KvPagePlace> = pages.iter().map(|&at| at.into()).collect();
        let sums = PatternChecksum::upload(&self.compute, FORMAT, &pages, &full, &self.memory)?;
        Ok(sums.run(&self.compute, &self.memory)?)
    }

    fn expected_checksum(&self, tokens: &[TokenSource]) -> u64 {
        let identities: Vec<u64> = tokens.iter().map(|&source| identity(source)).collect();
        page_checksum(&identities, &self.memory.shape(), FORMAT)
    }

    fn attends_whole_batches(&self) -> bool {
        self.devices[0].is_cuda()
    }

    fn attend(&mut self, batch: &DecodeBatch<'_>) -> Result<Attended, PlaneError> {
        let device = self.devices[0].clone();
        let shape = self.shape(batch.sequences.len());
        let table = DevicePageTable::upload(&self.compute, &batch.table.table(), &self.memory)?;
        let plan = Decode::plan(&self.compute, shape, table.kv_lens())?;
        let q: Vec<bf16> =
            batch.sequences.iter().flat_map(|s| queries(s, batch.step, &shape)).collect();
        let q = Buffer::from_slice(&self.compute, &q)?;
        let out = device.alloc::<bf16>(shape.q_elements())?;
        let lse = device.alloc::<f32>(shape.lse_elements())?;
        let args = DecodeArgs { table: &table, memory: &self.memory, q: &q, out: &out, lse: &lse };

        let (start, end) = (device.new_event()?, device.new_event()?);
        self.compute.record(&start)?;
        plan.run(&self.compute, DecodeVariant::Split, &args)?;
        self.compute.record(&end)?;
        end.synchronize()?;
        self.free_lists()?;
        let mut attended = Attended {
            latency_us: if device.is_cuda() { Some(start.elapsed_us(&end)?) } else { None },
            wrong: Vec::new(),
        };
        if batch.checked.is_empty() {
            return Ok(attended);
        }
        let (out, lse) = (self.compute.download(&out)?, self.compute.download(&lse)?);
        let heads = shape.num_qo_heads as usize;
        let row = heads * shape.page.head_dim as usize;
        for &batch_idx in batch.checked {
            let outcome = expected(&batch.sequences[batch_idx], batch.step, &shape).check(
                &out[batch_idx * row..][..row],
                &lse[batch_idx * heads..][..heads],
                Tolerance::BF16,
            );
            if let Err(detail) = outcome {
                attended.wrong.push(WrongOutput { batch_idx, detail });
            }
        }
        Ok(attended)
    }
}
