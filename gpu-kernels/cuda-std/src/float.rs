//! 16-bit floats two to a register, and the fast functions of the special-function unit.

use bytemuck::Pod;
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
