//! What a token with an identity contains, and what a page's checksum is.

use bytemuck::{Pod, Zeroable};
use cuda_std::float::E4m3;
use half::{bf16, f16};

use super::WORD_ELEMENTS;
use crate::kv_layout::{KvElement, KvPageShape};

/// 2^64 over the golden ratio: multiples of it are spread evenly.
pub(crate) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
/// Odd constants of David Stafford's mix 13 of MurmurHash3's finalizer, as in splitmix64.
const MIX_1: u64 = 0xbf58_476d_1ce4_e5b9;
const MIX_2: u64 = 0x94d0_49bb_1331_11eb;

/// How random bits become finite elements with magnitudes in `[1/16, 1)`.
///
/// Sign and mantissa bits are kept, and the two low bits of the exponent count up from 1/16.
/// Registers hold two elements of 16 bits, or four of 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ElementFormat {
    /// Bits kept, of a register.
    random_bits: u32,
    /// What is added to them: the exponents of 1/16, of a register.
    smallest: u32,
}

impl ElementFormat {
    /// bf16: 7 bits of mantissa.
    pub const BF16: Self = Self { random_bits: 0x81ff_81ff, smallest: 0x3d80_3d80 };
    /// f16: 10 bits of mantissa.
    pub const F16: Self = Self { random_bits: 0x8fff_8fff, smallest: 0x2c00_2c00 };

    /// e4m3: 3 bits of mantissa.
    pub const E4M3: Self = Self { random_bits: 0x9f9f_9f9f, smallest: 0x1818_1818 };

    /// The element kind of pages of this format.
    pub fn element(self) -> KvElement {
        if self == Self::E4M3 { KvElement::E4m3 } else { KvElement::Half }
    }

    /// The value of an element of this format; of one of 8 bits, the low ones count.
    pub fn to_f32(self, bits: u16) -> f32 {
        if self == Self::BF16 {
            bf16::from_bits(bits).to_f32()
        } else if self == Self::F16 {
            f16::from_bits(bits).to_f32()
        } else {
            E4m3::from_bits(bits as u8).to_f32()
        }
    }

    #[inline(always)]
    const fn elements(self, random: u32) -> u32 {
        (random & self.random_bits) + self.smallest
    }
}

/// Spreads every bit of `z` over all bits; a bijection.
#[inline(always)]
pub const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(MIX_1);
    z = (z ^ (z >> 27)).wrapping_mul(MIX_2);
    z ^ (z >> 31)
}

/// Identity of token `token_idx` of what `owner` names: a prefix block's hash, or a request.
pub const fn token_identity(owner: u64, token_idx: u64) -> u64 {
    mix(mix(owner) ^ token_idx.wrapping_mul(GOLDEN))
}

/// Word `word_idx` of the token with this identity.
#[inline(always)]
pub const fn content(identity: u64, word_idx: u32, format: ElementFormat) -> [u32; 4] {
    let low = mix(identity.wrapping_add((word_idx as u64 + 1).wrapping_mul(GOLDEN)));
    let high = (low ^ (low >> 29)).wrapping_mul(MIX_1);
    [
        format.elements(low as u32),
        format.elements((low >> 32) as u32),
        format.elements(high as u32),
        format.elements((high >> 32) as u32),
    ]
}

/// What word `word_idx` of token `token_idx` of a page adds to the page's checksum.
#[inline(always)]
pub const fn checksum_term(word: [u32; 4], token_idx: u32, word_idx: u32) -> u64 {
    let low = (word[0] as u64) | (word[1] as u64) << 32;
    let high = (word[2] as u64) | (word[3] as u64) << 32;
    let place = ((token_idx as u64) << 32 | word_idx as u64).wrapping_mul(GOLDEN);
    let folded = low.wrapping_mul(MIX_1) ^ high.wrapping_mul(MIX_2).rotate_left(32) ^ place;
    // A sum of terms that were only multiplied would let changes cancel.
    mix(folded)
}

/// What a token with this identity, at place `token_idx`, adds to the checksum of its page.
pub fn token_checksum(
    identity: u64,
    token_idx: u32,
    page: &KvPageShape,
    format: ElementFormat,
) -> u64 {
    let page = page.as_halves();
    let token_words = 2 * page.num_kv_heads * page.head_dim / WORD_ELEMENTS;
    (0..token_words).fold(0u64, |sum, word_idx| {
        let word = content(identity, word_idx, format);
        sum.wrapping_add(checksum_term(word, token_idx, word_idx))
    })
}

/// The checksum of a page whose first tokens have these identities.
pub fn page_checksum(identities: &[u64], page: &KvPageShape, format: ElementFormat) -> u64 {
    (0..).zip(identities).fold(0u64, |sum, (token_idx, &identity)| {
        sum.wrapping_add(token_checksum(identity, token_idx, page, format))
    })
}

/// K or V.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvHalf {
    /// The first half of a page.
    Key,
    /// The second half.
    Value,
}

/// Element `dim` of head `head` of K or V of the token with this identity.
pub fn element(
    identity: u64,
    half: KvHalf,
    head: u32,
    dim: u32,
    page: &KvPageShape,
    format: ElementFormat,
) -> f32 {
    let row = match half {
        KvHalf::Key => head,
        KvHalf::Value => page.num_kv_heads + head,
    };
    let byte_idx = (row * page.head_dim + dim) * format.element().bytes();
    let word = content(identity, byte_idx / 16, format);
    let register = word[(byte_idx % 16 / 4) as usize];
    format.to_f32((register >> (8 * (byte_idx % 4))) as u16)
}
