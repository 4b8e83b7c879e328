//! Streams of the driver: work in order, and graphs captured from it.

use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, LazyLock, Mutex};

use cuda_std::Kernel;
use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode};

use super::context::Gpu;
use super::driver::driver;
use super::event::GpuEvent;
use super::memory::GpuMemory;
use crate::device::{DeviceError, DriverFailure, LaunchDims, Result, StreamPriority, lock};

pub(in crate::device) struct GpuStream {
    gpu: Arc<Gpu>,
    handle: sys::CUstream,
}

// SAFETY: streams may be used from any thread that has bound their context; the driver locks them.
unsafe impl Send for GpuStream {}
// SAFETY: as above.
unsafe impl Sync for GpuStream {}

impl GpuStream {
    pub(in crate::device) fn new(gpu: &Arc<Gpu>, priority: StreamPriority) -> Result<Self> {
        gpu.bind()?;
        let (mut lowest, mut highest) = (0, 0);
        // SAFETY: writes two ints; the context is bound.
        gpu.checked(unsafe {
            driver!(cuCtxGetStreamPriorityRange(&raw mut lowest, &raw mut highest))
        })?;
        let priority = match priority {
            StreamPriority::Low => lowest,
            StreamPriority::High => highest,
        };
        let mut handle = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle; the context is bound.
        gpu.checked(unsafe {
            driver!(cuStreamCreateWithPriority(&raw mut handle, flags, priority))
        })?;
        Ok(Self { gpu: gpu.clone(), handle })
    }

    pub(in crate::device) fn handle(&self) -> sys::CUstream {
        self.handle
    }

    /// # Safety
    /// As [`crate::device::Stream::launch`].
    pub(in crate::device) unsafe fn launch<K: Kernel>(
        &self,
        config: LaunchDims,
        kernel: &K,
    ) -> Result<()> {
        self.gpu.bind()?;
        let function = self.gpu.kernels()?.function::<K>(&self.gpu, config.shared_bytes)?;
        let mut parameters: Vec<*mut c_void> =
            kernel.params().into_iter().map(<*const c_void>::cast_mut).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (config.grid, config.block);
        let mut early = early_start();
        let starts_early =
            K::EARLY && self.gpu.kernels()?.can_wait_for_grids() && early_starts_are_on();
        let launch = sys::CUlaunchConfig {
            gridDimX: gx,
            gridDimY: gy,
            gridDimZ: gz,
            blockDimX: bx,
            blockDimY: by,
            blockDimZ: bz,
            sharedMemBytes: config.shared_bytes,
            hStream: self.handle,
            attrs: &raw mut early,
            numAttrs: starts_early.into(),
        };
        // SAFETY: the parameters are the entry's, in order (`Kernel`), and are copied before the
        // call returns; the rest is the caller's promise.
        let done = unsafe {
            driver!(cuLaunchKernelEx(
                &raw const launch,
                function,
                parameters.as_mut_ptr(),
                ptr::null_mut()
            ))
        };
        done.map_err(|source| DeviceError::LaunchRefused {
            kernel: K::NAME,
            device: self.gpu.id(),
            source,
        })
    }

    /// Copies `bytes` bytes between memory of GPUs and pinned memory, in any direction.
    ///
    /// # Safety
    /// Both ranges lie in their allocations, which live until the stream has passed the copy.
    pub(in crate::device) unsafe fn copy(
        &self,
        (source, source_offset): (&GpuMemory, usize),
        (destination, destination_offset): (&GpuMemory, usize),
        bytes: usize,
    ) -> Result<()> {
        self.gpu.bind()?;
        let from = source.address() + source_offset as u64;
        let to = destination.address() + destination_offset as u64;
        let is_pinned = source.host().is_some() || destination.host().is_some();
        let (source, destination) = (source.gpu().context(), destination.gpu().context());
        self.gpu.checked(if is_pinned || source == destination {
            // SAFETY: the caller's promise; addresses are unified, so the driver finds the way.
            unsafe { driver!(cuMemcpyAsync(to, from, bytes, self.handle)) }
        } else {
            // SAFETY: as above; both contexts are retained by their memory.
            unsafe { driver!(cuMemcpyPeerAsync(to, destination, from, source, bytes, self.handle)) }
        })
    }

