//! `cargo bench --bench shared_expert`: SwiGLU, `mma` against `wgmma`.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("shared_expert")
}
