//! What all benches are: the sides of one pair, sampled as `host compare` samples them: in turns, as
//! a side that runs alone draws other power, and finds other things in the caches.

use std::time::Duration;

use anyhow::{Result, ensure};
use criterion::{Criterion, Throughput};
use farpage::device::DeviceChoice;
use farpage::harness::protocol::{Protocol, Turns};
use farpage::harness::results::Planned;
use farpage::harness::{Machine, Variant, verify_both};
use farpage::pairs;

/// What inputs follow from, as in `host compare`.
const SEED: u64 = 1;

/// Checks, then times, both sides of a pair at every shape that this machine can run: real ones on
/// GPUs, tiny ones on the CPU.
///
/// # Errors
/// A side that is wrong; no shape that runs here.
pub fn bench_main(target: &str) -> Result<()> {
    let machine = Machine::open(DeviceChoice::from_env()?, None)?;
    println!("{}", machine.describe());
    let protocol = Protocol::usual(machine.is_cuda());
    let mut criterion = criterion();
    let mut num_shapes = 0;
    for pair in pairs::select(&[target.to_owned()])? {
        for shape in pair.shapes(machine.usual_shapes()) {
            if let Err(shortage) = machine.check(shape.num_gpus) {
                println!("{target}/{}: skipped: {shortage}", shape.name);
                continue;
            }
            num_shapes += 1;
            let prepared = shape.prepare(&machine.devices(shape.num_gpus)?, SEED)?;
            let prepared = prepared.as_ref();
            verify_both(pair, prepared)?;
            // What is planned may speak of phases.
            prepared.phases()?;
            if let Some(Planned { choice, .. }) = prepared.planned() {
                println!("{target}/{}: {choice}", shape.name);
            }
            let batches = protocol.batches(prepared)?;
            let mut turns = Turns::new(prepared, batches)?;
            for (side, variant) in Variant::BOTH.into_iter().enumerate() {
                let work = prepared.work(variant);
                let mut group = criterion.benchmark_group(target);
                group.throughput(Throughput::Bytes(work.read_bytes + work.written_bytes));
                let name = format!("{}/{}", shape.name, pair.side_name(variant));
                group.bench_function(name, |bencher| {
                    bencher.iter_custom(|num_calls| {
                        let num_samples = num_calls.div_ceil(batches[side].num_calls as u64);
                        let us: f64 = (0..num_samples)
                            .map(|_| turns.round().expect("it ran when it was checked")[side])
                            .sum();
                        Duration::from_secs_f64(us / num_samples as f64 * num_calls as f64 / 1e6)
                    });
                });
                group.finish();
            }
        }
    }
    criterion.final_summary();
    ensure!(num_shapes > 0, "{target}: no shape runs here");
    Ok(())
}

/// Few, short samples: device time varies little, and launches before the timed ones warm up.
fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args()
}
