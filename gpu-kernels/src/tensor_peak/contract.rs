//! What a measurement must be like, and what it does.

use cuda_std::cpu::LaunchDims;

use super::{MMA_TILE, NUM_THREADS, Tile, WGMMA_TILE};
use crate::contract::{ContractError, Work, require, require_up_to};

/// Which instructions multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorPeakVariant {
    /// `wgmma`: Hopper only.
    Wgmma,
    /// `mma.sync`: Ampere and later.
    Mma,
}

impl TensorPeakVariant {
    /// What a block multiplies in a step.
    pub const fn tile(self) -> Tile {
        match self {
            Self::Wgmma => WGMMA_TILE,
            Self::Mma => MMA_TILE,
        }
    }
}

/// Sizes of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorPeakShape {
    /// The kernel.
    pub variant: TensorPeakVariant,
    /// Blocks of the launch: one for each SM.
    pub num_blocks: u32,
    /// Products that each block sums up.
    pub num_steps: u32,
}

impl TensorPeakShape {
    /// Refuses a launch of nothing. With `a`, `b` and `out` of [`a_elements`](Self::a_elements),
    /// [`b_elements`](Self::b_elements) and [`out_elements`](Self::out_elements), no thread then
    /// reaches out of bounds.
    pub fn check(&self) -> Result<(), ContractError> {
        require_up_to("num_blocks", i32::MAX as u32, self.num_blocks)?;
        require(self.num_steps > 0, "num_steps", "at least 1", self.num_steps)
    }

    /// Elements of `a`.
    pub fn a_elements(&self) -> usize {
        let Tile { m, k, .. } = self.variant.tile();
        m * k
    }

    /// Elements of `b`.
    pub fn b_elements(&self) -> usize {
        let Tile { n, k, .. } = self.variant.tile();
        n * k
    }

    /// Elements of `out`.
    pub fn out_elements(&self) -> usize {
        let Tile { m, n, .. } = self.variant.tile();
        self.num_blocks as usize * m * n
    }

    /// The launch.
    pub fn dims(&self) -> LaunchDims {
        let shared_bytes = match self.variant {
            TensorPeakVariant::Wgmma => 2 * (self.a_elements() + self.b_elements()),
            TensorPeakVariant::Mma => 0,
        };
        LaunchDims {
            grid: [self.num_blocks, 1, 1],
            block: [NUM_THREADS, 1, 1],
            shared_bytes: shared_bytes as u32,
        }
    }

    /// What it does.
    pub fn work(&self) -> Work {
        let Tile { m, n, k } = self.variant.tile();
        Work {
            read_bytes: 2 * (self.a_elements() + self.b_elements()) as u64,
            written_bytes: 4 * self.out_elements() as u64,
            flops: u64::from(self.num_blocks) * u64::from(self.num_steps) * (2 * m * n * k) as u64,
        }
    }
}
