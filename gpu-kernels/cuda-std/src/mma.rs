//! Tile operations of the tensor cores. All 32 lanes call each of them together.
//!
//! Fragments are laid out as PTX says for `mma.m16n8k16`, with `g = lane / 4` and `t = lane % 4`
//! (two 16-bit elements a register, the lower column first):
//!
//! | operand | register | holds |
//! |---|---|---|
//! | A `[16, 16]` | `a[0]`, `a[1]` | row `g`, then row `g + 8`; columns `2t, 2t+1` |
//! | | `a[2]`, `a[3]` | the same rows; columns `2t+8, 2t+9` |
//! | B `[16, 8]` | `b[0]`, `b[1]` | rows `2t, 2t+1`, then rows `2t+8, 2t+9`; column `g` |
//! | C, D `[16, 8]` | `c[0..2]`, `c[2..4]` | row `g`, then row `g + 8`; columns `2t, 2t+1` |

use bytemuck::AnyBitPattern;

use crate::arch;
use crate::float::HalfFloat;
use crate::shared::Shared;

/// `a * b + c` for A `[16, 16]` and B `[16, 8]` of `T`, accumulated in f32.
#[inline(always)]
#[track_caller]
pub unsafe fn m16n8k16<T: HalfFloat>(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
    T::mma_m16n8k16(a, b, c)
}

/// Loads four 8 x 8 matrices of 16-bit elements. Lane `8i + r` gives the place of row `r` of
/// matrix `i` (16 bytes, aligned to 16); each lane receives, of each matrix, row `lane / 4`,
/// columns `2 (lane % 4)` and the next.
#[inline(always)]
#[track_caller]
pub unsafe fn load_matrix_x4<T: AnyBitPattern>(row: Shared<T>) -> [u32; 4] {
    arch::mma::load_matrix_x4(row.raw)
}

/// As [`load_matrix_x4`], each matrix transposed: a lane receives rows `2 (lane % 4)` and the
/// next, of column `lane / 4`.
#[inline(always)]
#[track_caller]
pub unsafe fn load_matrix_x4_transposed<T: AnyBitPattern>(row: Shared<T>) -> [u32; 4] {
    arch::mma::load_matrix_x4_transposed(row.raw)
}

/// Stores four 8 x 8 matrices of 16-bit elements (sm_90): the inverse of [`load_matrix_x4`]. Lane
/// `8i + r` gives the place of row `r` of matrix `i`, and brings, of each matrix, row `lane / 4`,
/// columns `2 (lane % 4)` and the next.
#[inline(always)]
#[track_caller]
pub unsafe fn store_matrix_x4<T: AnyBitPattern>(row: Shared<T>, matrices: [u32; 4]) {
    arch::mma::store_matrix_x4(row.raw, matrices);
}

/// As [`store_matrix_x4`], each matrix transposed: a lane brings rows `2 (lane % 4)` and the next,
/// of column `lane / 4`.
#[inline(always)]
#[track_caller]
pub unsafe fn store_matrix_x4_transposed<T: AnyBitPattern>(row: Shared<T>, matrices: [u32; 4]) {
    arch::mma::store_matrix_x4_transposed(row.raw, matrices);
}

/// Transposes an 8 x 8 matrix of 16-bit elements held one register a lane, laid out as
/// [`load_matrix_x4`] gives it.
#[inline(always)]
#[track_caller]
pub unsafe fn transpose_8x8(matrix: u32) -> u32 {
    arch::mma::transpose_8x8(matrix)
}
