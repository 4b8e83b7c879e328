//! `cargo bench --bench kv_cache_nvlink_pool`: decode over pages that do not fit this GPU, in
//! pinned host memory against in a peer's memory.
//!
//! On two GPUs: real shapes, then a table against what a plain read of the peer's memory reaches
//! in the same run. On the CPU: tiny shapes, for correctness. On one GPU it refuses.

use anyhow::{Result, ensure};
use farpage::device::{Buffer, Device, DeviceChoice, Stream, num_gpus};
use farpage::kernels::memory_read::MemoryRead;
use farpage::kernels::paged_attention::DecodeVariant;
use farpage::pairs::DecodeBench;
use farpage::pairs::kv_cache_nvlink_pool::{FAR_PERCENT, FarPages, prepare, workload};
use farpage::pairs::timing::interleaved_medians_us;

mod common;

/// What the ceiling is read from, on the peer.
const CEILING_BYTES: usize = 1 << 30;

fn main() -> Result<()> {
    let device = Device::select(DeviceChoice::from_env()?)?;
    println!("{}", device.describe());
    let devices = [device.clone(), peer_of(&device)?];
    let stream = device.new_stream()?;
    let workload = workload(device.is_cuda());

    let mut criterion = common::criterion();
    let mut pairs = Vec::new();
    for far_percent in FAR_PERCENT {
        let mut pair = Vec::new();
        for far in FarPages::ALL {
            let bench = prepare(&stream, &devices, &workload, 1, far, far_percent)?;
            bench.check(&stream)?;
            let name = format!("{}/{far_percent} % far/{far:?}", workload.name);
            let split = DecodeVariant::Split;
            common::bench(&mut criterion, "kv_cache_nvlink_pool", &name, &stream, &bench, split);
            pair.push(bench);
        }
        pairs.push((far_percent, pair));
    }
    criterion.final_summary();
    let is_table_wanted = device.is_cuda() && common::is_measuring();
    if is_table_wanted { print_table(&stream, &devices[1], &pairs) } else { Ok(()) }
}

fn peer_of(device: &Device) -> Result<Device> {
    if !device.is_cuda() {
        return Ok(Device::cpu());
    }
    let found = num_gpus()?;
    ensure!(found >= 2, "kv_cache_nvlink_pool needs 2 GPUs, found {found}");
    Ok(Device::cuda(1)?)
}

/// Both sides and the ceiling of the wire, taking turns.
fn print_table(stream: &Stream, peer: &Device, pairs: &[(usize, Vec<DecodeBench>)]) -> Result<()> {
    let source: Buffer<u32> = peer.alloc_zeroed(CEILING_BYTES / 4)?;
    let ceiling = MemoryRead::new(stream, &source)?;
    println!(
        "\n| far pages | host µs | peer µs | ratio | from the peer GB/s | plain read of it GB/s | share |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (far_percent, pair) in pairs {
        let [host_us, peer_us, ceiling_us] = interleaved_medians_us(
            stream,
            5,
            4,
            [
                &mut || pair[0].run(stream, DecodeVariant::Split),
                &mut || pair[1].run(stream, DecodeVariant::Split),
                &mut || Ok(ceiling.run(stream)?),
            ],
        )?;
        let far_bytes = pair[1].workload().kv_bytes() as f64 * *far_percent as f64 / 100.0;
        let far_rate = far_bytes / peer_us / 1e3;
        let ceiling_rate = ceiling.num_bytes() as f64 / ceiling_us / 1e3;
        println!(
            "| {far_percent} % | {host_us:.1} | {peer_us:.1} | {:.2} | {far_rate:.0} | {ceiling_rate:.0} | {:.0} % |",
            host_us / peer_us,
            100.0 * far_rate / ceiling_rate,
        );
    }
    Ok(())
}
