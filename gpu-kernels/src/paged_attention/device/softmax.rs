//! The softmax of a warp's tiles, on the tensor cores.

use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

use super::kv_format::KvFormat;
use crate::paged_attention::{AttentionParams, WorkItem, merge_row};

/// Where the rows of a tile that has landed lie in shared memory.
pub(super) trait TilePlaces: Copy {
    /// 16-byte piece `piece` of bytes `128 * block..128 * (block + 1)` of a token's K.
    unsafe fn k(self, token: u32, block: u32, piece: u32) -> Shared<u8>;
    /// The same of its V.
    unsafe fn v(self, token: u32, block: u32, piece: u32) -> Shared<u8>;
}

/// Two floats in another format, rounded to nearest even.
#[inline(always)]
fn convert<T: HalfFloat, U: HalfFloat>(pair: u32) -> u32 {
    if T::IS_BF16 == U::IS_BF16 {
        return pair;
    }
    let [low, high] = T::unpack(pair);
    U::pack(low, high)
}

/// The group's queries as B operands, heads past the group as zeros.
#[inline(always)]
pub(super) unsafe fn load_q<T: HalfFloat, F: KvFormat, const D: usize, const HT: usize>(
    params: &AttentionParams,
    q: Global<T>, // [batch, num_qo_heads, D]
    item: &WorkItem,
    lane: u32,
) -> [[[u32; 2]; 8]; HT] {
    let mut fragments = [[[0u32; 2]; 8]; HT];
    for (h, fragment) in fragments.iter_mut().enumerate() {
        let head = 8 * h as u32 + lane / 4;
        if head < params.group_size {
            let row = item.request * params.num_qo_heads + item.kv_head * params.group_size + head;
            let q_row = q.offset(row as usize * D);
            let dims = F::query_dims(lane);
            for step in 0..D / 16 {
                for i in 0..2 {
                    let pair = q_row.offset(16 * step + dims[i] as usize).cast::<u32>().load(0);
                    fragment[step][i] = convert::<T, F::Math>(pair);
                }
            }
        }
    }
    fragments
}

/// Combines what lanes of equal `lane % 4` hold: the rows of an accumulator column.
#[inline(always)]
unsafe fn reduce_rows(mut value: f32, combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lane_mask = 4;
    while lane_mask < WARP_SIZE {
        let (other, _) = warp::warp_shuffle_xor(FULL_MASK, value, lane_mask, WARP_SIZE);
        value = combine(value, other);
        lane_mask *= 2;
    }
    value
}

/// The softmax of one warp's tiles so far, for `8 * HT` heads of which a lane holds, of each tile
/// of 8, heads `2 (lane % 4)` and the next. `D / 16` rows of `output` are used.
pub(super) struct Softmax<const HT: usize> {
    maximum: [[f32; 2]; HT],
    /// Of this lane's tokens only.
    sum: [[f32; 2]; HT],
    output: [[[f32; 4]; 8]; HT],
}

