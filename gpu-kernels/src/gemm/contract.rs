//! What a product must be like, and what it does.

use cuda_std::cpu::LaunchDims;
use cuda_std::tensor_map::{L2Promotion, Swizzle, Tiling};

use super::baseline;
use super::schedule::{ROW_STEP, RowTiles};
use super::tma::{
    BLOCK_ROWS, NUM_THREADS, PANEL_STEPS, RAGGED, RAGGED_STEPS, SPLIT, STAGE_COLUMNS, Stages, WIDE,
};
use crate::contract::{ContractError, Work, require};

/// Sizes of a product: C `[m, n]` of A `[m, k]` and B `[n, k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmShape {
    /// Rows of A and C: tokens.
    pub m: u32,
    /// Rows of B, columns of C: output features.
    pub n: u32,
    /// Columns of A and B: input features.
    pub k: u32,
}

/// Largest size of a dimension: coordinates and grids hold no more tiles.
const MAX_SIZE: u32 = 1 << 20;
/// What columns come in multiples of: 16 bytes.
const PIECE: u32 = 8;

impl GemmShape {
    /// Refuses what the kernels do not take. With `a`, `b` and `c` of
    /// [`a_elements`](Self::a_elements), [`b_elements`](Self::b_elements) and
    /// [`c_elements`](Self::c_elements), no thread then reaches out of bounds.
    pub fn check(&self) -> Result<(), ContractError> {
        for (name, size) in [("m", self.m), ("n", self.n), ("k", self.k)] {
            let needed = std::format!("1 to {MAX_SIZE}");
            require((1..=MAX_SIZE).contains(&size), name, needed, size)?;
        }
        for (name, size) in [("n", self.n), ("k", self.k)] {
            require(size.is_multiple_of(PIECE), name, std::format!("a multiple of {PIECE}"), size)?;
        }
        Ok(())
    }

    /// Elements of A.
    pub fn a_elements(&self) -> usize {
        self.m as usize * self.k as usize
    }

    /// Elements of B.
    pub fn b_elements(&self) -> usize {
        self.n as usize * self.k as usize
    }

    /// Elements of C.
    pub fn c_elements(&self) -> usize {
        self.m as usize * self.n as usize
    }

    /// Launch of the baseline.
    pub fn baseline_dims(&self) -> LaunchDims {
        LaunchDims {
            grid: [
                self.n.div_ceil(baseline::TILE_N as u32),
                self.m.div_ceil(baseline::TILE_M as u32),
                1,
            ],
            block: [baseline::NUM_THREADS, 1, 1],
            shared_bytes: baseline::SHARED_BYTES,
        }
    }

    /// Launch of the exact product.
    pub fn exact_dims(&self) -> LaunchDims {
        LaunchDims {
            grid: [self.n.div_ceil(16), self.m.div_ceil(16), 1],
            block: [256, 1, 1],
            shared_bytes: 0,
        }
    }

    /// What the product itself needs: each operand once.
    pub fn work(&self) -> Work {
        let (a, b, c) = (self.a_elements(), self.b_elements(), self.c_elements());
        Work {
            read_bytes: 2 * (a + b) as u64,
            written_bytes: 2 * c as u64,
            flops: 2 * c as u64 * u64::from(self.k),
        }
    }
}

/// Which kernel multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GemmVariant {
    /// A block for each tile, `cp.async` and `mma`: Ampere and later.
    Baseline,
    /// Persistent blocks, tiles of 256 rows of A and 128 of B: Hopper.
    Tma,
    /// Tiles of up to 128 rows of A and 128 of B, each the sum of several blocks: Hopper.
    Split,
}

impl GemmVariant {
    /// All of them, baseline first.
    pub const ALL: [Self; 3] = [Self::Baseline, Self::Tma, Self::Split];

    /// What the ring holds; none in the baseline, which has another.
    pub const fn stages(self) -> Option<Stages> {
        match self {
            Self::Baseline => None,
            Self::Tma => Some(WIDE),
            Self::Split => Some(SPLIT),
        }
    }
}

