//! `cargo bench --bench paged_prefill`: causal attention of prompts, tiles on `mma` against `wgmma`.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("paged_prefill")
}
