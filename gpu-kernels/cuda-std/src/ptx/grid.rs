#[cfg(cuda_arch = "sm_90a")]
use core::arch::asm;

#[inline(always)]
pub fn wait_prerequisites() {
    #[cfg(cuda_arch = "sm_90a")]
    // SAFETY: waits. Nothing that touches memory moves across it.
    unsafe {
        asm!("griddepcontrol.wait;", options(nostack, preserves_flags));
    }
}

#[inline(always)]
pub fn launch_dependents() {
    #[cfg(cuda_arch = "sm_90a")]
    // SAFETY: a hint to the driver.
    unsafe {
        asm!("griddepcontrol.launch_dependents;", options(nomem, nostack, preserves_flags));
    }
}
