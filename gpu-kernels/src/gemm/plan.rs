//! How a product is launched: which kernel, in which tiles, on how many blocks.

use cuda_std::cpu::LaunchDims;
use cuda_std::tensor_map::Tiling;

use super::contract::{GemmShape, parts_tiling, row_tilings, rows_tiling, weights_tiling};
use super::schedule::Shares;
use super::split_plan::{SplitPlan, SplitTile};
use super::stream::{self, BARRIERS_BYTES, MAX_STAGES, TILE_ROWS, WEIGHT_ROWS, stage_bytes};
use super::tma::{BLOCK_ROWS, NUM_THREADS, PANEL_STEPS, STAGE_COLUMNS, WIDE};
use crate::contract::{ContractError, MAX_SHARED_BYTES, require};

/// Which kernel multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GemmVariant {
    /// A block for each tile, `cp.async` and `mma`: Ampere and later.
    Baseline,
    /// Persistent blocks, tiles of 256 rows of A and 128 of B: Hopper.
    Tma,
    /// The same tiles, in pairs that share loads of A: Hopper.
    Paired,
    /// Tiles of up to 128 rows of A and 128 of B, dealt to blocks by steps of k: Hopper.
    Stream,
    /// Tiles of up to 128 rows of A, one a cluster: Hopper.
    Split,
}

impl GemmVariant {
    /// All of them, baseline first.
    pub const ALL: [Self; 5] = [Self::Baseline, Self::Tma, Self::Paired, Self::Stream, Self::Split];
}

/// How a product is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmPlan {
    /// Its sizes.
    pub shape: GemmShape,
    /// The kernel, and how it goes about it.
    pub kernel: GemmKernel,
}

/// A kernel's part of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GemmKernel {
    /// Of [`GemmVariant::Baseline`].
    Baseline,
    /// Of [`GemmVariant::Tma`].
    Tma {
        /// Blocks, each of which takes one tile after the other.
        num_blocks: u32,
    },
    /// Of [`GemmVariant::Paired`].
    Paired {
        /// Blocks, two a pair.
        num_blocks: u32,
    },
    /// Of [`GemmVariant::Stream`].
    Stream(StreamPlan),
    /// Of [`GemmVariant::Split`].
    Split(SplitPlan),
}

impl GemmKernel {
    /// Its name, as profilers show it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Baseline => "gemm_baseline_bf16",
            Self::Tma { .. } => "gemm_tma_bf16",
            Self::Paired { .. } => "gemm_paired_bf16",
            Self::Stream(_) => "gemm_stream_bf16",
            Self::Split(SplitPlan { tile, .. }) => match (tile.num_splits, tile.weight_rows) {
                (1, _) => "gemm_split1_64_bf16",
                (2, _) => "gemm_split2_64_bf16",
                _ => "gemm_split4_128_bf16",
            },
        }
    }
}

/// How weights stream through the SMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPlan {
    /// Rows of weights that make a column of C.
    pub parts: u32,
    /// Rows of A of a tile: one of [`TILE_ROWS`].
    pub tile_rows: u32,
    /// Tiles that A's rows take.
    pub m_tiles: u32,
    /// What each block does.
    pub shares: Shares,
    /// Stages of the ring.
    pub num_stages: u32,
}

/// What an SM gets done, roughly: enough to choose a plan by.
pub(super) mod cost {
    /// Multiply-adds in a cycle.
    pub const MULTIPLY_ADDS: u64 = 2048;
    /// Bytes from L2 in a cycle, if few SMs ask.
    pub const L2_BYTES: u64 = 56;
    /// Its share of them, if all SMs do.
    pub const L2_BYTES_SHARED: u64 = 45;
    /// Bytes from memory in a cycle, its share.
    pub const HBM_BYTES: u64 = 18;
    /// Cycles of a tile but for its multiplications.
    pub const TILE: u64 = 3000;
    /// Cycles of a streamed step, and as many more as tiles have rows.
    pub const STEP: u64 = 600;
    /// Cycles in which sums of blocks that share a tile are added up.
    pub const SHARED_TILE: u64 = 1000;
    /// As many more for each row of such a tile.
    pub const SHARED_ROW: u64 = 85;
}

