//! What every room's contract is made of.

use std::format;
use std::string::String;

pub use cuda_std::cpu::LaunchDims;

/// Sizes or arguments that a kernel does not take. Nothing was launched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{argument}` must be {needed}, got {got}")]
pub struct ContractError {
    /// The argument or size, as it is named in the contract.
    pub argument: String,
    /// What would have been right.
    pub needed: String,
    /// What there was.
    pub got: String,
}

impl ContractError {
    /// An error in words: ``` `argument` must be `needed`, got `got` ```.
    pub fn new(
        argument: &str,
        needed: impl core::fmt::Display,
        got: impl core::fmt::Display,
    ) -> Self {
        Self { argument: argument.into(), needed: format!("{needed}"), got: format!("{got}") }
    }
}

/// `Ok` if `holds`, else the error that `argument` must be `needed` and was `got`.
pub fn require(
    holds: bool,
    argument: &str,
    needed: impl core::fmt::Display,
    got: impl core::fmt::Display,
) -> Result<(), ContractError> {
    if holds { Ok(()) } else { Err(ContractError::new(argument, needed, got)) }
}

/// Most blocks of a grid in `y`.
pub const MAX_GRID_Y: u32 = 65_535;
/// Shared memory that a block may have on Hopper.
pub const MAX_SHARED_BYTES: usize = 227 * 1024;

/// `Ok` if a size is from 1 to `most`.
pub fn require_up_to(argument: &str, most: u32, got: u32) -> Result<(), ContractError> {
    require((1..=most).contains(&got), argument, format_args!("1 to {most}"), got)
}

/// `Ok` if a size is a multiple of `step` from there to `most`.
pub fn require_multiple(
    argument: &str,
    step: u32,
    most: u32,
    got: u32,
) -> Result<(), ContractError> {
    let is_multiple = (1..=most).contains(&got) && got.is_multiple_of(step);
    require(is_multiple, argument, format_args!("a multiple of {step} up to {most}"), got)
}

/// `Ok` if an argument has the length its shape asks for.
pub fn require_len(argument: &str, needed: usize, got: usize) -> Result<(), ContractError> {
    require(needed == got, argument, format!("{needed} elements long"), got)
}

/// What a launch does, counted from its sizes: what roofs and reports are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes read from device memory, each input once.
    pub read_bytes: u64,
    /// Bytes written to device memory.
    pub written_bytes: u64,
    /// Floating-point operations; a multiply-add counts as two.
    pub flops: u64,
}
