//! The CPU side: memory and launches of the SIMT executor.

use std::ptr;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;

use cuda_std::Kernel;
use cuda_std::cpu::memory::{Allocation, MemoryError};
use cuda_std::cpu::{Access, Executor, ExecutorConfig, Queue};
use cuda_std::global::{Global, GlobalMut};

use super::cuda::FillPattern;
use super::{DeviceError, DeviceId, LaunchDims, Result};

/// How this process runs kernels on the CPU: without looking for races, which takes up to three times
/// as long, unless `FARPAGE_CHECK_RACES` is set, and not to `off`. The tests of the kernels do look.
pub(crate) fn executor_config() -> ExecutorConfig {
    let check_races = std::env::var_os("FARPAGE_CHECK_RACES").is_some_and(|value| value != "off");
    ExecutorConfig { check_races, ..ExecutorConfig::default() }
}

pub(super) struct CpuDevice {
    executor: Executor,
    rank: usize,
}

impl CpuDevice {
    pub(super) fn new(config: ExecutorConfig, rank: usize) -> Self {
        Self { executor: Executor::new(config), rank }
    }

    pub(super) fn letting_races_be(&self) -> Self {
        let config = ExecutorConfig { check_races: false, ..*self.executor.config() };
        Self::new(config, self.rank)
    }

    pub(super) fn id(&self) -> DeviceId {
        DeviceId::Cpu(self.rank)
    }

    pub(super) fn num_workers(&self) -> u32 {
        let workers = match self.executor.config().num_workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        u32::try_from(workers).unwrap_or(u32::MAX)
    }

    /// # Safety
    /// As [`super::Stream::launch`].
    pub(super) unsafe fn launch<K: Kernel>(
        &self,
        queue: &Queue,
        config: LaunchDims,
        kernel: K,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.executor.launch_on(queue, config, kernel) }
            .map_err(|fault| DeviceError::Fault { device: self.id(), source: Box::new(fault) })
    }
}

/// One allocation. Copies exclude each other, so that they are sound from any thread; kernels do
/// not, as their launch promises. Copies are work of a queue; where that tells no order between two
/// accesses, and races are looked for, the later one is refused.
pub(super) struct CpuMemory {
    allocation: Allocation,
    device: DeviceId,
    check_races: bool,
    copying: RwLock<()>,
}

impl CpuMemory {
    /// Memory whose reading is reported until something wrote it, as far as the executor checks.
    pub(super) fn poisoned(cpu: &CpuDevice, bytes: usize) -> Result<Self> {
        let allocation = match cpu.executor.config().check_init {
            true => Allocation::with_init_check(bytes),
            false => Allocation::new(bytes),
        };
        Self::of(cpu, allocation)
    }

    pub(super) fn zeroed(cpu: &CpuDevice, bytes: usize) -> Result<Self> {
        let memory = Self::of(cpu, Allocation::new(bytes))?;
        memory.set(0, FillPattern::Byte(0), bytes);
        Ok(memory)
    }

    fn of(cpu: &CpuDevice, allocation: Result<Allocation, MemoryError>) -> Result<Self> {
        let device = cpu.id();
        let allocation = allocation.map_err(|source| DeviceError::HostMemory { device, source })?;
        let check_races = cpu.executor.config().check_races;
        Ok(Self { allocation, device, check_races, copying: RwLock::new(()) })
    }

    pub(super) fn device_id(&self) -> DeviceId {
        self.device
    }

    pub(super) fn address(&self) -> u64 {
        self.allocation.address()
    }