impl StreamPlan {
    /// Fewer steps are not worth a block of their own.
    const MIN_STEPS: u32 = 8;
    /// Most rows: steps of all tiles are counted in 32 bits.
    pub const MAX_ROWS: u32 = 1024;

    /// The plan that should be the fastest on a GPU of `num_sms` SMs. `parts` rows of B make a column
    /// of C.
    pub fn new(shape: GemmShape, parts: u32, num_sms: u32) -> Self {
        let [smallest, .., largest] = TILE_ROWS;
        let tile_rows = shape.m.next_power_of_two().clamp(smallest, largest);
        let half = if tile_rows == largest { tile_rows / 2 } else { tile_rows };
        let plans = [tile_rows, half].into_iter().flat_map(|tile_rows| {
            [Self::in_shares, Self::in_whole_tiles]
                .map(|plan| plan(shape, parts, tile_rows, num_sms))
        });
        plans.min_by_key(|plan| plan.cycles(shape, num_sms)).expect("there are some")
    }

    /// Equal shares for all SMs, in tiles of `tile_rows` rows of A, one of [`TILE_ROWS`].
    fn in_shares(shape: GemmShape, parts: u32, tile_rows: u32, num_sms: u32) -> Self {
        let m_tiles = shape.m.div_ceil(tile_rows);
        let shares = Shares::of_product(parts * shape.n, m_tiles, shape.k, 1);
        let all_steps = u64::from(shares.num_tiles) * u64::from(shares.num_steps);
        let share = all_steps.div_ceil(num_sms.into()).min(u32::MAX.into()) as u32;
        let share = share.max(Self::MIN_STEPS.min(shares.num_steps));
        // Shares that end with their tiles, if they are hardly longer: fewer blocks share a tile.
        let whole = shares.num_steps.div_ceil((shares.num_steps / share).max(1)).max(share);
        let fits = whole - share <= share / 10
            && shares.num_tiles.saturating_mul(shares.num_steps.div_ceil(whole)) <= num_sms;
        let plan = Self { parts, tile_rows, m_tiles, shares, num_stages: 0 };
        plan.with_steps(if fits { whole } else { share })
    }

    /// Tiles of up to `tile_rows` rows of A, each of which one block adds up from first to last.
    fn in_whole_tiles(shape: GemmShape, parts: u32, tile_rows: u32, num_sms: u32) -> Self {
        let plan = Self::in_shares(shape, parts, tile_rows, num_sms);
        let Shares { num_tiles, num_steps, .. } = plan.shares;
        plan.with_steps(num_steps.saturating_mul(num_tiles.div_ceil(num_sms)))
    }

    /// The same plan for blocks of so many steps.
    fn with_steps(self, steps_per_block: u32) -> Self {
        let room =
            (MAX_SHARED_BYTES - BARRIERS_BYTES) / stage_bytes(WEIGHT_ROWS, self.tile_rows as usize);
        let num_stages = steps_per_block.min(room as u32).min(MAX_STAGES);
        Self { shares: Shares { steps_per_block, ..self.shares }, num_stages, ..self }
    }

    /// Refuses shapes of more rows than a streamed product takes.
    pub fn check(shape: GemmShape) -> Result<(), ContractError> {
        let needed = std::format!("at most {} of a streamed product", Self::MAX_ROWS);
        require(shape.m <= Self::MAX_ROWS, "m", needed, shape.m)
    }

    /// How the copy engine loads the rows of tokens, `[m, k]`.
    pub fn rows_tiling(&self, shape: GemmShape) -> Tiling<2> {
        rows_tiling(shape.m, shape.k, self.tile_rows)
    }

    /// How the copy engine loads the weights of `shape`.
    pub fn weights_tiling(&self, shape: GemmShape) -> Tiling<4> {
        parts_tiling(self.parts, shape.n, shape.k, WEIGHT_ROWS as u32)
    }

    /// The launch.
    pub fn dims(&self) -> LaunchDims {
        let ring = self.num_stages as usize * stage_bytes(WEIGHT_ROWS, self.tile_rows as usize);
        LaunchDims {
            grid: [self.shares.num_blocks(), 1, 1],
            block: [stream::NUM_THREADS, 1, 1],
            shared_bytes: (ring + BARRIERS_BYTES) as u32,
        }
    }

