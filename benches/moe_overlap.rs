//! `cargo bench --bench moe_overlap`: a mixture-of-experts layer step by step over NCCL, against the
//! same layer whose exchange runs under the shared expert.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("moe_overlap")
}
