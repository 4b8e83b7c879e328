//! `cargo bench --bench kv_cache_management`: whole contexts reserved, against
//! pages that are shared, evicted and brought back.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("kv_cache_management")
}
