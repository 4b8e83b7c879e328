//! `cargo bench --bench wide_ep`: tokens to the ranks of their experts and back, by NCCL against
//! straight into the peers' memory.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("wide_ep")
}
