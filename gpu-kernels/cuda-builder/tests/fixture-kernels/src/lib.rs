//! One kernel, to prove the build chain.

#![no_std]

use core::arch::asm;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Multiplies `values` // [len] by `factor`.
///
/// # Safety
/// `values` points to `len` floats in device memory.
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn scale_f32_baseline(values: *mut f32, len: u32, factor: f32) {
    let thread_idx: u32;
    // SAFETY: a comment, and a read of a special register.
    unsafe {
        asm!("// launch_bounds threads=256 min_blocks=2 cluster=0");
        asm!("mov.u32 {}, %tid.x;", out(reg32) thread_idx);
    }
    if thread_idx < len {
        // SAFETY: `thread_idx` lies within the `len` floats that the caller vouches for.
        unsafe { *values.add(thread_idx as usize) *= factor };
    }
}
