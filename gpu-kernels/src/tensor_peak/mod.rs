//! Multiplies on the tensor cores as fast as they go: the ceiling that dense bf16 work is held
//! against.
//!
//! ```text
//! out[b] = num_steps * A B^T          for every block b, accumulated step by step in f32
//! ```
//!
//! A `[m, k]`, B `[n, k]` bf16; `out` `[num_blocks, m, n]` f32. A step is one product of the whole
//! tile: 128 x 256 x 256 with `wgmma`, 512 x 64 x 32 with `mma`. Operands are normally distributed
//! ([`inputs`](reference::inputs)): zeros would run faster than any real work, as they switch fewer
//! transistors and leave the clock higher.
//!
//! - [`tensor_peak_wgmma`](device::tensor_peak_wgmma) (sm_90a): one block for each SM holds A and B
//!   in shared memory, 192 KiB, so that operands vary as those of a real product do. Each of two
//!   warpgroups owns 64 rows of A and multiplies them with all of B, 16 `wgmma` of m64n256k16 a
//!   step; while one waits for its group, the other keeps the tensor cores busy.
//! - [`tensor_peak_mma`](device::tensor_peak_mma) (sm_80 and later): each of eight warps keeps its
//!   64 rows of A, and B, in registers, 64 `mma` of m16n8k16 a step. It is the ceiling of Ampere and
//!   Ada; Hopper does more with `wgmma`.
//!
//! What bounds both is the tensor cores, and under power limits the clock. Loading and writing the
//! tiles takes some 10 µs of a launch: with [`NUM_STEPS`] steps of `wgmma`, some 3 ms on an H200,
//! less than half a percent. A step left out shows in the result if it is one in a few hundred: f32
//! sums of thousands of equal products are that exact.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

/// Threads of a block.
pub const NUM_THREADS: u32 = 256;

/// Steps of a launch that measures.
pub const NUM_STEPS: u32 = 1024;

/// Rows and columns of the product of one block, and what it sums over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Rows of A.
    pub m: usize,
    /// Rows of B.
    pub n: usize,
    /// Columns of both.
    pub k: usize,
}

/// The tile of `tensor_peak_wgmma`.
pub const WGMMA_TILE: Tile = Tile { m: 128, n: 256, k: 256 };

/// The tile of `tensor_peak_mma`.
pub const MMA_TILE: Tile = Tile { m: 512, n: 64, k: 32 };
