//! `cargo bench --bench rms_norm`: the residual added and rows normalised, in two launches against one.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("rms_norm")
}
