//! Decoder-only transformers, served from paged KV.
//!
//! A model comes from a Hugging Face folder (`config.json`, safetensors in one file or several,
//! `tokenizer.json`), or, for its shape alone, from a seed. Families: Llama, Qwen2, Qwen3, Mixtral,
//! Qwen2-MoE, Qwen3-MoE.
//!
//! How right it is: `tests/model.rs` holds a tiny checkpoint of each family against transformers, which
//! computes in f32 from the same bf16 weights. Every logit is within 0.05 standard deviations of its
//! row, and greedy tokens are the same; kernels pass bf16 to each other and sum in f32. The fixtures'
//! seeds are such that no choice of a token or an expert is close, because rounding would turn it.
//!
//! What is not batch-invariant, unless an engine is told to be: products and decode attention choose how
//! they are split by what is in the batch, so that the last bits of logits may depend on it.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | what a model is made of, as its `config.json` says it |
//! | [`weights`] | its tensors: names, stacks, files, device memory |
//! | [`Transformer`] | a model whose weights are on a device |
//! | [`device_engine`] | runs steps of a transformer on a device |
//! | [`reference`] | a forward pass in f64, to compare with |
//! | [`bound`] | what a decode step must read |
//! | [`engine`] | what a scheduler asks of a model: one forward pass over a ragged batch |
#![forbid(unsafe_code)]

pub mod bound;
pub mod config;
mod decode_step;
pub mod device_engine;
pub mod engine;
mod error;
mod experts;
mod one_token;
mod pages;
mod pass;
pub mod reference;
mod step_check;
mod token_choice;
mod tokenizer;
mod transformer;
pub mod weights;

pub use config::ModelConfig;
pub use decode_step::Issue;
pub use device_engine::{DeviceEngine, EngineOptions, EngineTimes, StepTimes};
pub use error::ModelError;
pub use pages::{LayeredKv, PageWindow, StagedPages};
pub use tokenizer::{TextStream, Tokenizer};
pub use transformer::Transformer;
