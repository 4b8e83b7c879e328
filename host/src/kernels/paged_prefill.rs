//! Launches of the room `paged_prefill`.

use cuda_std::float::HalfFloat;
use gpu_kernels::contract::{ContractError, require, require_len};
use gpu_kernels::paged_attention::AttentionParams;
use gpu_kernels::paged_attention::reference::StoredElement;
use gpu_kernels::paged_prefill::contract::{PrefillShape, qo_lens};
use gpu_kernels::paged_prefill::device as entries;
use gpu_kernels::paged_prefill::plan::PrefillPlan;
use gpu_kernels::paged_prefill::{BASELINE, BlockShape, KvMaps, WGMMA};
use half::{bf16, f16};

use super::KernelError;
use super::paged_attention::DevicePageTable;
use crate::device::{Buffer, Device, Stream};
use crate::kv::memory::KvMemory;

/// Which prefill kernel runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefillVariant {
    /// A block for 64 queries of a head, on `mma`: every GPU.
    Baseline,
    /// One block for each SM, on `wgmma`: Hopper, and the CPU; heads of 128.
    Wgmma,
}

impl PrefillVariant {
    /// The fastest that `device` and `shape` allow.
    ///
    /// # Errors
    /// What the device says.
    pub fn fastest(device: &Device, shape: &PrefillShape) -> Result<Self, KernelError> {
        let is_taken = device.has_hopper_kernels() && shape.suits_wgmma();
        Ok(if is_taken { Self::Wgmma } else { Self::Baseline })
    }

    fn block(self) -> BlockShape {
        match self {
            Self::Baseline => BASELINE,
            Self::Wgmma => WGMMA,
        }
    }

    fn num_max_blocks(self, device: &Device) -> Result<u32, KernelError> {
        Ok(match self {
            Self::Baseline => u32::MAX,
            Self::Wgmma => device.num_multiprocessors()?,
        })
    }
}

/// Prefill attention for batches of one shape and one set of lengths: a plan, made once, run for
/// every layer.
#[derive(Debug)]
pub struct Prefill {
    variant: PrefillVariant,
    shape: PrefillShape,
    qo_lens: Vec<u32>,
    kv_lens: Vec<u32>,
    plan: PrefillPlan,
    items: Buffer<u32>,
    block_items: Buffer<u32>,
}

/// What one run of [`Prefill`] reads and writes.
pub struct PrefillArgs<'a, T> {
    /// Where the pages are.
    pub table: &'a DevicePageTable,
    /// The pages themselves; those of the queries' own tokens are written before.
    pub memory: &'a KvMemory,
    /// `[total_qo_len, num_qo_heads, head_dim]`
    pub q: &'a Buffer<T>,
    /// `[total_qo_len, num_qo_heads, head_dim]`
    pub out: &'a Buffer<T>,
    /// `[total_qo_len, num_qo_heads]`, base 2
    pub lse: &'a Buffer<f32>,
}

impl Prefill {
    /// Plans the attention of queries `qo_indptr[b]..qo_indptr[b + 1]`, the last of each request's
    /// `kv_lens[b]` tokens, for the device of `stream`.
    ///
    /// # Errors
    /// Sizes the kernel does not take, in words; no memory for the plan.
    pub fn plan(
        stream: &Stream,
        variant: PrefillVariant,
        shape: PrefillShape,
        qo_indptr: &[i32], // [batch + 1]
        kv_lens: &[u32],   // [batch]
    ) -> Result<Self, KernelError> {
        shape.check()?;
        let is_taken = variant == PrefillVariant::Baseline || shape.suits_wgmma();
        require(is_taken, "head_dim", "128 for `wgmma`", shape.page.head_dim)?;
        let qo_lens = qo_lens(qo_indptr)?;
        shape.check_lengths(&qo_lens, kv_lens)?;
        let num_max_blocks = variant.num_max_blocks(stream.device())?;
        let plan = PrefillPlan::new(&shape, &qo_lens, kv_lens, variant.block(), num_max_blocks);
        Ok(Self {
            variant,
            shape,
            qo_lens,
            kv_lens: kv_lens.to_vec(),
            items: Buffer::from_slice(stream, bytemuck::cast_slice(&plan.items))?,
            block_items: Buffer::from_slice(stream, &plan.block_items)?,
            plan,
        })
    }

    /// Plans as many queries of each request, of other lengths, into the same device memory, which a
    /// captured graph goes on reading: after the work that `stream` has, and before what it is given
    /// from now on. Waits for `stream`.
    ///
    /// # Errors
    /// Before anything changes: lengths that the kernel does not take.
    pub fn replan(&mut self, stream: &Stream, kv_lens: &[u32]) -> Result<(), KernelError> {
        self.shape.check_lengths(&self.qo_lens, kv_lens)?;
        let (block, num_max_blocks) =
            (self.variant.block(), self.variant.num_max_blocks(stream.device())?);
        // Items and blocks are as many for any lengths.
        let plan = PrefillPlan::new(&self.shape, &self.qo_lens, kv_lens, block, num_max_blocks);
        stream.upload(bytemuck::cast_slice(&plan.items), &self.items)?;
        stream.upload(&plan.block_items, &self.block_items)?;
        self.kv_lens = kv_lens.to_vec();
        self.plan = plan;
        Ok(())
    }

