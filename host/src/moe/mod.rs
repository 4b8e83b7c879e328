//! Mixture of experts over several ranks.
//!
//! | module | what |
//! |---|---|
//! | [`exchange`] | dispatch of tokens to the ranks of their experts, and combine of the results |
//! | [`placement`] | which rank has which expert |
//! | [`layer`] | the whole layer: routing, exchange, experts and the shared expert, as a plan |
#![forbid(unsafe_code)]

pub mod exchange;
pub mod layer;
pub mod placement;

pub use exchange::{Exchange, ExchangeError, ExchangeOptions, Transport};
pub use layer::{Layer, LayerArgs, LayerOptions, LayerPlan, LayerShape, LayerWeights};
