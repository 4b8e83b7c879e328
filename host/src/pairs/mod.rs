//! The paired benchmarks: what a competent engineer ships first, against the optimized kernel.
//!
//! Both sides of a pair compute the same function of the same inputs. Before any time is taken,
//! the whole output of each is compared with the f64 oracle. A pair is a file that implements
//! [`Pair`]; it is known to every command once it stands in [`ALL`].
#![forbid(unsafe_code)]

mod decode_batch;
mod decode_bench;
mod kv_cache_nvlink_pool;
mod paged_attention;

pub use decode_batch::{BatchElement, DecodeBatch, DecodeWorkload};
pub use decode_bench::DecodeBench;
pub use kv_cache_nvlink_pool::KvCacheNvlinkPool;
pub use paged_attention::PagedAttention;

use crate::harness::Pair;

/// Every pair.
pub const ALL: &[&dyn Pair] = &[&PagedAttention, &KvCacheNvlinkPool];
