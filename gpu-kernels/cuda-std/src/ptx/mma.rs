use core::arch::asm;

use super::RawShared;

macro_rules! mma {
    ($($name:ident: $instruction:literal;)*) => {$(
        #[inline(always)]
        pub unsafe fn $name(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
            let [mut d0, mut d1, mut d2, mut d3] = c;
            asm!(
                concat!($instruction, " {{{d0}, {d1}, {d2}, {d3}}}, {{{a0}, {a1}, {a2}, {a3}}}, {{{b0}, {b1}}}, {{{d0}, {d1}, {d2}, {d3}}};"),
                d0 = inout(reg32) d0, d1 = inout(reg32) d1, d2 = inout(reg32) d2, d3 = inout(reg32) d3,
                a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3],
                b0 = in(reg32) b[0], b1 = in(reg32) b[1],
                options(nomem, nostack, preserves_flags),
            );
            [d0, d1, d2, d3]
        }
    )*};
}

mma! {
    m16n8k16_bf16: "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32";
    m16n8k16_f16: "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32";
}

macro_rules! load_matrix {
    ($($name:ident: $instruction:literal;)*) => {$(
        #[inline(always)]
        pub unsafe fn $name(row: RawShared) -> [u32; 4] {
            let [a, b, c, d]: [u32; 4];
            asm!(
                concat!($instruction, " {{{a}, {b}, {c}, {d}}}, [{p}];"),
                a = out(reg32) a, b = out(reg32) b, c = out(reg32) c, d = out(reg32) d,
                p = in(reg32) row.address(), options(nostack, readonly, preserves_flags),
            );
            [a, b, c, d]
        }
    )*};
}

load_matrix! {
    load_matrix_x4: "ldmatrix.sync.aligned.m8n8.x4.shared.b16";
    load_matrix_x4_transposed: "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16";
}

macro_rules! store_matrix {
    ($($name:ident: $instruction:literal;)*) => {$(
        #[inline(always)]
        pub unsafe fn $name(row: RawShared, [a, b, c, d]: [u32; 4]) {
            asm!(
                concat!($instruction, " [{p}], {{{a}, {b}, {c}, {d}}};"),
                a = in(reg32) a, b = in(reg32) b, c = in(reg32) c, d = in(reg32) d,
                p = in(reg32) row.address(), options(nostack, preserves_flags),
            );
        }
    )*};
}

store_matrix! {
    store_matrix_x4: "stmatrix.sync.aligned.m8n8.x4.shared.b16";
    store_matrix_x4_transposed: "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16";
}

#[inline(always)]
pub unsafe fn transpose_8x8(matrix: u32) -> u32 {
    let transposed: u32;
    asm!("movmatrix.sync.aligned.m8n8.trans.b16 {o}, {i};",
        o = out(reg32) transposed, i = in(reg32) matrix, options(nomem, nostack, preserves_flags));
    transposed
}