/// How a product is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmPlan {
    /// Its sizes.
    pub shape: GemmShape,
    /// The kernel.
    pub variant: GemmVariant,
    /// Blocks that share a tile; 1 but for [`GemmVariant::Split`].
    pub num_splits: u32,
    /// Blocks to launch, of the persistent kernels.
    pub num_blocks: u32,
}

/// What an SM gets done, roughly: enough to choose a plan by.
mod cost {
    /// Multiply-adds in a cycle.
    pub const MULTIPLY_ADDS: u64 = 2048;
    /// Bytes from L2 in a cycle, if few SMs ask.
    pub const L2_BYTES: u64 = 56;
    /// Its share of them, if all SMs do.
    pub const L2_BYTES_SHARED: u64 = 25;
    /// Bytes from memory in a cycle, its share.
    pub const HBM_BYTES: u64 = 20;
    /// Cycles of a tile but for its multiplications.
    pub const TILE: u64 = 3000;
    /// Cycles in which blocks that share a tile wait for each other.
    pub const MEETING: u64 = 10_000;
}

impl GemmPlan {
    /// Most blocks that share a tile.
    pub const MAX_SPLITS: u32 = 16;

    /// A plan of this variant for a GPU of `num_sms` SMs.
    pub fn new(shape: GemmShape, variant: GemmVariant, num_sms: u32) -> Self {
        match variant {
            GemmVariant::Split => Self::best_split(shape, num_sms),
            _ => Self::with_splits(shape, variant, 1, num_sms),
        }
    }

    /// The plan that should be the fastest on a Hopper GPU of `num_sms` SMs.
    pub fn fastest(shape: GemmShape, num_sms: u32) -> Self {
        let plans = [GemmVariant::Tma, GemmVariant::Split].map(|v| Self::new(shape, v, num_sms));
        let [wide, split] = plans;
        if split.cycles(num_sms) < wide.cycles(num_sms) { split } else { wide }
    }

    /// A plan in which `num_splits` blocks share each tile: at most one for each step of k, and not
    /// more than run at the same time, as they wait for each other.
    pub fn with_splits(
        shape: GemmShape,
        variant: GemmVariant,
        num_splits: u32,
        num_sms: u32,
    ) -> Self {
        let alone = Self { shape, variant, num_splits: 1, num_blocks: 0 };
        let num_tiles = alone.num_tiles();
        let most = shape.k.div_ceil(STAGE_COLUMNS as u32).min(num_sms / num_tiles).max(1);
        let num_splits = num_splits.clamp(1, most);
        Self { num_splits, num_blocks: (num_tiles * num_splits).min(num_sms), ..alone }
    }

    fn best_split(shape: GemmShape, num_sms: u32) -> Self {
        let plans = (1..=Self::MAX_SPLITS)
            .map(|num_splits| Self::with_splits(shape, GemmVariant::Split, num_splits, num_sms));
        plans.min_by_key(|plan| plan.cycles(num_sms)).expect("there is at least one split")
    }

    /// Rows of B of a tile.
    fn b_rows(&self) -> u32 {
        self.variant.stages().map_or(BLOCK_ROWS, |stages| stages.blocks * BLOCK_ROWS) as u32
    }

    /// How A's rows are dealt to tiles.
    fn row_tiles(&self) -> RowTiles {
        let max_rows = self.variant.stages().map_or(BLOCK_ROWS, |stages| stages.max_rows) as u32;
        RowTiles::new(self.shape.m, max_rows)
    }

    /// Tiles of C.
    pub fn num_tiles(&self) -> u32 {
        self.row_tiles().num_tiles * self.shape.n.div_ceil(self.b_rows())
    }

