use core::arch::asm;

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
}
