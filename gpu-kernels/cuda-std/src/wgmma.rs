//! Tile operations of a warpgroup (sm_90a): tiles in shared memory, accumulated in registers.
//!
//! A warpgroup is four consecutive warps, the first a multiple of four. Its 128 threads call each
//! multiplication together, with the same tiles:
//!
//! ```text
//! D[64, N] = A[64, 16] B[N, 16]^T (+ D)         N = 16, 32, … 128, or 256
//! ```
//!
//! Of e4m3, [`multiply_e4m3`] takes 32 columns of A and B where 16-bit floats have 16.
//!
//! A and B are 16-bit floats: A in a [`SwizzledTile`] or in registers, B in a `SwizzledTile` of its
//! N rows, or in a [`TransposedTile`] of its 16 columns. Both of e4m3 are in `SwizzledTile`s. D is f32, `N / 2` registers a thread. Which
//! thread holds which element is what PTX says for `wgmma`, and what [`place_of`] tells: warp `w`
//! holds rows `16w..16w + 16`, and with `g = lane / 4` and `t = lane % 4`
//!
//! | registers `4j..4j + 4` | hold |
//! |---|---|
//! | `4j`, `4j + 1` | row `16w + g`; columns `8j + 2t` and the next |
//! | `4j + 2`, `4j + 3` | row `16w + g + 8`; the same columns |
//!
//! Multiplications are asynchronous. Between [`fence`] and the [`wait_group`] that covers them, they
//! own their accumulator and may read their tiles at any moment:
//!
//! ```ignore
//! wgmma::fence(&mut d);                    // the accumulator's registers are handed over
//! for k in (0..64).step_by(16) {
//!     wgmma::m64n256k16(&mut d, a.from_column(k), b.from_column(k), k > 0);
//! }
//! wgmma::commit_group();
//! wgmma::wait_group::<0, _>(&mut d);       // and come back; the tiles may be overwritten
//! ```
//!
//! A in registers, four a thread, lies as A of [`mma::m16n8k16`](crate::mma) does, warp `w` holding
//! rows `16w..16w + 16`: so a pair of an accumulator's columns, rounded, is half a fragment of the
//! next product's A. Multiplications read these registers at any moment too, so they are lent for as
//! long:
//!
//! ```ignore
//! wgmma::lend(&mut a);                     // [[u32; 4]; steps], written before
//! wgmma::fence(&mut d);
//! for (step, a) in a.iter().enumerate() {
//!     wgmma::m64n128k16(&mut d, a, b.from_row(16 * step), true);
//! }
//! wgmma::commit_group();
//! wgmma::wait_group::<0, _>(&mut d);
//! wgmma::take_back(&mut a);                // and may be written again
//! ```
//!
//! After a wait, the multiplications it covers are done in all four warps: one thread may say for
//! the warpgroup that its tiles can be overwritten.
//!
//! Tiles that threads store themselves need [`bulk::fence_proxy_async`](crate::bulk::fence_proxy_async)
//! and then a barrier before the first multiplication.
//!
//! `fence`, `wait_group`, `lend` and `take_back` name registers, because to the compiler those are
//! plain values, whose uses it might move across. A kernel with several accumulators calls both for each.
//! An accumulator is a local array that stays where it is. It remains in registers if every index
//! to it is a constant, in loops that unroll; `for value in d` copies it to the stack.
//!
//! The executor computes at the covering wait and not earlier. Until then the accumulator reads as
//! NaN, and changing it is a fault, as is a multiplication without a fence before it, or from
//! registers that were not lent, were changed, or are taken back too early.

use core::mem::size_of;

use bytemuck::AnyBitPattern;

use crate::arch;
use crate::float::{E4m3, HalfFloat};
use crate::shared::Shared;

/// Threads of a warpgroup.
pub const NUM_THREADS: u32 = 128;

