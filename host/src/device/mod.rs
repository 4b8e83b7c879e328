//! Devices: NVIDIA GPUs, and the CPU as one.
//!
//! A [`Device`] gives memory ([`Buffer`], [`PinnedBuffer`]) and [`Stream`]s; streams run kernels,
//! copies and fills in the order they were issued; [`Event`]s order streams among each other and
//! take the time; a [`Graph`] replays what a stream was given once. The same calls mean the same
//! on both kinds of device. On the CPU an operation is done when the call returns, so programs
//! must not rely on anything being *unfinished*.
//!
//! | | GPU | CPU |
//! |---|---|---|
//! | kernels | PTX embedded in the executable | the same source on the SIMT executor |
//! | fresh memory | undefined | poisoned: reading it is reported |
//! | out of bounds, divergent barriers | undefined | reported as [`DeviceError::Fault`] |
//! | events, priorities | the driver's | order holds trivially; wall-clock time |
//!
//! Memory stays alive until the copies and graphs that use it are done. Kernels take plain
//! addresses: their launch is unsafe, and launchers [keep](Stream::keep) the memory.

mod choice;
mod cpu;
mod cuda;
mod error;
mod event;
#[cfg(test)]
mod gpu_tests;
mod graph;
mod mapped_file;
mod memory;
pub mod nvtx;
mod properties;
pub mod ptx;
#[cfg(test)]
mod race_tests;
mod stream;
mod tensor_map;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;
use cuda_std::cpu::ExecutorConfig;
pub use cuda_std::cpu::LaunchDims;

pub use choice::DeviceChoice;
pub use error::{DeviceError, DriverFailure, Result};
pub use event::Event;
pub use graph::Graph;
pub use mapped_file::MappedFile;
pub(crate) use memory::Extent;
pub use memory::{Buffer, PinnedBuffer, Slice};
pub use properties::{DeviceProperties, MemoryBytes, PeerLink};
pub use ptx::PtxModule;
pub use stream::{Stream, StreamPriority};

use cpu::CpuDevice;
pub(crate) use cpu::executor_config;
use cuda::Gpu;

/// A GPU, or the CPU as a device. Cheap to clone; usable from any thread.
#[derive(Clone)]
pub struct Device {
    kind: Kind,
    /// Why it was chosen.
    reason: Arc<str>,
    launched: Arc<Mutex<BTreeSet<&'static str>>>,
}

#[derive(Clone)]
enum Kind {
    Cuda(Arc<Gpu>),
    Cpu(Arc<CpuDevice>),
}

/// Which device: as errors and tables name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceId {
    /// The GPU of this ordinal.
    Gpu(usize),
    /// The CPU, as this rank's device.
    Cpu(usize),
}

impl DeviceId {
    /// Whether it is a GPU.
    pub fn is_gpu(self) -> bool {
        matches!(self, Self::Gpu(_))
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gpu(ordinal) => write!(f, "GPU {ordinal}"),
            Self::Cpu(rank) => write!(f, "CPU rank {rank}"),
        }
    }
}

impl Device {
    /// The device that a command runs on: the first GPU, or the CPU.
    ///
    /// `Auto` takes the CPU where there is no driver, no GPU of compute capability 8.0, or no
    /// GPU kernel in this build, and [`Self::describe`] says so. A driver that is there and does
    /// not start is an error.
    pub fn select(choice: DeviceChoice) -> Result<Self> {
        choice::select(choice)
    }

