//! What the rooms' tests share: a device's memory and executor, random inputs, comparison.

use std::format;
use std::marker::PhantomData;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use bytemuck::Pod;
use cuda_std::Kernel;
use cuda_std::cpu::memory::Allocation;
use cuda_std::cpu::{Access, Executor, ExecutorConfig, LaneOrder, LaunchDims, Queue};
use cuda_std::float::HalfFloat;
use cuda_std::global::{Global, GlobalMut};
use cuda_std::tensor_map::{TensorElement, TensorMap, TensorMaps, Tiling};
use half::{bf16, f16};

/// The CPU as a device. Its launches follow each other; nothing orders them with those of another.
pub struct TestDevice {
    executor: Executor,
    queue: Queue,
}

impl TestDevice {
    /// Lanes run in order.
    pub fn ascending() -> Self {
        Self::of(ExecutorConfig::default())
    }

    /// Lanes run in a random order, the same for the same seed.
    pub fn seeded(seed: u64) -> Self {
        Self::of(ExecutorConfig {
            lane_order: LaneOrder::Seeded(seed),
            ..ExecutorConfig::default()
        })
    }

    /// Devices that differ in lane order: results must not. Races show in any order, so that the first
    /// looks for them, and not the others.
    pub fn lane_orders() -> impl Iterator<Item = Self> {
        let seeded = (1..4).map(|seed| {
            let lane_order = LaneOrder::Seeded(seed);
            Self::of(ExecutorConfig { lane_order, check_races: false, ..ExecutorConfig::default() })
        });
        [Self::ascending()].into_iter().chain(seeded)
    }

    fn of(config: ExecutorConfig) -> Self {
        Self { executor: Executor::new(config), queue: Queue::new() }
    }

    /// Copies `data` to `memory`, in order with the launches.
    pub fn write<T: Pod>(&self, memory: &DeviceMemory<T>, data: &[T]) {
        self.note(Access::GlobalStore, memory);
        // SAFETY: nothing else accesses it, or that was a race.
        unsafe { memory.allocation.write(0, bytemuck::cast_slice(data)) }.unwrap();
    }

    /// What `memory` holds after the launches so far.
    pub fn read<T: Pod>(&self, memory: &DeviceMemory<T>) -> Vec<T> {
        self.note(Access::GlobalLoad, memory);
        memory.to_vec()
    }

    fn note<T>(&self, access: Access, memory: &DeviceMemory<T>) {
        let place = (access, &memory.allocation, 0);
        let noted = self.queue.note(&[place], memory.allocation.bytes());
        noted.unwrap_or_else(|race| panic!("data race: {race}"));
    }

    /// Runs a launch that must succeed.
    pub fn launch<K: Kernel>(&self, dims: LaunchDims, kernel: K) {
        self.try_launch(dims, kernel).unwrap_or_else(|fault| panic!("{fault}"));
    }

    /// Runs a launch; the executor's report if it ends in a fault.
    pub fn try_launch<K: Kernel>(&self, dims: LaunchDims, kernel: K) -> Result<(), String> {
        // SAFETY: tests pass views of `DeviceMemory` that they hold, to one launch at a time, and
        // every access is checked.
        unsafe { self.executor.launch_on(&self.queue, dims, kernel) }
            .map_err(|fault| fault.to_string())
    }
}

