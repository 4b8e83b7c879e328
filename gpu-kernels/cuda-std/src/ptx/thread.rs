use core::arch::asm;
use core::arch::nvptx;

unsafe extern "C" {
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.count"]
    fn barrier_sync(id: u32, num_threads: u32);
    #[link_name = "llvm.nvvm.barrier.cta.arrive.aligned.count"]
    fn barrier_arrive(id: u32, num_threads: u32);
}

macro_rules! indices {
    ($($name:ident = $intrinsic:ident;)*) => {$(
        #[inline(always)]
        pub fn $name() -> u32 {
            // SAFETY: reads a special register.
            unsafe { nvptx::$intrinsic() as u32 }
        }
    )*};
}

indices! {
    thread_idx_x = _thread_idx_x;
    thread_idx_y = _thread_idx_y;
    thread_idx_z = _thread_idx_z;
    block_idx_x = _block_idx_x;
    block_idx_y = _block_idx_y;
    block_idx_z = _block_idx_z;
    block_dim_x = _block_dim_x;
    block_dim_y = _block_dim_y;
    block_dim_z = _block_dim_z;
    grid_dim_x = _grid_dim_x;
    grid_dim_y = _grid_dim_y;
    grid_dim_z = _grid_dim_z;
}

#[inline(always)]
pub fn sync_threads() {
    // SAFETY: that every thread comes here is the kernel's duty, and checked on the CPU.
    unsafe { nvptx::_syncthreads() }
}

#[inline(always)]
pub fn sync_some(id: u32, num_threads: u32) {
    // SAFETY: that so many threads come here is the kernel's duty, and checked on the CPU.
    unsafe { barrier_sync(id, num_threads) }
}

#[inline(always)]
pub fn arrive_some(id: u32, num_threads: u32) {
    // SAFETY: as above.
    unsafe { barrier_arrive(id, num_threads) }
}

#[inline(always)]
pub fn spin_pause() {
    // SAFETY: waits.
    unsafe { asm!("nanosleep.u32 32;", options(nomem, nostack)) }
}

#[inline(always)]
pub fn global_timer_ns() -> u64 {
    let now: u64;
    // SAFETY: reads a special register.
    unsafe { asm!("mov.u64 {}, %globaltimer;", out(reg64) now, options(nomem, nostack)) }
    now
}
