//! Decoder-only transformers, served from paged KV.
//!
//! | module | what |
//! |---|---|
//! | [`engine`] | what a scheduler asks of a model: one forward pass over a ragged batch |
#![forbid(unsafe_code)]

pub mod engine;
