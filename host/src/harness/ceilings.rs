//! The most that a machine reaches at one thing, measured with kernels that do nothing else.

use anyhow::{Result, ensure};
use gpu_kernels::kv_layout::{KvElement, KvLayout, KvPagePlace, KvPageShape};
use gpu_kernels::kv_page_copy::KvPageMove;
use gpu_kernels::tensor_peak::NUM_STEPS;
use gpu_kernels::tensor_peak::reference::MAX_RELATIVE_ERROR;

use super::machine::Machine;
use super::results::Ceiling;
use super::sampler::{Batch, Mode, stream_sampler};
use super::statistics;
use super::watch::Watch;
use crate::device::{Buffer, Device, PinnedBuffer, Stream};
use crate::kernels::kv_page_copy::{CopyVariant, PageCopy};
use crate::kernels::memory_read::MemoryRead;
use crate::kernels::memory_write::MemoryWrite;
use crate::kernels::tensor_peak::TensorPeak;
use crate::kv::memory::KvMemory;

/// Reads of a GPU's own memory.
pub const HBM_READ: &str = "hbm_read";
/// Copies within a GPU's own memory; bytes read and bytes written both count.
pub const HBM_COPY: &str = "hbm_copy";
/// Reads of a peer's memory by a kernel.
pub const NVLINK_READ: &str = "nvlink_read";
/// Writes to a peer's memory by a kernel.
pub const NVLINK_WRITE: &str = "nvlink_write";
/// Reads of pinned host memory by a kernel.
pub const HOST_READ: &str = "host_read";
/// Products of dense bf16 matrices on the tensor cores.
pub const DENSE_BF16: &str = "dense_bf16";

/// Bytes that are read or copied: far more than a cache holds.
const NUM_BYTES: usize = 2 << 30;
/// Bytes that are read from host memory, where pages are locked slowly and cannot be many.
const NUM_HOST_BYTES: usize = 256 << 20;
/// Samples; of which the first ones do not count.
const NUM_SAMPLES: usize = 20;
const NUM_WARMUPS: usize = 5;
/// Calls of a sample.
const NUM_CALLS: usize = 4;

/// What rates are given in.
struct Unit {
    name: &'static str,
    /// Of one byte or operation in a microsecond.
    per_us: f64,
}

const GB_PER_S: Unit = Unit { name: "GB/s", per_us: 1e-3 };

const TFLOP_PER_S: Unit = Unit { name: "TFLOP/s", per_us: 1e-6 };

/// All units.
const UNITS: [Unit; 2] = [GB_PER_S, TFLOP_PER_S];

/// How a ceiling is measured: microseconds for an amount of bytes or operations.
struct Probe {
    name: &'static str,
    unit: Unit,
    num_gpus: usize,
    measure: fn(&[Device]) -> Result<(u64, f64)>,
}

/// All ceilings.
const PROBES: &[Probe] = &[
    Probe { name: HBM_READ, unit: GB_PER_S, num_gpus: 1, measure: hbm_read },
    Probe { name: HBM_COPY, unit: GB_PER_S, num_gpus: 1, measure: hbm_copy },
    Probe { name: NVLINK_READ, unit: GB_PER_S, num_gpus: 2, measure: nvlink_read },
    Probe { name: NVLINK_WRITE, unit: GB_PER_S, num_gpus: 2, measure: nvlink_write },
    Probe { name: HOST_READ, unit: GB_PER_S, num_gpus: 1, measure: host_read },
    Probe { name: DENSE_BF16, unit: TFLOP_PER_S, num_gpus: 1, measure: dense_bf16 },
];

impl Ceiling {
    /// The rate of `amount` bytes or operations in `us` microseconds, in this ceiling's unit; none
    /// for a unit that this build does not know.
    pub fn rate_of(&self, amount: u64, us: f64) -> Option<f64> {
        let unit = UNITS.iter().find(|unit| unit.name == self.unit)?;
        Some(amount as f64 / us * unit.per_us)
    }
}

/// Measures every ceiling that the machine's GPUs have; none on the CPU, or once interrupted.
///
/// # Errors
/// Too little memory; no way between GPUs.
pub fn measure(machine: &Machine, watch: &dyn Watch) -> Result<Vec<Ceiling>> {
    let mut ceilings = Vec::new();
    if !machine.is_cuda() {
        return Ok(ceilings);
    }
    for probe in PROBES {
        if machine.check(probe.num_gpus).is_err() || watch.is_interrupted() {
            continue;
        }
        watch.step(&format!("measuring {}", probe.name));
        let (amount, us) = (probe.measure)(&machine.devices(probe.num_gpus)?)?;
        let rate = amount as f64 / us * probe.unit.per_us;
        let (name, unit) = (probe.name.to_owned(), probe.unit.name.to_owned());
        ceilings.push(Ceiling { name, rate, unit });
    }
    Ok(ceilings)
}

