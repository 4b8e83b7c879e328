//! Launches of the room `moe_permute`.

use gpu_kernels::contract::{require, require_len};
use gpu_kernels::moe_permute::contract::PermuteShape;
use gpu_kernels::moe_permute::device as entries;

use super::KernelError;
use crate::device::{Buffer, Device, LaunchDims, Stream};

/// Blocks of 1024 threads that may wait for each other on the CPU, where each thread has a stack.
const NUM_CPU_BLOCKS: u32 = 16;

/// Blocks that `device` runs at once: at least so many.
pub(crate) fn num_resident_blocks(device: &Device) -> Result<u32, KernelError> {
    match device.is_cuda() {
        true => Ok(device.num_multiprocessors()?),
        false => Ok(NUM_CPU_BLOCKS),
    }
}

/// Which kernels sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermuteVariant {
    /// Two fills, count, scan, scatter.
    Baseline,
    /// One launch.
    Grid,
}

impl PermuteVariant {
    /// All of them, baseline first.
    pub const ALL: [Self; 2] = [Self::Baseline, Self::Grid];
}

/// Where the pairs of a batch go, in device memory; what [`Permute::run`] leaves.
///
/// Before its first run no pair has a row of its own, and no expert any.
#[derive(Debug)]
pub struct Permutation {
    shape: PermuteShape,
    pub(super) expert_counts: Buffer<i32>,
    pub(super) expert_offsets: Buffer<i32>,
    pub(super) pair_rows: Buffer<i32>,
    pub(super) row_pairs: Buffer<i32>,
}

impl Permutation {
    /// Memory for the permutations of a shape.
    ///
    /// # Errors
    /// Sizes that the kernels do not take, too little memory.
    pub fn new(device: &Device, shape: PermuteShape) -> Result<Self, KernelError> {
        shape.check()?;
        // Zeros, so that whoever reads it too early stays in bounds.
        Ok(Self {
            shape,
            expert_counts: device.alloc_zeroed(shape.num_local_experts())?,
            expert_offsets: device.alloc_zeroed(shape.num_local_experts() + 1)?,
            pair_rows: device.alloc_zeroed(shape.num_pairs())?,
            row_pairs: device.alloc_zeroed(shape.num_max_rows())?,
        })
    }

    /// Its sizes.
    pub fn shape(&self) -> &PermuteShape {
        &self.shape
    }

    /// Pairs of each expert: `[num_local_experts]`.
    pub fn expert_counts(&self) -> &Buffer<i32> {
        &self.expert_counts
    }

    /// First row of each expert, and the end: `[num_local_experts + 1]`.
    pub fn expert_offsets(&self) -> &Buffer<i32> {
        &self.expert_offsets
    }

    /// Row of each pair, or -1: `[num_tokens, top_k]`.
    pub fn pair_rows(&self) -> &Buffer<i32> {
        &self.pair_rows
    }

    /// Pair of each row, or -1; up to the end: `[num_max_rows]`.
    pub fn row_pairs(&self) -> &Buffer<i32> {
        &self.row_pairs
    }

    pub(super) fn keep(&self, stream: &Stream) {
        let parts = [&self.expert_counts, &self.expert_offsets, &self.pair_rows, &self.row_pairs];
        parts.into_iter().for_each(|part| stream.keep(part));
    }
}

/// Sorts pairs by expert; with the workspace for one run at a time.
#[derive(Debug)]
pub struct Permute {
    shape: PermuteShape,
    grid_dims: LaunchDims,
    pairs_of_thread: u32,
    block_counts: Buffer<u32>,
    arrived: Buffer<u32>,
}

impl Permute {
    /// Permutations of a shape on `device`.
    ///
    /// # Errors
    /// Sizes that the kernels do not take; more pairs than the device's multiprocessors hold at
    /// once, a thousand for each at least.
    pub fn new(device: &Device, shape: PermuteShape) -> Result<Self, KernelError> {
        Self::on_blocks(device, shape, num_resident_blocks(device)?)
    }

