//! Tile operations, with the fragments of PTX: `g = lane / 4` and `t = lane % 4`.

use std::panic::Location;

use crate::float::HalfFloat;

use super::shared::RawShared;
use super::warp::{Operation, Warp, collective};

const FULL_MASK: u32 = u32::MAX;

macro_rules! multiplications {
    ($($name:ident: $operation:ident;)*) => {$(
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
            let mut registers = [0; 10];
            registers[..4].copy_from_slice(&a);
            registers[4..6].copy_from_slice(&b);
            registers[6..].copy_from_slice(&c.map(f32::to_bits));
            let d: [u32; 4] =
                collective(Operation::$operation, FULL_MASK, Location::caller(), registers);
            d.map(f32::from_bits)
        }
    )*};
}

multiplications! {
    m16n8k16_bf16: MmaBf16;
    m16n8k16_f16: MmaF16;
}

/// Registers in: 4 of A, 2 of B, 4 of C. Products are exact in f32; each element of D adds them to
/// that of C in the order of k.
pub(super) fn multiply<T: HalfFloat>(warp: &Warp) {
    let mut a = [[0.0_f32; 16]; 16];
    let mut b = [[0.0_f32; 8]; 16];
    for lane in 0..32 {
        let (g, t) = (lane as usize / 4, lane as usize % 4);
        let registers = warp.registers(lane);
        for (i, &register) in registers[..4].iter().enumerate() {
            let (row, column) = (g + i % 2 * 8, 2 * t + i / 2 * 8);
            [a[row][column], a[row][column + 1]] = T::unpack(register);
        }
        for (i, &register) in registers[4..6].iter().enumerate() {
            [b[2 * t + 8 * i][g], b[2 * t + 8 * i + 1][g]] = T::unpack(register);
        }
    }
    let mut d = [[0.0_f32; 8]; 16];
    for lane in 0..32 {
        for (i, (row, column)) in places_of_c(lane).enumerate() {
            d[row][column] = f32::from_bits(warp.registers(lane)[6 + i]);
        }
    }
    for (d, a) in d.iter_mut().zip(&a) {
        for (a, b) in a.iter().zip(&b) {
            for (d, b) in d.iter_mut().zip(b) {
                *d += a * b;
            }
        }
    }
    for lane in 0..32 {
        for (i, (row, column)) in places_of_c(lane).enumerate() {
            warp.registers(lane)[i] = d[row][column].to_bits();
        }
    }
}

/// Row and column of a lane's elements of C and D.
fn places_of_c(lane: u32) -> impl Iterator<Item = (usize, usize)> {
    let (g, t) = (lane as usize / 4, lane as usize % 4);
    (0..4).map(move |i| (g + i / 2 * 8, 2 * t + i % 2))
}

#[inline(always)]
#[track_caller]
pub unsafe fn load_matrix_x4(row: RawShared) -> [u32; 4] {
    // Each lane reads the row whose place it gives; the rows are then dealt out.
    collective(Operation::LoadMatrix, FULL_MASK, Location::caller(), row.load_x4(0))
}

#[inline(always)]
#[track_caller]
pub unsafe fn load_matrix_x4_transposed(row: RawShared) -> [u32; 4] {
    collective(Operation::LoadMatrixTransposed, FULL_MASK, Location::caller(), row.load_x4(0))
}

#[inline(always)]
#[track_caller]
pub unsafe fn store_matrix_x4(row: RawShared, matrices: [u32; 4]) {
    // The rows are gathered; each lane then writes the one whose place it gives.
    row.store_x4(0, collective(Operation::StoreMatrix, FULL_MASK, Location::caller(), matrices));
}

#[inline(always)]
#[track_caller]
pub unsafe fn store_matrix_x4_transposed(row: RawShared, matrices: [u32; 4]) {
    let operation = Operation::StoreMatrixTransposed;
    row.store_x4(0, collective(operation, FULL_MASK, Location::caller(), matrices));
}

#[inline(always)]
#[track_caller]
pub unsafe fn transpose_8x8(matrix: u32) -> u32 {
    let [transposed] = collective(Operation::Transpose, FULL_MASK, Location::caller(), [matrix]);
    transposed
}

/// Four registers of each lane: of a load, row `lane % 8` of matrix `lane / 8`, two elements each;
/// of a store, a fragment of each matrix.
fn four_of_each_lane(warp: &Warp) -> [[u32; 4]; 32] {
    std::array::from_fn(|lane| {
        let &mut [a, b, c, d, ..] = warp.registers(lane as u32);
        [a, b, c, d]
    })
}

pub(super) fn distribute_matrices(warp: &Warp) {
    let rows = four_of_each_lane(warp);
    for lane in 0..32 {
        for matrix in 0..4 {
            let row = rows[8 * matrix + lane as usize / 4];
            warp.registers(lane)[matrix] = row[lane as usize % 4];
        }
    }
}

pub(super) fn distribute_transposed(warp: &Warp) {
    let rows = four_of_each_lane(warp);
    for lane in 0..32 {
        let (g, t) = (lane as usize / 4, lane as usize % 4);
        for matrix in 0..4 {
            let element = |row: usize| half_of(rows[8 * matrix + row][g / 2], g % 2);
            warp.registers(lane)[matrix] = element(2 * t) | element(2 * t + 1) << 16;
        }
    }
}

pub(super) fn gather_matrices(warp: &Warp) {
    let fragments = four_of_each_lane(warp);
    for lane in 0..32 {
        let (matrix, row) = (lane as usize / 8, lane as usize % 8);
        for (i, register) in warp.registers(lane)[..4].iter_mut().enumerate() {
            *register = fragments[4 * row + i][matrix];
        }
    }
}

pub(super) fn gather_transposed(warp: &Warp) {
    let fragments = four_of_each_lane(warp);
    for lane in 0..32 {
        let (matrix, column) = (lane as usize / 8, lane as usize % 8);
        let element = |row: usize| half_of(fragments[4 * row + column / 2][matrix], column % 2);
        for (i, register) in warp.registers(lane)[..4].iter_mut().enumerate() {
            *register = element(2 * i) | element(2 * i + 1) << 16;
        }
    }
}

pub(super) fn transpose(warp: &Warp) {
    let registers: [u32; 32] = std::array::from_fn(|lane| warp.registers(lane as u32)[0]);
    for lane in 0..32 {
        let (g, t) = (lane as usize / 4, lane as usize % 4);
        let element = |row: usize| half_of(registers[4 * row + g / 2], g % 2);
        warp.registers(lane)[0] = element(2 * t) | element(2 * t + 1) << 16;
    }
}

/// The low (0) or high (1) half of a register.
fn half_of(register: u32, half: usize) -> u32 {
    register >> (16 * half) & 0xffff
}
