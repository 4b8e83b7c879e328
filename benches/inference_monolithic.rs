//! `cargo bench --bench inference_monolithic`: decode steps kernel by kernel, against one graph.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("inference_monolithic")
}
