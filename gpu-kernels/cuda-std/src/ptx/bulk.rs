use core::arch::asm;

use super::{RawGlobal, RawShared};

#[inline(always)]
pub unsafe fn mbarrier_init(place: RawShared, arrivals: u32) {
    asm!("mbarrier.init.shared::cta.b64 [{}], {};", in(reg32) place.address(), in(reg32) arrivals,
        options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn mbarrier_arrive(place: RawShared) {
    asm!("mbarrier.arrive.shared::cta.b64 _, [{}];", in(reg32) place.address(),
        options(nostack, preserves_flags));
}

// Not `.release.cluster`: that is a fence of the whole GPU, and costs a product a quarter of its speed.
#[inline(always)]
pub unsafe fn mbarrier_arrive_in(place: RawShared, rank: u32) {
    asm!(
        "{{ .reg .b32 there; mapa.shared::cluster.u32 there, {p}, {r}; \
         mbarrier.arrive.shared::cluster.b64 _, [there]; }}",
        p = in(reg32) place.address(), r = in(reg32) rank, options(nostack, preserves_flags),
    );
}

#[inline(always)]
pub unsafe fn mbarrier_arrive_expect_bytes(place: RawShared, bytes: u32) {
    asm!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [{}], {};",
        in(reg32) place.address(), in(reg32) bytes, options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn mbarrier_try_wait(place: RawShared, parity: u32) -> bool {
    let done: u32;
    asm!(
        "{{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [{b}], {p}; selp.u32 {d}, 1, 0, p; }}",
        b = in(reg32) place.address(), p = in(reg32) parity, d = out(reg32) done,
        options(nostack, preserves_flags),
    );
    done != 0
}

#[inline(always)]
pub unsafe fn fence_init() {
    asm!("fence.mbarrier_init.release.cluster;", options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn fence_proxy_async() {
    asm!("fence.proxy.async.shared::cta;", options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn load(dst: RawShared, src: RawGlobal, bytes: u32, barrier: RawShared) {
    asm!(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{d}], [{s}], {n}, [{b}];",
        d = in(reg32) dst.address(), s = in(reg64) src.address(), n = in(reg32) bytes,
        b = in(reg32) barrier.address(), options(nostack, preserves_flags),
    );
}

#[inline(always)]
pub unsafe fn store(dst: RawGlobal, src: RawShared, bytes: u32) {
    asm!("cp.async.bulk.global.shared::cta.bulk_group [{d}], [{s}], {n};",
        d = in(reg64) dst.address(), s = in(reg32) src.address(), n = in(reg32) bytes,
        options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn commit_group() {
    asm!("cp.async.bulk.commit_group;", options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn wait_group_read<const N: u32>() {
    asm!("cp.async.bulk.wait_group.read {};", const N, options(nostack, preserves_flags));
}

#[inline(always)]
pub unsafe fn wait_group<const N: u32>() {
    asm!("cp.async.bulk.wait_group {};", const N, options(nostack, preserves_flags));
}