    /// GPU `ordinal`, from 0.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        let found = num_gpus()?;
        if ordinal >= found {
            return Err(DeviceError::NoSuchGpu { ordinal, found });
        }
        Ok(Self::from_gpu(Gpu::open(ordinal)?, "asked for"))
    }

    /// The CPU, with a worker for each core.
    pub fn cpu() -> Self {
        Self::cpu_with(executor_config(), 0)
    }

    /// The CPU as the device of `rank`, with an executor of its own.
    pub fn cpu_with(config: ExecutorConfig, rank: usize) -> Self {
        Self::from_cpu(CpuDevice::new(config, rank), "asked for")
    }

    /// The device, but without looking for races, if it is the CPU.
    pub(crate) fn letting_races_be(&self) -> Self {
        match &self.kind {
            Kind::Cuda(_) => self.clone(),
            Kind::Cpu(cpu) => {
                let kind = Kind::Cpu(Arc::new(cpu.letting_races_be()));
                Self { kind, ..self.clone() }
            }
        }
    }

    fn from_gpu(gpu: Arc<Gpu>, reason: &str) -> Self {
        Self::new(Kind::Cuda(gpu), reason)
    }

    fn from_cpu(cpu: CpuDevice, reason: &str) -> Self {
        Self::new(Kind::Cpu(Arc::new(cpu)), reason)
    }

    fn new(kind: Kind, reason: &str) -> Self {
        Self { kind, reason: reason.into(), launched: Arc::default() }
    }

    /// Which device this is.
    pub fn id(&self) -> DeviceId {
        match &self.kind {
            Kind::Cuda(gpu) => gpu.id(),
            Kind::Cpu(cpu) => cpu.id(),
        }
    }

    /// Whether this is a GPU.
    pub fn is_cuda(&self) -> bool {
        matches!(self.kind, Kind::Cuda(_))
    }

    /// The first line that every command prints: which device, and why.
    pub fn describe(&self) -> String {
        let what = match self.properties() {
            Ok(properties) => properties.to_string(),
            Err(error) => error.to_string(),
        };
        match &self.kind {
            Kind::Cuda(gpu) => format!("device: GPU {}, {what} ({})", gpu.ordinal(), self.reason),
            Kind::Cpu(_) => format!("device: {what} ({})", self.reason),
        }
    }

    /// `len` elements of device memory: undefined on a GPU, poisoned on the CPU.
    pub fn alloc<T: Pod>(&self, len: usize) -> Result<Buffer<T>> {
        Buffer::new(self, len)
    }

    /// `len` elements of device memory, every byte 0.
    pub fn alloc_zeroed<T: Pod>(&self, len: usize) -> Result<Buffer<T>> {
        let buffer = self.alloc(len)?;
        let stream = self.new_stream()?;
        stream.fill_bytes(&buffer, 0)?;
        stream.synchronize()?;
        Ok(buffer)
    }

    /// `len` elements of page-locked host memory that kernels and copies of every GPU reach;
    /// zeroed. On the CPU, memory like any other.
    pub fn alloc_pinned<T: Pod>(&self, len: usize) -> Result<PinnedBuffer<T>> {
        PinnedBuffer::new(self, len)
    }

    /// A stream of low priority: the usual one.
    pub fn new_stream(&self) -> Result<Stream> {
        self.new_stream_with_priority(StreamPriority::Low)
    }

    /// A stream whose blocks go before those of streams of lower priority.
    pub fn new_stream_with_priority(&self, priority: StreamPriority) -> Result<Stream> {
        Stream::new(self, priority)
    }

    /// An event, not recorded yet.
    pub fn new_event(&self) -> Result<Event> {
        Event::new(self)
    }

    /// Names of the kernels that its streams were given so far, captured ones included.
    pub fn launched_kernels(&self) -> Vec<&'static str> {
        lock(&self.launched).iter().copied().collect()
    }

    /// Streaming multiprocessors; on the CPU, worker threads. Soon told, unlike all
    /// [properties](Self::properties), for which the driver counts its memory.
    pub fn num_multiprocessors(&self) -> Result<u32> {
        match &self.kind {
            Kind::Cuda(gpu) => gpu.num_multiprocessors(),
            Kind::Cpu(cpu) => Ok(cpu.num_workers()),
        }
    }

    /// Whether it runs the kernels that only Hopper has; the CPU runs all. Soon told.
    pub fn has_hopper_kernels(&self) -> bool {
        match &self.kind {
            Kind::Cuda(gpu) => gpu.ptx().is_ok_and(PtxModule::is_hopper),
            Kind::Cpu(_) => true,
        }
    }

    /// What the device is made of.
    pub fn properties(&self) -> Result<DeviceProperties> {
        properties::of(&self.kind)
    }

    /// What this device can do with `peer`'s memory, and how well.
    pub fn peer_link(&self, peer: &Self) -> Result<PeerLink> {
        match (&self.kind, &peer.kind) {
            (Kind::Cuda(gpu), Kind::Cuda(peer)) => gpu.peer_link(peer),
            (Kind::Cpu(_), Kind::Cpu(_)) => Ok(PeerLink::SHARED),
            _ => Err(self.mixed("peer access", peer)),
        }
    }

    /// Whether kernels of this device can reach `peer`'s memory, once enabled.
    pub fn can_access_peer(&self, peer: &Self) -> Result<bool> {
        Ok(self.id() == peer.id() || self.peer_link(peer)?.access)
    }

    /// Lets kernels and copies of this device reach `peer`'s memory, present and future. May be
    /// called any number of times.
    pub fn enable_peer_access(&self, peer: &Self) -> Result<()> {
        match (&self.kind, &peer.kind) {
            (Kind::Cuda(gpu), Kind::Cuda(peer)) => gpu.enable_peer_access(peer),
            (Kind::Cpu(_), Kind::Cpu(_)) => Ok(()),
            _ => Err(self.mixed("peer access", peer)),
        }
    }

    /// Makes a GPU the calling thread's, for libraries that ask which one is.
    pub(crate) fn bind(&self) -> Result<()> {
        match &self.kind {
            Kind::Cuda(gpu) => gpu.bind(),
            Kind::Cpu(_) => Ok(()),
        }
    }

    fn mixed(&self, operation: &'static str, other: &Self) -> DeviceError {
        DeviceError::MixedDevices { operation, first: self.id(), second: other.id() }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.id())
    }
}

/// How many GPUs the driver shows; 0 without a driver.
pub fn num_gpus() -> Result<usize> {
    match cuda::state() {
        cuda::DriverState::Absent | cuda::DriverState::NoGpu => Ok(0),
        cuda::DriverState::Broken(source) => Err(DeviceError::BrokenDriver { source }),
        cuda::DriverState::Gpus(found) => Ok(found),
    }
}

/// The newest CUDA version that the installed driver supports; none without a driver.
pub fn driver_version() -> Result<Option<(u32, u32)>> {
    match cuda::state() {
        cuda::DriverState::Absent => Ok(None),
        cuda::DriverState::Broken(source) => Err(DeviceError::BrokenDriver { source }),
        cuda::DriverState::NoGpu | cuda::DriverState::Gpus(_) => {
            cuda::version().map(Some).map_err(|source| DeviceError::BrokenDriver { source })
        }
    }
}

/// The data behind a lock; a panic elsewhere leaves plain data behind, which is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