    /// The same on at most `num_blocks` blocks, which must be able to run at once: they wait for each
    /// other.
    ///
    /// # Errors
    /// Sizes that the kernels do not take; more pairs than so many blocks hold.
    pub fn on_blocks(
        device: &Device,
        shape: PermuteShape,
        num_blocks: u32,
    ) -> Result<Self, KernelError> {
        shape.check()?;
        let (grid_dims, pairs_of_thread) = shape.grid_dims(num_blocks)?;
        Ok(Self {
            block_counts: device.alloc(shape.block_counts_elements(&grid_dims))?,
            arrived: device.alloc_zeroed(2)?,
            shape,
            grid_dims,
            pairs_of_thread,
        })
    }

    /// Its sizes.
    pub fn shape(&self) -> &PermuteShape {
        &self.shape
    }

    /// Sorts the pairs of `topk_ids` `[num_tokens, top_k]`. Runs of one `Permute` must follow each
    /// other: they share its workspace.
    ///
    /// # Errors
    /// Before any launch: arguments of the wrong length or shape.
    pub fn run(
        &self,
        stream: &Stream,
        variant: PermuteVariant,
        topk_ids: &Buffer<i32>,
        permutation: &Permutation,
    ) -> Result<(), KernelError> {
        require_len("topk_ids", self.shape.num_pairs(), topk_ids.len())?;
        require(permutation.shape == self.shape, "permutation", "of the same shape", "another")?;
        match variant {
            PermuteVariant::Baseline => self.run_baseline(stream, topk_ids, permutation)?,
            PermuteVariant::Grid => self.run_grid(stream, topk_ids, permutation)?,
        }
        stream.keep(topk_ids);
        stream.keep(&self.block_counts);
        stream.keep(&self.arrived);
        permutation.keep(stream);
        Ok(())
    }

    fn run_baseline(
        &self,
        stream: &Stream,
        topk_ids: &Buffer<i32>,
        permutation: &Permutation,
    ) -> Result<(), KernelError> {
        let (shape, params) = (&self.shape, self.shape.params());
        stream.fill(&permutation.expert_counts, 0)?;
        stream.fill(&permutation.pair_rows, -1)?;
        let count = entries::moe_permute_count_baseline {
            topk_ids: topk_ids.view(),
            params,
            expert_counts: permutation.expert_counts.view_mut(),
        };
        let scan = entries::moe_permute_scan_baseline {
            params,
            expert_counts: permutation.expert_counts.view(),
            expert_offsets: permutation.expert_offsets.view_mut(),
        };
        let scatter = entries::moe_permute_scatter_baseline {
            topk_ids: topk_ids.view(),
            params,
            expert_offsets: permutation.expert_offsets.view(),
            pair_rows: permutation.pair_rows.view_mut(),
            row_pairs: permutation.row_pairs.view_mut(),
        };
        if shape.num_pairs() > 0 {
            // SAFETY: shape and lengths were checked.
            unsafe { stream.launch(shape.count_dims(), count) }?;
        }
        // SAFETY: as above.
        unsafe { stream.launch(shape.scan_dims(), scan) }?;
        // SAFETY: as above, and the offsets are those of the same ids.
        unsafe { stream.launch(shape.scatter_dims(), scatter) }?;
        Ok(())
    }

    fn run_grid(
        &self,
        stream: &Stream,
        topk_ids: &Buffer<i32>,
        permutation: &Permutation,
    ) -> Result<(), KernelError> {
        macro_rules! launch {
            ($kernel:ident) => {{
                let kernel = entries::$kernel {
                    topk_ids: topk_ids.view(),
                    params: self.shape.params(),
                    block_counts: self.block_counts.view_mut(),
                    arrived: self.arrived.view_mut(),
                    expert_counts: permutation.expert_counts.view_mut(),
                    expert_offsets: permutation.expert_offsets.view_mut(),
                    pair_rows: permutation.pair_rows.view_mut(),
                    row_pairs: permutation.row_pairs.view_mut(),
                };
                // SAFETY: shape and lengths were checked, the workspace is this shape's, and the
                // blocks are no more than the device runs at once.
                unsafe { stream.launch(self.grid_dims, kernel) }?
            }};
        }
        match self.pairs_of_thread {
            1 => launch!(moe_permute_sort_grid_x1),
            _ => launch!(moe_permute_sort_grid_x4),
        }
        Ok(())
    }
}