    /// Copies from pageable host memory, and waits.
    pub(in crate::device) fn upload(
        &self,
        source: &[u8],
        (destination, offset): (&GpuMemory, usize),
    ) -> Result<(), StreamFailure> {
        self.gpu.bind()?;
        let to = destination.address() + offset as u64;
        // SAFETY: the range lies in its allocation (checked by the caller), the slice is borrowed
        // until the wait below has ended, also when the copy was refused.
        let copied = unsafe {
            driver!(cuMemcpyHtoDAsync_v2(to, source.as_ptr().cast(), source.len(), self.handle))
        };
        self.synchronize()?;
        Ok(self.gpu.checked(copied)?)
    }

    /// Copies to pageable host memory, and waits.
    pub(in crate::device) fn download(
        &self,
        (source, offset): (&GpuMemory, usize),
        destination: &mut [u8],
    ) -> Result<(), StreamFailure> {
        self.gpu.bind()?;
        let from = source.address() + offset as u64;
        let to = destination.as_mut_ptr().cast();
        // SAFETY: as in `upload`.
        let copied =
            unsafe { driver!(cuMemcpyDtoHAsync_v2(to, from, destination.len(), self.handle)) };
        self.synchronize()?;
        Ok(self.gpu.checked(copied)?)
    }

    /// Repeats a pattern of 1, 2 or 4 bytes.
    ///
    /// # Safety
    /// As [`Self::copy`]; the range is aligned to the pattern and a multiple of it.
    pub(in crate::device) unsafe fn fill(
        &self,
        (memory, offset): (&GpuMemory, usize),
        pattern: FillPattern,
        bytes: usize,
    ) -> Result<()> {
        self.gpu.bind()?;
        let to = memory.address() + offset as u64;
        let done = match pattern {
            // SAFETY: the caller's promise.
            FillPattern::Byte(value) => unsafe {
                driver!(cuMemsetD8Async(to, value, bytes, self.handle))
            },
            // SAFETY: as above.
            FillPattern::Half(value) => unsafe {
                driver!(cuMemsetD16Async(to, value, bytes / 2, self.handle))
            },
            // SAFETY: as above.
            FillPattern::Word(value) => unsafe {
                driver!(cuMemsetD32Async(to, value, bytes / 4, self.handle))
            },
        };
        self.gpu.checked(done)
    }

    pub(in crate::device) fn record(&self, event: &GpuEvent) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: both live; the driver refuses an event of another context.
        self.gpu.checked(unsafe { driver!(cuEventRecord(event.handle(), self.handle)) })
    }

    pub(in crate::device) fn wait(&self, event: &GpuEvent) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: both live; the event may be another GPU's.
        self.gpu.checked(unsafe { driver!(cuStreamWaitEvent(self.handle, event.handle(), 0)) })
    }

    pub(in crate::device) fn synchronize(&self) -> Result<(), StreamFailure> {
        self.gpu.bind()?;
        // SAFETY: the stream lives.
        unsafe { driver!(cuStreamSynchronize(self.handle)) }.map_err(StreamFailure::Work)
    }

    pub(in crate::device) fn is_idle(&self) -> Result<bool, StreamFailure> {
        self.gpu.bind()?;
        // SAFETY: the stream lives.
        match unsafe { driver!(cuStreamQuery(self.handle)) } {
            Ok(()) => Ok(true),
            Err(failure) if failure.code == CUresult::CUDA_ERROR_NOT_READY as u32 => Ok(false),
            Err(failure) => Err(StreamFailure::Work(failure)),
        }
    }

    /// From here to [`Self::end_capture`], work is recorded and does not run.
    ///
    /// Relaxed: a kernel's first launch, which loads its module, may fall into a capture.
    pub(in crate::device) fn begin_capture(&self) -> Result<()> {
        self.gpu.bind()?;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives.
        self.gpu.checked(unsafe { driver!(cuStreamBeginCapture_v2(self.handle, mode)) })
    }

    pub(in crate::device) fn end_capture(&self) -> Result<GpuGraph> {
        self.gpu.bind()?;
        let mut captured = ptr::null_mut();
        // SAFETY: ends what `begin_capture` began; writes one handle.
        let ended = unsafe { driver!(cuStreamEndCapture(self.handle, &raw mut captured)) };
        self.gpu.checked(ended)?;
        let mut executable = ptr::null_mut();
        // SAFETY: the graph was just captured; writes one handle.
        let instantiated =
            unsafe { driver!(cuGraphInstantiateWithFlags(&raw mut executable, captured, 0)) };
        // SAFETY: the executable graph keeps nothing of the captured one.
        let destroyed = unsafe { driver!(cuGraphDestroy(captured)) };
        self.gpu.checked(instantiated.and(destroyed))?;
        Ok(GpuGraph { gpu: self.gpu.clone(), executable: Mutex::new(executable) })
    }

    pub(in crate::device) fn replay(&self, graph: &GpuGraph) -> Result<()> {
        self.gpu.bind()?;
        let executable = lock(&graph.executable);
        // SAFETY: both live; the stream keeps the graph until it has waited for it.
        self.gpu.checked(unsafe { driver!(cuGraphLaunch(*executable, self.handle)) })
    }
}

