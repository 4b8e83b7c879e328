//! Launches of one stream that overlap: a grid starts while the one before it ends (sm_90).
//!
//! A kernel that says `#[kernel(early = true)]` starts *early*: its blocks may run as soon as every
//! block of the kernel before it on the stream has called [`launch_dependents`] or has returned.
//! Until it has called [`wait_prerequisites`], a thread of it may set up shared memory and read what
//! no kernel writes: parameters, plans, page tables, all that the host copied to the device. For the
//! driver orders copies, and kernels that do not start early, as ever.
//!
//! Every thread of an early kernel calls [`wait_prerequisites`], also where it has nothing to do. So
//! a grid is done only when those before it are, and to wait for one is to wait for all.
//!
//! CUDA calls this programmatic dependent launch. Elsewhere than on Hopper, in the portable PTX and
//! on the CPU, launches follow each other, and both calls return at once. The executor reports
//! threads that, before they wait, write to device memory or read what a kernel wrote, and those that
//! return without having waited.

use crate::arch;

/// Waits until the grids before this one on its stream are done; what they wrote is then visible to
/// this thread.
#[inline(always)]
pub fn wait_prerequisites() {
    arch::grid::wait_prerequisites();
}

/// Says that the next grid on the stream may start, as far as this block is concerned: if it starts
/// [early](self), and once all blocks have said so. It finds what room this grid leaves on the SMs.
#[inline(always)]
pub fn launch_dependents() {
    arch::grid::launch_dependents();
}
