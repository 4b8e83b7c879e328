//! `cargo bench --bench paged_attention`: decode, a block for each head against equal shares.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("paged_attention")
}
