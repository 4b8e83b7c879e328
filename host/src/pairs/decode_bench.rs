//! A decode batch of any size, whose KV follows from identities, so that all of it is checkable.

use anyhow::{Context, Result, anyhow};
use gpu_kernels::kv_layout::{KvLayout, KvPagePlace, KvPageShape};
use gpu_kernels::kv_page_pattern::KvTokenPlace;
use gpu_kernels::kv_page_pattern::pattern::{ElementFormat, KvHalf, element, token_identity};
use gpu_kernels::paged_attention::contract::DecodeShape;
use gpu_kernels::paged_attention::reference::{DecodeResult, ScatteredTable, Tolerance, attend};
use half::bf16;
use rayon::prelude::*;

use crate::device::{Buffer, Device, Stream};
use crate::kernels::kv_page_pattern::PatternFill;
use crate::kernels::paged_attention::{Decode, DecodeArgs, DecodeVariant, DevicePageTable};
use crate::kv::memory::KvMemory;

/// A batch to decode, in bf16.
#[derive(Clone, Debug)]
pub struct DecodeWorkload {
    /// As tables and benches show it.
    pub name: String,
    /// Heads of `q` and `out`.
    pub num_qo_heads: u32,
    /// Shape of the KV pages.
    pub page: KvPageShape,
    /// Tokens of each request.
    pub kv_lens: Vec<u32>,
}

impl DecodeWorkload {
    /// Requests of `kv_lens` tokens, `num_qo_heads` query and `num_kv_heads` KV heads of 128, in
    /// pages of 16.
    pub fn new(name: &str, num_qo_heads: u32, num_kv_heads: u32, kv_lens: Vec<u32>) -> Self {
        let page =
            KvPageShape { page_size: 16, num_kv_heads, head_dim: 128, layout: KvLayout::Nhd };
        Self { name: name.to_owned(), num_qo_heads, page, kv_lens }
    }

    /// Bytes of K and V that decode must read.
    pub fn kv_bytes(&self) -> u64 {
        let num_tokens: u64 = self.kv_lens.iter().map(|&len| u64::from(len)).sum();
        num_tokens * (self.page.page_bytes() as u64 / u64::from(self.page.page_size))
    }

    fn shape(&self) -> DecodeShape {
        DecodeShape {
            batch: self.kv_lens.len() as u32,
            num_qo_heads: self.num_qo_heads,
            page: self.page,
            sm_scale: 1.0 / (self.page.head_dim as f32).sqrt(),
        }
    }
}

/// A workload in the memory of some devices, ready to run on the first.
pub struct DecodeBench {
    workload: DecodeWorkload,
    memory: KvMemory,
    table: DevicePageTable,
    plan: Decode,
    host_q: Vec<bf16>,
    q: Buffer<bf16>,
    out: Buffer<bf16>,
    lse: Buffer<f32>,
}

impl DecodeBench {
    /// Puts page `i` of the batch into location `location_of(i)`, pages of a location shuffled,
    /// and fills all of them with what follows from the tokens' identities.
    ///
    /// # Errors
    /// Too little memory, no peer access, or a workload that the kernels do not take.
    pub fn new(
        stream: &Stream,
        devices: &[Device],
        workload: &DecodeWorkload,
        seed: u64,
        location_of: impl Fn(usize) -> usize,
    ) -> Result<Self> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (kv_lens, page_size) = (&workload.kv_lens, workload.page.page_size);
        let shape = workload.shape();
        let scattered =
            ScatteredTable::new(kv_lens, page_size, devices.len() + 1, location_of, &mut rng);
        let (&host_pages, device_pages) = scattered.pages_of.split_last().context("no location")?;
        let memory = KvMemory::new(stream, devices, workload.page, device_pages, host_pages)?;
        fill(stream, &memory, kv_lens, &scattered)?;

