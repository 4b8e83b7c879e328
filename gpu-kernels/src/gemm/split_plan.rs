//! How few tokens are multiplied by clusters, a tile each.

use cuda_std::cpu::LaunchDims;
use cuda_std::tensor_map::Tiling;

use super::contract::{GemmShape, parts_tiling, rows_tiling};
use super::plan::{StreamPlan, cost as plan_cost};
use super::stream::{self, BARRIERS_BYTES, MAX_STAGES, TILE_ROWS, WEIGHT_ROWS, stage_bytes};
use super::tma::STAGE_COLUMNS;
use crate::contract::{ContractError, MAX_SHARED_BYTES, require};

/// What an SM gets done, roughly, as measured on an H200.
mod cost {
    /// Bytes from L2 in a cycle, its share.
    pub const L2_BYTES: u64 = 55;
    /// Bytes from memory in a cycle that it gets if few SMs ask.
    pub const HBM_BYTES_ALONE: u64 = 28;
    /// Cycles in which the two blocks of a cluster add up.
    pub const ADD_UP: u64 = 2000;
}

/// What a tile is made of, and who multiplies it: a kernel each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitTile {
    /// Blocks of a cluster, which share a tile's steps.
    pub num_splits: u32,
    /// Rows of weights of a tile.
    pub weight_rows: u32,
}

impl SplitTile {
    /// All that there are kernels for.
    pub const ALL: [Self; 3] = [Self::new(1, 64), Self::PAIR, Self::new(4, 128)];
    /// A tile of 64 rows of weights for two blocks.
    pub const PAIR: Self = Self::new(2, 64);

    const fn new(num_splits: u32, weight_rows: u32) -> Self {
        Self { num_splits, weight_rows }
    }

    /// Blocks that run at a time. Graphics processing clusters hold few clusters of four: an H200 of 132
    /// SMs has room for 66 of two, and for 30 of four.
    const fn resident_blocks(self, num_sms: u32) -> u32 {
        match self.num_splits {
            4 => num_sms / 4 * 10 / 11 * 4,
            splits => num_sms / splits * splits,
        }
    }
}

/// A tile for each cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitPlan {
    /// Rows of weights that make a column of C.
    pub parts: u32,
    /// Which kernel.
    pub tile: SplitTile,
    /// Tokens of a tile: one of [`TILE_ROWS`].
    pub tile_rows: u32,
    /// Tiles of C.
    pub num_tiles: u32,
    /// Steps of k of a tile.
    pub num_steps: u32,
    /// Stages of the ring.
    pub num_stages: u32,
}

impl SplitPlan {
    /// Stages in which a tile's sums have room afterwards.
    const MIN_STAGES: u32 = 2;

    /// `shape` in tiles like `tile`. `parts` rows of B make a column of C.
    pub fn new(shape: GemmShape, parts: u32, tile: SplitTile) -> Self {
        let [smallest, .., largest] = TILE_ROWS;
        // Two warpgroups share the tokens of half a tile's weights, 16 each.
        let smallest = smallest * WEIGHT_ROWS as u32 / tile.weight_rows;
        let tile_rows = shape.m.next_power_of_two().clamp(smallest, largest);
        let num_tiles = shape.m.div_ceil(tile_rows) * (parts * shape.n).div_ceil(tile.weight_rows);
        let num_steps = shape.k.div_ceil(STAGE_COLUMNS as u32);
        let stage_bytes = stage_bytes(tile.weight_rows as usize, tile_rows as usize);
        let room = (MAX_SHARED_BYTES - BARRIERS_BYTES) / stage_bytes;
        let num_stages = num_steps.div_ceil(tile.num_splits).min(room as u32).min(MAX_STAGES);
        let num_stages = num_stages.max(Self::MIN_STAGES);
        Self { parts, tile, tile_rows, num_tiles, num_steps, num_stages }
    }

    /// The plan that should be the fastest on `num_sms` SMs, of those whose blocks all run at a time.
    pub fn fastest(shape: GemmShape, parts: u32, num_sms: u32) -> Option<Self> {
        let plans = SplitTile::ALL.map(|tile| Self::new(shape, parts, tile));
        let possible = plans.into_iter().filter(|plan| plan.fits(shape, num_sms));
        possible.min_by_key(|plan| plan.cycles(shape, num_sms))
    }

    /// Whether it takes `shape`, and all of its blocks run at a time on `num_sms` SMs.
    pub fn fits(&self, shape: GemmShape, num_sms: u32) -> bool {
        self.check(shape).is_ok() && self.num_blocks() <= self.tile.resident_blocks(num_sms)
    }

    fn num_blocks(&self) -> u32 {
        self.num_tiles * self.tile.num_splits
    }

    /// Roughly what it takes, in cycles of an SM.
    pub(crate) fn cycles(&self, shape: GemmShape, num_sms: u32) -> u64 {
        let (rows, blocks) = (u64::from(self.tile_rows), u64::from(self.num_blocks()));
        let all_sms = u64::from(num_sms);
        let [step, add_up] = match (self.tile.num_splits, self.tile.weight_rows) {
            (1, _) => [140 + rows * 6 / 5, 0],
            (_, 64) => [140 + rows * 6 / 5, cost::ADD_UP],
            _ => [180 + rows * 2, cost::ADD_UP / 2 + rows * 36],
        };
        let steps = u64::from(self.num_steps.div_ceil(self.tile.num_splits));
        let l2 = blocks * steps * self.stage_bytes() as u64 / (all_sms * cost::L2_BYTES);
        let weight_bytes = 2 * u64::from(self.parts) * shape.b_elements() as u64;
        let memory = (blocks * cost::HBM_BYTES_ALONE).min(all_sms * plan_cost::HBM_BYTES);
        (steps * step).max(l2).max(weight_bytes / memory) + add_up + plan_cost::TILE
    }

    fn stage_bytes(&self) -> usize {
        stage_bytes(self.tile.weight_rows as usize, self.tile_rows as usize)
    }

    /// Refuses shapes that have fewer steps than clusters have blocks, or more rows than a product of few
    /// tokens takes.
    pub fn check(&self, shape: GemmShape) -> Result<(), ContractError> {
        let most = StreamPlan::MAX_ROWS;
        let needed = std::format!("at most {most} of a product of few tokens");
        require(shape.m <= most, "m", needed, shape.m)?;
        let steps = self.tile.num_splits;
        let needed = std::format!("more than {} for {steps} blocks", (steps - 1) * 64);
        require(self.num_steps >= steps, "k", needed, shape.k)
    }

    /// How the copy engine loads the rows of tokens, `[m, k]`.
    pub fn rows_tiling(&self, shape: GemmShape) -> Tiling<2> {
        rows_tiling(shape.m, shape.k, self.tile_rows)
    }

    /// How the copy engine loads the weights of `shape`.
    pub fn weights_tiling(&self, shape: GemmShape) -> Tiling<4> {
        parts_tiling(self.parts, shape.n, shape.k, self.tile.weight_rows)
    }

    /// The launch.
    pub fn dims(&self) -> LaunchDims {
        LaunchDims {
            grid: [self.num_blocks(), 1, 1],
            block: [stream::NUM_THREADS, 1, 1],
            shared_bytes: (self.num_stages as usize * self.stage_bytes() + BARRIERS_BYTES) as u32,
        }
    }
}
