//! 16-bit floats and the fast functions, by `half` and the standard library.

use half::{bf16, f16};

#[inline(always)]
pub fn pack_bf16(low: f32, high: f32) -> u32 {
    pack(bf16::from_f32(low).to_bits(), bf16::from_f32(high).to_bits())
}

#[inline(always)]
pub fn pack_f16(low: f32, high: f32) -> u32 {
    pack(f16::from_f32(low).to_bits(), f16::from_f32(high).to_bits())
}

#[inline(always)]
fn pack(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

#[inline(always)]
pub fn unpack_f16(packed: u32) -> [f32; 2] {
    [f16::from_bits(packed as u16).to_f32(), f16::from_bits((packed >> 16) as u16).to_f32()]
}

#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    x.exp2()
}

#[inline(always)]
pub fn log2(x: f32) -> f32 {
    x.log2()
}

#[inline(always)]
pub fn reciprocal(x: f32) -> f32 {
    x.recip()
}
