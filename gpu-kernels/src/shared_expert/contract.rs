//! What a shared expert must be like, and what it does.

use cuda_std::cpu::LaunchDims;
use cuda_std::tensor_map::Tiling;

use super::device::{PIECE, SILU_MUL_THREADS};
use crate::contract::{ContractError, MAX_GRID_Y, Work, require_multiple, require_up_to};
use crate::gemm::contract::{GemmShape, MAX_SIZE, row_tilings, rows_tiling, weights_tiling};
use crate::gemm::plan::StreamPlan;
use crate::gemm::split_plan::{SplitPlan, SplitTile};
use crate::gemm::tma::{BLOCK_ROWS, NUM_THREADS, PANEL_STEPS, RAGGED};

/// Sizes of a shared expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedExpertShape {
    /// Rows of x and y.
    pub num_tokens: u32,
    /// Columns of x and y.
    pub hidden: u32,
    /// Columns of h.
    pub intermediate: u32,
}

impl SharedExpertShape {
    /// The two products: x with gate and up, and h with down.
    pub fn products(&self) -> [GemmShape; 2] {
        let Self { num_tokens: m, hidden, intermediate } = *self;
        [
            GemmShape { m, n: 2 * intermediate, k: hidden },
            GemmShape { m, n: hidden, k: intermediate },
        ]
    }

    /// Refuses what the kernels do not take. With arguments of the lengths that the room states, no
    /// thread then reaches out of bounds.
    pub fn check(&self) -> Result<(), ContractError> {
        require_up_to("num_tokens", MAX_SIZE, self.num_tokens)?;
        require_multiple("hidden", PIECE, MAX_SIZE, self.hidden)?;
        // The first product has two columns for each of h.
        require_multiple("intermediate", PIECE, MAX_SIZE / 2, self.intermediate)
    }

    /// Elements of x, and of y.
    pub fn x_elements(&self) -> usize {
        self.num_tokens as usize * self.hidden as usize
    }

    /// Elements of h.
    pub fn h_elements(&self) -> usize {
        self.num_tokens as usize * self.intermediate as usize
    }

    /// Launches of the gate as a kernel of its own, each from a token on: more tokens than a grid has
    /// rows take several.
    pub fn silu_mul_launches(&self) -> impl Iterator<Item = (usize, LaunchDims)> {
        let Self { num_tokens, intermediate, .. } = *self;
        let num_blocks = (intermediate / PIECE).div_ceil(SILU_MUL_THREADS);
        (0..num_tokens).step_by(MAX_GRID_Y as usize).map(move |first_token| {
            let dims = LaunchDims {
                grid: [num_blocks, (num_tokens - first_token).min(MAX_GRID_Y), 1],
                block: [SILU_MUL_THREADS, 1, 1],
                shared_bytes: 0,
            };
            (first_token as usize, dims)
        })
    }

    /// Launch of the first product with its gate, on a GPU of `num_sms` SMs.
    pub fn gate_up_dims(&self, num_sms: u32) -> LaunchDims {
        let num_tiles = self.num_tokens.div_ceil(RAGGED.max_rows as u32)
            * self.intermediate.div_ceil(BLOCK_ROWS as u32);
        LaunchDims {
            grid: [num_tiles.min(num_sms), 1, 1],
            block: [NUM_THREADS, 1, 1],
            shared_bytes: RAGGED.shared_bytes() as u32,
        }
    }

    /// Sizes of h as a product: what plans of two parts are made for.
    pub fn h_product(&self) -> GemmShape {
        GemmShape { m: self.num_tokens, n: self.intermediate, k: self.hidden }
    }

    /// A plan for few tokens: at most [`StreamPlan::MAX_ROWS`].
    pub fn stream_plan(&self, num_sms: u32) -> StreamPlan {
        StreamPlan::new(self.h_product(), 2, num_sms)
    }

    /// A plan in clusters of two, for few tokens.
    pub fn split_plan(&self) -> SplitPlan {
        SplitPlan::new(self.h_product(), 2, SplitTile::PAIR)
    }

    /// Whether clusters should be faster than shares that stream, on `num_sms` SMs.
    pub fn is_faster_split(&self, num_sms: u32) -> bool {
        let (product, split) = (self.h_product(), self.split_plan());
        let streamed = self.stream_plan(num_sms).cycles(product, num_sms);
        split.fits(product, num_sms) && split.cycles(product, num_sms) < streamed
    }

    /// How the copy engine loads x.
    pub fn x_tiling(&self) -> Tiling<2> {
        rows_tiling(self.num_tokens, self.hidden, RAGGED.max_rows as u32)
    }

    /// How the copy engine loads gate and up.
    pub fn gate_up_tiling(&self) -> Tiling<3> {
        weights_tiling(1, 2 * self.intermediate, self.hidden)
    }

    /// How the copy engine stores h.
    pub fn h_tilings(&self) -> [Tiling<2>; PANEL_STEPS] {
        row_tilings(self.num_tokens, self.intermediate)
    }

    /// What the expert itself needs: x and weights read once, y written once; h need not leave a
    /// cache.
    pub fn work(&self) -> Work {
        let [gate_up, down] = self.products();
        let weights = gate_up.b_elements() + down.b_elements();
        Work {
            read_bytes: 2 * (self.x_elements() + weights) as u64,
            written_bytes: 2 * self.x_elements() as u64,
            flops: gate_up.work().flops + down.work().flops,
        }
    }
}
