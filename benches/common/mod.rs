//! What the decode benches share.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use farpage::device::Stream;
use farpage::kernels::paged_attention::DecodeVariant;
use farpage::pairs::DecodeBench;
use farpage::pairs::timing::device_us;

/// Few, short samples: device time varies little, and launches before the timed ones warm up.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args()
}

/// Times one side by device time; the bytes are those of K and V.
pub fn bench(
    criterion: &mut Criterion,
    pair: &str,
    name: &str,
    stream: &Stream,
    bench: &DecodeBench,
    variant: DecodeVariant,
) {
    let mut group = criterion.benchmark_group(pair);
    group.throughput(Throughput::Bytes(bench.workload().kv_bytes()));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|launches| {
            let us = device_us(stream, launches, || bench.run(stream, variant));
            Duration::from_secs_f64(us.expect("it ran when it was checked") / 1e6)
        });
    });
    group.finish();
}

/// Whether this is `cargo bench`, not a test that the bench works.
pub fn is_measuring() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}
