//! `cargo bench --bench expert_gemm_fp8`: a product in fp8 for each expert, `mma` in f16 against `wgmma` in
//! e4m3.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("expert_gemm_fp8")
}
