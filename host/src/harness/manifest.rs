//! Where, when and with what a run is made.

use std::time::SystemTime;

use super::machine::{Machine, MachineError};
use super::results::Manifest;
use crate::comm::nccl;
use crate::device::driver_version;

/// Variables that change results, by name or by what they begin with.
const RELEVANT: [&str; 9] = [
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDA_DISABLE_PTX_JIT",
    "FARPAGE_",
    "NCCL_",
    "RAYON_NUM_THREADS",
];

impl Manifest {
    /// The facts of this machine, build and command, as of now.
    ///
    /// # Errors
    /// A device that does not tell what it is.
    pub fn gather(machine: &Machine, seed: u64) -> Result<Self, MachineError> {
        let is_cuda = machine.is_cuda();
        let count = if is_cuda { machine.num_devices() } else { 1 };
        let devices = machine.devices(count)?;
        let properties =
            devices.iter().map(|device| device.properties()).collect::<Result<Vec<_>, _>>()?;
        let cuda = if is_cuda { driver_version()? } else { None };
        let nccl = if is_cuda { nccl::installed().ok() } else { None };
        let ptx = properties[0].ptx.map(|ptx| ptx.arch.to_owned());
        Ok(Self {
            hardware: machine.hardware()?,
            devices: properties.into_iter().map(|properties| properties.name).collect(),
            cuda: cuda.map(|(major, minor)| format!("{major}.{minor}")).unwrap_or_default(),
            nccl: nccl.map(|(version, _)| version.to_string()).unwrap_or_default(),
            ptx: ptx.unwrap_or_default(),
            commit: env!("FARPAGE_COMMIT").to_owned(),
            dirty: env!("FARPAGE_DIRTY") == "true",
            started: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            arguments: std::env::args().skip(1).collect(),
            seed,
            environment: relevant(std::env::vars_os().filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
            })),
        })
    }
}

fn relevant(variables: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let is_relevant = |name: &str| RELEVANT.iter().any(|relevant| name.starts_with(relevant));
    let mut found: Vec<_> = variables.filter(|(name, _)| is_relevant(name)).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceChoice;

    #[test]
    fn of_the_environment_only_what_changes_results() {
        let variables =
            [("NCCL_ALGO", "Ring"), ("HOME", "/home/me"), ("CUDA_VISIBLE_DEVICES", "1")];
        let owned = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let found = relevant(owned.into_iter());
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["CUDA_VISIBLE_DEVICES", "NCCL_ALGO"]);
    }

    #[test]
    fn of_the_cpu_there_is_no_cuda_to_tell() {
        let machine = Machine::open(DeviceChoice::Cpu, None).unwrap();
        let manifest = Manifest::gather(&machine, 5).unwrap();
        assert_eq!((manifest.hardware.as_str(), manifest.devices.len()), ("cpu", 1));
        assert_eq!([&manifest.cuda, &manifest.nccl, &manifest.ptx], ["", "", ""]);
        assert!(manifest.started.ends_with('Z') && manifest.started.contains('T'));
        assert!(!manifest.commit.is_empty());
    }
}
