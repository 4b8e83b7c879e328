//! What a device is made of, and what connects two.

use std::fmt;

use super::{Kind, PtxModule, Result};

/// What a device is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceProperties {
    /// As the driver names it.
    pub name: String,
    /// Streaming multiprocessors; on the CPU, worker threads.
    pub num_multiprocessors: u32,
    /// Memory, in bytes; unknown on the CPU.
    pub memory: Option<MemoryBytes>,
    /// L2 cache, in bytes; unknown on the CPU.
    pub l2_bytes: Option<usize>,
    /// Compute capability; none on the CPU.
    pub compute_capability: Option<(u32, u32)>,
    /// The kernels that it runs; none on the CPU, and for a GPU whose kernels are not embedded.
    pub ptx: Option<PtxModule>,
}

/// Memory of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBytes {
    /// Not allocated by anybody.
    pub free: usize,
    /// All of it.
    pub total: usize,
}

pub(super) fn of(kind: &Kind) -> Result<DeviceProperties> {
    match kind {
        Kind::Cuda(gpu) => {
            let (free, total) = gpu.memory_bytes()?;
            Ok(DeviceProperties {
                name: gpu.name()?,
                num_multiprocessors: gpu.num_multiprocessors()?,
                memory: Some(MemoryBytes { free, total }),
                l2_bytes: Some(gpu.l2_bytes()?),
                compute_capability: Some(gpu.compute_capability()?),
                ptx: gpu.ptx().ok(),
            })
        }
        Kind::Cpu(cpu) => Ok(DeviceProperties {
            name: "CPU".to_owned(),
            num_multiprocessors: cpu.num_workers(),
            memory: None,
            l2_bytes: None,
            compute_capability: None,
            ptx: None,
        }),
    }
}

impl fmt::Display for DeviceProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((major, minor)) = self.compute_capability else {
            let workers = self.num_multiprocessors;
            let plural = if workers == 1 { "" } else { "s" };
            return write!(f, "{}, {workers} worker{plural}", self.name);
        };
        write!(f, "{}, {} SMs", self.name, self.num_multiprocessors)?;
        if let Some(memory) = self.memory {
            write!(f, ", {:.0} GiB", memory.total as f64 / (1u64 << 30) as f64)?;
        }
        write!(f, ", compute capability {major}.{minor}, ")?;
        match self.ptx {
            Some(ptx) => write!(f, "{} kernels", ptx.arch),
            None => write!(f, "no kernels"),
        }
    }
}

/// What one device can do with another's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLink {
    /// Kernels and copies can reach it.
    pub access: bool,
    /// Atomic operations on it are the hardware's: so it is over NVLink, not over PCIe.
    pub native_atomics: bool,
    /// The driver's ranking of links, 0 the best.
    pub performance_rank: i32,
}

impl PeerLink {
    /// Ranks on the CPU share their memory.
    pub(super) const SHARED: Self =
        Self { access: true, native_atomics: true, performance_rank: 0 };
}

impl fmt::Display for PeerLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.access, self.native_atomics) {
            (false, _) => return write!(f, "no peer access"),
            (true, true) => write!(f, "peer access with native atomics, as over NVLink")?,
            (true, false) => write!(f, "peer access without native atomics, as over PCIe")?,
        }
        write!(f, "; performance rank {}", self.performance_rank)
    }
}