        let host_q: Vec<bf16> =
            (0..shape.q_elements()).map(|_| bf16::from_f32(4.0 * rng.f32() - 2.0)).collect();
        Ok(Self {
            table: DevicePageTable::upload(stream, &scattered.table(), &memory)?,
            plan: Decode::plan(stream, shape, kv_lens)?,
            q: Buffer::from_slice(stream, &host_q)?,
            out: stream.device().alloc(shape.q_elements())?,
            lse: stream.device().alloc(shape.lse_elements())?,
            workload: workload.clone(),
            memory,
            host_q,
        })
    }

    /// The workload.
    pub fn workload(&self) -> &DecodeWorkload {
        &self.workload
    }

    /// Attends once.
    pub fn run(&self, stream: &Stream, variant: DecodeVariant) -> Result<()> {
        let args = DecodeArgs {
            table: &self.table,
            memory: &self.memory,
            q: &self.q,
            out: &self.out,
            lse: &self.lse,
        };
        Ok(self.plan.run(stream, variant, &args)?)
    }

    /// Compares the whole output of each variant, which starts as NaN, with the oracle.
    pub fn check(&self, stream: &Stream) -> Result<()> {
        let oracle = self.oracle();
        for variant in DecodeVariant::ALL {
            stream.fill(&self.out, bf16::NAN)?;
            stream.fill(&self.lse, f32::NAN)?;
            self.run(stream, variant)?;
            let (out, lse) = (stream.download(&self.out)?, stream.download(&self.lse)?);
            oracle
                .check(&out, &lse, Tolerance::BF16)
                .map_err(|off| anyhow!("{}, {variant:?}: {off}", self.workload.name))?;
        }
        Ok(())
    }

    /// Attention in f64 over what the identities say the pages hold.
    fn oracle(&self) -> DecodeResult {
        let DecodeWorkload { page, kv_lens, .. } = &self.workload;
        let shape = self.plan.shape();
        let (row, group) = (page.head_dim as usize, shape.group_size() as usize);
        let rows = |request: usize, half, kv_head| -> Vec<Vec<f64>> {
            let of_token = |token| {
                let identity = token_identity(request as u64, u64::from(token));
                let of_dim = |dim| element(identity, half, kv_head, dim, page, ElementFormat::BF16);
                (0..page.head_dim).map(|dim| f64::from(of_dim(dim))).collect()
            };
            (0..kv_lens[request]).map(of_token).collect()
        };
        let num_groups = kv_lens.len() * page.num_kv_heads as usize;
        let heads: Vec<(Vec<f64>, f64)> = (0..num_groups)
            .into_par_iter()
            .flat_map_iter(|group_idx| {
                let request = group_idx / page.num_kv_heads as usize;
                let kv_head = (group_idx % page.num_kv_heads as usize) as u32;
                let keys = rows(request, KvHalf::Key, kv_head);
                let values = rows(request, KvHalf::Value, kv_head);
                self.host_q[group_idx * group * row..][..group * row].chunks(row).map(move |q| {
                    let q: Vec<f64> = q.iter().map(|x| x.to_f64()).collect();
                    attend(&q, &keys, &values, f64::from(shape.sm_scale))
                })
            })
            .collect();
        let mut result = DecodeResult::default();
        heads.into_iter().for_each(|head| result.push(head));
        result
    }
}

/// Writes K and V of every token, each of which is its request's and position's.
fn fill(
    stream: &Stream,
    memory: &KvMemory,
    kv_lens: &[u32],
    scattered: &ScatteredTable,
) -> Result<()> {
    let page = memory.shape();
    let (mut identities, mut places) = (Vec::new(), Vec::new());
    for (request, &kv_len) in kv_lens.iter().enumerate() {
        for token in 0..kv_len {
            let entry = scattered.kv_indptr[request] as usize + (token / page.page_size) as usize;
            let rank = scattered.kv_page_rank[entry] as u32;
            let index = scattered.kv_indices[entry] as u32;
            let token_idx = token % page.page_size;
            places.push(KvTokenPlace { page: KvPagePlace { rank, index }, token_idx });
            identities.push(token_identity(request as u64, u64::from(token)));
        }
    }
    let fill = PatternFill::upload(stream, ElementFormat::BF16, &identities, &places, memory)?;
    Ok(fill.run(stream, memory)?)
}
