//! One product for each expert, as [`expert_gemm`](crate::expert_gemm), in fp8 with block scales.
//!
//! ```text
//! C[r, j] = sum over s of a_scales[r, s] b_scales[e, j / 128, s] P[s]     rows r of expert e
//! P[s]    = sum over i in 128 s .. 128 (s + 1) of A[r, i] B[e, j, i]
//! ```
//!
//! A `[num_rows, k]`: tokens sorted by expert, e4m3, with `a_scales` `[num_rows, k.div_ceil(128)]`, a
//! scale in f32 for each 128 columns of a row, as [`token_pack`](crate::token_pack) leaves them. B
//! `[num_experts, n, k]`: weights, e4m3, with `b_scales` `[num_experts, n.div_ceil(128),
//! k.div_ceil(128)]`, a scale for each block of 128 x 128. C `[num_rows, n]` in bf16. `n` is a
//! multiple of 8 and `k` of 16; what a last block of 128 lacks counts as zeros. `expert_offsets`
//! `[num_experts + 1]` stays on the device; rows of no expert stay as they are. A dense product is that
//! of one expert.
//!
//! Sums over 128 columns are made by the tensor cores, and those of their sums in f32 by ordinary
//! multiply-adds: tensor cores of Hopper keep some 14 bits of what they add up, which over thousands
//! of columns is too few.
//!
//! # Who does what
//! *baseline* (sm_80 and later): a block for each 128 x 128 of an expert's part of C; three stages of 64
//! columns by `cp.async`. What was loaded becomes f16, exactly, in registers, and is multiplied by
//! `mma`.
//!
//! *grouped* (sm_90a): persistent blocks, one an SM, of two warpgroups and a warp. The warp finds the
//! tiles as `expert_gemm` does, fills a ring of stages by the copy engine, and lays each row's scale,
//! times the block's, beside them. The warpgroups multiply 64 of a tile's 128 rows of B each, with up to
//! 128 rows of A, which are the columns of `wgmma` and come in steps of 16. A product over 128 columns is
//! up to 64 registers a thread, its sum another 64. While one warpgroup adds a product to its sum, the
//! tensor cores multiply for the other.
//!
//! # What bounds it
//! With hundreds of tokens an expert, the tensor cores, which do twice as much in fp8 as in bf16, and how
//! fast L2 brings operands; with a few, reading every expert's weights, of half as many bytes. See
//! [`contract::ExpertGemmFp8Shape::work`].
//!
//! # Whose idea
//! Block scales, and sums promoted every 128 columns: DeepSeek-V3. Two warpgroups that multiply and
//! promote in turn: DeepGEMM. Tiles found from the offsets by one vote: as in `expert_gemm`.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

/// Tiles, stages and shared memory of the persistent kernel.
pub mod grouped {
    use cuda_std::float::E4m3;
    use cuda_std::wgmma::SwizzledTile;

    use crate::gemm::schedule::ROW_STEP;
    use crate::gemm::tma::STAGING_BYTES;

    /// Warps that multiply.
    pub const NUM_WARPS: usize = 8;
    /// Threads of a block: those, and a warp that loads.
    pub const NUM_THREADS: u32 = (NUM_WARPS as u32 + 1) * 32;
    /// Most rows of A of a tile.
    pub const TILE_ROWS: usize = 128;
    /// Sizes of boxes that the copy engine loads of A: 16 rows, 32, and so on.
    pub const ROW_BOXES: usize = TILE_ROWS / ROW_STEP as usize;
    /// Rows of B, and columns of C, of a tile: of one scale.
    pub const TILE_COLUMNS: usize = 128;
    /// Columns of A and B of a stage: of one scale.
    pub const STAGE_COLUMNS: usize = SwizzledTile::<E4m3>::ROW_ELEMENTS;
    /// Stages.
    pub const NUM_STAGES: usize = 5;

    /// Bytes of B of a stage.
    pub const B_BYTES: usize = SwizzledTile::<E4m3>::bytes(TILE_COLUMNS);
    /// Bytes of a stage: B, then A.
    pub const STAGE_BYTES: usize = B_BYTES + SwizzledTile::<E4m3>::bytes(TILE_ROWS);
    /// Byte of shared memory at which the warpgroups' panels of C begin.
    pub const STAGING_AT: usize = NUM_STAGES * STAGE_BYTES;
    /// Byte of shared memory at which the scales of all stages begin, one for each row.
    pub const SCALES_AT: usize = STAGING_AT + 2 * STAGING_BYTES;
    /// Byte of shared memory at which it says of what tile each stage is.
    pub const TILES_AT: usize = SCALES_AT + NUM_STAGES * TILE_ROWS * size_of::<f32>();
    /// Byte of shared memory at which the barriers begin.
    pub const BARRIERS_AT: usize = TILES_AT + NUM_STAGES * 16;
    /// Bytes of shared memory of a block.
    pub const SHARED_BYTES: u32 = (BARRIERS_AT + 2 * NUM_STAGES * size_of::<u64>()) as u32;
}