    /// Roughly what it takes, in cycles of an SM.
    fn cycles(&self, num_sms: u32) -> u64 {
        let rows = match self.variant {
            GemmVariant::Split => self.row_tiles().rows_per_tile,
            _ => self.variant.stages().map_or(BLOCK_ROWS, |stages| stages.max_rows) as u32,
        };
        let (rows, b_rows) = (u64::from(rows), u64::from(self.b_rows()));
        let k = u64::from(self.shape.k.div_ceil(self.num_splits));
        let multiply = rows * b_rows * k / cost::MULTIPLY_ADDS;
        let load = (rows + b_rows) * k * 2 / cost::L2_BYTES;
        let add_up = match self.num_splits {
            1 => 0,
            _ => cost::MEETING + 2 * rows * b_rows * 4 / cost::L2_BYTES,
        };
        let waves = u64::from((self.num_tiles() * self.num_splits).div_ceil(num_sms));
        let all_sms = u64::from(num_sms);
        let memory = self.shape.work().read_bytes / (all_sms * cost::HBM_BYTES);
        let bytes_of_tiles = u64::from(self.num_tiles() * self.shape.k) * (rows + b_rows) * 2;
        let l2 = bytes_of_tiles / (all_sms * cost::L2_BYTES_SHARED);
        (waves * (multiply.max(load) + cost::TILE)).max(memory).max(l2) + add_up
    }

    /// The launch.
    pub fn dims(&self) -> LaunchDims {
        match self.variant.stages() {
            None => self.shape.baseline_dims(),
            Some(stages) => LaunchDims {
                grid: [self.num_blocks, 1, 1],
                block: [NUM_THREADS, 1, 1],
                shared_bytes: stages.shared_bytes() as u32,
            },
        }
    }

    /// How the copy engine loads A, of [`GemmVariant::Tma`].
    pub fn a_tiling(&self) -> Tiling<2> {
        rows_tiling(self.shape.m, self.shape.k, WIDE.max_rows as u32)
    }

    /// The same, of [`GemmVariant::Split`].
    pub fn ragged_a_tilings(&self) -> [Tiling<2>; RAGGED_STEPS] {
        row_tilings(self.shape.m, self.shape.k)
    }

    /// How the copy engine loads B.
    pub fn b_tiling(&self) -> Tiling<3> {
        weights_tiling(1, self.shape.n, self.shape.k)
    }

    /// How the copy engine stores C.
    pub fn c_tilings(&self) -> [Tiling<2>; PANEL_STEPS] {
        row_tilings(self.shape.m, self.shape.n)
    }

    /// Elements of the workspace for sums that several blocks share.
    pub fn sums_elements(&self) -> usize {
        match self.num_splits {
            1 => 0,
            splits => (self.num_tiles() * splits) as usize * SPLIT.max_rows * BLOCK_ROWS,
        }
    }

    /// Elements of the workspace in which blocks count who has come; zeros before and after.
    pub fn meeting_elements(&self) -> usize {
        if self.num_splits == 1 { 0 } else { 4 * self.num_tiles() as usize }
    }
}

/// Boxes of 64 columns and `box_rows` rows of a matrix `[num_rows, num_columns]`.
pub(crate) fn rows_tiling(num_rows: u32, num_columns: u32, box_rows: u32) -> Tiling<2> {
    Tiling {
        sizes: [num_columns.into(), num_rows.into()],
        strides: [1, num_columns.into()],
        tile: [STAGE_COLUMNS as u32, box_rows],
        swizzle: Swizzle::Bytes128,
        l2_promotion: L2Promotion::Bytes128,
    }
}

/// Boxes of 64 columns and 16 rows, 32, and so on.
pub(crate) fn row_tilings<const STEPS: usize>(
    num_rows: u32,
    num_columns: u32,
) -> [Tiling<2>; STEPS] {
    core::array::from_fn(|i| rows_tiling(num_rows, num_columns, (i as u32 + 1) * ROW_STEP))
}

/// Boxes of 64 columns and 128 rows of weights `[num_experts, n, k]`.
pub(crate) fn weights_tiling(num_experts: u32, n: u32, k: u32) -> Tiling<3> {
    let (rows, columns) = (u64::from(n), u64::from(k));
    Tiling {
        sizes: [columns, rows, num_experts.into()],
        strides: [1, columns, rows * columns],
        tile: [STAGE_COLUMNS as u32, BLOCK_ROWS as u32, 1],
        swizzle: Swizzle::Bytes128,
        l2_promotion: L2Promotion::Bytes128,
    }
}

const _: () = assert!(SPLIT.max_rows == RAGGED.max_rows);
