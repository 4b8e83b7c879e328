//! Memory of a GPU, and host memory that it can reach.

use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::{self, CUresult};

use super::context::Gpu;
use super::driver::driver;
use crate::device::{DeviceError, DriverFailure, Result, lock};

/// `cuMemHostAlloc`: page-locked for every context, and with a device address.
const PORTABLE_AND_MAPPED: u32 = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;

/// One allocation, freed on drop. Whoever drops it has waited for the work that uses it.
pub(in crate::device) struct GpuMemory {
    gpu: Arc<Gpu>,
    address: u64,
    bytes: usize,
    /// Where the host sees it, if it is the host's.
    host: Option<*mut u8>,
    /// Held while a host thread copies.
    host_copy: Mutex<()>,
}

// SAFETY: an allocation belongs to no thread; the host's side is reached through raw copies and
// the unsafe slices of `PinnedBuffer` only.
unsafe impl Send for GpuMemory {}
// SAFETY: as above.
unsafe impl Sync for GpuMemory {}

impl GpuMemory {
    /// Device memory with undefined contents.
    pub(in crate::device) fn device(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self> {
        let mut address = 0;
        if bytes > 0 {
            gpu.bind()?;
            // SAFETY: writes one address; the context is bound.
            let done = unsafe { driver!(cuMemAlloc_v2(&raw mut address, bytes)) };
            done.map_err(|failure| out_of_memory(gpu, bytes, failure))?;
        }
        Ok(Self { gpu: gpu.clone(), address, bytes, host: None, host_copy: Mutex::new(()) })
    }

    /// Page-locked host memory, zeroed.
    pub(in crate::device) fn pinned(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self> {
        let (mut address, mut host) = (0, ptr::null_mut::<c_void>());
        if bytes > 0 {
            gpu.bind()?;
            // SAFETY: writes one pointer; the context is bound.
            gpu.checked(unsafe {
                driver!(cuMemHostAlloc(&raw mut host, bytes, PORTABLE_AND_MAPPED))
            })?;
            // SAFETY: the allocation has that many bytes, and nobody else knows it yet.
            unsafe { ptr::write_bytes(host.cast::<u8>(), 0, bytes) };
            // SAFETY: the memory was allocated as mapped, so it has a device address.
            let mapped =
                unsafe { driver!(cuMemHostGetDevicePointer_v2(&raw mut address, host, 0)) };
            if let Err(failure) = mapped {
                // SAFETY: allocated above, and given to nobody.
                let _ = unsafe { driver!(cuMemFreeHost(host)) };
                return gpu.checked(Err(failure));
            }
        }
        let host = Some(if bytes > 0 { host.cast() } else { ptr::dangling_mut() });
        Ok(Self { gpu: gpu.clone(), address, bytes, host, host_copy: Mutex::new(()) })
    }

    pub(in crate::device) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    pub(in crate::device) fn address(&self) -> u64 {
        self.address
    }

    /// Copies bytes of pinned memory.
    pub(in crate::device) fn read_pinned(&self, offset: usize, destination: &mut [u8]) {
        let _copying = lock(&self.host_copy);
        let (from, to) = (self.pinned_bytes(offset, destination.len()), destination.as_mut_ptr());
        // SAFETY: the range was checked. A device may write to it meanwhile; no other host
        // thread does, and any bytes are a value of plain data.
        unsafe { from.copy_to_nonoverlapping(to, destination.len()) };
    }

    /// Copies bytes to pinned memory.
    pub(in crate::device) fn write_pinned(&self, offset: usize, source: &[u8]) {
        let _copying = lock(&self.host_copy);
        let to = self.pinned_bytes(offset, source.len());
        // SAFETY: as in `read_pinned`.
        unsafe { to.copy_from_nonoverlapping(source.as_ptr(), source.len()) };
    }

    fn pinned_bytes(&self, offset: usize, bytes: usize) -> *mut u8 {
        assert!(offset + bytes <= self.bytes, "bytes of pinned memory");
        // SAFETY: the range lies in the allocation, as asserted.
        unsafe { self.host.expect("pinned memory is the host's").add(offset) }
    }

    /// Where the host sees it; none for device memory.
    pub(in crate::device) fn host(&self) -> Option<*mut u8> {
        self.host
    }
}

fn out_of_memory(gpu: &Gpu, needed_bytes: usize, failure: DriverFailure) -> DeviceError {
    if failure.code == CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32
        && let Ok((free_bytes, total_bytes)) = gpu.memory_bytes()
    {
        return DeviceError::OutOfMemory {
            device: gpu.id(),
            needed_bytes,
            free_bytes,
            total_bytes,
        };
    }
    DeviceError::Driver { device: gpu.id(), source: failure }
}

impl Drop for GpuMemory {
    fn drop(&mut self) {
        if self.bytes == 0 || self.gpu.bind().is_err() {
            return;
        }
        // Streams keep an allocation until they have waited for the copies that use it, and so
        // must whoever launches kernels on it.
        let _ = match self.host {
            // SAFETY: allocated by the matching call, once, and no longer used.
            Some(host) => unsafe { driver!(cuMemFreeHost(host.cast())) },
            // SAFETY: as above.
            None => unsafe { driver!(cuMemFree_v2(self.address)) },
        };
    }
}
