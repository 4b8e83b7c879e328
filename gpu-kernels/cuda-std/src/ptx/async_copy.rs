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
pub unsafe fn copy_16_or_zero(dst: RawShared, src: RawGlobal, copies: bool, policy: u64) {
    let src_bytes = if copies { 16 } else { 0 };
    asm!("cp.async.cg.shared.global.L2::cache_hint [{d}], [{s}], 16, {n}, {h};",
        d = in(reg32) dst.address(), s = in(reg64) src.address(), n = in(reg32) src_bytes,
        h = in(reg64) policy, options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn copy_reused_16_or_zero(dst: RawShared, src: RawGlobal, copies: bool) {
    let src_bytes = if copies { 16 } else { 0 };
    asm!("cp.async.cg.shared.global [{d}], [{s}], 16, {n};",
        d = in(reg32) dst.address(), s = in(reg64) src.address(), n = in(reg32) src_bytes,
        options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn arrive_when_landed(barrier: RawShared) {
    asm!("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [{}];", in(reg32) barrier.address(),
        options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn copy_shared_16_or_zero(dst: RawShared, src: RawGlobal, copies: bool) {
    let src_bytes = if copies { 16 } else { 0 };
    asm!("cp.async.cg.shared.global [{d}], [{s}], 16, {n};",
        d = in(reg32) dst.address(), s = in(reg64) src.address(), n = in(reg32) src_bytes,
        options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn commit_group() {
    asm!("cp.async.commit_group;", options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn wait_group<const N: u32>() {
    asm!("cp.async.wait_group {};", const N, options(nostack, preserves_flags));
}
