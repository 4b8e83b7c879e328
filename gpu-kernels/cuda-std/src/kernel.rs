//! What `#[kernel]` makes of a function: an entry point in PTX, a typed launch on the host.

/// Leaves the launch bounds in the PTX, where `cuda_builder` finds them and makes directives of
/// them; rustc has no attribute for it. 0: not given.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
pub fn launch_bounds<const THREADS: u32, const MIN_BLOCKS: u32, const CLUSTER: u32>() {
    // SAFETY: a comment.
    unsafe {
        core::arch::asm!(
            "// launch_bounds threads={} min_blocks={} cluster={}",
            const THREADS, const MIN_BLOCKS, const CLUSTER,
            options(nomem, nostack, preserves_flags),
        );
    }
}

#[cfg(not(target_arch = "nvptx64"))]
pub use host::{Kernel, KernelArg, PtxTarget};

#[cfg(not(target_arch = "nvptx64"))]
mod host {
    use core::ffi::c_void;

    use crate::global::{Global, GlobalMut};
    use crate::tensor_map::{TensorMap, TensorMaps};

    /// The PTX modules that hold a kernel.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum PtxTarget {
        /// All of them: Ampere and later.
        Portable,
        /// The one for Hopper only: bulk copies, `wgmma`.
        Sm90a,
    }

    /// A kernel with its arguments, ready to launch. `#[kernel]` makes one struct for each kernel
    /// function: the function's name, its parameters as public fields.
    ///
    /// # Safety
    /// `params` yields the parameters of the PTX entry `NAME`, in order.
    pub unsafe trait Kernel: Copy + Send + Sync + 'static {
        /// The name of the PTX entry, as profilers show it.
        const NAME: &'static str;
        /// The parameters, as declared.
        const PARAMS: &'static [&'static str];
        /// Which PTX modules hold it.
        const TARGET: PtxTarget;
        /// Threads of a block, if the kernel fixes them.
        const THREADS: Option<u32>;
        /// Blocks of a [cluster](crate::cluster); the grid is a multiple of it in x.
        const CLUSTER: u32;
        /// Whether its blocks may start before the kernel before it has ended: see
        /// [`grid`](crate::grid).
        const EARLY: bool;

        /// Runs one thread of the launch, on the executor.
        ///
        /// # Safety
        /// As the kernel function says; called by the executor only.
        unsafe fn run(self);

        /// Where each parameter lies, for the driver to read.
        fn params(&self) -> Vec<*const c_void>;
    }

    /// A kernel parameter. The driver reads its PTX size from the start of the value.
    ///
    /// # Safety
    /// The value starts with its device representation: plain data is its own, a view starts with
    /// its address.
    pub unsafe trait KernelArg: Copy + Send + Sync + 'static {}

    // SAFETY: plain data is its own device representation.
    unsafe impl<T: bytemuck::Pod + Send + Sync> KernelArg for T {}
    // SAFETY: a view is `repr(transparent)` over `RawGlobal`, which starts with the address.
    unsafe impl<T: 'static> KernelArg for Global<T> {}
    // SAFETY: as above.
    unsafe impl<T: 'static> KernelArg for GlobalMut<T> {}
    // SAFETY: a map starts with what the driver encoded.
    unsafe impl<T: bytemuck::AnyBitPattern, const RANK: usize> KernelArg for TensorMap<T, RANK> {}
    // SAFETY: as above, for each of them.
    unsafe impl<T: bytemuck::AnyBitPattern, const RANK: usize, const N: usize> KernelArg
        for TensorMaps<T, RANK, N>
    {
    }
}
