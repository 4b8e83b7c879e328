//! Mixture of experts over several ranks.
//!
//! | module | what |
//! |---|---|
//! | [`exchange`] | dispatch of tokens to the ranks of their experts, and combine of the results |
#![forbid(unsafe_code)]

pub mod exchange;

pub use exchange::{Exchange, ExchangeError, ExchangeOptions, Transport};
