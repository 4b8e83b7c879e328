use core::arch::asm;

use super::RawShared;

unsafe extern "C" {
    #[link_name = "llvm.nvvm.barrier.cluster.arrive"]
    fn barrier_arrive();
    #[link_name = "llvm.nvvm.barrier.cluster.arrive.relaxed"]
    fn barrier_arrive_relaxed();
    #[link_name = "llvm.nvvm.barrier.cluster.wait"]
    fn barrier_wait();
}

#[inline(always)]
pub fn block_rank() -> u32 {
    let rank: u32;
    // SAFETY: reads a special register.
    unsafe {
        asm!("mov.u32 {}, %cluster_ctarank;", out(reg32) rank,
            options(pure, nomem, nostack, preserves_flags));
    }
    rank
}

#[inline(always)]
pub fn sync() {
    // SAFETY: that every thread comes here is the kernel's duty, and checked on the CPU.
    unsafe {
        barrier_arrive();
        barrier_wait();
    }
}

#[inline(always)]
pub fn meet() {
    // SAFETY: as above.
    unsafe {
        barrier_arrive_relaxed();
        barrier_wait();
    }
}

#[inline(always)]
pub unsafe fn load_x4(place: RawShared, rank: u32) -> [u32; 4] {
    let (a, b, c, d);
    asm!(
        "{{ .reg .b32 there; mapa.shared::cluster.u32 there, {p}, {r}; \
         ld.shared::cluster.v4.b32 {{{a}, {b}, {c}, {d}}}, [there]; }}",
        p = in(reg32) place.address(), r = in(reg32) rank,
        a = out(reg32) a, b = out(reg32) b, c = out(reg32) c, d = out(reg32) d,
        options(nostack, readonly, preserves_flags),
    );
    [a, b, c, d]
}
