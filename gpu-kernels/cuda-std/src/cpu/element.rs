//! What a warpgroup's multiplications are of.

use std::sync::LazyLock;

use half::{bf16, f16};

use crate::float::{E4m3, HalfFloat};

/// Columns of a multiplication of 16-bit floats, and bytes of those of any.
pub(super) const K: usize = 16;
pub(super) const K_BYTES: usize = 32;

/// What is multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    Bf16,
    F16,
    E4m3,
}

/// The columns of a multiplication, of a row: as many as its elements have, and then zeros.
pub(super) type Row = [f32; K_BYTES];

/// All e4m3, by their bits.
static E4M3: LazyLock<[f32; 256]> =
    LazyLock::new(|| core::array::from_fn(|bits| E4m3::from_bits(bits as u8).to_f32()));

impl Element {
    pub fn of<T: HalfFloat>() -> Self {
        if T::IS_BF16 { Self::Bf16 } else { Self::F16 }
    }

    /// Columns of a multiplication.
    pub fn num_columns(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => K,
            Self::E4m3 => K_BYTES,
        }
    }

    /// The two 16-bit floats of a word.
    pub fn pair(self, word: u32) -> [f32; 2] {
        match self {
            Self::Bf16 => bf16::unpack(word),
            Self::F16 => f16::unpack(word),
            Self::E4m3 => unreachable!("four to a word"),
        }
    }

    /// The floats of a word, to where they are in a row.
    pub fn unpack(self, word: u32, elements: &mut [f32]) {
        match self {
            Self::Bf16 | Self::F16 => elements.copy_from_slice(&self.pair(word)),
            Self::E4m3 => {
                let of_bits = |bits: u8| E4M3[usize::from(bits)];
                elements.copy_from_slice(&word.to_le_bytes().map(of_bits));
            }
        }
    }

    /// The name of a multiplication into `registers` registers.
    pub fn multiplication(self, registers: usize) -> &'static str {
        match (self, registers) {
            (Self::E4m3, 8) => "m64n16k32",
            (Self::E4m3, 16) => "m64n32k32",
            (Self::E4m3, 24) => "m64n48k32",
            (Self::E4m3, 32) => "m64n64k32",
            (Self::E4m3, 40) => "m64n80k32",
            (Self::E4m3, 48) => "m64n96k32",
            (Self::E4m3, 56) => "m64n112k32",
            (Self::E4m3, 64) => "m64n128k32",
            (Self::E4m3, _) => "m64n256k32",
            (_, 8) => "m64n16k16",
            (_, 16) => "m64n32k16",
            (_, 24) => "m64n48k16",
            (_, 32) => "m64n64k16",
            (_, 40) => "m64n80k16",
            (_, 48) => "m64n96k16",
            (_, 56) => "m64n112k16",
            (_, 64) => "m64n128k16",
            _ => "m64n256k16",
        }
    }
}
