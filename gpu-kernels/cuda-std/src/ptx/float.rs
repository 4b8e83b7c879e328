use core::arch::asm;

#[cfg(not(cuda_arch = "sm_90a"))]
use crate::float::e4m3;

macro_rules! pack {
    ($($name:ident: $instruction:literal;)*) => {$(
        #[inline(always)]
        pub fn $name(low: f32, high: f32) -> u32 {
            let packed: u32;
            // SAFETY: arithmetic.
            unsafe {
                asm!(concat!($instruction, " {o}, {h}, {l};"),
                    o = out(reg32) packed, h = in(reg32) high, l = in(reg32) low,
                    options(pure, nomem, nostack, preserves_flags));
            }
            packed
        }
    )*};
}

pack! {
    pack_bf16: "cvt.rn.bf16x2.f32";
    pack_f16: "cvt.rn.f16x2.f32";
}

#[inline(always)]
pub fn unpack_f16(packed: u32) -> [f32; 2] {
    let (low, high): (f32, f32);
    // SAFETY: arithmetic.
    unsafe {
        asm!(
            "{{ .reg .b16 x, y; mov.b32 {{x, y}}, {p}; cvt.f32.f16 {l}, x; cvt.f32.f16 {h}, y; }}",
            p = in(reg32) packed, l = out(reg32) low, h = out(reg32) high,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    [low, high]
}

#[cfg(cuda_arch = "sm_90a")]
#[inline(always)]
pub fn pack_e4m3(values: [f32; 4]) -> u32 {
    let [a, b, c, d] = values;
    let packed: u32;
    // SAFETY: arithmetic.
    unsafe {
        asm!(
            "{{ .reg .b16 x, y; cvt.rn.satfinite.e4m3x2.f32 x, {b}, {a};",
            "cvt.rn.satfinite.e4m3x2.f32 y, {d}, {c}; mov.b32 {p}, {{x, y}}; }}",
            a = in(reg32) a, b = in(reg32) b, c = in(reg32) c, d = in(reg32) d,
            p = out(reg32) packed, options(pure, nomem, nostack, preserves_flags),
        );
    }
    packed
}

#[cfg(cuda_arch = "sm_90a")]
#[inline(always)]
pub fn unpack_e4m3(packed: u32) -> [u32; 2] {
    let (low, high): (u32, u32);
    // SAFETY: arithmetic.
    unsafe {
        asm!(
            "{{ .reg .b16 x, y; mov.b32 {{x, y}}, {p};",
            "cvt.rn.f16x2.e4m3x2 {l}, x; cvt.rn.f16x2.e4m3x2 {h}, y; }}",
            p = in(reg32) packed, l = out(reg32) low, h = out(reg32) high,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    [low, high]
}

#[cfg(cuda_arch = "sm_90a")]
#[inline(always)]
pub fn unpack_e4m3_by_columns(packed: u32) -> [u32; 2] {
    unpack_e4m3(permute_bytes::<0x3120>(packed))
}

#[cfg(not(cuda_arch = "sm_90a"))]
#[inline(always)]
pub fn pack_e4m3(values: [f32; 4]) -> u32 {
    let [a, b, c, d] = values.map(e4m3::from_f32);
    a | b << 8 | c << 16 | d << 24
}

#[cfg(not(cuda_arch = "sm_90a"))]
#[inline(always)]
pub fn unpack_e4m3(packed: u32) -> [u32; 2] {
    unpack_e4m3_by_columns(permute_bytes::<0x3120>(packed))
}

#[cfg(not(cuda_arch = "sm_90a"))]
#[inline(always)]
pub fn unpack_e4m3_by_columns(packed: u32) -> [u32; 2] {
    e4m3::spread(packed).map(|spread| {
        let scaled: u32;
        // SAFETY: arithmetic.
        unsafe {
            asm!("mul.rn.f16x2 {s}, {x}, {f};", s = out(reg32) scaled,
                x = in(reg32) e4m3::to_small_f16x2(spread), f = in(reg32) 0x5c00_5c00,
                options(pure, nomem, nostack, preserves_flags));
        }
        scaled | e4m3::nan_f16x2(spread)
    })
}

/// Byte `i` of the result is the one that the selector's digit `i`, the last first, names.
#[inline(always)]
fn permute_bytes<const SELECTOR: u32>(bytes: u32) -> u32 {
    let permuted: u32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("prmt.b32 {o}, {i}, 0, {s};", o = out(reg32) permuted, i = in(reg32) bytes,
            s = const SELECTOR, options(pure, nomem, nostack, preserves_flags));
    }
    permuted
}

macro_rules! unary {
    ($($name:ident: $instruction:literal;)*) => {$(
        #[inline(always)]
        pub fn $name(x: f32) -> f32 {
            let y: f32;
            // SAFETY: arithmetic.
            unsafe {
                asm!(concat!($instruction, " {y}, {x};"), y = out(reg32) y, x = in(reg32) x,
                    options(pure, nomem, nostack, preserves_flags));
            }
            y
        }
    )*};
}

unary! {
    exp2: "ex2.approx.ftz.f32";
    log2: "lg2.approx.ftz.f32";
    reciprocal: "rcp.approx.ftz.f32";
    reciprocal_sqrt: "rsqrt.approx.ftz.f32";
}