impl Drop for GpuStream {
    fn drop(&mut self) {
        // The memory that pending work uses may be freed after this.
        let _ = self.synchronize();
        // SAFETY: created once; nothing is pending.
        let _ = unsafe { driver!(cuStreamDestroy_v2(self.handle)) };
    }
}

/// Lets a kernel's blocks start before the kernel before it on the stream has ended.
fn early_start() -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    }
}

/// Whether kernels that can start early do: not with `FARPAGE_EARLY_START=off`, which tells what
/// that gains.
fn early_starts_are_on() -> bool {
    static IS_ON: LazyLock<bool> = LazyLock::new(|| {
        std::env::var_os("FARPAGE_EARLY_START").is_none_or(|value| value != "off")
    });
    *IS_ON
}

/// What a wait for a stream ends in: the stream's own trouble, or that of the work on it.
pub(in crate::device) enum StreamFailure {
    Call(DeviceError),
    Work(DriverFailure),
}

impl From<DeviceError> for StreamFailure {
    fn from(error: DeviceError) -> Self {
        Self::Call(error)
    }
}

/// What a GPU can fill memory with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::device) enum FillPattern {
    Byte(u8),
    Half(u16),
    Word(u32),
}

impl FillPattern {
    /// The shortest pattern whose repetition is `value`.
    pub(in crate::device) fn of(value: &[u8]) -> Option<Self> {
        let repeats = |period: usize| {
            value.len().is_multiple_of(period)
                && value.chunks(period).all(|chunk| chunk == &value[..period])
        };
        match value {
            [] => None,
            _ if repeats(1) => Some(Self::Byte(value[0])),
            _ if repeats(2) => Some(Self::Half(u16::from_ne_bytes([value[0], value[1]]))),
            _ if repeats(4) => {
                Some(Self::Word(u32::from_ne_bytes([value[0], value[1], value[2], value[3]])))
            }
            _ => None,
        }
    }
}

/// Captured work, ready to replay. The driver does not lock graphs.
pub(in crate::device) struct GpuGraph {
    gpu: Arc<Gpu>,
    executable: Mutex<sys::CUgraphExec>,
}

// SAFETY: a graph belongs to no thread, and the lock lets one at a time use it.
unsafe impl Send for GpuGraph {}
// SAFETY: as above.
unsafe impl Sync for GpuGraph {}

impl Drop for GpuGraph {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: instantiated once; streams keep it until they have waited for it.
            let _ = unsafe { driver!(cuGraphExecDestroy(*lock(&self.executable))) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FillPattern;

    #[test]
    fn the_shortest_pattern_is_found() {
        assert_eq!(FillPattern::of(&[7]), Some(FillPattern::Byte(7)));
        assert_eq!(FillPattern::of(&[0; 16]), Some(FillPattern::Byte(0)));
        assert_eq!(FillPattern::of(&0x3f80_u16.to_ne_bytes()), Some(FillPattern::Half(0x3f80)));
        assert_eq!(
            FillPattern::of(bytemuck::bytes_of(&[1.5f32; 4])),
            Some(FillPattern::Word(1.5f32.to_bits()))
        );
        assert_eq!(FillPattern::of(&1.1f64.to_ne_bytes()), None);
        assert_eq!(FillPattern::of(&[1, 2, 3]), None);
    }
}
