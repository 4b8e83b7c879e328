//! `cargo bench --bench paged_attention`: decode, baseline against split.
//!
//! On a GPU: real shapes, then a table against what a plain read of memory reaches in the same
//! run. On the CPU: tiny shapes, for correctness.

use anyhow::Result;
use farpage::device::{Buffer, Device, DeviceChoice, Stream};
use farpage::kernels::memory_read::MemoryRead;
use farpage::kernels::paged_attention::DecodeVariant;
use farpage::pairs::DecodeBench;
use farpage::pairs::paged_attention::{prepare, workloads};
use farpage::pairs::timing::interleaved_medians_us;

mod common;

/// What the ceiling is read from: far more than a cache holds.
const CEILING_BYTES: usize = 4 << 30;

fn main() -> Result<()> {
    let device = Device::select(DeviceChoice::from_env()?)?;
    println!("{}", device.describe());
    let stream = device.new_stream()?;

    let mut criterion = common::criterion();
    let mut benches = Vec::new();
    for workload in workloads(device.is_cuda()) {
        let bench = prepare(&stream, &workload, 1)?;
        bench.check(&stream)?;
        for variant in DecodeVariant::ALL {
            let name = format!("{}/{variant:?}", workload.name);
            common::bench(&mut criterion, "paged_attention", &name, &stream, &bench, variant);
        }
        benches.push(bench);
    }
    criterion.final_summary();
    if device.is_cuda() && common::is_measuring() { print_table(&stream, &benches) } else { Ok(()) }
}

/// Both sides and the ceiling, taking turns.
fn print_table(stream: &Stream, benches: &[DecodeBench]) -> Result<()> {
    let source: Buffer<u32> = stream.device().alloc_zeroed(CEILING_BYTES / 4)?;
    let ceiling = MemoryRead::new(stream, &source)?;
    println!("\n| shape | baseline µs | split µs | ratio | KV TB/s | plain read TB/s | share |");
    println!("|---|---|---|---|---|---|---|");
    for bench in benches {
        let [baseline_us, split_us, ceiling_us] = interleaved_medians_us(
            stream,
            9,
            8,
            [
                &mut || bench.run(stream, DecodeVariant::Baseline),
                &mut || bench.run(stream, DecodeVariant::Split),
                &mut || Ok(ceiling.run(stream)?),
            ],
        )?;
        let kv_rate = bench.workload().kv_bytes() as f64 / split_us / 1e6;
        let ceiling_rate = ceiling.num_bytes() as f64 / ceiling_us / 1e6;
        println!(
            "| {} | {baseline_us:.1} | {split_us:.1} | {:.2} | {kv_rate:.2} | {ceiling_rate:.2} | {:.0} % |",
            bench.workload().name,
            baseline_us / split_us,
            100.0 * kv_rate / ceiling_rate,
        );
    }
    Ok(())
}
