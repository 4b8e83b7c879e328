//! A thread's place in its launch, the block barrier, and clocks.

use crate::arch;

macro_rules! indices {
    ($($name:ident: $what:literal;)*) => {$(
        #[doc = $what]
        #[inline(always)]
        pub fn $name() -> u32 {
            arch::thread::$name()
        }
    )*};
}

indices! {
    thread_idx_x: "Index of this thread within its block, x.";
    thread_idx_y: "Index of this thread within its block, y.";
    thread_idx_z: "Index of this thread within its block, z.";
    block_idx_x: "Index of this block within the grid, x.";
    block_idx_y: "Index of this block within the grid, y.";
    block_idx_z: "Index of this block within the grid, z.";
    block_dim_x: "Threads of a block along x.";
    block_dim_y: "Threads of a block along y.";
    block_dim_z: "Threads of a block along z.";
    grid_dim_x: "Blocks of the grid along x.";
    grid_dim_y: "Blocks of the grid along y.";
    grid_dim_z: "Blocks of the grid along z.";
}

/// Index of this thread in a launch whose grid and blocks are one-dimensional.
#[inline(always)]
pub fn index_1d() -> u32 {
    block_idx_x() * block_dim_x() + thread_idx_x()
}

/// Waits until every thread of the block is here; what they wrote before is then visible to all.
///
/// Every thread must reach the same call. The executor reports threads that wait at different
/// calls, or that return while others wait, as a divergent barrier.
#[inline(always)]
#[track_caller]
pub fn sync_threads() {
    arch::thread::sync_threads();
}

/// Waits at barrier `id`, 1 to 15, until `num_threads` threads of the block, whole warps, have come
/// there in this call or in [`arrive_some`]; what they wrote before is then visible to those that
/// waited. The barrier can then be used again. An `id` that is not a constant takes all 16 barriers
/// of the block, of which an SM has few.
///
/// The executor reports calls for one barrier that name different numbers of threads, and threads
/// that wait for others which cannot come as a divergent barrier.
#[inline(always)]
#[track_caller]
pub fn sync_some(id: u32, num_threads: u32) {
    arch::thread::sync_some(id, num_threads);
}

/// Comes to barrier `id` as one of the `num_threads` that [`sync_some`] waits for, and goes on.
#[inline(always)]
#[track_caller]
pub fn arrive_some(id: u32, num_threads: u32) {
    arch::thread::arrive_some(id, num_threads);
}

/// Lets others run: call it in every loop that waits for another block or another GPU.
///
/// A pause of some nanoseconds on the GPU. On the CPU it is where other blocks and ranks go on,
/// so a waiting loop without it never ends there.
#[inline(always)]
#[track_caller]
pub fn spin_pause() {
    arch::thread::spin_pause();
}

/// Nanoseconds of a clock that all threads of a device share; it may tick as coarsely as 1 µs.
#[inline(always)]
pub fn global_timer_ns() -> u64 {
    arch::thread::global_timer_ns()
}
