//! 16-bit floats two to a register, 8-bit floats four, and the fast functions of the
//! special-function unit.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use crate::arch;

/// A 16-bit float that KV caches and tensor cores use.
pub trait HalfFloat: Pod {
    /// `[low, high]` rounded to nearest even, packed with `low` in the low half.
    fn pack(low: f32, high: f32) -> u32;
    /// `[low, high]` of a packed register.
    fn unpack(packed: u32) -> [f32; 2];
    #[doc(hidden)]
    const IS_BF16: bool;
    #[doc(hidden)]
    unsafe fn mma_m16n8k16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4];
}

impl HalfFloat for bf16 {
    const IS_BF16: bool = true;

    #[inline(always)]
    fn pack(low: f32, high: f32) -> u32 {
        arch::float::pack_bf16(low, high)
    }

    #[inline(always)]
    fn unpack(packed: u32) -> [f32; 2] {
        [f32::from_bits(packed << 16), f32::from_bits(packed & 0xffff_0000)]
    }

    #[inline(always)]
    #[track_caller]
    unsafe fn mma_m16n8k16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
        arch::mma::m16n8k16_bf16(a, b, c)
    }
}

impl HalfFloat for f16 {
    const IS_BF16: bool = false;

    #[inline(always)]
    fn pack(low: f32, high: f32) -> u32 {
        arch::float::pack_f16(low, high)
    }

    #[inline(always)]
    fn unpack(packed: u32) -> [f32; 2] {
        arch::float::unpack_f16(packed)
    }

    #[inline(always)]
    #[track_caller]
    unsafe fn mma_m16n8k16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
        arch::mma::m16n8k16_f16(a, b, c)
    }
}

/// An 8-bit float of 4 bits of exponent and 3 of mantissa, as OCP and PTX define e4m3: magnitudes
/// up to 448, no infinity, NaN where all bits but the sign are set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct E4m3(u8);

impl E4m3 {
    /// The largest.
    pub const MAX: Self = Self(0x7e);
    /// Not a number.
    pub const NAN: Self = Self(0x7f);

    /// The float with these bits: sign, exponent, mantissa.
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Its bits.
    #[inline(always)]
    pub const fn to_bits(self) -> u8 {
        self.0
    }

    /// Rounded to nearest even; what is larger than [`MAX`](Self::MAX) becomes that.
    #[inline(always)]
    pub fn from_f32(value: f32) -> Self {
        Self(arch::float::pack_e4m3([value; 4]) as u8)
    }

    /// Exact.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        f16::unpack(unpack_e4m3(u32::from(self.0))[0])[0]
    }
}

/// Four [`E4m3`], the first in the lowest byte: rounded to nearest even, saturating.
#[inline(always)]
pub fn pack_e4m3(values: [f32; 4]) -> u32 {
    arch::float::pack_e4m3(values)
}

/// The [`E4m3`] `[a, b, c, d]` of a register as f16: `a, b` and `c, d`. Exact.
#[inline(always)]
pub fn unpack_e4m3(packed: u32) -> [u32; 2] {
    arch::float::unpack_e4m3(packed)
}

/// The [`E4m3`] `[a, b, c, d]` of a register as f16: `a, c` and `b, d`. Exact.
#[inline(always)]
pub fn unpack_e4m3_by_columns(packed: u32) -> [u32; 2] {
    arch::float::unpack_e4m3_by_columns(packed)
}

/// What converts e4m3 where no instruction does: on the CPU, and on GPUs before sm_89.
#[cfg_attr(cuda_arch = "sm_90a", allow(dead_code))]
pub(crate) mod e4m3 {
    /// `2^-6`: the smallest normal number.
    const MIN_NORMAL: u32 = 0x3c80_0000;
    /// `448`: the largest number.
    const MAX: u32 = 0x43e0_0000;
    const INFINITY: u32 = 0x7f80_0000;
    /// `2^14`, whose last place is worth `2^-9`, as that of numbers below the smallest normal.
    const SUBNORMAL_ROUNDER: f32 = 16384.0;
    /// Exponent of an f32, less that of the same e4m3, where e4m3 has it.
    const REBIAS: u32 = (127 - 7) << 3;

    /// To nearest even, saturating.
    #[inline(always)]
    pub(crate) fn from_f32(value: f32) -> u32 {
        let sign = value.to_bits() >> 24 & 0x80;
        let magnitude = value.to_bits() & 0x7fff_ffff;
        let rounded = if magnitude > INFINITY {
            0x7f
        } else if magnitude >= MAX {
            0x7e
        } else if magnitude < MIN_NORMAL {
            let rounded = f32::from_bits(magnitude) + SUBNORMAL_ROUNDER;
            rounded.to_bits() - SUBNORMAL_ROUNDER.to_bits()
        } else {
            let is_odd = magnitude >> 20 & 1;
            ((magnitude + 0x7_ffff + is_odd) >> 20) - REBIAS
        };
        sign | rounded
    }

    /// Two e4m3, at bits 0 and 16, as f16 that are `2^8` times too small; NaN is not recognised.
    #[inline(always)]
    pub(crate) const fn to_small_f16x2(spread: u32) -> u32 {
        (spread & 0x0080_0080) << 8 | (spread & 0x007f_007f) << 7
    }

    /// All bits but the sign of those f16 of a pair whose e4m3, at bits 0 and 16, is NaN.
    #[inline(always)]
    pub(crate) const fn nan_f16x2(spread: u32) -> u32 {
        (((spread & 0x007f_007f) + 0x0001_0001) >> 7 & 0x0001_0001) * 0x7fff
    }

    /// The four e4m3 of a register: the first and third at bits 0 and 16, then the others.
    #[inline(always)]
    pub(crate) const fn spread(packed: u32) -> [u32; 2] {
        [packed & 0x00ff_00ff, packed >> 8 & 0x00ff_00ff]
    }
}

/// `2^x`, to about 2 ulp; 0 for minus infinity.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    arch::float::exp2(x)
}

/// `log2(x)`, to about 1e-6 absolute near 1; minus infinity for 0.
#[inline(always)]
pub fn log2(x: f32) -> f32 {
    arch::float::log2(x)
}

/// `1 / x`, to about 1 ulp; infinity for 0.
#[inline(always)]
pub fn reciprocal(x: f32) -> f32 {
    arch::float::reciprocal(x)
}

/// `1 / sqrt(x)`, to about 2 ulp; infinity for 0.
#[inline(always)]
pub fn reciprocal_sqrt(x: f32) -> f32 {
    arch::float::reciprocal_sqrt(x)
}
