//! placeholder

pub mod comm;
pub mod device;
pub mod kv;
