//! One GPU: its primary context, attributes, peers and kernels.

use std::ffi::c_int;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::{
    self, CUdevice_P2PAttribute as PeerAttribute, CUdevice_attribute as Attribute, CUresult,
};

use super::driver::driver;
use super::module::Kernels;
use crate::device::{DeviceError, DeviceId, DriverFailure, PeerLink, PtxModule, Result};

/// A GPU, usable from any thread: every call binds its context first.
pub(in crate::device) struct Gpu {
    ordinal: usize,
    handle: sys::CUdevice,
    context: sys::CUcontext,
    kernels: OnceLock<Kernels>,
}

// SAFETY: the driver's handles may be used from any thread that has bound the context, and every
// call binds it.
unsafe impl Send for Gpu {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Opens GPU `ordinal`, which the driver has counted.
    pub(in crate::device) fn open(ordinal: usize) -> Result<Arc<Self>> {
        let mut handle = 0;
        let mut context = std::ptr::null_mut();
        let on = DeviceId::Gpu(ordinal);
        // SAFETY: the driver was started by whoever counted its GPUs; each call writes one handle.
        unsafe {
            driver!(cuDeviceGet(&raw mut handle, ordinal as c_int))
                .map_err(|source| DeviceError::Driver { device: on, source })?;
            driver!(cuDevicePrimaryCtxRetain(&raw mut context, handle))
                .map_err(|source| DeviceError::Driver { device: on, source })?;
        }
        Ok(Arc::new(Self { ordinal, handle, context, kernels: OnceLock::new() }))
    }

    pub(in crate::device) fn id(&self) -> DeviceId {
        DeviceId::Gpu(self.ordinal)
    }

    pub(in crate::device) fn ordinal(&self) -> usize {
        self.ordinal
    }

    pub(super) fn context(&self) -> sys::CUcontext {
        self.context
    }

    /// Makes this GPU the calling thread's; every other call needs that.
    pub(in crate::device) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained until `self` drops.
        self.checked(unsafe { driver!(cuCtxSetCurrent(self.context)) })
    }

    pub(super) fn checked<T>(&self, result: Result<T, DriverFailure>) -> Result<T> {
        result.map_err(|source| DeviceError::Driver { device: self.id(), source })
    }

    fn attribute(&self, attribute: Attribute) -> Result<u32> {
        let mut value = 0;
        // SAFETY: writes one int.
        let done = unsafe { driver!(cuDeviceGetAttribute(&raw mut value, attribute, self.handle)) };
        self.checked(done)?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    pub(in crate::device) fn name(&self) -> Result<String> {
        let mut name = [0u8; 256];
        // SAFETY: the driver writes at most that many bytes, NUL included.
        let done = unsafe {
            driver!(cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, self.handle))
        };
        self.checked(done)?;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        Ok(String::from_utf8_lossy(&name[..end]).into_owned())
    }

    pub(in crate::device) fn compute_capability(&self) -> Result<(u32, u32)> {
        Ok((
            self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ))
    }

    pub(in crate::device) fn num_multiprocessors(&self) -> Result<u32> {
        self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
    }

    pub(in crate::device) fn l2_bytes(&self) -> Result<usize> {
        Ok(self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize)
    }

    pub(super) fn max_shared_bytes(&self) -> Result<u32> {
        self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
    }

    /// Free and total bytes of memory.
    pub(in crate::device) fn memory_bytes(&self) -> Result<(usize, usize)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes; the context is bound.
        self.checked(unsafe { driver!(cuMemGetInfo_v2(&raw mut free, &raw mut total)) })?;
        Ok((free, total))
    }

    /// What the driver says about reading `peer`'s memory from here.
    pub(in crate::device) fn peer_link(&self, peer: &Self) -> Result<PeerLink> {
        let ask = |attribute| {
            let mut value = 0;
            // SAFETY: writes one int; both handles come from this driver.
            let done = unsafe {
                driver!(cuDeviceGetP2PAttribute(
                    &raw mut value,
                    attribute,
                    self.handle,
                    peer.handle
                ))
            };
            self.checked(done).map(|()| value)
        };
        let mut access = 0;
        // SAFETY: as above.
        let done =
            unsafe { driver!(cuDeviceCanAccessPeer(&raw mut access, self.handle, peer.handle)) };
        self.checked(done)?;
        Ok(PeerLink {
            access: access != 0,
            native_atomics: ask(PeerAttribute::CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED)?
                != 0,
            performance_rank: ask(PeerAttribute::CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK)?,
        })
    }

    /// Lets this GPU's kernels and copies reach `peer`'s memory.
    ///
    /// From then on kernels may wait for the peer's, and none may have to be loaded meanwhile.
    pub(in crate::device) fn enable_peer_access(&self, peer: &Self) -> Result<()> {
        if self.context == peer.context {
            return Ok(());
        }
        if !self.peer_link(peer)?.access {
            return Err(DeviceError::NoPeerAccess { device: self.id(), peer: peer.id() });
        }
        self.kernels()?.load_all(self)?;
        self.bind()?;
        // SAFETY: both contexts are retained; the flags must be 0.
        match unsafe { driver!(cuCtxEnablePeerAccess(peer.context, 0)) } {
            Err(failure)
                if failure.code == CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED as u32 =>
            {
                Ok(())
            }
            done => self.checked(done),
        }
    }

    /// The module that this GPU runs.
    pub(in crate::device) fn ptx(&self) -> Result<PtxModule> {
        crate::device::ptx::module_for(self.compute_capability()?)
    }

    /// The kernels that were launched, and those that can be.
    pub(super) fn kernels(&self) -> Result<&Kernels> {
        if let Some(kernels) = self.kernels.get() {
            return Ok(kernels);
        }
        let ptx = self.ptx()?;
        Ok(self.kernels.get_or_init(|| Kernels::new(ptx)))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.bind().is_ok() {
            drop(self.kernels.take());
        }
        // SAFETY: retained once, in `open`; nothing that used the context is left.
        let _ = unsafe { driver!(cuDevicePrimaryCtxRelease_v2(self.handle)) };
    }
}
