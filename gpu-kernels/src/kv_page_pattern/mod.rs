//! KV whose contents say what they are: filled from an identity, checked wherever they have been.
//!
//! A validator gives every token an identity of 64 bits (its prefix block and its place in it, see
//! [`token_identity`](pattern::token_identity)). *fill* writes K and V that follow from it;
//! *checksum* sums up what a page holds now, which the host compares with the sum that follows
//! from the identities alone. In words of 16 bytes (8 elements of 16 bits, or 16 of 8), `w` counting
//! a token's words:
//!
//! ```text
//! fill:      word(place[t], w) = content(identity[t], w)
//! checksum:  sum[p] = sum over t < num_valid_tokens[p], w of  term(word(page[p], t, w), t, w)
//! ```
//!
//! `w` runs over K then V, heads, pieces of 8 dimensions, in this order in either layout: contents
//! and sums do not depend on the layout. A term mixes the word with its place, so exchanging
//! words, tokens or pages changes the sum; terms add up modulo 2^64, so the order of adding does
//! not. Elements are finite, of either sign, magnitude in `[1/16, 1)`: attention over them is
//! well behaved. [`pattern`] defines all three functions, for the kernels and for the host.
//!
//! # Shapes
//! fill: `identities` `[num_tokens]`, `places` `[num_tokens]`, each place named once. checksum:
//! `pages` and `num_valid_tokens` `[num_pages]`, `checksums` `[num_pages]`. `peer_kv_ptrs`
//! `[num_locations]`; pages may lie in any location.
//!
//! # Who does what
//! Blocks of one warp, whose lanes take words in turn. A fill block writes 32 tokens; a checksum
//! block reads one page, each lane the same words of all tokens, and lane 0 adds up the lanes'
//! sums in shared memory.
//!
//! # What bounds it
//! Three 64-bit multiplications for 16 bytes, or memory. Meant for validation: long loops of few
//! threads with one barrier, which the executor runs at one to two GB/s a core.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
pub mod pattern;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

use crate::kv_layout::{KvPagePlace, KvStrides};

/// Threads of a block.
pub const NUM_THREADS: u32 = 32;
/// Tokens that a block fills.
pub const TOKENS_PER_BLOCK: u32 = 32;
/// Elements of 16 bits in a word of 16 bytes; pages of 8-bit elements are taken
/// [as such](crate::kv_layout::KvPageShape::as_halves).
pub const WORD_ELEMENTS: u32 = 8;

/// Where a token lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct KvTokenPlace {
    /// Its page.
    pub page: KvPagePlace,
    /// Its place within the page.
    pub token_idx: u32,
}

/// The sizes that kernels take by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PatternParams {
    /// Heads of K, and of V.
    pub num_kv_heads: u32,
    /// Words of a head.
    pub words_per_head: u32,
    /// How bits become elements.
    pub format: pattern::ElementFormat,
    /// Where a page's elements lie.
    pub strides: KvStrides,
}

impl PatternParams {
    /// Words of a token, K and V.
    #[inline(always)]
    pub const fn token_words(&self) -> u32 {
        2 * self.num_kv_heads * self.words_per_head
    }

    /// Element of a page at which word `word_idx` of its first token starts.
    #[inline(always)]
    pub const fn word_start(&self, word_idx: u32) -> u32 {
        let row = word_idx / self.words_per_head;
        let piece = word_idx - row * self.words_per_head;
        let is_value = (row >= self.num_kv_heads) as u32;
        let head = row - is_value * self.num_kv_heads;
        is_value * self.strides.value + head * self.strides.head + piece * WORD_ELEMENTS
    }
}
