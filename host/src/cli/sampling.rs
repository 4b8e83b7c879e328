//! How tokens are chosen, as commands are told.

use anyhow::{Result, anyhow};
use clap::Args;
use farpage::model::engine::Sampling;

#[derive(Clone, Copy, Debug, Args)]
pub struct SamplingArguments {
    /// Logits are divided by it; 0 takes the likeliest token.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,

    /// Only the N likeliest tokens; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: u32,

    /// Only the likeliest tokens that together reach this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
}

impl SamplingArguments {
    /// The same, by a generator of this seed; refused if that chooses no token.
    pub fn seeded(self, seed: u64) -> Result<Sampling> {
        let Self { temperature, top_k, top_p } = self;
        let sampling = Sampling { temperature, top_k, top_p, seed };
        sampling.check().map_err(|problem| anyhow!(problem))?;
        Ok(sampling)
    }
}