    /// Elements of `q`, and of `out`.
    pub fn q_elements(&self) -> usize {
        self.shape.q_elements(&self.qo_lens)
    }

    /// Elements of `lse`.
    pub fn lse_elements(&self) -> usize {
        self.shape.lse_elements(&self.qo_lens)
    }

    /// Attends: `out` and `lse` from `q` and the pages, which nobody may write meanwhile.
    ///
    /// # Errors
    /// Before any launch: arguments of the wrong length, a table for other lengths than planned or
    /// for other memory.
    pub fn run<T: PrefillElement>(
        &self,
        stream: &Stream,
        args: &PrefillArgs<'_, T>,
    ) -> Result<(), KernelError> {
        self.check(args)?;
        let params = self.shape.params(args.memory.pool_pages().len());
        // SAFETY: `check` passed; the plan is this shape's.
        unsafe { T::launch(stream, &Views { prefill: self, args, params })? };
        for part in [&self.items, &self.block_items] {
            stream.keep(part);
        }
        stream.keep(args.q);
        stream.keep(args.out);
        stream.keep(args.lse);
        args.table.keep(stream);
        args.memory.keep(stream);
        Ok(())
    }

    fn check<T>(&self, args: &PrefillArgs<'_, T>) -> Result<(), ContractError>
    where
        T: PrefillElement,
    {
        let same_lengths = args.table.kv_lens() == self.kv_lens;
        require(same_lengths, "table", "of the lengths planned for", "others")?;
        let fits = args.memory.shape() == self.shape.page
            && args.memory.pool_pages() == args.table.pool_pages;
        let needed = "what the table was checked against, of the planned shape";
        require(fits, "memory", needed, "other")?;
        require_len("q", self.q_elements(), args.q.len())?;
        require_len("out", self.q_elements(), args.out.len())?;
        require_len("lse", self.lse_elements(), args.lse.len())
    }
}

/// A run whose arguments were checked.
#[doc(hidden)]
pub struct Views<'a, T> {
    prefill: &'a Prefill,
    args: &'a PrefillArgs<'a, T>,
    params: AttentionParams,
}

impl<T> Views<'_, T> {
    /// The pools as the copy engine takes them, if it can.
    fn maps(&self) -> Result<Option<KvMaps>, KernelError> {
        let (shape, memory) = (self.prefill.shape, self.args.memory);
        if !shape.suits_maps(memory.pool_pages().len()) {
            return Ok(None);
        }
        Ok(Some(memory.tile_maps(|num_pages| shape.map_tiling(num_pages))?))
    }
}

/// An element type that prefill has kernels for: bf16 and f16.
pub trait PrefillElement: HalfFloat + StoredElement {
    #[doc(hidden)]
    unsafe fn launch(stream: &Stream, views: &Views<'_, Self>) -> Result<(), KernelError>;
}

/// Launches an entry with the arguments that all share, and those given.
macro_rules! launch {
    ($stream:ident, $views:ident, $kernel:ident { $($argument:ident),* }) => {{
        let Views { prefill, args, params } = *$views;
        let kernel = entries::$kernel {
            $($argument,)*
            kv_indices: args.table.kv_indices.view(),
            kv_page_rank: args.table.kv_page_rank.view(),
            peer_kv_ptrs: args.memory.peer_kv_ptrs().view(),
            params,
            items: prefill.items.view(),
            block_items: prefill.block_items.view(),
            q: args.q.view(),
            out: args.out.view_mut(),
            lse: args.lse.view_mut(),
        };
        let dims = prefill.shape.dims(&prefill.plan, prefill.variant.block());
        // SAFETY: the caller vouches for a checked run.
        unsafe { $stream.launch(dims, kernel) }?
    }};
}

macro_rules! prefill_element {
    ($T:ty: $base64:ident, $base128:ident, $wgmma:ident, $wgmma_rows:ident) => {
        impl PrefillElement for $T {
            unsafe fn launch(stream: &Stream, views: &Views<'_, Self>) -> Result<(), KernelError> {
                let Prefill { variant, shape, .. } = views.prefill;
                match (variant, shape.page.head_dim) {
                    (PrefillVariant::Baseline, 64) => launch!(stream, views, $base64 {}),
                    (PrefillVariant::Baseline, _) => launch!(stream, views, $base128 {}),
                    (PrefillVariant::Wgmma, _) => match views.maps()? {
                        Some(kv_maps) => launch!(stream, views, $wgmma { kv_maps }),
                        None => launch!(stream, views, $wgmma_rows {}),
                    },
                }
                Ok(())
            }
        }
    };
}

prefill_element! {
    bf16:
    paged_prefill_attend_baseline_bf16_d64,
    paged_prefill_attend_baseline_bf16_d128,
    paged_prefill_attend_wgmma_bf16_d128,
    paged_prefill_attend_wgmma_rows_bf16_d128
}

prefill_element! {
    f16:
    paged_prefill_attend_baseline_f16_d64,
    paged_prefill_attend_baseline_f16_d128,
    paged_prefill_attend_wgmma_f16_d128,
    paged_prefill_attend_wgmma_rows_f16_d128
}
