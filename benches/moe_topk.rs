//! `cargo bench --bench moe_topk`: the experts of each token, chosen by a block against by a warp.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("moe_topk")
}
