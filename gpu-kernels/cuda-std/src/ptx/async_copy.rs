use core::arch::asm;

use super::{RawGlobal, RawShared};

#[inline(always)]
pub fn evict_first_policy() -> u64 {
    let policy: u64;
    // SAFETY: makes a constant.
    unsafe {
        asm!("createpolicy.fractional.L2::evict_first.b64 {}, 1.0;",
            out(reg64) policy, options(pure, nomem, nostack, preserves_flags));
    }
    policy
}

#[inline(always)]
pub unsafe fn copy_16(dst: RawShared, src: RawGlobal, policy: u64) {
    asm!("cp.async.cg.shared.global.L2::cache_hint [{d}], [{s}], 16, {h};",
        d = in(reg32) dst.address(), s = in(reg64) src.address(), h = in(reg64) policy,
        options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn zero_16(dst: RawShared) {
    // With no source bytes the copy is all padding; the source is not read.
    asm!("{{ .reg .u64 s; cvta.shared.u64 s, 0; cp.async.cg.shared.global [{d}], [s], 16, 0; }}",
        d = in(reg32) dst.address(), options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn commit_group() {
    asm!("cp.async.commit_group;", options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn wait_group<const N: u32>() {
    asm!("cp.async.wait_group {};", const N, options(nostack, preserves_flags));
}