/// Bytes of a tile's row, and of the pieces in it that the swizzle moves.
const ROW_BYTES: usize = 128;
const PIECE_BYTES: usize = 16;
/// Rows after which the swizzle repeats.
const SWIZZLE_ROWS: usize = 8;

/// A tile in shared memory, in the layout of the 128-byte swizzle: rows of 64 16-bit floats of K, or
/// of 128 e4m3, one after the other, in each of which 16-byte piece `i` lies in place of piece
/// `i ^ (row % 8)`. Eight rows of one column are then in different banks. The copy engine's
/// 128-byte swizzle leaves the same layout.
#[derive(Clone, Copy)]
pub struct SwizzledTile<T> {
    pub(crate) base: Shared<T>,
    /// Counted from the base, and apart from it: what is constant of a place stays so.
    pub(crate) first_row: usize,
    pub(crate) first_column: usize,
}

impl<T: AnyBitPattern> SwizzledTile<T> {
    /// Elements of a row.
    pub const ROW_ELEMENTS: usize = ROW_BYTES / size_of::<T>();

    /// Bytes of a tile of `rows` rows.
    pub const fn bytes(rows: usize) -> usize {
        rows * ROW_BYTES
    }

    /// The tile whose first row begins at `first_row`, aligned to 1024 bytes.
    #[inline(always)]
    pub fn at(first_row: Shared<T>) -> Self {
        Self { base: first_row, first_row: 0, first_column: 0 }
    }

    /// The tile from row `row` on, a multiple of 8.
    #[inline(always)]
    pub fn from_row(self, row: usize) -> Self {
        Self { first_row: self.first_row + row, ..self }
    }

    /// The tile from column `column` on, a multiple of 16 where the tile is an operand, of 32 in e4m3.
    #[inline(always)]
    pub fn from_column(self, column: usize) -> Self {
        Self { first_column: self.first_column + column, ..self }
    }

    /// Where element (`row`, `column`) lies. The elements after it up to the next column that is a
    /// multiple of 8, in e4m3 of 16, follow.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn place(self, row: usize, column: usize) -> Shared<T> {
        let byte = (self.first_column + column) * size_of::<T>();
        self.base.offset(swizzled_byte(self.first_row + row, byte) / size_of::<T>())
    }

    /// Writes the eight elements of row `row` that start at `column`, a multiple of 8; in e4m3 16.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn store_x4(self, row: usize, column: usize, elements: [u32; 4]) {
        self.place(row, column).store_x4(0, elements);
    }

    /// Bytes from the base to where the first element would lie without the swizzle, which is what
    /// the hardware asks for.
    #[inline(always)]
    pub(crate) fn start_byte(self) -> usize {
        self.first_row * ROW_BYTES + self.first_column * size_of::<T>()
    }
}

/// B as it is summed over: rows of K, each of N elements, in panels of 64 columns. Each panel is a
/// [`SwizzledTile`] of all rows; the panels follow each other at equal distances.
#[derive(Clone, Copy)]
pub struct TransposedTile<T> {
    pub(crate) first_panel: SwizzledTile<T>,
    pub(crate) panel_bytes: u32,
}

impl<T: AnyBitPattern> TransposedTile<T> {
    /// The tile whose panels begin `panel_bytes` bytes apart, a multiple of 1024.
    #[inline(always)]
    pub fn at(first_panel: SwizzledTile<T>, panel_bytes: usize) -> Self {
        Self { first_panel, panel_bytes: panel_bytes as u32 }
    }

    /// The tile from row `row` on, a multiple of 8.
    #[inline(always)]
    pub fn from_row(self, row: usize) -> Self {
        Self { first_panel: self.first_panel.from_row(row), ..self }
    }
}

/// A of a multiplication, `[64, 16]`.
#[derive(Clone, Copy)]
pub enum OperandA<'a, T> {
    /// 64 rows of a tile from its first on, 16 columns from its first on.
    Tile(SwizzledTile<T>),
    /// What this thread holds of it; [lent](lend).
    Registers(&'a [u32; 4]),
}

