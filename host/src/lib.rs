//! Farpage: GPU kernels for LLM inference whose KV cache and experts live on other GPUs, and the
//! host code that drives them.
//!
//! | module | what |
//! |---|---|
//! | [`device`] | GPUs, and the CPU as one: memory, streams, events, graphs |
//! | [`comm`] | ranks, and what they do together: NCCL between GPUs, copies between CPU ranks |
//! | [`kernels`] | launchers, one for each kernel's room |
//! | [`doctor`] | what a machine and a build have, and what follows from it |
//! | [`far`] | who attends over pages in a peer's memory: the plan, and its cost model |
//! | [`harness`] | runs the pairs, measures them, and keeps what was found |
//! | [`launches`] | every kernel by its name, for profilers and sanitizers |
//! | [`kv`] | the KV pool: which page of which request lies in which memory |
//! | [`model`] | decoder-only transformers, served from paged KV |
//! | [`moe`] | mixture of experts over several ranks |
//! | [`pairs`] | the paired benchmarks |
//! | [`serve`] | requests served: queue, batches, preemption, and how long everybody waits |
//! | [`validate`] | requests replayed through pool and kernels, checked all the way |
//!
//! Device code is the crate [`gpu_kernels`]; `build.rs` compiles it to PTX and embeds it here. The
//! same source runs on the CPU, so everything works without a GPU.

pub mod comm;
pub mod device;
pub mod doctor;
pub mod far;
pub mod harness;
pub mod kernels;
pub mod kv;
pub mod launches;
pub mod model;
pub mod moe;
pub mod pairs;
pub mod serve;
pub mod validate;
