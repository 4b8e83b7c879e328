//! What a product must be like, and what it does.

use cuda_std::cpu::LaunchDims;
use cuda_std::tensor_map::{L2Promotion, Swizzle, Tiling};

use super::baseline;
use super::schedule::ROW_STEP;
use super::tma::{BLOCK_ROWS, STAGE_COLUMNS};
use crate::contract::{ContractError, MAX_GRID_Y, Work, require_multiple, require_up_to};

/// Sizes of a product: C `[m, n]` of A `[m, k]` and B `[n, k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmShape {
    /// Rows of A and C: tokens.
    pub m: u32,
    /// Rows of B, columns of C: output features.
    pub n: u32,
    /// Columns of A and B: input features.
    pub k: u32,
}

/// Largest size of a dimension: more rows have no place in the grid of the exact product.
pub(crate) const MAX_SIZE: u32 = MAX_GRID_Y * EXACT_TILE;
/// Rows and columns of a block of the exact product.
const EXACT_TILE: u32 = 16;
/// What columns come in multiples of: 16 bytes.
pub(crate) const PIECE: u32 = 8;

impl GemmShape {
    /// Refuses what the kernels do not take. With `a`, `b` and `c` of
    /// [`a_elements`](Self::a_elements), [`b_elements`](Self::b_elements) and
    /// [`c_elements`](Self::c_elements), no thread then reaches out of bounds.
    pub fn check(&self) -> Result<(), ContractError> {
        require_up_to("m", MAX_SIZE, self.m)?;
        require_multiple("n", PIECE, MAX_SIZE, self.n)?;
        require_multiple("k", PIECE, MAX_SIZE, self.k)
    }

    /// Elements of A.
    pub fn a_elements(&self) -> usize {
        self.m as usize * self.k as usize
    }

    /// Elements of B.
    pub fn b_elements(&self) -> usize {
        self.n as usize * self.k as usize
    }

    /// Elements of C.
    pub fn c_elements(&self) -> usize {
        self.m as usize * self.n as usize
    }

    /// Launch of the baseline.
    pub fn baseline_dims(&self) -> LaunchDims {
        LaunchDims {
            grid: [
                self.n.div_ceil(baseline::TILE_N as u32),
                self.m.div_ceil(baseline::TILE_M as u32),
                1,
            ],
            block: [baseline::NUM_THREADS, 1, 1],
            shared_bytes: baseline::SHARED_BYTES,
        }
    }

    /// Launch of the exact product.
    pub fn exact_dims(&self) -> LaunchDims {
        LaunchDims {
            grid: [self.n.div_ceil(EXACT_TILE), self.m.div_ceil(EXACT_TILE), 1],
            block: [EXACT_TILE * EXACT_TILE, 1, 1],
            shared_bytes: 0,
        }
    }

    /// What the product itself needs: each operand once.
    pub fn work(&self) -> Work {
        let (a, b, c) = (self.a_elements(), self.b_elements(), self.c_elements());
        Work {
            read_bytes: 2 * (a + b) as u64,
            written_bytes: 2 * c as u64,
            flops: 2 * c as u64 * u64::from(self.k),
        }
    }
}

/// Boxes of 64 columns and `box_rows` rows of a matrix `[num_rows, num_columns]`.
pub(crate) fn rows_tiling(num_rows: u32, num_columns: u32, box_rows: u32) -> Tiling<2> {
    Tiling {
        sizes: [num_columns.into(), num_rows.into()],
        strides: [1, num_columns.into()],
        tile: [STAGE_COLUMNS as u32, box_rows],
        swizzle: Swizzle::Bytes128,
        l2_promotion: L2Promotion::Bytes128,
    }
}

/// Boxes of 64 columns and 16 rows, 32, and so on.
pub(crate) fn row_tilings<const STEPS: usize>(
    num_rows: u32,
    num_columns: u32,
) -> [Tiling<2>; STEPS] {
    core::array::from_fn(|i| rows_tiling(num_rows, num_columns, (i as u32 + 1) * ROW_STEP))
}

/// Boxes of 64 columns and 128 rows of weights `[num_experts, n, k]`.
pub(crate) fn weights_tiling(num_experts: u32, n: u32, k: u32) -> Tiling<3> {
    let (rows, columns) = (u64::from(n), u64::from(k));
    Tiling {
        sizes: [columns, rows, num_experts.into()],
        strides: [1, columns, rows * columns],
        tile: [STAGE_COLUMNS as u32, BLOCK_ROWS as u32, 1],
        swizzle: Swizzle::Bytes128,
        l2_promotion: L2Promotion::Bytes128,
    }
}

/// Boxes of 64 columns and `box_rows` rows of weights `[parts n, k]`: 8 rows of the first part, the same 8 of
/// the next, and so on.
pub(crate) fn parts_tiling(parts: u32, n: u32, k: u32, box_rows: u32) -> Tiling<4> {
    let (rows, columns) = (u64::from(n), u64::from(k));
    Tiling {
        sizes: [columns, PIECE.into(), parts.into(), rows / u64::from(PIECE)],
        strides: [1, columns, rows * columns, u64::from(PIECE) * columns],
        tile: [STAGE_COLUMNS as u32, PIECE, parts, box_rows / PIECE / parts],
        swizzle: Swizzle::Bytes128,
        l2_promotion: L2Promotion::Bytes128,
    }
}
