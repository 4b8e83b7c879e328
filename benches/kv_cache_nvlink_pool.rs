//! `cargo bench --bench kv_cache_nvlink_pool`: decode over pages that do not fit this GPU, in
//! pinned host memory against in a peer's memory.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("kv_cache_nvlink_pool")
}