impl<T> From<SwizzledTile<T>> for OperandA<'_, T> {
    #[inline(always)]
    fn from(tile: SwizzledTile<T>) -> Self {
        Self::Tile(tile)
    }
}

impl<'a, T> From<&'a [u32; 4]> for OperandA<'a, T> {
    #[inline(always)]
    fn from(registers: &'a [u32; 4]) -> Self {
        Self::Registers(registers)
    }
}

/// B of a multiplication, `[N, 16]`.
#[derive(Clone, Copy)]
pub enum OperandB<T> {
    /// N rows of a tile from its first on, 16 columns from its first on.
    Tile(SwizzledTile<T>),
    /// 16 rows of a tile from its first on, N columns.
    Transposed(TransposedTile<T>),
}

impl<T> From<SwizzledTile<T>> for OperandB<T> {
    #[inline(always)]
    fn from(tile: SwizzledTile<T>) -> Self {
        Self::Tile(tile)
    }
}

impl<T> From<TransposedTile<T>> for OperandB<T> {
    #[inline(always)]
    fn from(tile: TransposedTile<T>) -> Self {
        Self::Transposed(tile)
    }
}

/// Where byte `byte` of row `row` lies in a tile that is aligned to 1024 bytes.
#[inline(always)]
const fn swizzled_byte(row: usize, byte: usize) -> usize {
    row * ROW_BYTES + (byte ^ (row % SWIZZLE_ROWS * PIECE_BYTES))
}

/// Row and column of the element that a thread of the warpgroup, 0 to 127, holds in a register of
/// its accumulator.
#[inline(always)]
pub const fn place_of(thread: u32, register: usize) -> (usize, usize) {
    let (warp, lane) = (thread as usize / 32, thread as usize % 32);
    (16 * warp + lane / 4 + register / 2 % 2 * 8, register / 4 * 8 + lane % 4 * 2 + register % 2)
}

/// Hands the registers of an accumulator over to the multiplications that follow: before the first
/// of them, and again after each use of the registers by anything else.
#[inline(always)]
#[track_caller]
pub unsafe fn fence<const REGISTERS: usize>(accumulator: &mut [f32; REGISTERS]) {
    const { assert_accumulator::<REGISTERS>() }
    arch::wgmma::fence(accumulator);
}

/// No instruction: sums made of an accumulator's registers are made before this, and not later.
///
/// Sums that a kernel makes of one product while nothing is multiplied might otherwise be left until after
/// the next multiplication into the same registers was issued, which copies them and makes the
/// hardware multiply one by one.
#[inline(always)]
pub unsafe fn settle<const REGISTERS: usize>(sums: &mut [f32; REGISTERS]) {
    const { assert_accumulator::<REGISTERS>() }
    arch::wgmma::settle(sums);
}

/// Gives registers of this warpgroup's threads back, so that each keeps `REGISTERS`: a multiple of 8
/// from 24 to 256, at most what it has. All its threads call it.
///
/// A kernel with `threads` in its attribute starts with an even share of the SM's registers. A
/// warpgroup that only issues copies gives most of its own back, and one that multiplies
/// [takes](take_registers) them.
#[inline(always)]
pub unsafe fn give_registers<const REGISTERS: u32>() {
    const { assert_share(REGISTERS) }
    arch::wgmma::give_registers::<REGISTERS>();
}

/// Takes registers until each thread of this warpgroup has `REGISTERS`: a multiple of 8 from 24 to
/// 256, at least what it has. Waits until others have [given](give_registers) them. All its threads
/// call it.
#[inline(always)]
pub unsafe fn take_registers<const REGISTERS: u32>() {
    const { assert_share(REGISTERS) }
    arch::wgmma::take_registers::<REGISTERS>();
}

const fn assert_share(registers: u32) {
    assert!(
        registers >= 24 && registers <= 256 && registers.is_multiple_of(8),
        "a thread's share of registers is a multiple of 8 from 24 to 256"
    );
}

