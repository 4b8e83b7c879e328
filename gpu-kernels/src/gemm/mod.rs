//! Products of dense matrices in bf16.
//!
//! ```text
//! C[m, n] = A[m, k] B[n, k]^T         accumulated in f32, rounded to bf16
//! ```
//!
//! A: activations, a row a token. B: weights, a row an output feature, as checkpoints hold them.
//! All are row-major; `n` and `k` are multiples of 8, and none is a multiple of any tile.
//!
//! # Who does what
//! *baseline* (sm_80 and later): a block of 8 warps for each 128 x 128 of C; three stages of 32
//! columns of A and B by `cp.async`, multiplied by `mma`.
//!
//! *tma* (sm_90a): persistent blocks, one an SM, each taking tiles of C in the order of
//! [`schedule`]. One warp has the copy engine fill a ring of stages, 64 columns of A and B each; two
//! warpgroups multiply what has arrived. They compute the tile transposed, `C^T = B A^T`: rows of B
//! are the rows of `wgmma`, of which it always takes 64, and rows of A its columns, of which it
//! takes any multiple of 16. So a few tokens, or an expert's odd number of them, fill their tile to
//! within 16. Results are transposed back on their way to shared memory, by the stores of 8 x 8
//! matrices, and leave it by the copy engine.
//!
//! | kernel | rows of A x of B | for |
//! |---|---|---|
//! | [`gemm_tma_bf16`](device::gemm_tma_bf16) | 256 x 128 | many tokens |
//! | [`gemm_paired_bf16`](device::gemm_paired_bf16) | the same, in pairs | rows that straddle lines of L2: two SMs share loads of A |
//! | [`gemm_stream_bf16`](device::gemm_stream_bf16) | 16 to 128 x 128 | few tokens: every SM reads an equal share of the weights |
//! | [`gemm_split2_64_bf16`](device::gemm_split2_64_bf16) and its like | 16 to 128 x 64 or 128 | few tokens, and as many tiles as SMs or clusters |
//!
//! *stream*: steps of k of all tiles, one tile after the other, are dealt to blocks in equal shares.
//! Blocks that share a tile leave their sums, in f32, in a workspace; the last to come adds them up,
//! in the order of k, so that results repeat bit by bit.
//!
//! *split*: a tile for each block, or for each cluster of two or four, which share its steps and add up through
//! each other's shared memory.
//!
//! # What bounds it
//! The tensor cores, and under power limits the clock, as soon as `m` and `n` are in the thousands:
//! [`contract::GemmShape::work`] over the rate that `tensor_peak` reaches. With few tokens the
//! weights: their bytes over the rate of HBM.
//!
//! # Whose idea
//! Warps that only copy, beside warpgroups that multiply, and persistent blocks: CUTLASS. Tiles
//! taken in groups of rows, so that L2 serves those that run together: Triton's matmul tutorial.
//! Operands swapped for few tokens: FlashInfer's and TensorRT-LLM's low-latency kernels. Equal shares
//! of all tiles' steps: Stream-K (Osama et al. 2023).

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod plan;
#[cfg(feature = "host")]
pub mod reference;
pub mod schedule;
#[cfg(feature = "host")]
pub mod split_plan;
#[cfg(test)]
mod tests;

/// The baseline's tile.
pub mod baseline {
    /// Rows of A, and of C, of a block.
    pub const TILE_M: usize = 128;
    /// Rows of B, and columns of C, of a block.
    pub const TILE_N: usize = 128;
    /// Bytes of a row of A or B in a stage.
    pub const ROW_BYTES: usize = 64;
    /// Columns of A and B of a stage, in bf16.
    pub const TILE_K: usize = ROW_BYTES / 2;
    /// Stages: one is multiplied, the others are on their way.
    pub const NUM_STAGES: usize = 3;
    /// Threads of a block.
    pub const NUM_THREADS: u32 = 256;
    /// Bytes of shared memory of a block.
    pub const SHARED_BYTES: u32 = (NUM_STAGES * (TILE_M + TILE_N) * ROW_BYTES) as u32;
}

