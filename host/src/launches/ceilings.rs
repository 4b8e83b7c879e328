//! Kernels that ceilings are measured with: 1 GiB, and a product on every multiprocessor.

use anyhow::Result;
use gpu_kernels::tensor_peak::NUM_STEPS;
use gpu_kernels::tensor_peak::contract::{TensorPeakShape, TensorPeakVariant};

use super::{KernelLaunch, Setting, kernel};
use crate::device::Buffer;
use crate::kernels::memory_read::MemoryRead;
use crate::kernels::memory_write::MemoryWrite;
use crate::kernels::tensor_peak::TensorPeak;

pub(super) fn launches() -> Vec<KernelLaunch> {
    vec![
        kernel("memory_read_16", read),
        kernel("memory_write_16", write),
        kernel("memory_write_check_16", check),
        kernel("tensor_peak_mma", tensor_peak(TensorPeakVariant::Mma)),
        kernel("tensor_peak_wgmma", tensor_peak(TensorPeakVariant::Wgmma)),
    ]
}

fn buffer(setting: &Setting<'_>) -> Result<Buffer<u32>> {
    Ok(setting.devices[0].alloc_zeroed(setting.pick(1 << 28, 1 << 10))?)
}

fn read(setting: &Setting<'_>) -> Result<()> {
    let (stream, source) = (setting.stream()?, buffer(setting)?);
    let read = MemoryRead::new(&stream, &source)?;
    setting.repeat(&stream, |_| Ok(read.run(&stream)?))
}

fn write(setting: &Setting<'_>) -> Result<()> {
    let (stream, target) = (setting.stream()?, buffer(setting)?);
    let write = MemoryWrite::new(&stream, &target)?;
    setting.repeat(&stream, |call| Ok(write.run(&stream, call as u64)?))
}

fn check(setting: &Setting<'_>) -> Result<()> {
    let (stream, target) = (setting.stream()?, buffer(setting)?);
    let write = MemoryWrite::new(&stream, &target)?;
    write.run(&stream, 0)?;
    setting.repeat(&stream, |_| Ok(write.num_wrong_pieces(&stream, 0).map(drop)?))
}

fn tensor_peak(variant: TensorPeakVariant) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let stream = setting.stream()?;
        let num_blocks = setting.devices[0].num_multiprocessors()?;
        let shape = TensorPeakShape { variant, num_blocks, num_steps: setting.pick(NUM_STEPS, 2) };
        let peak = TensorPeak::new(&stream, shape, 1)?;
        setting.repeat(&stream, |_| Ok(peak.run(&stream)?))
    }
}