    /// Elements of the workspace for what blocks have of tiles that they share.
    pub fn sums_elements(&self) -> usize {
        if self.shares_tiles() {
            2 * self.shares.num_blocks() as usize * WEIGHT_ROWS * self.tile_rows as usize
        } else {
            0
        }
    }

    /// Elements of the workspace in which warps count who has come; zeros before and after.
    pub fn arrived_elements(&self) -> usize {
        if self.shares_tiles() { (self.shares.num_tiles * stream::NUM_WARPS) as usize } else { 0 }
    }

    fn shares_tiles(&self) -> bool {
        !self.shares.steps_per_block.is_multiple_of(self.shares.num_steps)
    }

    /// Roughly what it takes, in cycles of an SM.
    pub(crate) fn cycles(&self, shape: GemmShape, num_sms: u32) -> u64 {
        let (rows, all_sms) = (u64::from(self.tile_rows), u64::from(num_sms));
        let steps = u64::from(self.shares.steps_per_block) * (cost::STEP + rows);
        let all_steps = u64::from(self.shares.num_tiles) * u64::from(self.shares.num_steps);
        let l2 = all_steps * stage_bytes(WEIGHT_ROWS, self.tile_rows as usize) as u64
            / (all_sms * cost::L2_BYTES_SHARED);
        let weight_bytes = 2 * u64::from(self.parts) * shape.b_elements() as u64;
        let memory = weight_bytes / (all_sms * cost::HBM_BYTES);
        let shared =
            if self.shares_tiles() { cost::SHARED_TILE + cost::SHARED_ROW * rows } else { 0 };
        steps.max(l2).max(memory) + shared + cost::TILE
    }
}

impl GemmPlan {
    /// A plan of this variant for a GPU of `num_sms` SMs.
    pub fn new(shape: GemmShape, variant: GemmVariant, num_sms: u32) -> Self {
        let kernel = match variant {
            GemmVariant::Baseline => GemmKernel::Baseline,
            GemmVariant::Tma => GemmKernel::Tma { num_blocks: wide_tiles(shape).min(num_sms) },
            GemmVariant::Paired => {
                let num_pairs = pairs(shape).min((num_sms / 2).max(1));
                GemmKernel::Paired { num_blocks: 2 * num_pairs }
            }
            GemmVariant::Stream => GemmKernel::Stream(StreamPlan::new(shape, 1, num_sms)),
            GemmVariant::Split => {
                let [alone, ..] = SplitTile::ALL;
                let fastest = SplitPlan::fastest(shape, 1, num_sms);
                GemmKernel::Split(fastest.unwrap_or(SplitPlan::new(shape, 1, alone)))
            }
        };
        Self { shape, kernel }
    }

    /// The plan that should be the fastest on a Hopper GPU of `num_sms` SMs.
    pub fn fastest(shape: GemmShape, num_sms: u32) -> Self {
        // Where rows straddle lines of L2, those are what loads are counted in.
        let straddles = !shape.k.is_multiple_of(STAGE_COLUMNS as u32);
        let for_many = if straddles { GemmVariant::Paired } else { GemmVariant::Tma };
        let wide = Self::new(shape, for_many, num_sms);
        if shape.m > StreamPlan::MAX_ROWS {
            return wide;
        }
        let stream = StreamPlan::new(shape, 1, num_sms);
        let split = SplitPlan::fastest(shape, 1, num_sms)
            .map(|plan| (plan.cycles(shape, num_sms), GemmKernel::Split(plan)));
        let plans = [
            (wide_cycles(shape, num_sms), wide.kernel),
            (stream.cycles(shape, num_sms), GemmKernel::Stream(stream)),
        ];
        let fastest = plans.into_iter().chain(split).min_by_key(|(cycles, _)| *cycles);
        Self { shape, kernel: fastest.map_or(wide.kernel, |(_, kernel)| kernel) }
    }

