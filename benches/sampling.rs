//! `cargo bench --bench sampling`: tokens drawn from logits, by a block per request against several.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("sampling")
}