/// The tiles and stages of the kernels that load by the copy engine.
pub mod tma {
    use cuda_std::wgmma::SwizzledTile;
    use half::bf16;

    use super::schedule::ROW_STEP;

    /// Threads of a block: a warpgroup that loads, two that multiply.
    pub const NUM_THREADS: u32 = 384;
    /// Rows of B that the warpgroups multiply together.
    pub const BLOCK_ROWS: usize = 128;
    /// Columns of A and B of a stage.
    pub const STAGE_COLUMNS: usize = SwizzledTile::<bf16>::ROW_ELEMENTS;
    /// Rows of C that a warpgroup stores at a time, 64 columns each.
    pub const PANEL_ROWS: usize = 64;
    /// Bytes of shared memory in which a warpgroup has two of them.
    pub const STAGING_BYTES: usize = 2 * SwizzledTile::<bf16>::bytes(PANEL_ROWS);

    /// Sizes of boxes that the copy engine stores of a panel: 16 rows, 32, and so on.
    pub const PANEL_STEPS: usize = PANEL_ROWS / ROW_STEP as usize;
    /// Most rows of A of a tall tile.
    pub const TALL_ROWS: usize = 256;
    /// Sizes of boxes that it loads of A where tiles have as many rows as there are; the last is that
    /// of tall tiles.
    pub const RAGGED_BOXES: usize = RAGGED.max_rows / ROW_STEP as usize + 1;

    /// What a stage of the ring holds, and how many there are.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Stages {
        /// Blocks of [`BLOCK_ROWS`] rows of B.
        pub blocks: usize,
        /// Rows of A for which there is room.
        pub max_rows: usize,
        /// Stages.
        pub num_stages: usize,
    }

    impl Stages {
        /// Bytes of a stage of B.
        pub const fn b_bytes(&self) -> usize {
            SwizzledTile::<bf16>::bytes(self.blocks * BLOCK_ROWS)
        }

        /// Bytes of a stage.
        pub const fn stage_bytes(&self) -> usize {
            self.b_bytes() + SwizzledTile::<bf16>::bytes(self.max_rows)
        }

        /// Byte of shared memory at which the warpgroups' panels begin, after the stages.
        pub const fn staging_at(&self) -> usize {
            self.num_stages * self.stage_bytes()
        }

        /// Byte of shared memory at which the barriers begin.
        pub const fn barriers_at(&self) -> usize {
            self.staging_at() + 2 * STAGING_BYTES
        }

        /// Bytes of shared memory of a block.
        pub const fn shared_bytes(&self) -> usize {
            self.barriers_at() + 2 * self.num_stages * size_of::<u64>()
        }
    }

    /// Of `gemm_tma_bf16`.
    pub const WIDE: Stages = Stages { blocks: 1, max_rows: 256, num_stages: 4 };
    /// Of the kernels of experts, whose tiles have as many rows of A as there are; a tall tile has the
    /// blocks of B and the rows of A of `WIDE` in it.
    pub const RAGGED: Stages = Stages { blocks: 2, max_rows: 128, num_stages: 4 };
}

/// The tiles and stages of the kernels of few tokens.
pub mod stream {
    use cuda_std::wgmma::SwizzledTile;
    use half::bf16;

    /// Warps that multiply, 16 rows of B each.
    pub const NUM_WARPS: u32 = 8;
    /// Threads of a block: those, and a warp that loads.
    pub const NUM_THREADS: u32 = (NUM_WARPS + 1) * 32;
    /// Rows of B of a tile.
    pub const WEIGHT_ROWS: usize = 128;
    /// Rows of A that a tile may have.
    pub const TILE_ROWS: [u32; 4] = [16, 32, 64, 128];
    /// Most stages.
    pub const MAX_STAGES: u32 = 12;
    /// Bytes of the barriers of as many.
    pub const BARRIERS_BYTES: usize = 2 * MAX_STAGES as usize * size_of::<u64>();

    /// Bytes of a stage.
    pub const fn stage_bytes(weight_rows: usize, tile_rows: usize) -> usize {
        SwizzledTile::<bf16>::bytes(weight_rows + tile_rows)
    }
}
