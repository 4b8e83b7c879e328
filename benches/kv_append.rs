//! `cargo bench --bench kv_append`: K of new tokens rotated by itself, against on its way to the page.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("kv_append")
}
