//! The CUDA driver: found at run time, its codes turned into errors that name the call.

use std::ffi::{CStr, c_char};
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use crate::device::DriverFailure;

/// Calls a driver function by its name; an error carries that name.
macro_rules! driver {
    ($function:ident($($argument:expr),* $(,)?)) => {
        $crate::device::cuda::driver::check(
            stringify!($function),
            cudarc::driver::sys::$function($($argument),*),
        )
    };
}
pub(super) use driver;

pub(super) fn check(call: &'static str, result: CUresult) -> Result<(), DriverFailure> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(DriverFailure {
        call,
        code: result as u32,
        name: text_of(result, sys::cuGetErrorName),
        text: text_of(result, sys::cuGetErrorString),
    })
}

const UNKNOWN: &str = "unknown";

/// What one of the driver's two lookups says about a code.
fn text_of(
    result: CUresult,
    lookup: unsafe fn(CUresult, *mut *const c_char) -> CUresult,
) -> &'static str {
    let mut text: *const c_char = ptr::null();
    // SAFETY: the lookup writes one pointer; it stays null for a code the driver does not know.
    let found = unsafe { lookup(result, &raw mut text) };
    if found != CUresult::CUDA_SUCCESS || text.is_null() {
        return UNKNOWN;
    }
    // SAFETY: the driver returned a static, NUL-terminated string.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap_or(UNKNOWN)
}

/// What there is of CUDA on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::device) enum DriverState {
    /// No driver library.
    Absent,
    /// A driver that shows no GPU.
    NoGpu,
    /// A driver that does not start.
    Broken(DriverFailure),
    /// A driver that shows this many GPUs.
    Gpus(usize),
}

/// Starts the driver, if there is one, and counts its GPUs.
pub(in crate::device) fn state() -> DriverState {
    // SAFETY: asks the dynamic loader for the driver's library, as the vendor installs it.
    if !unsafe { sys::is_culib_present() } {
        return DriverState::Absent;
    }
    match start() {
        Ok(0) => DriverState::NoGpu,
        Ok(gpus) => DriverState::Gpus(gpus),
        Err(failure) if failure.code == CUresult::CUDA_ERROR_NO_DEVICE as u32 => DriverState::NoGpu,
        Err(failure) => DriverState::Broken(failure),
    }
}

fn start() -> Result<usize, DriverFailure> {
    let mut gpus = 0;
    // SAFETY: cuInit may be called any number of times, from any thread; the count is one int.
    unsafe {
        driver!(cuInit(0))?;
        driver!(cuDeviceGetCount(&raw mut gpus))?;
    }
    Ok(usize::try_from(gpus).unwrap_or(0))
}

/// The newest CUDA version that the driver supports: (13, 0). The driver must be there.
pub(in crate::device) fn version() -> Result<(u32, u32), DriverFailure> {
    let mut version = 0;
    // SAFETY: writes one int.
    unsafe { driver!(cuDriverGetVersion(&raw mut version)) }?;
    let version = u32::try_from(version).unwrap_or(0);
    Ok((version / 1000, version % 1000 / 10))
}