impl<const HT: usize> Softmax<HT> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self {
            maximum: [[f32::NEG_INFINITY; 2]; HT],
            sum: [[0.0; 2]; HT],
            output: [[[0.0; 4]; 8]; HT],
        }
    }

    /// Takes in the 16 tokens of a tile that has landed; those from `num_tokens` on count nothing.
    #[inline(always)]
    pub(super) unsafe fn add_tile<F: KvFormat, const D: usize>(
        &mut self,
        q: &[[[u32; 2]; 8]; HT],
        places: impl TilePlaces,
        num_tokens: u32,
        sm_scale_log2: f32,
    ) {
        let lane = warp::lane_id();
        let (matrix, row_of_matrix) = (lane / 8, lane % 8);

        // Steps of a load add up apart: half as many products wait for each other.
        let mut scores_of = [[[0.0f32; 4]; HT]; 2];
        let k_row = matrix % 2 * 8 + row_of_matrix;
        for load in 0..D / (16 * F::STEPS) {
            let (block, piece) = (load as u32 / 4, load as u32 % 4 * 2 + matrix / 2);
            let loaded = mma::load_matrix_x4(places.k(k_row, block, piece));
            for step in 0..F::STEPS {
                let k = F::keys(loaded, step);
                for h in 0..HT {
                    let q = q[h][F::STEPS * load + step];
                    scores_of[step][h] = mma::m16n8k16::<F::Math>(k, q, scores_of[step][h]);
                }
            }
        }
        let mut scores = scores_of[0];
        if F::STEPS == 2 {
            for h in 0..HT {
                for i in 0..4 {
                    scores[h][i] += scores_of[1][h][i];
                }
            }
        }

        let mut weights = [[0u32; 2]; HT];
        let is_token = [lane / 4 < num_tokens, lane / 4 + 8 < num_tokens];
        for h in 0..HT {
            let mut weight = [0.0f32; 4];
            for j in 0..2 {
                let score_of = |row: usize| match is_token[row] {
                    true => scores[h][2 * row + j] * sm_scale_log2,
                    false => f32::NEG_INFINITY,
                };
                let score = [score_of(0), score_of(1)];
                let maximum = self.maximum[h][j].max(reduce_rows(score[0].max(score[1]), f32::max));
                let rescale = float::exp2(self.maximum[h][j] - maximum);
                weight[j] = float::exp2(score[0] - maximum);
                weight[j + 2] = float::exp2(score[1] - maximum);
                self.sum[h][j] = self.sum[h][j] * rescale + weight[j] + weight[j + 2];
                self.maximum[h][j] = maximum;
                for rows in 0..D / 16 {
                    self.output[h][rows][j] *= rescale;
                    self.output[h][rows][j + 2] *= rescale;
                }
            }
            weights[h] = [
                mma::transpose_8x8(F::Math::pack(weight[0], weight[1])),
                mma::transpose_8x8(F::Math::pack(weight[2], weight[3])),
            ];
        }

        let v_row = matrix / 2 * 8 + row_of_matrix;
        for load in 0..D / (16 * F::STEPS) {
            let (block, piece) = (load as u32 / 4, load as u32 % 4 * 2 + matrix % 2);
            let loaded = mma::load_matrix_x4_transposed(places.v(v_row, block, piece));
            for step in 0..F::STEPS {
                let v = F::values(loaded, step);
                let rows = F::STEPS * load + step;
                for h in 0..HT {
                    let output = self.output[h][rows];
                    self.output[h][rows] = mma::m16n8k16::<F::Math>(v, weights[h], output);
                }
            }
        }
    }

    /// Leaves the result in shared memory: the output by head, times `v_scale`, then maxima and
    /// sums.
    #[inline(always)]
    pub(super) unsafe fn store<F: KvFormat, const D: usize>(
        &self,
        place: WarpResult<D>,
        v_scale: f32,
    ) {
        let lane = warp::lane_id();
        for h in 0..HT {
            for j in 0..2 {
                let head = (8 * h + j) as u32 + lane % 4 * 2;
                let sum = reduce_rows(self.sum[h][j], |a, b| a + b);
                let dims = F::output_dims(lane);
                for rows in 0..D / 16 {
                    for i in 0..2 {
                        let d = 16 * rows as u32 + dims[i];
                        place.output(head, d).store(0, self.output[h][rows][j + 2 * i] * v_scale);
                    }
                }
                if lane < 4 {
                    place.maximum(head).store(0, self.maximum[h][j]);
                    place.sum(head).store(0, sum);
                }
            }
        }
    }
}

/// Where a warp leaves its result for the block: `[heads, D]` output, padded, `[heads]` maxima,
/// `[heads]` sums.
#[derive(Clone, Copy)]
pub(super) struct WarpResult<const D: usize> {
    pub(super) place: Shared<f32>,
    pub(super) num_heads: u32,
}

impl<const D: usize> WarpResult<D> {
    #[inline(always)]
    pub(super) unsafe fn output(self, head: u32, d: u32) -> Shared<f32> {
        self.place.offset((head * merge_row(D as u32) + d) as usize)
    }

    #[inline(always)]
    pub(super) unsafe fn maximum(self, head: u32) -> Shared<f32> {
        self.output(self.num_heads, head)
    }

    #[inline(always)]
    pub(super) unsafe fn sum(self, head: u32) -> Shared<f32> {
        self.output(self.num_heads, self.num_heads + head)
    }
}
