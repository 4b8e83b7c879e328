//! placeholder

pub mod device;
pub mod kv;
