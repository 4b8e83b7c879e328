//! The devices that the harness has.

use std::sync::{Arc, Mutex, PoisonError};

use super::pair::ShapeSet;
use crate::comm::World;
use crate::device::{Device, DeviceChoice, DeviceError, num_gpus};

/// This machine's GPUs, or its CPU as any number of devices.
#[derive(Clone, Debug)]
pub struct Machine {
    first: Device,
    /// GPUs opened so far, by ordinal: one that is opened anew loads its kernels anew.
    opened: Arc<Mutex<Vec<Device>>>,
    /// GPUs of the machine; on the CPU, ranks beyond counting.
    available: usize,
    /// The most that may be used.
    world_size: Option<usize>,
}

/// Why a machine cannot be used as asked.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A limit above what there is.
    #[error("`--world-size` must be 1 to {available}, the GPUs of this machine, got {got}")]
    WorldSize {
        /// GPUs of this machine.
        available: usize,
        /// What was asked for.
        got: usize,
    },
    /// No such device, or one that does not start.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Too few GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("needs {needed} GPUs, found {found}{}", if *.is_limited { " within `--world-size`" } else { "" })]
pub struct Shortage {
    /// GPUs that the shape takes.
    pub needed: usize,
    /// GPUs that may be used.
    pub found: usize,
    /// Whether the machine has more.
    pub is_limited: bool,
}

impl Machine {
    /// The devices of `choice`, at most `world_size` of them.
    ///
    /// # Errors
    /// No such device; a world larger than the machine, or empty.
    pub fn open(choice: DeviceChoice, world_size: Option<usize>) -> Result<Self, MachineError> {
        let first = Device::select(choice)?;
        let available = if first.is_cuda() { num_gpus()? } else { usize::MAX };
        match world_size {
            Some(got) if got == 0 || got > available => {
                Err(MachineError::WorldSize { available, got })
            }
            _ => {
                let opened = Arc::new(Mutex::new(vec![first.clone()]));
                Ok(Self { first, opened, available, world_size })
            }
        }
    }

    /// Whether it is GPUs.
    pub fn is_cuda(&self) -> bool {
        self.first.is_cuda()
    }

    /// The shapes that a command takes unless told otherwise: real ones on GPUs, tiny ones on the
    /// CPU.
    pub fn usual_shapes(&self) -> ShapeSet {
        if self.is_cuda() { ShapeSet::Real } else { ShapeSet::Tiny }
    }

    /// The line that every command prints first.
    pub fn describe(&self) -> String {
        match (self.is_cuda(), self.num_devices()) {
            (true, 2..) => format!("{}, {} in all", self.first.describe(), self.num_devices()),
            _ => self.first.describe(),
        }
    }

    /// Devices that may be used: GPUs, or ranks of the CPU, beyond counting without a limit.
    pub fn num_devices(&self) -> usize {
        self.world_size.unwrap_or(self.available)
    }

    /// Why a shape of `needed` GPUs cannot run here, if so.
    ///
    /// # Errors
    /// That.
    pub fn check(&self, needed: usize) -> Result<(), Shortage> {
        let found = self.num_devices();
        if needed <= found {
            return Ok(());
        }
        Err(Shortage { needed, found, is_limited: found < self.available })
    }

    /// The first `count` devices, which [`check`](Self::check) has found to be there.
    ///
    /// # Errors
    /// A GPU that does not start.
    pub fn devices(&self, count: usize) -> Result<Vec<Device>, DeviceError> {
        if !self.is_cuda() && count > 1 {
            return Ok(World::cpu(count).devices().to_vec());
        }
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        for ordinal in opened.len()..count {
            opened.push(Device::cuda(ordinal)?);
        }
        Ok(opened[..count].to_vec())
    }

    /// `h200`, `h200_x2`, `cpu`: what expectations of this machine are filed under.
    ///
    /// # Errors
    /// A GPU that does not tell its name.
    pub fn hardware(&self) -> Result<String, DeviceError> {
        if !self.is_cuda() {
            return Ok("cpu".to_owned());
        }
        Ok(hardware_key(&self.first.properties()?.name, self.num_devices()))
    }
}

fn hardware_key(name: &str, num_gpus: usize) -> String {
    let name = name.strip_prefix("NVIDIA ").unwrap_or(name).to_lowercase();
    let words: Vec<&str> =
        name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let count = if num_gpus > 1 { format!("_x{num_gpus}") } else { String::new() };
    words.join("_") + &count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_is_a_file_name() {
        assert_eq!(hardware_key("NVIDIA H200", 1), "h200");
        assert_eq!(hardware_key("NVIDIA H200", 2), "h200_x2");
        assert_eq!(hardware_key("NVIDIA A100-SXM4-80GB", 4), "a100_sxm4_80gb_x4");
        assert_eq!(Machine::open(DeviceChoice::Cpu, None).unwrap().hardware().unwrap(), "cpu");
    }

    #[test]
    fn the_cpu_is_as_many_devices_as_asked_for_up_to_the_limit() {
        let machine = Machine::open(DeviceChoice::Cpu, None).unwrap();
        assert_eq!(machine.check(64), Ok(()));
        let devices = machine.devices(3).unwrap();
        assert_eq!(devices.len(), 3);
        assert_ne!(devices[0].id(), devices[2].id());

        let machine = Machine::open(DeviceChoice::Cpu, Some(2)).unwrap();
        assert_eq!(machine.check(2), Ok(()));
        let shortage = machine.check(4).unwrap_err().to_string();
        assert_eq!(shortage, "needs 4 GPUs, found 2 within `--world-size`");
        let of_the_machine = Shortage { needed: 4, found: 1, is_limited: false };
        assert_eq!(of_the_machine.to_string(), "needs 4 GPUs, found 1");
    }
}