/// Median microseconds of a call.
fn median_us(stream: &Stream, enqueue: impl Fn() -> Result<()>) -> Result<f64> {
    let batch = Batch { mode: Mode::Steady, num_calls: NUM_CALLS, num_inputs: 1 };
    let mut sample = stream_sampler(stream, batch, |_| enqueue())?;
    let samples = (0..NUM_SAMPLES).map(|_| sample()).collect::<Result<Vec<_>>>()?;
    Ok(statistics::estimate(&samples[NUM_WARMUPS..]).median)
}

fn hbm_read(devices: &[Device]) -> Result<(u64, f64)> {
    read_from(&devices[0], &devices[0])
}

fn nvlink_read(devices: &[Device]) -> Result<(u64, f64)> {
    devices[0].enable_peer_access(&devices[1])?;
    read_from(&devices[0], &devices[1])
}

fn read_from(reader: &Device, owner: &Device) -> Result<(u64, f64)> {
    let stream = reader.new_stream()?;
    let source: Buffer<u32> = owner.alloc_zeroed(NUM_BYTES / 4)?;
    let read = MemoryRead::new(&stream, &source)?;
    Ok((read.num_bytes() as u64, median_us(&stream, || Ok(read.run(&stream)?))?))
}

fn host_read(devices: &[Device]) -> Result<(u64, f64)> {
    let stream = devices[0].new_stream()?;
    let source: PinnedBuffer<u32> = devices[0].alloc_pinned(NUM_HOST_BYTES / 4)?;
    let read = MemoryRead::pinned(&stream, &source)?;
    Ok((read.num_bytes() as u64, median_us(&stream, || Ok(read.run(&stream)?))?))
}

fn nvlink_write(devices: &[Device]) -> Result<(u64, f64)> {
    devices[0].enable_peer_access(&devices[1])?;
    let stream = devices[0].new_stream()?;
    let target: Buffer<u32> = devices[1].alloc_zeroed(NUM_BYTES / 4)?;
    let write = MemoryWrite::new(&stream, &target)?;
    Ok((write.num_bytes() as u64, median_us(&stream, || Ok(write.run(&stream, 0)?))?))
}

/// The faster of the two copy kernels.
fn hbm_copy(devices: &[Device]) -> Result<(u64, f64)> {
    let stream = devices[0].new_stream()?;
    let page = KvPageShape {
        page_size: 16,
        num_kv_heads: 8,
        head_dim: 128,
        layout: KvLayout::Nhd,
        element: KvElement::Half,
    };
    let num_moves = (NUM_BYTES / page.page_bytes()) as u32;
    let memory = KvMemory::new(&stream, devices, page, &[2 * num_moves as usize], 0)?;
    let place = |index| KvPagePlace { rank: 0, index };
    let moves: Vec<KvPageMove> = (0..num_moves)
        .map(|index| KvPageMove { src: place(index), dst: place(num_moves + index) })
        .collect();
    let copy = PageCopy::upload(&stream, &moves, &memory)?;
    let us_of = |variant| median_us(&stream, || Ok(copy.run(&stream, variant, &memory)?));
    let fastest = CopyVariant::alone(&devices[0]);
    Ok((2 * NUM_BYTES as u64, us_of(CopyVariant::Baseline)?.min(us_of(fastest)?)))
}

fn dense_bf16(devices: &[Device]) -> Result<(u64, f64)> {
    let stream = devices[0].new_stream()?;
    let shape = TensorPeak::fastest_shape(&devices[0], NUM_STEPS)?;
    let peak = TensorPeak::new(&stream, shape, 1)?;
    let us = median_us(&stream, || Ok(peak.run(&stream)?))?;
    let error = peak.relative_error(&stream)?;
    ensure!(error <= MAX_RELATIVE_ERROR, "{DENSE_BF16}: the product is off by {error}");
    Ok((peak.flops(), us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_in_the_ceilings_unit() {
        let ceiling = |unit: &str| Ceiling { name: String::new(), rate: 1.0, unit: unit.into() };
        assert_eq!(ceiling("GB/s").rate_of(4_000_000, 1000.0), Some(4.0));
        assert_eq!(ceiling("TFLOP/s").rate_of(2_000_000_000, 1000.0), Some(2.0));
        assert_eq!(ceiling("furlongs").rate_of(1, 1.0), None);
    }

    #[test]
    fn probes_have_names_of_their_own_and_known_units() {
        for (i, probe) in PROBES.iter().enumerate() {
            assert!(PROBES[..i].iter().all(|other| other.name != probe.name), "{}", probe.name);
            assert!(UNITS.iter().any(|unit| unit.name == probe.unit.name), "{}", probe.name);
        }
    }
}
