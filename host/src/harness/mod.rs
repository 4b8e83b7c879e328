//! The harness: what is run, how it is measured, and what was found.
#![forbid(unsafe_code)]

pub mod results;
