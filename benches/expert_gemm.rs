//! `cargo bench --bench expert_gemm`: a product for each expert, `mma` against `wgmma`.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("expert_gemm")
}
