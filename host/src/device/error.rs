//! What can go wrong on a device, in words.

use cuda_std::cpu::memory::MemoryError;
use cuda_std::cpu::{Fault, Race};
use cuda_std::tensor_map::TilingError;

use super::DeviceId;

/// The result of a device operation.
pub type Result<T, E = DeviceError> = std::result::Result<T, E>;

/// An error code of the CUDA driver, and the call that returned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {name} ({code}): {text}")]
pub struct DriverFailure {
    /// The driver function.
    pub call: &'static str,
    /// `CUresult`.
    pub code: u32,
    /// The code's name, as in `cuda.h`.
    pub name: &'static str,
    /// What the driver says about it.
    pub text: &'static str,
}

/// Why a device could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The environment asks for a device that is none.
    #[error("FARPAGE_DEVICE={asked}: must be auto, cuda or cpu")]
    UnknownChoice {
        /// What it says.
        asked: String,
    },
    /// A GPU was asked for, and there is none.
    #[error("a GPU was asked for, but {reason}; `--device cpu` runs the same kernels on the CPU")]
    NoGpu {
        /// What was found instead.
        reason: String,
    },
    /// A driver is installed, and does not work. Never a reason to fall back to the CPU silently.
    #[error(
        "a CUDA driver is installed but does not start: {source}; `--device cpu` runs without it"
    )]
    BrokenDriver {
        /// What the driver said.
        source: DriverFailure,
    },
    /// There are fewer GPUs than the work needs.
    #[error(
        "GPU {ordinal} was asked for, but this machine shows {found} (CUDA_VISIBLE_DEVICES counts)"
    )]
    NoSuchGpu {
        /// The GPU asked for, from 0.
        ordinal: usize,
        /// How many there are.
        found: usize,
    },
    /// The GPU is older than the kernels.
    #[error(
        "GPU {ordinal} has compute capability {major}.{minor}; kernels need 8.0 (Ampere) or later"
    )]
    GpuTooOld {
        /// The GPU.
        ordinal: usize,
        /// Its compute capability.
        major: u32,
        /// Its compute capability, after the point.
        minor: u32,
    },
    /// This build embeds no PTX.
    #[error("this build holds no GPU kernels; {}", super::ptx::HOW_TO_EMBED)]
    NoPtx,
    /// The runtime override names an architecture that is not embedded.
    #[error("FARPAGE_PTX_ARCH={asked}: this build embeds {embedded}")]
    NoSuchPtx {
        /// What the variable says.
        asked: String,
        /// What is there.
        embedded: String,
    },
    /// The driver refused a kernel's PTX.
    #[error("{device} refused kernel {kernel}: {source}\n{log}")]
    PtxRefused {
        /// The device.
        device: DeviceId,
        /// The kernel.
        kernel: &'static str,
        /// What the driver said.
        source: DriverFailure,
        /// The log of its PTX compiler.
        log: String,
    },
    /// A kernel is for Hopper only, and this device runs the portable ones.
    #[error("kernel {kernel} needs sm_90a kernels (Hopper); {device} runs {arch}")]
    KernelNeedsHopper {
        /// The kernel.
        kernel: &'static str,
        /// The device.
        device: DeviceId,
        /// What it runs.
        arch: &'static str,
    },
    /// The embedded PTX does not hold a kernel.
    #[error("kernel {kernel} is not in the embedded {arch} kernels")]
    KernelMissing {
        /// The kernel.
        kernel: &'static str,
        /// The module's architecture.
        arch: &'static str,
    },
    /// A launch that no device can run.
    #[error("launch of {kernel}: {argument}: needs {needed}, got {got}")]
    Launch {
        /// The kernel.
        kernel: &'static str,
        /// The offending part of the launch.
        argument: &'static str,
        /// What it must be.
        needed: String,
        /// What it was.
        got: String,
    },
    /// The driver refused a launch.
    #[error("launch of {kernel} on {device}: {source}")]
    LaunchRefused {
        /// The kernel.
        kernel: &'static str,
        /// The device.
        device: DeviceId,
        /// What the driver said.
        source: DriverFailure,
    },
    /// Work on a stream failed; seen when the host waited for it.
    #[error("{device} failed; launched last: {kernels}: {source}")]
    WorkFailed {
        /// The device.
        device: DeviceId,
        /// The kernels launched since the last successful wait, oldest first.
        kernels: String,
        /// What the driver said.
        source: DriverFailure,
    },
    /// The CPU executor caught a kernel doing what a GPU leaves undefined.
    #[error("{device}: {source}")]
    Fault {
        /// The device.
        device: DeviceId,
        /// What was caught.
        source: Box<Fault>,
    },
    /// Nothing orders a copy or a fill with something else that accesses the same memory, on the CPU,
    /// where races are looked for.
    #[error("{device}: data race: {source}")]
    Race {
        /// The device.
        device: DeviceId,
        /// The two accesses.
        source: Box<Race>,
    },
    /// Memory is short.
    #[error(
        "{device} has no room for {needed_bytes} bytes: {free_bytes} of {total_bytes} are free"
    )]
    OutOfMemory {
        /// The device.
        device: DeviceId,
        /// Bytes asked for.
        needed_bytes: usize,
        /// Bytes free.
        free_bytes: usize,
        /// Bytes there are.
        total_bytes: usize,
    },
    /// The machine is short of memory.
    #[error("{device}: {source}")]
    HostMemory {
        /// The device.
        device: DeviceId,
        /// What the system said.
        source: MemoryError,
    },
    /// A range that its buffer does not hold.
    #[error("{operation}: elements {start}..{end} of a buffer of {len}")]
    OutOfRange {
        /// What was asked for.
        operation: &'static str,
        /// First element of the range.
        start: usize,
        /// One past its last.
        end: usize,
        /// Elements of the buffer.
        len: usize,
    },
    /// Two sides of a copy differ in length.
    #[error("{operation}: source has {source_len} elements, destination {destination_len}")]
    LengthMismatch {
        /// What was asked for.
        operation: &'static str,
        /// Elements of the source.
        source_len: usize,
        /// Elements of the destination.
        destination_len: usize,
    },
    /// Devices of different kinds were mixed.
    #[error("{operation}: mixes memory or streams of {first} and {second}")]
    MixedDevices {
        /// What was asked for.
        operation: &'static str,
        /// One device.
        first: DeviceId,
        /// The other.
        second: DeviceId,
    },
    /// A value that a GPU cannot fill memory with.
    #[error(
        "fill: a GPU repeats patterns of 1, 2 or 4 bytes, and this value of {value_bytes} has none"
    )]
    FillPattern {
        /// The value's size.
        value_bytes: usize,
    },
    /// A tensor map that the copy engine does not take.
    #[error(transparent)]
    Tiling(#[from] TilingError),
    /// An operation that waits for the host, inside a capture.
    #[error("{operation}: not while the stream is being captured into a graph")]
    DuringCapture {
        /// What was asked for.
        operation: &'static str,
    },
    /// A graph captured on a device of another kind.
    #[error("launch of a graph: it was not captured for {device}")]
    ForeignGraph {
        /// The device that was to run it.
        device: DeviceId,
    },
    /// Events that cannot be subtracted.
    #[error("elapsed time: both events must have been recorded, outside of a capture")]
    NotRecorded,
    /// Two GPUs cannot reach each other's memory.
    #[error("{device} cannot reach the memory of {peer}: no peer access between them")]
    NoPeerAccess {
        /// The device that would read.
        device: DeviceId,
        /// The device whose memory it is.
        peer: DeviceId,
    },
    /// Any other failure of a driver call.
    #[error("{device}: {source}")]
    Driver {
        /// The device.
        device: DeviceId,
        /// What the driver said.
        source: DriverFailure,
    },
}
