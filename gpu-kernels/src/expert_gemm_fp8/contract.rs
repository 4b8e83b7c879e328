//! What a grouped product in fp8 must be like, and what it does.

use cuda_std::cpu::LaunchDims;
use cuda_std::tensor_map::{L2Promotion, Swizzle, Tiling};

use super::grouped::{self, ROW_BOXES, STAGE_COLUMNS, TILE_COLUMNS};
use crate::contract::{ContractError, Work, require_multiple, require_up_to};
use crate::expert_gemm::contract::{MAX_EXPERTS, baseline_dims};
use crate::gemm::contract::{MAX_SIZE, PIECE as C_PIECE, row_tilings};
use crate::gemm::schedule::ROW_STEP;
use crate::gemm::tma::PANEL_STEPS;
use crate::token_unpack::SCALE_BLOCK;

/// Sizes of a grouped product. How many rows each expert has is known on the device only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGemmFp8Shape {
    /// Rows of A and C, of all experts.
    pub num_rows: u32,
    /// Experts of this rank.
    pub num_experts: u32,
    /// Columns of C: output features.
    pub n: u32,
    /// Columns of A and B: input features.
    pub k: u32,
}

/// What columns of A and B come in multiples of: 16 bytes.
const K_PIECE: u32 = 16;

impl ExpertGemmFp8Shape {
    /// Refuses what the kernels do not take. With arguments of the lengths stated here, no thread
    /// then reaches out of bounds, whatever the offsets are: those beyond `num_rows` count as
    /// `num_rows`.
    pub fn check(&self) -> Result<(), ContractError> {
        let Self { num_rows, num_experts, n, k } = *self;
        require_up_to("num_experts", MAX_EXPERTS, num_experts)?;
        require_up_to("num_rows", MAX_SIZE, num_rows)?;
        require_multiple("n", C_PIECE, MAX_SIZE, n)?;
        require_multiple("k", K_PIECE, MAX_SIZE, k)
    }

    /// Scales of a row of A, and of 128 rows of B.
    pub fn row_scales(&self) -> u32 {
        self.k.div_ceil(SCALE_BLOCK)
    }

    /// Elements of A.
    pub fn a_elements(&self) -> usize {
        self.num_rows as usize * self.k as usize
    }

    /// Elements of `a_scales`.
    pub fn a_scales(&self) -> usize {
        self.num_rows as usize * self.row_scales() as usize
    }

    /// Elements of B, of all experts.
    pub fn b_elements(&self) -> usize {
        self.num_experts as usize * self.n as usize * self.k as usize
    }

    /// Elements of `b_scales`.
    pub fn b_scales(&self) -> usize {
        let of_expert = self.n.div_ceil(SCALE_BLOCK) as usize * self.row_scales() as usize;
        self.num_experts as usize * of_expert
    }

    /// Elements of C.
    pub fn c_elements(&self) -> usize {
        self.num_rows as usize * self.n as usize
    }

    /// Elements of `expert_offsets`.
    pub fn offsets_elements(&self) -> usize {
        self.num_experts as usize + 1
    }

    /// Launch of the baseline.
    pub fn baseline_dims(&self) -> LaunchDims {
        baseline_dims(self.num_rows, self.num_experts, self.n)
    }

    /// Launch of the persistent kernel, on a GPU of `num_sms` SMs.
    pub fn grouped_dims(&self, num_sms: u32) -> LaunchDims {
        LaunchDims {
            grid: [num_sms, 1, 1],
            block: [grouped::NUM_THREADS, 1, 1],
            shared_bytes: grouped::SHARED_BYTES,
        }
    }

    /// How the copy engine loads A: in boxes of 16 rows, 32, and so on.
    pub fn a_tilings(&self) -> [Tiling<2>; ROW_BOXES] {
        let (rows, columns) = (u64::from(self.num_rows), u64::from(self.k));
        core::array::from_fn(|i| Tiling {
            sizes: [columns, rows],
            strides: [1, columns],
            tile: [STAGE_COLUMNS as u32, (i as u32 + 1) * ROW_STEP],
            swizzle: Swizzle::Bytes128,
            l2_promotion: L2Promotion::Bytes128,
        })
    }

    /// How the copy engine loads B.
    pub fn b_tiling(&self) -> Tiling<3> {
        let (rows, columns) = (u64::from(self.n), u64::from(self.k));
        Tiling {
            sizes: [columns, rows, self.num_experts.into()],
            strides: [1, columns, rows * columns],
            tile: [STAGE_COLUMNS as u32, TILE_COLUMNS as u32, 1],
            swizzle: Swizzle::Bytes128,
            l2_promotion: L2Promotion::Bytes128,
        }
    }

    /// How the copy engine stores C.
    pub fn c_tilings(&self) -> [Tiling<2>; PANEL_STEPS] {
        row_tilings(self.num_rows, self.n)
    }

    /// What the product itself needs if experts have `rows_of` tokens: the weights of those that
    /// have any, each operand and scale once.
    pub fn work(&self, rows_of: &[u32]) -> Work {
        let (n, k, row_scales) =
            (u64::from(self.n), u64::from(self.k), u64::from(self.row_scales()));
        let rows: u64 = rows_of.iter().map(|&rows| u64::from(rows)).sum();
        let num_used = rows_of.iter().filter(|&&rows| rows > 0).count() as u64;
        let blocks = num_used * u64::from(self.n.div_ceil(SCALE_BLOCK));
        let scale_bytes = 4 * (rows + blocks) * row_scales;
        Work {
            read_bytes: (rows + num_used * n) * k
                + scale_bytes
                + 4 * self.offsets_elements() as u64,
            written_bytes: 2 * rows * n,
            flops: 2 * rows * n * k,
        }
    }
}
