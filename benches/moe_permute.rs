//! `cargo bench --bench moe_permute`: pairs sorted by expert, tokens packed in that order and added up
//! again, in seven steps against three launches.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("moe_permute")
}
