//! What a grouped product must be like, and what it does.

use cuda_std::cpu::LaunchDims;
use cuda_std::tensor_map::Tiling;

use crate::contract::{ContractError, Work, require_multiple, require_up_to};
use crate::gemm::baseline;
use crate::gemm::contract::{MAX_SIZE, PIECE, row_tilings, rows_tiling, weights_tiling};
use crate::gemm::tma::{NUM_THREADS, PANEL_STEPS, RAGGED, RAGGED_BOXES, TALL_ROWS};

/// Sizes of a grouped product. How many rows each expert has is known on the device only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGemmShape {
    /// Rows of A and C, of all experts.
    pub num_rows: u32,
    /// Experts of this rank.
    pub num_experts: u32,
    /// Columns of C: output features.
    pub n: u32,
    /// Columns of A and B: input features.
    pub k: u32,
    /// Whether B's rows are `n` gates and then the `n` that they scale.
    pub is_gated: bool,
}

/// Most experts of a rank.
pub(crate) const MAX_EXPERTS: u32 = 1024;

impl ExpertGemmShape {
    /// Refuses what the kernels do not take. With arguments of the lengths stated here, no thread
    /// then reaches out of bounds, whatever the offsets are: those beyond `num_rows` count as
    /// `num_rows`.
    pub fn check(&self) -> Result<(), ContractError> {
        let Self { num_rows, num_experts, n, k, is_gated } = *self;
        let max_n = if is_gated { MAX_SIZE / 2 } else { MAX_SIZE };
        require_up_to("num_experts", MAX_EXPERTS, num_experts)?;
        require_up_to("num_rows", MAX_SIZE, num_rows)?;
        require_multiple("n", PIECE, max_n, n)?;
        require_multiple("k", PIECE, MAX_SIZE, k)
    }

    /// Rows of an expert's B.
    pub fn b_rows(&self) -> u32 {
        if self.is_gated { 2 * self.n } else { self.n }
    }

    /// Elements of A.
    pub fn a_elements(&self) -> usize {
        self.num_rows as usize * self.k as usize
    }

    /// Elements of B, of all experts.
    pub fn b_elements(&self) -> usize {
        self.num_experts as usize * self.b_rows() as usize * self.k as usize
    }

    /// Elements of C.
    pub fn c_elements(&self) -> usize {
        self.num_rows as usize * self.n as usize
    }

    /// Elements of `expert_offsets`.
    pub fn offsets_elements(&self) -> usize {
        self.num_experts as usize + 1
    }

    /// Launch of the baseline, which knows no gate: `n` is all of B's rows.
    pub fn baseline_dims(&self) -> LaunchDims {
        baseline_dims(self.num_rows, self.num_experts, self.n)
    }

    /// Launch of the persistent kernels, on a GPU of `num_sms` SMs.
    pub fn grouped_dims(&self, num_sms: u32) -> LaunchDims {
        LaunchDims {
            grid: [num_sms, 1, 1],
            block: [NUM_THREADS, 1, 1],
            shared_bytes: RAGGED.shared_bytes() as u32,
        }
    }

    /// How the copy engine loads A.
    pub fn a_tilings(&self) -> [Tiling<2>; RAGGED_BOXES] {
        let mut tilings = row_tilings(self.num_rows, self.k);
        tilings[RAGGED_BOXES - 1] = rows_tiling(self.num_rows, self.k, TALL_ROWS as u32);
        tilings
    }

    /// How the copy engine loads B.
    pub fn b_tiling(&self) -> Tiling<3> {
        weights_tiling(self.num_experts, self.b_rows(), self.k)
    }

    /// How the copy engine stores C.
    pub fn c_tilings(&self) -> [Tiling<2>; PANEL_STEPS] {
        row_tilings(self.num_rows, self.n)
    }

    /// What the product itself needs if experts have `rows_of` tokens: the weights of those that
    /// have any, each operand once.
    pub fn work(&self, rows_of: &[u32]) -> Work {
        let (n, k, b_rows) = (u64::from(self.n), u64::from(self.k), u64::from(self.b_rows()));
        let rows: u64 = rows_of.iter().map(|&rows| u64::from(rows)).sum();
        let num_used = rows_of.iter().filter(|&&rows| rows > 0).count() as u64;
        Work {
            read_bytes: 2 * (rows * k + num_used * b_rows * k) + 4 * self.offsets_elements() as u64,
            written_bytes: 2 * rows * n,
            flops: 2 * rows * b_rows * k,
        }
    }
}

/// Launch of a block for each tile of C of each expert.
pub(crate) fn baseline_dims(num_rows: u32, num_experts: u32, n: u32) -> LaunchDims {
    // Each expert may leave one tile partly filled.
    let m_tiles = num_rows.div_ceil(baseline::TILE_M as u32) + num_experts;
    LaunchDims {
        grid: [n.div_ceil(baseline::TILE_N as u32), m_tiles, 1],
        block: [baseline::NUM_THREADS, 1, 1],
        shared_bytes: baseline::SHARED_BYTES,
    }
}
