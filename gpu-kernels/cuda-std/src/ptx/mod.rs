//! The names of this crate as PTX instructions.
//!
//! Warp and block operations are LLVM intrinsics, because LLVM knows those as convergent: it may
//! not move them into a branch that only some lanes take. Inline assembly it does not know so, and
//! serves only for what a thread does alone. Assembly that touches memory declares it (no
//! `nomem`), so nothing moves across it.

pub mod async_copy;
pub mod atomic;
pub mod bulk;
pub mod cluster;
pub mod float;
mod global;
pub mod grid;
pub mod mma;
mod shared;
pub mod tensor_map;
pub mod thread;
pub mod warp;
pub mod wgmma;

pub use global::RawGlobal;
pub use shared::RawShared;

/// No message: a kernel that panics traps, and the launch fails.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: `trap` ends the kernel.
    unsafe { core::arch::nvptx::trap() }
}