/// Device memory of `len` elements.
pub struct DeviceMemory<T> {
    allocation: Allocation,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Pod> DeviceMemory<T> {
    /// Memory that nothing wrote: every bit is set, and reading it is a fault.
    pub fn poisoned(len: usize) -> Self {
        let allocation = Allocation::with_init_check(len * size_of::<T>()).unwrap();
        Self { allocation, len, element: PhantomData }
    }

    /// A copy of `data`.
    pub fn from_slice(data: &[T]) -> Self {
        let memory = Self::poisoned(data.len());
        // SAFETY: fresh memory, which nobody else uses.
        unsafe { memory.allocation.write(0, bytemuck::cast_slice(data)) }.unwrap();
        memory
    }

    /// What it holds.
    pub fn to_vec(&self) -> Vec<T> {
        let mut data = vec![T::zeroed(); self.len];
        // SAFETY: launches of tests have ended when they return.
        unsafe { self.allocation.read(0, bytemuck::cast_slice_mut(&mut data)) }.unwrap();
        data
    }

    /// What it holds, `None` for elements that are still poison.
    pub fn written(&self) -> Vec<Option<T>> {
        let is_poison = |element: &T| bytemuck::bytes_of(element).iter().all(|&byte| byte == 0xff);
        self.to_vec().into_iter().map(|element| (!is_poison(&element)).then_some(element)).collect()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Address of the first element.
    pub fn address(&self) -> u64 {
        self.allocation.address()
    }

    /// All of it, for a kernel to read.
    pub fn view(&self) -> Global<T> {
        self.allocation.view()
    }

    /// All of it, for a kernel to read and write.
    pub fn view_mut(&self) -> GlobalMut<T> {
        self.allocation.view_mut()
    }
}

/// Maps of `memory` by tiles of several sizes.
pub fn tensor_maps<T: TensorElement + Pod, const RANK: usize, const N: usize>(
    memory: &DeviceMemory<T>,
    tilings: &[Tiling<RANK>; N],
) -> TensorMaps<T, RANK, N> {
    let maps = tilings.iter().map(|tiling| TensorMap::new(memory.view(), tiling).unwrap());
    TensorMaps::new(&maps.collect::<Vec<_>>())
}

/// A 16-bit float as tests convert it.
pub trait Half: HalfFloat {
    /// Rounded to nearest even.
    fn from_f32(value: f32) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
}

impl Half for bf16 {
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Half for f16 {
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn to_f64(self) -> f64 {
        self.into()
    }
}

/// Uniform in `[-1, 1]`, rounded to the type.
pub fn random_halves<T: Half>(rng: &mut fastrand::Rng, len: usize) -> Vec<T> {
    (0..len).map(|_| T::from_f32(2.0 * rng.f32() - 1.0)).collect()
}

/// How far a value may be from the oracle's.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Times the oracle's magnitude.
    pub relative: f64,
    /// Added to that.
    pub absolute: f64,
}

impl Tolerance {
    /// Not at all.
    pub const EXACT: Self = Self { relative: 0.0, absolute: 0.0 };
}

/// Refuses `got` unless every element is within `tolerance` of `want`. NaN never is; an infinity
/// is within itself only.
pub fn require_close(got: &[f64], want: &[f64], tolerance: Tolerance) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{} elements, the oracle has {}", got.len(), want.len()));
    }
    let is_close = |got: f64, want: f64| {
        let allowed = tolerance.absolute + tolerance.relative * want.abs();
        got == want || (got.is_finite() && want.is_finite() && (got - want).abs() <= allowed)
    };
    let wrong: Vec<usize> = (0..got.len()).filter(|&i| !is_close(got[i], want[i])).collect();
    match wrong.first() {
        None => Ok(()),
        Some(&first) => Err(format!(
            "{} of {} elements are wrong, the first is {first}: {}, the oracle has {}",
            wrong.len(),
            got.len(),
            got[first],
            want[first],
        )),
    }
}

/// A digest of the bits (FNV-1a), for snapshots.
pub fn digest<T: Pod>(data: &[T]) -> u64 {
    bytemuck::cast_slice::<T, u8>(data).iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[test]
fn nan_infinity_and_missing_elements_are_never_close() {
    let loose = Tolerance { relative: 1e9, absolute: 1e9 };
    let (nan, infinity) = (f64::NAN, f64::INFINITY);
    for (got, want) in [(nan, 0.0), (0.0, nan), (nan, nan), (infinity, 0.0), (0.0, infinity)] {
        assert!(require_close(&[got], &[want], loose).is_err(), "{got} {want}");
    }
    assert!(require_close(&[-infinity], &[infinity], loose).is_err());
    assert!(require_close(&[], &[0.0], loose).is_err());
    assert!(require_close(&[infinity, 1.0], &[infinity, 2.0], loose).is_ok());
    assert!(require_close(&[1.0], &[1.0 + 1e-12], Tolerance::EXACT).is_err());
}
