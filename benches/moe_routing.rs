//! `cargo bench --bench moe_routing`: a mixture-of-experts layer whose routing does not know where
//! experts are, against routing that does.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("moe_routing")
}
