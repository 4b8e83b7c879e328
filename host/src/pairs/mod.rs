//! The paired benchmarks: what a competent engineer ships first, against the optimized kernel.
//!
//! Both sides of a pair compute the same function of the same inputs. Before any time is taken,
//! the whole output of each is compared with the f64 oracle.
#![forbid(unsafe_code)]

mod decode_bench;
pub mod kv_cache_nvlink_pool;
pub mod paged_attention;
pub mod timing;

pub use decode_bench::{DecodeBench, DecodeWorkload};
