//! `cargo bench --bench continuous_batching`: static batches against requests that
//! join and leave at every step.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("continuous_batching")
}
