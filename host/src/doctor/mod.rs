//! What this machine and this build have for running kernels, and what follows from it.

mod report;
#[cfg(test)]
mod tests;

use std::fs;

pub use report::Report;

use crate::comm::nccl;
use crate::device::{
    Device, DeviceChoice, DeviceProperties, PeerLink, driver_version, num_gpus, ptx,
};

/// The device that commands run on.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Whether it is a GPU.
    pub is_gpu: bool,
    /// The line that every command prints first.
    pub line: String,
}

/// What a GPU says about itself.
#[derive(Clone, Debug)]
pub struct GpuReport {
    /// Its properties, or why it does not tell.
    pub properties: Result<DeviceProperties, String>,
    /// The way to the memory of each GPU, by ordinal; none to its own.
    pub links: Vec<Option<Result<PeerLink, String>>>,
}

/// The CUDA driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverReport {
    /// The newest CUDA version that it supports.
    pub cuda: (u32, u32),
    /// The kernel module's own version, where the system tells.
    pub module: Option<String>,
}

impl Report {
    /// Looks at this machine, as a command with this choice of device would.
    pub fn gather(choice: DeviceChoice) -> Self {
        Self {
            device: Device::select(choice)
                .map(|device| Chosen { is_gpu: device.is_cuda(), line: device.describe() })
                .map_err(|error| error.to_string()),
            driver: driver_version().map_err(|error| error.to_string()).map(|cuda| {
                let module = fs::read_to_string("/sys/module/nvidia/version").ok();
                let module = module.map(|version| version.trim().to_owned());
                cuda.map(|cuda| DriverReport { cuda, module })
            }),
            gpus: gpus(),
            nccl: nccl::installed().map_err(|error| error.to_string()),
            ptx: ptx::embedded_archs(),
        }
    }
}

fn gpus() -> Vec<GpuReport> {
    let devices: Vec<Result<Device, String>> = (0..num_gpus().unwrap_or(0))
        .map(|ordinal| Device::cuda(ordinal).map_err(|error| error.to_string()))
        .collect();
    let describe = |device: &Result<Device, String>| {
        let properties = |device: &Device| device.properties().map_err(|error| error.to_string());
        let link = |peer: &Result<Device, String>| {
            let (device, peer) = (device.as_ref().ok()?, peer.as_ref().ok()?);
            (device.id() != peer.id())
                .then(|| device.peer_link(peer).map_err(|error| error.to_string()))
        };
        GpuReport {
            properties: device.as_ref().map_err(Clone::clone).and_then(properties),
            links: devices.iter().map(link).collect(),
        }
    };
    devices.iter().map(describe).collect()
}
