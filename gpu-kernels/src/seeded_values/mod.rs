//! Values that follow from a seed: the weights of models that there are no files of.
//!
//! ```text
//! out[r, c] = value(key, (first_row + r) * row_len + first_column + c, reach)
//! ```
//!
//! `key` stands for the seed and a tensor's name, and elements are counted in the whole tensor, so that
//! any part of it holds the same values wherever it is made: [`value`] is also what the host makes
//! where there is no GPU. Values are evenly spread over `reach` on either side of 0, in 65,536 steps, and
//! rounded to bf16.
//!
//! # Shapes
//! `out` `[num_rows, num_columns]` in bf16, from an element of a buffer on; a part of a tensor whose rows
//! are `row_len` long. Columns begin and end at multiples of 8, and so do the tensor's rows.
//!
//! # Who does what
//! A thread per 16 bytes of `out`, which are two hashes.
//!
//! # What bounds it
//! Memory: a hash, two 64-bit products, is four elements.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

use crate::kv_page_pattern::pattern;

/// Threads of a block.
pub const NUM_THREADS: u32 = 256;
/// Elements that a thread writes.
pub const WORD: u32 = 8;
/// Elements of one hash.
pub const ELEMENTS_OF_HASH: u64 = 4;

/// The sizes that kernels take by value.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct SeededValuesParams {
    /// Of the tensor.
    pub key: u64,
    /// The element of the tensor that goes first.
    pub first_element: u64,
    /// Where it goes.
    pub first_out: u64,
    /// Elements of a row of the tensor.
    pub row_len: u32,
    /// Of these, those that are made.
    pub num_columns: u32,
    /// Rows that are made.
    pub num_rows: u32,
    /// No value is farther from 0.
    pub reach: f32,
}

/// SplitMix64: a number that looks random, from any other.
#[inline(always)]
pub const fn mix(state: u64) -> u64 {
    pattern::mix(state.wrapping_add(pattern::GOLDEN))
}

/// The hash that element `element` is a quarter of.
#[inline(always)]
pub const fn hash_of(key: u64, element: u64) -> u64 {
    mix(key ^ (element / ELEMENTS_OF_HASH))
}

/// What 16 bits of a hash stand for.
#[inline(always)]
pub fn spread(bits: u16, reach: f32) -> f32 {
    reach * (f32::from(bits as i16) * (1.0 / 32768.0))
}

/// The value of an element of a tensor, before it is rounded.
#[inline(always)]
pub fn value(key: u64, element: u64, reach: f32) -> f32 {
    let bits = hash_of(key, element) >> (16 * (element % ELEMENTS_OF_HASH));
    spread(bits as u16, reach)
}