    /// The fastest of those plans for a Hopper GPU of `num_sms` SMs in which one block adds up an
    /// element, in the order of k: a row of C then depends on its row of A alone, and not on how many
    /// others there are.
    pub fn batch_invariant(shape: GemmShape, num_sms: u32) -> Self {
        let wide = Self::new(shape, GemmVariant::Tma, num_sms);
        if shape.m > StreamPlan::MAX_ROWS {
            return wide;
        }
        let streams = TILE_ROWS.map(|rows| StreamPlan::in_whole_tiles(shape, 1, rows, num_sms));
        let stream = streams.into_iter().min_by_key(|plan| plan.cycles(shape, num_sms));
        let stream = stream.expect("there are some");
        match stream.cycles(shape, num_sms) < wide_cycles(shape, num_sms) {
            true => Self { shape, kernel: GemmKernel::Stream(stream) },
            false => wide,
        }
    }

    /// Refuses what the kernel does not take.
    pub fn check(&self) -> Result<(), ContractError> {
        self.shape.check()?;
        match self.kernel {
            GemmKernel::Stream(_) => StreamPlan::check(self.shape),
            GemmKernel::Split(plan) => plan.check(self.shape),
            _ => Ok(()),
        }
    }

    /// The launch.
    pub fn dims(&self) -> LaunchDims {
        match self.kernel {
            GemmKernel::Baseline => self.shape.baseline_dims(),
            GemmKernel::Tma { num_blocks } | GemmKernel::Paired { num_blocks, .. } => LaunchDims {
                grid: [num_blocks, 1, 1],
                block: [NUM_THREADS, 1, 1],
                shared_bytes: WIDE.shared_bytes() as u32,
            },
            GemmKernel::Stream(stream) => stream.dims(),
            GemmKernel::Split(split) => split.dims(),
        }
    }

    /// How the copy engine loads A, for many tokens.
    pub fn a_tiling(&self) -> Tiling<2> {
        let is_paired = matches!(self.kernel, GemmKernel::Paired { .. });
        let box_rows = if is_paired { WIDE.max_rows / 2 } else { WIDE.max_rows };
        rows_tiling(self.shape.m, self.shape.k, box_rows as u32)
    }

    /// How the copy engine loads B, for many tokens.
    pub fn b_tiling(&self) -> Tiling<3> {
        weights_tiling(1, self.shape.n, self.shape.k)
    }

    /// How the copy engine stores C, of [`GemmVariant::Tma`].
    pub fn c_tilings(&self) -> [Tiling<2>; PANEL_STEPS] {
        row_tilings(self.shape.m, self.shape.n)
    }

    /// Elements of the workspaces that blocks share: for sums, and for counters, which are zeros
    /// before and after.
    pub fn workspace_elements(&self) -> [usize; 2] {
        match self.kernel {
            GemmKernel::Stream(stream) => [stream.sums_elements(), stream.arrived_elements()],
            _ => [0, 0],
        }
    }
}

/// Tiles of [`GemmVariant::Tma`].
fn wide_tiles(shape: GemmShape) -> u32 {
    shape.m.div_ceil(WIDE.max_rows as u32) * shape.n.div_ceil(BLOCK_ROWS as u32)
}

/// Pairs of [`GemmVariant::Paired`].
fn pairs(shape: GemmShape) -> u32 {
    shape.m.div_ceil(WIDE.max_rows as u32) * shape.n.div_ceil(2 * BLOCK_ROWS as u32)
}

/// Roughly what [`GemmVariant::Tma`] takes, in cycles of an SM.
fn wide_cycles(shape: GemmShape, num_sms: u32) -> u64 {
    let (rows, b_rows, k) = (WIDE.max_rows as u64, BLOCK_ROWS as u64, u64::from(shape.k));
    let multiply = rows * b_rows * k / cost::MULTIPLY_ADDS;
    let load = (rows + b_rows) * k * 2 / cost::L2_BYTES;
    let waves = u64::from(wide_tiles(shape).div_ceil(num_sms));
    let all_sms = u64::from(num_sms);
    let memory = shape.work().read_bytes / (all_sms * cost::HBM_BYTES);
    let bytes_of_tiles = u64::from(wide_tiles(shape)) * k * (rows + b_rows) * 2;
    let l2 = bytes_of_tiles / (all_sms * cost::L2_BYTES_SHARED);
    (waves * (multiply.max(load) + cost::TILE)).max(memory).max(l2)
}
