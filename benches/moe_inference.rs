//! `cargo bench --bench moe_inference`: a mixture of experts expert by expert, against routing and
//! products that stay on the device.

mod common;

fn main() -> anyhow::Result<()> {
    common::bench_main("moe_inference")
}
