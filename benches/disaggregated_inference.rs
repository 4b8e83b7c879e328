//! `cargo bench --bench disaggregated_inference`: every rank for itself,
//! against prompts on one half and decoding on the other.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("disaggregated_inference")
}