    pub(super) fn host(&self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.address() as usize)
    }

    pub(super) fn view<T: bytemuck::AnyBitPattern>(&self) -> GlobalMut<T> {
        self.allocation.view_mut()
    }

    /// `len` elements from byte `offset` on, all of which the allocation has.
    pub(super) fn view_of<T: bytemuck::AnyBitPattern>(
        &self,
        offset: usize,
        len: usize,
    ) -> Global<T> {
        // SAFETY: an allocation is aligned for every element, and the CPU checks every access.
        unsafe { Global::from_address(self.address() + offset as u64, len) }
    }

    pub(super) fn read(&self, queue: &Queue, offset: usize, destination: &mut [u8]) -> Result<()> {
        self.note(queue, &[(Access::GlobalLoad, self, offset)], destination.len())?;
        let _reading = self.reading();
        // SAFETY: other copies are locked out; kernels, by the promise of their launch.
        let done = unsafe { self.allocation.read(offset, destination) };
        done.expect(CHECKED);
        Ok(())
    }

    pub(super) fn write(&self, queue: &Queue, offset: usize, source: &[u8]) -> Result<()> {
        self.note(queue, &[(Access::GlobalStore, self, offset)], source.len())?;
        self.put(offset, source);
        Ok(())
    }

    fn put(&self, offset: usize, source: &[u8]) {
        let _writing = self.writing();
        // SAFETY: as in `read`.
        let done = unsafe { self.allocation.write(offset, source) };
        done.expect(CHECKED);
    }

    /// Copies from `source`, which may be this allocation.
    pub(super) fn copy_from(
        &self,
        queue: &Queue,
        offset: usize,
        (source, source_offset): (&Self, usize),
        bytes: usize,
    ) -> Result<()> {
        let accesses =
            [(Access::GlobalLoad, source, source_offset), (Access::GlobalStore, self, offset)];
        self.note(queue, &accesses, bytes)?;
        // In the order of addresses, so that copies in opposite directions do not wait for each
        // other.
        let _guards = match self.address().cmp(&source.address()) {
            std::cmp::Ordering::Less => {
                let writing = self.writing();
                (writing, Some(source.reading()))
            }
            std::cmp::Ordering::Equal => (self.writing(), None),
            std::cmp::Ordering::Greater => {
                let reading = source.reading();
                (self.writing(), Some(reading))
            }
        };
        // SAFETY: as in `read`.
        let done =
            unsafe { self.allocation.copy_from(offset, &source.allocation, source_offset, bytes) };
        done.expect(CHECKED);
        Ok(())
    }

    pub(super) fn fill(
        &self,
        queue: &Queue,
        offset: usize,
        pattern: FillPattern,
        bytes: usize,
    ) -> Result<()> {
        self.note(queue, &[(Access::GlobalStore, self, offset)], bytes)?;
        self.set(offset, pattern, bytes);
        Ok(())
    }

    fn set(&self, offset: usize, pattern: FillPattern, bytes: usize) {
        match pattern {
            FillPattern::Byte(value) => {
                let _writing = self.writing();
                // SAFETY: as in `read`.
                let done = unsafe { self.allocation.fill(offset, bytes, value) };
                done.expect(CHECKED);
            }
            FillPattern::Half(value) => self.put(offset, &value.to_ne_bytes().repeat(bytes / 2)),
            FillPattern::Word(value) => self.put(offset, &value.to_ne_bytes().repeat(bytes / 4)),
        }
    }

    /// Notes the next work of `queue`, which accesses `bytes` bytes in each of these places at once.
    fn note(&self, queue: &Queue, accesses: &[(Access, &Self, usize)], bytes: usize) -> Result<()> {
        if !self.check_races {
            return Ok(());
        }
        let places: Vec<_> = accesses
            .iter()
            .map(|(access, memory, first)| (*access, &memory.allocation, *first))
            .collect();
        queue
            .note(&places, bytes)
            .map_err(|source| DeviceError::Race { device: self.device, source })
    }

    fn reading(&self) -> RwLockReadGuard<'_, ()> {
        self.copying.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> RwLockWriteGuard<'_, ()> {
        self.copying.write().unwrap_or_else(PoisonError::into_inner)
    }
}

const CHECKED: &str = "the range was checked against the buffer";
