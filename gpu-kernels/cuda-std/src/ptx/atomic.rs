use core::arch::asm;

use super::{RawGlobal, RawShared};

macro_rules! fetch_add {
    ($($name:ident: $instruction:literal;)*) => {$(
        #[inline(always)]
        pub unsafe fn $name(place: RawGlobal, value: u32) -> u32 {
            let before: u32;
            asm!(concat!($instruction, " {o}, [{p}], {v};"),
                o = out(reg32) before, p = in(reg64) place.address(), v = in(reg32) value,
                options(nostack, preserves_flags));
            before
        }
    )*};
}

fetch_add! {
    fetch_add_relaxed_gpu: "atom.relaxed.gpu.global.add.u32";
    fetch_add_acq_rel_gpu: "atom.acq_rel.gpu.global.add.u32";
}

#[inline(always)]
pub unsafe fn fetch_add_shared(place: RawShared, value: u32) -> u32 {
    let before: u32;
    asm!("atom.relaxed.cta.shared.add.u32 {o}, [{p}], {v};",
        o = out(reg32) before, p = in(reg32) place.address(), v = in(reg32) value,
        options(nostack, preserves_flags));
    before
}

macro_rules! stores {
    ($($name:ident: $instruction:literal;)*) => {$(
        #[inline(always)]
        pub unsafe fn $name(place: RawGlobal, value: u32) {
            asm!(concat!($instruction, " [{p}], {v};"),
                p = in(reg64) place.address(), v = in(reg32) value, options(nostack, preserves_flags));
        }
    )*};
}

stores! {
    store_release_sys: "st.release.sys.global.u32";
    store_relaxed_sys: "st.relaxed.sys.global.u32";
    store_relaxed_gpu: "st.relaxed.gpu.global.u32";
}

#[inline(always)]
pub unsafe fn store_x2_relaxed_gpu(place: RawGlobal, [a, b]: [u32; 2]) {
    asm!("st.relaxed.gpu.global.v2.u32 [{p}], {{{a}, {b}}};",
        p = in(reg64) place.address(), a = in(reg32) a, b = in(reg32) b,
        options(nostack, preserves_flags));
}

macro_rules! loads {
    ($($name:ident: $instruction:literal;)*) => {$(
        #[inline(always)]
        pub unsafe fn $name(place: RawGlobal) -> u32 {
            let value: u32;
            asm!(concat!($instruction, " {v}, [{p}];"),
                v = out(reg32) value, p = in(reg64) place.address(), options(nostack, preserves_flags));
            value
        }
    )*};
}

loads! {
    load_acquire_gpu: "ld.acquire.gpu.global.u32";
    load_acquire_sys: "ld.acquire.sys.global.u32";
    load_relaxed_sys: "ld.relaxed.sys.global.u32";
    load_relaxed_gpu: "ld.relaxed.gpu.global.u32";
}

#[inline(always)]
pub unsafe fn load_x2_relaxed_gpu(place: RawGlobal) -> [u32; 2] {
    let [a, b]: [u32; 2];
    asm!("ld.relaxed.gpu.global.v2.u32 {{{a}, {b}}}, [{p}];",
        a = out(reg32) a, b = out(reg32) b, p = in(reg64) place.address(),
        options(nostack, preserves_flags));
    [a, b]
}

#[inline(always)]
pub unsafe fn load_relaxed_sys_x4(place: RawGlobal) -> [u32; 4] {
    let [a, b, c, d]: [u32; 4];
    asm!("ld.relaxed.sys.global.v4.b32 {{{a}, {b}, {c}, {d}}}, [{p}];",
        a = out(reg32) a, b = out(reg32) b, c = out(reg32) c, d = out(reg32) d,
        p = in(reg64) place.address(), options(nostack, preserves_flags));
    [a, b, c, d]
}

#[inline(always)]
pub unsafe fn store_relaxed_sys_x4(place: RawGlobal, [a, b, c, d]: [u32; 4]) {
    asm!("st.relaxed.sys.global.v4.b32 [{p}], {{{a}, {b}, {c}, {d}}};",
        a = in(reg32) a, b = in(reg32) b, c = in(reg32) c, d = in(reg32) d,
        p = in(reg64) place.address(), options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn fence_acq_rel_gpu() {
    asm!("fence.acq_rel.gpu;", options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn fence_acq_rel_sys() {
    asm!("fence.acq_rel.sys;", options(nostack, preserves_flags));
}
