//! `cargo bench --bench prefill_decode_disagg`: KV handed over after prefill,
//! against layer by layer.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("prefill_decode_disagg")
}
