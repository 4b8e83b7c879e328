//! Which device a command runs on, and why.

use super::cpu::{CpuDevice, executor_config};
use super::cuda::{DriverState, Gpu, state};
use super::{Device, DeviceError, Result, ptx};

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if there is one that can run the embedded kernels, else the CPU.
    #[default]
    Auto,
    /// The first GPU, or an error.
    Cuda,
    /// The CPU.
    Cpu,
}

impl DeviceChoice {
    /// What the environment variable `FARPAGE_DEVICE` asks for: `auto`, `cuda` or `cpu`; `Auto`
    /// without it. For programs whose command line is not ours, as benches.
    pub fn from_env() -> Result<Self> {
        match std::env::var("FARPAGE_DEVICE").as_deref() {
            Err(_) | Ok("auto") => Ok(Self::Auto),
            Ok("cuda") => Ok(Self::Cuda),
            Ok("cpu") => Ok(Self::Cpu),
            Ok(asked) => Err(DeviceError::UnknownChoice { asked: asked.to_owned() }),
        }
    }
}

/// What comes of a choice, before a GPU is opened.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Gpu(&'static str),
    Cpu(String),
}

pub(super) fn select(choice: DeviceChoice) -> Result<Device> {
    let cpu = |reason: &str| Device::from_cpu(CpuDevice::new(executor_config(), 0), reason);
    // The driver is not even loaded for a command that runs on the CPU.
    if choice == DeviceChoice::Cpu {
        return Ok(cpu("asked for"));
    }
    match decide(choice, state(), !ptx::embedded_archs().is_empty())? {
        Decision::Cpu(reason) => Ok(cpu(&reason)),
        Decision::Gpu(reason) => {
            let gpu = Gpu::open(0)?;
            let (major, minor) = gpu.compute_capability()?;
            if major >= 8 {
                return Ok(Device::from_gpu(gpu, reason));
            }
            let error = DeviceError::GpuTooOld { ordinal: 0, major, minor };
            match choice {
                DeviceChoice::Auto => Ok(cpu(&error.to_string())),
                _ => Err(error),
            }
        }
    }
}

fn decide(choice: DeviceChoice, driver: DriverState, has_ptx: bool) -> Result<Decision> {
    let no_gpu = match driver {
        DriverState::Broken(source) => return Err(DeviceError::BrokenDriver { source }),
        DriverState::Absent => "no CUDA driver library was found",
        DriverState::NoGpu => "the CUDA driver shows no GPU",
        DriverState::Gpus(_) if !has_ptx => {
            return match choice {
                DeviceChoice::Auto => Ok(Decision::Cpu(DeviceError::NoPtx.to_string())),
                _ => Err(DeviceError::NoPtx),
            };
        }
        DriverState::Gpus(_) if choice == DeviceChoice::Auto => {
            return Ok(Decision::Gpu("the first GPU found"));
        }
        DriverState::Gpus(_) => return Ok(Decision::Gpu("asked for")),
    };
    match choice {
        DeviceChoice::Auto => Ok(Decision::Cpu(no_gpu.to_owned())),
        _ => Err(DeviceError::NoGpu { reason: no_gpu.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DriverFailure;

    fn broken() -> DriverState {
        DriverState::Broken(DriverFailure {
            call: "cuInit",
            code: 803,
            name: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
            text: "system has unsupported display driver / cuda driver combination",
        })
    }

    #[test]
    fn auto_takes_the_gpu_when_kernels_and_gpu_are_there() {
        let decision = decide(DeviceChoice::Auto, DriverState::Gpus(2), true).unwrap();
        assert_eq!(decision, Decision::Gpu("the first GPU found"));
    }

    #[test]
    fn auto_says_why_it_takes_the_cpu() {
        for (driver, has_ptx, why) in [
            (DriverState::Absent, true, "no CUDA driver library"),
            (DriverState::NoGpu, true, "shows no GPU"),
            (DriverState::Gpus(1), false, "no GPU kernels"),
        ] {
            match decide(DeviceChoice::Auto, driver, has_ptx).unwrap() {
                Decision::Cpu(reason) => assert!(reason.contains(why), "{reason}"),
                Decision::Gpu(reason) => panic!("took the GPU: {reason}"),
            }
        }
    }

    #[test]
    fn a_broken_driver_is_never_a_silent_fallback() {
        for choice in [DeviceChoice::Auto, DeviceChoice::Cuda] {
            let error = decide(choice, broken(), true).unwrap_err().to_string();
            assert!(error.contains("cuInit") && error.contains("--device cpu"), "{error}");
        }
    }

    #[test]
    fn asking_for_a_gpu_never_gives_the_cpu() {
        for (driver, has_ptx) in
            [(DriverState::Absent, true), (DriverState::NoGpu, true), (DriverState::Gpus(1), false)]
        {
            assert!(decide(DeviceChoice::Cuda, driver, has_ptx).is_err());
        }
    }

    #[test]
    fn the_cpu_is_there_whatever_the_driver() {
        let device = select(DeviceChoice::Cpu).unwrap();
        assert!(!device.is_cuda());
        assert!(device.describe().ends_with("(asked for)"), "{}", device.describe());
    }
}