macro_rules! multiplications {
    ($($name:ident: $registers:literal, $n:literal;)*) => {$(
        #[doc = concat!("`D = A B^T`, plus D if `accumulate`, for A `[64, 16]` and B `[", $n, ", 16]`.")]
        ///
        /// A tile's first column is a multiple of 16, and its first row is aligned to 1024 bytes.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name<'a, T: HalfFloat>(
            accumulator: &mut [f32; $registers],
            a: impl Into<OperandA<'a, T>>,
            b: impl Into<OperandB<T>>,
            accumulate: bool,
        ) {
            arch::wgmma::multiply(accumulator, a.into(), b.into(), accumulate);
        }
    )*};
}

/// `D = A B^T`, plus D if `accumulate`, for A `[64, 16]` and B `[2 REGISTERS, 16]`: for code that
/// is generic over the size. Tiles as the functions of one size take them.
#[inline(always)]
#[track_caller]
pub unsafe fn multiply<'a, T: HalfFloat, const REGISTERS: usize>(
    accumulator: &mut [f32; REGISTERS],
    a: impl Into<OperandA<'a, T>>,
    b: impl Into<OperandB<T>>,
    accumulate: bool,
) {
    const { assert_accumulator::<REGISTERS>() }
    arch::wgmma::multiply(accumulator, a.into(), b.into(), accumulate);
}

/// `D = A B^T`, plus D if `accumulate`, for A `[64, 32]` and B `[2 REGISTERS, 32]` of e4m3.
///
/// A tile's first column is a multiple of 32, and its first row is aligned to 1024 bytes.
///
/// Tensor cores of Hopper add these products up in fewer bits than f32 has: some 14 by DeepSeek-V3's
/// report, which therefore adds D to sums of its own after every 128 columns. The executor adds up in
/// f32.
#[inline(always)]
#[track_caller]
pub unsafe fn multiply_e4m3<const REGISTERS: usize>(
    accumulator: &mut [f32; REGISTERS],
    a: SwizzledTile<E4m3>,
    b: SwizzledTile<E4m3>,
    accumulate: bool,
) {
    const { assert_accumulator::<REGISTERS>() }
    arch::wgmma::multiply_e4m3(accumulator, a, b, accumulate);
}

multiplications! {
    m64n64k16: 32, "64";
    m64n128k16: 64, "128";
    m64n256k16: 128, "256";
}

/// Hands registers over as A of the multiplications that follow; before their [`fence`].
#[inline(always)]
#[track_caller]
pub unsafe fn lend<const STEPS: usize>(a: &mut [[u32; 4]; STEPS]) {
    arch::wgmma::lend(a);
}

/// Takes back what was [lent](lend), after the [`wait_group`] that covers the multiplications.
#[inline(always)]
#[track_caller]
pub unsafe fn take_back<const STEPS: usize>(a: &mut [[u32; 4]; STEPS]) {
    arch::wgmma::take_back(a);
}

/// Closes the multiplications issued since the last call into a group.
#[inline(always)]
#[track_caller]
pub unsafe fn commit_group() {
    arch::wgmma::commit_group();
}

/// Waits until at most the `N` newest groups are still on their way. `accumulator` can be used
/// afterwards if none of those writes it.
#[inline(always)]
#[track_caller]
pub unsafe fn wait_group<const N: u32, const REGISTERS: usize>(accumulator: &mut [f32; REGISTERS]) {
    const { assert_accumulator::<REGISTERS>() }
    arch::wgmma::wait_group::<N, REGISTERS>(accumulator);
}

const fn assert_accumulator<const REGISTERS: usize>() {
    assert!(
        REGISTERS == 128 || (REGISTERS <= 64 && REGISTERS > 0 && REGISTERS.is_multiple_of(8)),
        "an accumulator has 8, 16, … 64, or 128 registers"
    );
}
