//! Events of the driver.

use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};

use super::context::Gpu;
use super::driver::{check, driver};
use crate::device::{DeviceError, Result};

pub(in crate::device) struct GpuEvent {
    gpu: Arc<Gpu>,
    handle: sys::CUevent,
}

// SAFETY: events may be used from any thread; the driver locks them.
unsafe impl Send for GpuEvent {}
// SAFETY: as above.
unsafe impl Sync for GpuEvent {}

impl GpuEvent {
    pub(in crate::device) fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        gpu.bind()?;
        let mut handle = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT as u32;
        // SAFETY: writes one handle; the context is bound.
        gpu.checked(unsafe { driver!(cuEventCreate(&raw mut handle, flags)) })?;
        Ok(Self { gpu: gpu.clone(), handle })
    }

    pub(super) fn handle(&self) -> sys::CUevent {
        self.handle
    }

    pub(in crate::device) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    pub(in crate::device) fn synchronize(&self) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: the event lives as long as `self`.
        self.gpu.checked(unsafe { driver!(cuEventSynchronize(self.handle)) })
    }

    /// Whether the work before the last record is done.
    pub(in crate::device) fn is_done(&self) -> Result<bool> {
        self.gpu.bind()?;
        // SAFETY: as above.
        match unsafe { driver!(cuEventQuery(self.handle)) } {
            Err(failure) if failure.code == CUresult::CUDA_ERROR_NOT_READY as u32 => Ok(false),
            done => self.gpu.checked(done).map(|()| true),
        }
    }

    /// Milliseconds from this event to `end`.
    pub(in crate::device) fn elapsed_ms(&self, end: &Self) -> Result<f32> {
        type ElapsedTime =
            unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
        const NAME: &str = "cuEventElapsedTime";

        self.gpu.bind()?;
        // cudarc's bindings for CUDA 13 hold the second version only, which drivers before 12.8
        // lack; the first is in all of them.
        // SAFETY: the driver is loaded, and this is the function's type in cuda.h.
        let elapsed_time = unsafe { sys::culib().get::<ElapsedTime>(NAME.as_bytes()) }
            .map_err(|_| DeviceError::NotRecorded)?;
        let mut milliseconds = 0.0;
        // SAFETY: writes one float; both events live.
        let code = unsafe { elapsed_time(&raw mut milliseconds, self.handle, end.handle) };
        if code == CUresult::CUDA_ERROR_INVALID_HANDLE {
            return Err(DeviceError::NotRecorded);
        }
        self.gpu.checked(check(NAME, code))?;
        Ok(milliseconds)
    }
}

impl Drop for GpuEvent {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: created once; the driver frees it when pending work has passed it.
            let _ = unsafe { driver!(cuEventDestroy_v2(self.handle)) };
        }
    }
}
