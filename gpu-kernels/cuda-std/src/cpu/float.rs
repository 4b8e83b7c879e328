//! 16-bit floats and the fast functions, by `half` and the standard library.

use half::{bf16, f16};

use crate::float::e4m3;

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

pub fn pack_e4m3(values: [f32; 4]) -> u32 {
    let [a, b, c, d] = values.map(e4m3::from_f32);
    a | b << 8 | c << 16 | d << 24
}

pub fn unpack_e4m3(packed: u32) -> [u32; 2] {
    let [[a, c], [b, d]] = unpack_e4m3_by_columns(packed).map(halves);
    [pack(a, b), pack(c, d)]
}

pub fn unpack_e4m3_by_columns(packed: u32) -> [u32; 2] {
    e4m3::spread(packed).map(|spread| {
        let scaled = halves(e4m3::to_small_f16x2(spread)).map(|half| {
            let value = f16::from_bits(half).to_f32() * 256.0;
            f16::from_f32(value).to_bits()
        });
        pack(scaled[0], scaled[1]) | e4m3::nan_f16x2(spread)
    })
}

fn halves(packed: u32) -> [u16; 2] {
    [packed as u16, (packed >> 16) as u16]
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

#[inline(always)]
pub fn reciprocal_sqrt(x: f32) -> f32 {
    x.sqrt().recip()
}
