//! placeholder

pub mod kv;
