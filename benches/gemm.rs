//! `cargo bench --bench gemm`: dense products, `mma` against `wgmma`.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("gemm")
}
